"""`python -m benchmarks.evaluation_speed`: how fast `streamingt2v evaluate` is, from start to finished reports."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional

from benchmarks.speed import _watch
from streaming.keys import Key
from streaming.video import VideoWriter


def main(
    frames: Annotated[int, typer.Option(help="Of each video")] = 240,
    side: Annotated[int, typer.Option(help="Of videos and evaluation, pixels")] = 256,
    cores: Annotated[int, typer.Option(help="Cores that may be used")] = 2,
    extra: Annotated[str, typer.Option(help="Further options of `evaluate`, in one string")] = "",
) -> None:
    """Prints frames/s for one video in one process, and for a video in each of as many processes as there are cores."""
    with tempfile.TemporaryDirectory() as folder:
        videos = [_video(Path(folder) / f"{index}.mp4", frames, side, index) for index in range(cores)]
        for some in (videos[:1], videos):
            command = [sys.executable, "-m", "streaming.cli", "evaluate", *map(str, some), "--jobs", str(len(some))]
            command += ["--size", f"{side}x{side}", "--output", f"{folder}/out", "--overwrite", *extra.split()]
            seconds, peak = _watch(command, cores)
            told = f"{len(some)} videos of {frames} frames, {len(some)} at once: {seconds:.1f} s"
            print(
                f"{told}, {len(some) * frames / seconds:.1f} frames/s, peak {peak / 2**20:.0f} MiB a process",
                flush=True,
            )


def _video(path: Path, frames: int, side: int, seed: int) -> Path:
    """A smooth texture that a window wanders over, with an object that crosses it."""
    coarse = torch.rand(1, 3, 24, 24, generator=Key(seed).fold("texture").generator())
    texture = functional.interpolate(coarse, (2 * side, 2 * side), mode="bicubic").clamp(0, 1)[0]
    with VideoWriter(path, fps=8.0, height=side, width=side) as writer:
        for index in range(frames):
            left = abs((2 * index) % (2 * side) - side)
            frame = texture[:, left // 2 : left // 2 + side, left : left + side].clone()
            frame[:, side // 2 : side // 2 + side // 6, left * 3 // 4 : left * 3 // 4 + side // 6] = 0.9
            writer.write(frame[None, None])
    return path


if __name__ == "__main__":
    typer.run(main)
