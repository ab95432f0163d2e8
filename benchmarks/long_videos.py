"""`python -m benchmarks.long_videos`: what long videos keep, at chunk borders and over their whole length."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Int, UInt8
from torch import Tensor

from backends.world import ATTRIBUTES, COLOURS
from benchmarks.clips import Prompts, draw_prompts, make_videos
from benchmarks.hidden import calibrate, kept
from benchmarks.intervals import Estimate, mean, ratio, share
from benchmarks.judged import Referee, appoint, judge_folder, tell
from benchmarks.measures import Job, Look, measured
from benchmarks.over_time import EVERY, collapse, draw, draw_sheet, stretches
from streaming.guidance import ClassifierFree
from streaming.keys import Key
from streaming.loop import chunk_lengths
from streaming.metrics.clip_registry import make_clip
from streaming.openings import TextOpening
from streaming.parts import assemble
from streaming.registry import make_long_term, make_short_term, open_model
from streaming.sample import Sampler

Row = dict[str, Any]
"""The figures of one video."""
Video = UInt8[Tensor, "time 3 rows cols"]


def main(
    model: str = "tiny-modelscope",
    judge: Annotated[
        str | None, typer.Option(help="Model directory that holds judge/; default: the model's own, or the packaged")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1)] = 64,
    frames: Annotated[int, typer.Option(min=56)] = 240,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    unsaid: Annotated[
        bool, typer.Option(help='Prompts that name neither "medium" nor a static camera, as a user may leave them out')
    ] = False,
    told: Annotated[
        bool,
        typer.Option(help="The first chunk's prompt names the object's pattern, which later only a memory can know"),
    ] = False,
    short_term: str | None = None,
    long_term: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    judge_clips: Annotated[int, typer.Option(min=2, help="Renders on which the judge itself is examined")] = 512,
    device: str = "cpu",
    batch: Annotated[int | None, typer.Option(help="Videos made together; default: 64 on a GPU, 16 on a CPU")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that measure; default: all cores, at most 16")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON with all figures and those of every video")] = None,
    videos: Annotated[
        Path | None, typer.Option(help="safetensors with the first 16 videos, for contact sheets")
    ] = None,
    over_time: Annotated[
        Path | None,
        typer.Option(help="Folder for over_time.png and sheet.png: measures and frames of every 100 frames"),
    ] = None,
) -> None:
    """Prints the figures with 95 % intervals; see docs/benchmarks.md for what each means."""
    if told and unsaid:
        raise typer.BadParameter("--told names more, --unsaid less: leave one out", param_hint="--told")
    if over_time is not None and frames < EVERY:
        raise typer.BadParameter(f"--over-time needs at least {EVERY} frames, not {frames}", param_hint="--frames")
    where = torch.device(device)
    opened = open_model(model, device=where, dtype=torch.float32)
    defaults = opened.defaults
    short_term, long_term = short_term or defaults.short_term, long_term or defaults.long_term
    parts = assemble(
        opened,
        short=make_short_term(short_term, opened),
        long=make_long_term(long_term, opened),
        sampler=Sampler(sampler or defaults.sampler, steps or defaults.steps, defaults.eta),
        guidance=ClassifierFree(defaults.guidance if guidance is None else guidance),
    )
    referee = appoint(judge_folder(judge, opened.directory), parts.codec, where, clips=judge_clips)
    tell(referee)
    first, stride = chunk_lengths(parts, TextOpening())
    asked = draw_prompts(prompts, 0, complete=not unsaid, told=told)
    at_once = batch or (64 if where.type == "cuda" else 16)

    begin = time.perf_counter()
    every = [
        video
        for seed in range(seeds)
        for video in make_videos(parts, asked.texts, frames, seed=seed, batch=at_once, openings=asked.openings)
    ]
    made = time.perf_counter() - begin
    rows = describe(asked, every, referee, seeds=seeds, first=first, stride=stride, workers=_workers(workers, every))
    print(f"made in {made:.1f} s, measured in {time.perf_counter() - begin - made:.1f} s", flush=True)
    figures = summary(rows, referee, prompts)
    about = {
        "model": model, "memories": f"{short_term} + {long_term}", "frames": frames, "seeds": seeds, "prompts": prompts,
        "sampler": parts.sampler.kind, "steps": parts.sampler.steps, "guidance": parts.guidance.scale,
        "device": str(where), "batch": at_once, "complete prompts": not unsaid, "looks told once": told,
        "judge": {"renders": dict(referee.renders), "after the autoencoder": dict(referee.coded)},
        "hidden pattern of renders": calibrate(referee, parts.codec, where, clips=judge_clips, frames=frames),
    }  # fmt: skip
    if over_time is not None:
        figures |= follow(rows, every, asked, referee, over_time, f"{model}, {about['memories']}")
    _tell(f"{about['memories']}: {len(rows)} videos of {frames} frames", figures, about["hidden pattern of renders"])
    if output:
        plain = {k: asdict(v) if isinstance(v, Estimate) else v for k, v in figures.items()}
        output.write_text(json.dumps(about | {"figures": plain, "videos": rows}, indent=1) + "\n")
    if videos:
        keep(videos, every[:16], rows)


def _workers(given: int | None, videos: Sequence[Video]) -> int:
    """One for a few videos: a process takes some seconds to start."""
    return given or (min(16, os.cpu_count() or 1) if len(videos) >= 16 else 1)


def describe(
    asked: Prompts, videos: Sequence[Video], referee: Referee, *, seeds: int, first: int, stride: int, workers: int
) -> list[Row]:
    """Figures of every video, seed by seed; what the judge says of the first and the last frames in words."""
    colours = [COLOURS[i] for i in asked.scenes.colour.tolist()] * seeds
    jobs = (Job(video=v, first=first, stride=stride, colour=c) for v, c in zip(videos, colours, strict=True))
    length = referee.judge.config.frames
    ends = {
        "first": referee.ask(torch.stack([video[:length] for video in videos])),
        "last": referee.ask(torch.stack([video[-length:] for video in videos])),
    }
    rows = []
    names = list(product(range(seeds), range(len(asked.texts))))
    for i, ((seed, prompt), found) in enumerate(zip(names, measured(jobs, workers), strict=True)):
        words = {n: {k: referee.words(k)[int(a[i])] for k, a in told.items()} for n, told in ends.items()}
        wanted = {k: each[int(asked.scenes.attribute(k)[prompt])] for k, each in ATTRIBUTES.items()}
        rows.append({"prompt": asked.texts[prompt], "seed": seed, "asked": wanted, "judge": words, **found})
    return rows


def summary(rows: Sequence[Row], referee: Referee, prompts: int) -> dict[str, Any]:
    """All figures but those over time, each with an interval."""
    table = [rows[i::prompts] for i in range(prompts)]  # prompts x seeds

    def values(get: Callable[[Row], float | None]) -> list[list[float | None]]:
        return [[get(row) for row in each] for each in table]

    def of(name: str) -> list[list[float | None]]:
        return values(lambda row: row[name])

    key = Key(0).fold("benchmark", "long videos")
    figures: dict[str, Any] = {
        "cuts a video": mean(of("cuts"), key),
        "border/inside": ratio(of("border"), of("inside"), key),
        "object found": mean(of("object_found"), key),
        "object jump, border/inside": ratio(of("object_jump_border"), of("object_jump_inside"), key),
        "object jump at borders, pixels": mean(of("object_jump_border"), key),
        "object jump inside, pixels": mean(of("object_jump_inside"), key),
        "object size drift": mean(of("object_size_drift"), key),
        "object colour drift, levels": mean(of("object_colour_drift"), key),
    }
    for name in Look.__dataclass_fields__:
        start, end = (values(lambda row, side=side, name=name: row[side][name]) for side in ("start", "end"))
        figures[f"{name}, end/start"] = ratio(end, start, key)
    return figures | _judged(table, referee)


def _judged(table: Sequence[Sequence[Row]], referee: Referee) -> dict[str, Any]:
    """Share of videos that show what was asked for in the first and the last chunk, and what was hidden."""
    figures: dict[str, Any] = {}
    told = {end: {name: _indices(table, end, name, referee) for name in referee.judge.config.attributes}
            for end in ("first", "last")}  # fmt: skip
    wanted = {
        name: torch.tensor([[words.index(row["asked"][name]) for row in each] for each in table])
        for name, words in ATTRIBUTES.items()
    }
    right = {(end, name): told[end][name] == wanted[name] for end, name in product(told, wanted) if referee.may(name)}
    figures |= {f"{end} chunk: {name}": share(hits) for (end, name), hits in right.items()}
    if referee.may("colour") and referee.may("shape"):
        for end in told:
            figures[f"{end} chunk: colour + shape"] = share(right[end, "colour"] & right[end, "shape"])
    for name, found in kept(told["first"], told["last"], referee).items():
        figures[f"hidden {name} kept"] = found.kept
        figures[f"hidden {name} kept, by chance"] = found.chance
        figures["first chunk shows a pattern"] = found.shown
    return figures


def _indices(table: Sequence[Sequence[Row]], end: str, name: str, referee: Referee) -> Int[Tensor, "prompts seeds"]:
    words = referee.words(name)
    return torch.tensor([[words.index(row["judge"][end][name]) for row in each] for each in table])


def follow(
    rows: Sequence[Row], videos: Sequence[Video], asked: Prompts, referee: Referee, folder: Path, title: str
) -> dict[str, Any]:
    """Measures over time, into the rows and a plot; a contact sheet; how many videos collapsed."""
    clip = make_clip("embedded")
    for row, video in zip(rows, videos, strict=True):
        row["over time"] = stretches(video, referee, clip)
        row["collapse"] = collapse(row["over time"], row["asked"]["place"])
    draw(folder / "over_time.png", [row["over time"] for row in rows], [row["asked"] for row in rows], title)
    draw_sheet(folder / "sheet.png", videos, [f"{row['prompt']}, seed {row['seed']}" for row in rows])
    fallen = [row for row in rows if row["collapse"] is not None]
    return {
        "collapsed": len(fallen),
        "collapses": [f"{r['prompt']}, seed {r['seed']}: {r['collapse']}" for r in fallen],
    }


def _tell(title: str, figures: dict[str, Any], renders: dict[str, float]) -> None:
    print(title)
    for name, value in figures.items():
        if name == "collapses":
            continue
        told = f"{value:.3f}" if isinstance(value, float) else str(value)
        print(f"  {name:34}{told}")
    for line in figures.get("collapses", ()):
        print(f"    {line}")
    told = ", ".join(f"{name} {value:.3f}" for name, value in renders.items())
    print(f"  hidden pattern kept by renders: {told or 'not judged (the judge does not know patterns)'}", flush=True)


def keep(path: Path, videos: Sequence[Video], rows: Sequence[Row]) -> None:
    """Write the videos with what was asked for: `prompts`, and as words of the judge's attributes `asked`."""
    from safetensors.torch import save_file

    named: Iterator[tuple[str, Tensor]] = ((f"{i:02d}", v.contiguous()) for i, v in enumerate(videos))
    told = {"prompts": "prompt", "asked": "asked"}
    about = {name: json.dumps([row[of] for row in rows[: len(videos)]]) for name, of in told.items()}
    save_file(dict(named), path, about)


if __name__ == "__main__":
    typer.run(main)
