"""`python -m benchmarks.anchor_narrative`: the fixed anchor against one renewed as the prompt changes, by narrative."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, TypeAlias

import torch
import typer
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.clips import draw_prompts
from streaming.anchor import AnchorPolicy, Never, OnPromptChange
from streaming.errors import UserError
from streaming.guidance import ClassifierFree
from streaming.keys import Key
from streaming.loop import chunk_lengths, chunks_needed, stream
from streaming.metrics.clip import ClipEncoder, unit
from streaming.metrics.clip_registry import make_clip
from streaming.metrics.contract import Observation, Tools
from streaming.metrics.described import versions
from streaming.metrics.narrative import NUMBERS, Narrative, NarrativeScore
from streaming.metrics.paired import Paired, Procedure, compare_pairs, holm
from streaming.openings import TextOpening
from streaming.parts import Parts, assemble
from streaming.prompts import PromptSchedule
from streaming.registry import make_long_term, make_short_term, open_model
from streaming.sample import Sampler

Video = UInt8[Tensor, "1 time 3 rows cols"]
Asked: TypeAlias = tuple[int, PromptSchedule, int]
"""Place of the schedule, the schedule, seed."""
POLICIES: dict[str, AnchorPolicy] = {"fixed": Never(), "renewed": OnPromptChange()}


def main(
    model: str = "tiny-modelscope",
    schedules: Annotated[int, typer.Option(help="Pairs of prompts, the second from the middle of the video on")] = 32,
    seeds: Annotated[int, typer.Option(help="Videos of each; a pair of the statistics is the mean over them")] = 4,
    frames: int = 48,
    steps: int | None = None,
    guidance: float | None = None,
    clip: Annotated[str, typer.Option(help="CLIP model, as `evaluate --clip`")] = "embedded",
    device: str = "cpu",
    batch: Annotated[int, typer.Option(help="Videos at once, of any schedule and seed")] = 64,
    output: Annotated[Path | None, typer.Option(help="JSON with the scores of every video")] = None,
) -> None:
    """Prints the paired comparison, once with all frames and once without the first chunk of the second prompt.

    Both policies make the same videos up to that chunk's end: the anchor is renewed behind it.
    """
    parts = {name: _parts(model, policy, steps, guidance, device) for name, policy in POLICIES.items()}
    first, later = chunk_lengths(parts["fixed"], TextOpening())
    change = first + max(0, round((frames / 2 - first) / later)) * later
    if change + later >= frames:
        raise UserError(f"{frames} frames: nothing comes behind a renewed anchor, ask for more than {change + later}")
    asked = [(place, prompts, seed) for place, prompts in enumerate(_schedules(schedules, change))
             for seed in range(seeds)]  # fmt: skip
    encoder, settles, started = make_clip(clip), (0, later), time.monotonic()
    videos: list[dict[str, Any]] = []
    for name, kit in parts.items():
        for (place, prompts, seed), video in zip(asked, _videos(kit, asked, frames, batch), strict=True):
            found = _scores(video, prompts, encoder, settles, later)
            scores = {f"settle {settle}": asdict(score) for settle, score in zip(settles, found, strict=True)}
            videos.append({"anchor": name, "schedule": place, "seed": seed, "prompts": prompts.entries, **scores})
        print(f"{name}: {len(asked)} videos, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    sampler = parts["fixed"].sampler
    settings = {
        "model": model, "schedules": schedules, "seeds": seeds, "frames": frames, "change": change,
        "steps": sampler.steps, "sampler": sampler.kind, "guidance": guidance, "clip": encoder.settings(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "versions": versions(["torch", "streamingt2v", *encoder.modules]), "statistics": Procedure().settings(),
    }  # fmt: skip
    print(
        f"{model}: {schedules} schedules x {seeds} seeds, {frames} frames, the prompt changes at {change}, "
        f"{sampler.steps} steps of {sampler.kind}, {settings['device']}\n"
    )
    compared = {f"settle {settle}": _report(videos, settle, schedules) for settle in settles}
    if output:
        output.write_text(json.dumps({"settings": settings, "compared": compared, "videos": videos}, indent=1) + "\n")


def _parts(model: str, policy: AnchorPolicy, steps: int | None, guidance: float | None, device: str) -> Parts:
    opened = open_model(model, device=torch.device(device), dtype=torch.float32)
    defaults = opened.defaults
    return assemble(
        opened,
        short=make_short_term(defaults.short_term, opened),
        long=make_long_term(defaults.long_term, opened),
        sampler=Sampler(defaults.sampler, steps or defaults.steps, defaults.eta),
        guidance=None if guidance is None else ClassifierFree(guidance),
        anchors=policy,
    )


def _schedules(count: int, change: int) -> list[PromptSchedule]:
    """Two prompts each that differ; both name every attribute."""
    texts = draw_prompts(2 * count, 0).texts
    return [PromptSchedule.of({0: one, change: other}) for one, other in zip(texts[::2], texts[1::2], strict=True)]


def _videos(parts: Parts, asked: Sequence[Asked], frames: int, batch: int) -> Iterator[Video]:
    """One for each schedule and seed, on the CPU; the same keys for every policy, whatever the batch."""
    chunks = chunks_needed(parts, TextOpening(), frames)
    for begin in range(0, len(asked), batch):
        group = asked[begin : begin + batch]
        keys = [Key(seed).fold("schedule", place) for place, _, seed in group]
        made = stream(parts, [prompts for _, prompts, _ in group], TextOpening(), key=keys, chunks=chunks)
        video = torch.cat([chunk.frames.mul(255).round().to(torch.uint8) for chunk in made], dim=1)
        yield from video[:, :frames].split(1)


def _scores(
    video: Video, prompts: PromptSchedule, encoder: ClipEncoder, settles: Sequence[int], piece: int
) -> list[NarrativeScore]:
    """As `narrative_score` for each number of frames to settle, but every frame is embedded once."""
    meters = [Narrative(prompts=prompts, settle=settle, piece=piece).start(Tools(clip=encoder)) for settle in settles]
    embeddings = unit(encoder.images(video[0]), "the frames")
    for index, (frame, embedding) in enumerate(zip(video[0], embeddings, strict=True)):
        seen = Observation(index=index, shown=frame, frame=frame, embedding=embedding)
        for meter in meters:
            meter.add(seen)
    return [meter.score() for meter in meters]


def _report(videos: Sequence[Mapping[str, Any]], settle: int, schedules: int) -> dict[str, Any]:
    """Prints a table and gives what stands in it. A pair is a schedule: seeds of one are not independent."""
    found: dict[str, Paired] = {}
    for name, meaning in NUMBERS.items():
        score = name.removeprefix("narrative_")
        left, right = ([_mean_of(videos, policy, place, settle, score) for place in range(schedules)]
                       for policy in POLICIES)  # fmt: skip
        found[name] = compare_pairs(left, right, Procedure(), name=name, better=meaning.better)
    print(f"All frames, n = {schedules}" if not settle else f"\nWithout the {settle} frames after the change")
    print("\n| score | fixed | renewed | difference | 95 % interval | p | p (Holm) |\n|" + " --- |" + " ---: |" * 6)
    corrected = holm([each.p for each in found.values()])
    for (name, number), p in zip(found.items(), corrected, strict=True):
        low, high = number.interval or (float("nan"), float("nan"))
        print(
            f"| {name} | {number.means[0]:.3f} | {number.means[1]:.3f} | {number.difference:+.3f} | "
            f"{low:+.3f} … {high:+.3f} | {number.p:.3f} | {p:.3f} |"
        )
    return {name: asdict(number) | {"p_holm": p} for (name, number), p in zip(found.items(), corrected, strict=True)}


def _mean_of(videos: Sequence[Mapping[str, Any]], policy: str, place: int, settle: int, score: str) -> float | None:
    """Over the seeds of a schedule; None if one of them has no such score."""
    values = [
        each[f"settle {settle}"][score] for each in videos if each["anchor"] == policy and each["schedule"] == place
    ]
    return None if None in values else fmean(values)


if __name__ == "__main__":
    typer.run(main)
