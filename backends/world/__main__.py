"""Write a contact sheet of random scenes with their captions: `python -m backends.world --output sheet.png`."""

import argparse

import torch
from torch import Tensor

from backends.world import Scenes, canonical_captions, render, sample_scenes


def contact_sheet(scenes: Scenes, *, columns: int, size: int, zoom: int, start: float, step: int) -> Tensor:
    """A picture [height, width, 3] (uint8) with a row a scene, 18 free pixels above each for its caption."""
    video = render(scenes, frames=columns, start=start, fps=8.0 / step, size=size)
    video = video.repeat_interleave(zoom, dim=-1).repeat_interleave(zoom, dim=-2)
    video = torch.nn.functional.pad(video, (1, 1, 18, 2), value=255)
    return video.permute(0, 3, 1, 4, 2).reshape(len(scenes) * video.shape[3], -1, 3)


def main() -> None:
    """Parse the options, draw the sheet, write it with Pillow."""
    from PIL import Image, ImageDraw

    parser = argparse.ArgumentParser(prog="python -m backends.world", description=__doc__)
    parser.add_argument("--output", default="sheet.png", help="PNG file to write")
    parser.add_argument("--rows", type=int, default=12, help="scenes")
    parser.add_argument("--columns", type=int, default=10, help="frames of each scene")
    parser.add_argument("--size", type=int, default=64, help="pixels of a frame's side")
    parser.add_argument("--zoom", type=int, default=2, help="how often a pixel is repeated")
    parser.add_argument("--step", type=int, default=2, help="every how manieth frame (at 8 a second) is shown")
    parser.add_argument("--start", type=float, default=0.0, help="time of the first frame (seconds)")
    parser.add_argument("--seed", type=int, default=0, help="which scenes")
    options = parser.parse_args()
    scenes = sample_scenes(options.rows, torch.Generator().manual_seed(options.seed))
    sheet = contact_sheet(
        scenes, columns=options.columns, size=options.size, zoom=options.zoom, start=options.start, step=options.step
    )
    picture = Image.fromarray(sheet.numpy())
    pen, pitch = ImageDraw.Draw(picture), sheet.shape[0] // options.rows
    for row, caption in enumerate(canonical_captions(scenes)):
        pen.text((4, row * pitch + 3), caption, fill=(0, 0, 0))
    picture.save(options.output)


if __name__ == "__main__":
    main()
