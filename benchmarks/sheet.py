"""`python -m benchmarks.sheet VIDEOS SHEET.png`: contact sheets.

VIDEOS is an mp4 (rows follow one another) or what `benchmarks.long_videos` kept (one row a video, its prompt above).
"""

import json
from pathlib import Path

import torch
import typer
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from safetensors import safe_open
from torch import Tensor

Row = tuple[str, UInt8[Tensor, "frames 3 rows cols"]]
GAP, TEXT = 2, 14


def main(videos: Path, sheet: Path, every: int = 20, scale: int = 1, count: int = 16, columns: int = 13) -> None:
    """Writes the contact sheet."""
    rows = (
        _from_mp4(videos, every, columns) if videos.suffix == ".mp4" else _from_archive(videos, every, count, columns)
    )
    contact_sheet(rows, scale).save(sheet, optimize=True)


def contact_sheet(rows: list[Row], scale: int = 1) -> Image.Image:
    """A picture with the frames of each row side by side, its prompt above; pixels enlarged `scale` times."""
    side = rows[0][1].shape[-1] * scale
    heights = [side + GAP + (TEXT if prompt else 0) for prompt, _ in rows]
    canvas = Image.new("RGB", (max(len(frames) for _, frames in rows) * (side + GAP), sum(heights)), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for (prompt, frames), height in zip(rows, heights, strict=True):
        draw.text((2, top + 1), prompt, fill="black")
        for column, frame in enumerate(frames):
            picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
            place = (column * (side + GAP), top + height - side - GAP)
            canvas.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
        top += height
    return canvas


def _from_archive(path: Path, every: int, count: int, columns: int) -> list[Row]:
    with safe_open(path, "pt") as archive:
        prompts = json.loads(archive.metadata()["prompts"])
        names = sorted(archive.keys())[:count]
        return [(p, archive.get_tensor(n)[::every][:columns]) for n, p in zip(names, prompts, strict=False)]


def _from_mp4(path: Path, every: int, columns: int) -> list[Row]:
    from streaming.video import read_video

    frames = torch.cat([piece[0] for piece in read_video(path).pieces])[::every]
    return [("", part.mul(255).round().to(torch.uint8)) for part in frames.split(columns)]


if __name__ == "__main__":
    typer.run(main)
