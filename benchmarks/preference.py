"""`python -m benchmarks.preference VIDEOS ENHANCED FOLDER`: is an enhanced video better than one merely enlarged?

VIDEOS is what `benchmarks.long_videos` kept, ENHANCED what `benchmarks.enhanced_videos` made of it. Twice answered: by
the judge, and by whoever looks at FOLDER/pair-NN.png, which don't say which row is which, and writes a letter a line
("07 B") into a file for `--answers`. FOLDER/key.json is not to be opened before.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import torch
import typer
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from backends.embedded.judge import Judge
from benchmarks.judged import judge_folder
from streaming.keys import Key

Video = UInt8[Tensor, "time 3 rows cols"]
LETTERS = ("A", "B")
APART, TOGETHER = 3, 4
"""Frames of a sheet that are spread over the video, and neighbouring ones, which show what flickers."""
SCALE, GAP, MARGIN = 2, 4, 28


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """One video in two ways."""

    name: str
    """As in the files."""
    prompt: str
    """What it should show."""
    asked: Mapping[str, str]
    """The same as words of the judge's attributes."""
    enlarged: Video
    """Bicubic."""
    enhanced: Video
    """Of the same size."""


def main(
    videos: Path,
    enhanced: Path,
    folder: Path,
    judge: Annotated[str | None, typer.Option(help="Model directory that holds judge/; default: the packaged")] = None,
    answers: Annotated[Path | None, typer.Option(help='Lines such as "07 B": the better row of each picture')] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the rows")] = 0,
) -> None:
    """Draws the pictures and prints the judge's preference; with --answers, the onlooker's."""
    pairs = read_pairs(videos, enhanced)
    order = {pair.name: LETTERS[int(Key(seed).fold("order", n).integers(0, 2))] for n, pair in enumerate(pairs)}
    if answers is not None:
        told = read_answers(answers, order)
        print(verdict("the onlooker", sum(told[name] == order[name] for name in order), len(order)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        sheet(pair, order[pair.name]).save(folder / f"pair-{pair.name}.png", optimize=True)
    (folder / "key.json").write_text(json.dumps({"enhanced": order}, indent=1) + "\n")
    referee = Judge.load(judge_folder(judge, None) / "judge")
    gains = {pair.name: gain(referee, pair) for pair in pairs}
    for pair in pairs:
        print(f"{pair.name} {gains[pair.name]:+.4f}  {pair.prompt}")
    print(verdict("the judge", sum(value > 0 for value in gains.values()), len(gains)))


def read_pairs(videos: Path, enhanced: Path) -> list[Pair]:
    """The videos of both files. Raises BadParameter if their names or lengths differ."""
    pairs = []
    with safe_open(videos, "pt") as small, safe_open(enhanced, "pt") as large:
        about = small.metadata() or {}
        if "asked" not in about:
            raise typer.BadParameter(f"{videos} does not say what was asked for: make it by benchmarks.long_videos")
        prompts, asked = (json.loads(about[what]) for what in ("prompts", "asked"))
        told = {name: (prompts[k], asked[k]) for k, name in enumerate(sorted(small.keys()))}
        for name in sorted(large.keys()):
            if name not in told:
                raise typer.BadParameter(f"{videos} has no video {name}: name the file that was enhanced")
            first, second = small.get_tensor(name), large.get_tensor(name)
            if len(first) != len(second):
                raise typer.BadParameter(f"video {name} has {len(first)} and {len(second)} frames: not the same video")
            larger, (prompt, words) = enlarge(first, second.shape[-1]), told[name]
            pairs.append(Pair(name=name, prompt=prompt, asked=words, enlarged=larger, enhanced=second))
    return pairs


def enlarge(frames: Video, size: int) -> UInt8[Tensor, "time 3 {size} {size}"]:
    """Bicubic."""
    large = F.interpolate(frames.float() / 255, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return large.mul(255).round().to(torch.uint8)


def sheet(pair: Pair, letter: str) -> Image.Image:
    """Rows A and B, the enhanced video being that of the letter."""
    count, side = len(pair.enhanced), pair.enhanced.shape[-1] * SCALE
    apart = [round(k * (count - 1) / (APART - 1)) for k in range(APART)]
    middle = max(0, (count - TOGETHER) // 2)
    shown = [*apart, *range(middle, min(count, middle + TOGETHER))]
    rows = (pair.enhanced, pair.enlarged) if letter == "A" else (pair.enlarged, pair.enhanced)
    canvas = Image.new("RGB", (MARGIN + len(shown) * (side + GAP), MARGIN + 2 * (side + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, 8), f"{pair.prompt}; frames {', '.join(map(str, shown))}", fill="black")
    for row, frames in enumerate(rows):
        top = MARGIN + row * (side + GAP)
        draw.text((8, top + side // 2), LETTERS[row], fill="black")
        for column, frame in enumerate(shown):
            picture = Image.fromarray(frames[frame].permute(1, 2, 0).numpy())
            picture = picture.resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (MARGIN + column * (side + GAP), top))
    return canvas


@torch.inference_mode()
def gain(judge: Judge, pair: Pair) -> float:
    """How much likelier what was asked for is to the judge in the enhanced video: mean difference of logarithms."""
    asked = {name: judge.config.attributes[name].index(word) for name, word in pair.asked.items()}
    enhanced, enlarged = (_belief(judge, frames, asked) for frames in (pair.enhanced, pair.enlarged))
    return float((enhanced - enlarged).mean())


def _belief(judge: Judge, frames: Video, asked: Mapping[str, int]) -> Float[Tensor, "clips attributes"]:
    length = judge.config.frames
    clips = torch.stack([frames[k : k + length] for k in range(0, len(frames) - length + 1, length)])
    logits = judge(clips.float() / 255)
    return torch.stack([logits[name].log_softmax(dim=-1)[:, word] for name, word in asked.items()], dim=1)


def read_answers(path: Path, order: Mapping[str, str]) -> dict[str, str]:
    """The letter for every picture. Raises BadParameter for a line that is none, and for a picture without one."""
    told = {}
    for line in path.read_text().splitlines():
        if line.strip():
            found = re.fullmatch(r"\s*(\S+)\s+([AB])\s*", line)
            if found is None or found[1] not in order:
                raise typer.BadParameter(f'{path}: "{line}" is no answer; write a name and a letter: "07 B"')
            told[found[1]] = found[2]
    missing = sorted(set(order) - set(told))
    if missing:
        raise typer.BadParameter(f"{path} says nothing of {', '.join(missing)}")
    return told


def verdict(who: str, won: int, count: int) -> str:
    """A line with the chance of as many wins or more if there were no difference (one-sided binomial test)."""
    chance = sum(math.comb(count, k) for k in range(won, count + 1)) / 2**count
    return f"{who} prefers the enhanced video in {won} of {count} (p = {chance:.2g})"


if __name__ == "__main__":
    typer.run(main)
