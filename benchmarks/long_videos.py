"""`python -m benchmarks.long_videos`: cuts, border ratio and drift of long videos, with the memories asked for."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer

from benchmarks.clips import draw_prompts, make_videos
from benchmarks.measures import Look, border_ratio, count_cuts, look
from streaming.guidance import ClassifierFree
from streaming.parts import assemble
from streaming.registry import make_long_term, make_short_term, open_model
from streaming.sample import Sampler


def main(
    model: str = "tiny-modelscope",
    prompts: int = 32,
    frames: int = 240,
    seeds: int = 2,
    short_term: str | None = None,
    long_term: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    device: str = "cpu",
    batch: int = 16,
    output: Annotated[Path | None, typer.Option(help="JSON with the figures of every video")] = None,
    videos: Annotated[
        Path | None, typer.Option(help="safetensors with the first 16 videos, for contact sheets")
    ] = None,
) -> None:
    """Prints one table line; see docs/benchmarks.md for what each figure means."""
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
    window = opened.backbone.window
    asked = draw_prompts(prompts, 0)
    rows, kept = [], []
    for seed in range(seeds):
        for text, video in zip(
            asked.texts, make_videos(parts, asked.texts, frames, seed=seed, batch=batch), strict=True
        ):
            border, inside = border_ratio(video, window.frames, window.frames - window.overlap)
            rows.append(
                {"prompt": text, "seed": seed, "cuts": count_cuts(video), "border": border, "inside": inside}
                | {"start": asdict(look(video[:40])), "end": asdict(look(video[-40:]))}
            )
            if len(kept) < 16:
                kept.append(video)
    _report(rows, f"{short_term} + {long_term}")
    if output:
        output.write_text(json.dumps(rows, indent=1))
    if videos:
        from safetensors.torch import save_file

        save_file(
            {f"{i:02d}": v.contiguous() for i, v in enumerate(kept)},
            videos,
            {"prompts": json.dumps(asked.texts[: len(kept)])},
        )


def _report(rows: list[dict], name: str) -> None:
    cuts = mean(row["cuts"] for row in rows)
    ratio = mean(row["border"] for row in rows) / mean(row["inside"] for row in rows)
    changes = {field: _change(rows, field) for field in Look.__dataclass_fields__}
    drift = "  ".join(f"{field} {change:+.1%}" for field, change in changes.items())
    print(
        f"{name}: {len(rows)} videos, {cuts:.3f} cuts a video, border/inside {ratio:.2f}, end against start: {drift}",
        flush=True,
    )


def _change(rows: list[dict], field: str) -> float:
    return mean(row["end"][field] for row in rows) / mean(row["start"][field] for row in rows) - 1


if __name__ == "__main__":
    typer.run(main)
