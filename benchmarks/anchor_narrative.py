"""`python -m benchmarks.anchor_narrative`: the fixed anchor against one renewed as the prompt changes, by narrative."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
from streaming.metrics.clip_registry import make_clip
from streaming.metrics.narrative import NUMBERS, NarrativeScore, narrative_score
from streaming.metrics.paired import Paired, Procedure, compare_pairs, holm
from streaming.openings import TextOpening
from streaming.parts import Parts, assemble
from streaming.prompts import PromptSchedule
from streaming.registry import make_long_term, make_short_term, open_model
from streaming.sample import Sampler

Video = UInt8[Tensor, "1 time 3 rows cols"]
POLICIES: dict[str, AnchorPolicy] = {"fixed": Never(), "renewed": OnPromptChange()}


def main(
    model: str = "tiny-modelscope",
    schedules: Annotated[int, typer.Option(help="Pairs of prompts, the second from the middle of the video on")] = 8,
    seeds: int = 1,
    frames: int = 48,
    steps: int | None = None,
    guidance: float | None = None,
    clip: Annotated[str, typer.Option(help="CLIP model, as `evaluate --clip`")] = "embedded",
    device: str = "cpu",
    batch: int = 8,
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
    asked = _schedules(schedules, change)
    encoder, settles = make_clip(clip), (0, later)
    scores: dict[tuple[str, int], list[NarrativeScore]] = {}
    for name, kit in parts.items():
        for seed in range(seeds):
            for prompts, video in zip(asked, _videos(kit, asked, frames, seed, batch), strict=True):
                for settle in settles:
                    found = narrative_score([video], prompts, encoder, settle=settle, piece=later)
                    scores.setdefault((name, settle), []).append(found)
    print(
        f"{model}: {schedules} schedules x {seeds} seeds, {frames} frames, the prompt changes at {change}, "
        f"{parts['fixed'].sampler.steps} steps of {parts['fixed'].sampler.kind}\n"
    )
    for settle in settles:
        _report(scores["fixed", settle], scores["renewed", settle], settle)
    if output:
        told = {
            f"{name}, settle {settle}": [asdict(each) for each in found] for (name, settle), found in scores.items()
        }
        output.write_text(json.dumps(told, indent=1))


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


def _videos(parts: Parts, schedules: list[PromptSchedule], frames: int, seed: int, batch: int) -> Iterator[Video]:
    """One for each schedule, on the CPU; the same keys for every policy."""
    chunks = chunks_needed(parts, TextOpening(), frames)
    for begin in range(0, len(schedules), batch):
        group = schedules[begin : begin + batch]
        keys = [Key(seed).fold("schedule", begin + i) for i in range(len(group))]
        made = stream(parts, group, TextOpening(), key=keys, chunks=chunks)
        video = torch.cat([chunk.frames.mul(255).round().to(torch.uint8) for chunk in made], dim=1)
        yield from video[:, :frames].split(1)


def _report(fixed: list[NarrativeScore], renewed: list[NarrativeScore], settle: int) -> None:
    found: dict[str, Paired] = {}
    for name, meaning in NUMBERS.items():
        left, right = ([getattr(one, name.removeprefix("narrative_")) for one in side] for side in (fixed, renewed))
        found[name] = compare_pairs(left, right, Procedure(), name=name, better=meaning.better)
    print(f"All frames, n = {len(fixed)}" if not settle else f"\nWithout the {settle} frames after the change")
    print("\n| score | fixed | renewed | difference | 95 % interval | p | p (Holm) |\n|" + " --- |" + " ---: |" * 6)
    for (name, number), corrected in zip(found.items(), holm([each.p for each in found.values()]), strict=True):
        low, high = number.interval or (float("nan"), float("nan"))
        print(
            f"| {name} | {number.means[0]:.3f} | {number.means[1]:.3f} | {number.difference:+.3f} | "
            f"{low:+.3f} … {high:+.3f} | {number.p:.3f} | {corrected:.3f} |"
        )


if __name__ == "__main__":
    typer.run(main)
