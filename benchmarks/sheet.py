"""`python -m benchmarks.sheet VIDEOS.safetensors SHEET.png`: one row a video, every 20th frame, its prompt above."""

import json
from pathlib import Path

import typer
from PIL import Image, ImageDraw
from safetensors import safe_open


def main(videos: Path, sheet: Path, every: int = 20, scale: int = 1, rows: int = 16) -> None:
    """Writes the contact sheet."""
    with safe_open(videos, "pt") as archive:
        prompts = json.loads(archive.metadata()["prompts"])
        clips = [archive.get_tensor(name) for name in sorted(archive.keys())[:rows]]
    picked = [list(range(0, len(clip), every)) + [len(clip) - 1] for clip in clips]
    side, gap, text = clips[0].shape[-1] * scale, 2, 14
    width = max(map(len, picked)) * (side + gap)
    canvas = Image.new("RGB", (width, len(clips) * (side + gap + text)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (clip, frames, prompt) in enumerate(zip(clips, picked, prompts, strict=False)):
        top = row * (side + gap + text)
        draw.text((2, top + 1), prompt, fill="black")
        for column, frame in enumerate(frames):
            picture = Image.fromarray(clip[frame].permute(1, 2, 0).numpy()).resize(
                (side, side), Image.Resampling.NEAREST
            )
            canvas.paste(picture, (column * (side + gap), top + text))
    canvas.save(sheet)


if __name__ == "__main__":
    typer.run(main)
