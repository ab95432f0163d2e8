"""Stage 3 on the command line: what `generate --enhance` and `enhance` share."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from streaming.cli.progress import Display, Stage
from streaming.enhance import Enhancer, assemble_enhancer, enhance_causal, enhance_joint
from streaming.errors import UserError
from streaming.keys import Key
from streaming.prompts import PromptSchedule
from streaming.registry import make_blender, open_enhancer
from streaming.types import Frames
from streaming.video import VideoWriter

MOST_JOINT = 10_000
"""Frames that joint mode takes; it holds the video in memory."""


def load(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    blender: str | None = None,
    preset: str = "paper",
    steps: int | None = None,
    strength: float | None = None,
    guidance: float | None = None,
    negative_prompt: str = "",
) -> Enhancer:
    """The enhancer of a model, with its own window as chunk and overlap; None: its own defaults, or the preset's."""
    model = open_enhancer(name, device=device, dtype=dtype)
    window = model.backbone.window
    return assemble_enhancer(
        model,
        None if blender is None else make_blender(blender, window.frames, window.overlap),
        preset=preset,
        steps=steps,
        strength=strength,
        guidance=guidance,
        negative_prompt=negative_prompt,
    )


def shaped(enhancer: Enhancer, rows: int, cols: int) -> Enhancer:
    """The enhancer for a video of rows x cols: its shorter side as it was made for, or as large as fits a canvas."""
    factor, canvas = enhancer.codec.factor, enhancer.canvas
    scale = min(enhancer.height, enhancer.width) / min(rows, cols)
    if canvas is not None:
        scale = min(canvas[0] / rows, canvas[1] / cols)
    high, wide = (max(1, round(side * scale / factor)) for side in (rows, cols))
    if canvas is None:
        high, wide = enhancer.backbone.fitting_size(high, wide)
    return enhancer.sized(high * factor, wide * factor)


def enhanced(
    enhancer: Enhancer,
    mode: str,
    frames: Iterable[Frames],
    prompts: PromptSchedule,
    key: Key,
    total: int | None,
    display: Display,
) -> Iterator[Frames]:
    """The enhanced video in pieces, with its progress shown. total: its frames, None if unknown."""
    if mode == "causal":
        return _counted(enhance_causal(enhancer, frames, prompts, key=key), display.stage("enhancing", total))
    video = _whole(frames)
    progress = display.stage("enhancing", video.shape[1])

    def report(done: int, of: int) -> None:
        chunks = of // enhancer.sampler.steps
        step = f"step {(done - 1) // chunks + 1} of {enhancer.sampler.steps}"
        progress.reach(video.shape[1] * done // of, f"{step}, chunk {(done - 1) % chunks + 1} of {chunks}")

    return enhance_joint(enhancer, video, prompts, key=key, progress=report)


def too_long() -> str:
    """What is wrong with a video of more than `MOST_JOINT` frames."""
    return f"more than {MOST_JOINT} frames are too many for joint enhancement: use the causal mode"


def _whole(pieces: Iterable[Frames]) -> Frames:
    held, count = [], 0
    for piece in pieces:
        held.append(piece)
        count += piece.shape[1]
        if count > MOST_JOINT:
            raise UserError(too_long())
    return torch.cat(held, dim=1)


def _counted(pieces: Iterator[Frames], progress: Stage) -> Iterator[Frames]:
    for index, piece in enumerate(pieces, start=1):
        progress.reach(progress.done + piece.shape[1], f"piece {index}")
        yield piece


def write(pieces: Iterator[Frames], path: Path, fps: float, enhancer: Enhancer) -> None:
    """Writes the enhanced video; one that is there already stays until the new one is complete, whatever happens."""
    target = path.with_name(path.stem + ".again.mp4") if path.exists() else path
    try:
        height, width = enhancer.made
        with VideoWriter(target, fps=fps, height=height, width=width) as video:
            for piece in pieces:
                video.write(piece)
    except BaseException:
        if target != path:
            target.unlink(missing_ok=True)
        raise
    if target != path:
        os.replace(target, path)
