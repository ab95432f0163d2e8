"""`python -m benchmarks.preference VIDEOS ENHANCED FOLDER`: is an enhanced video better than one merely enlarged?

VIDEOS is what `benchmarks.long_videos` kept, ENHANCED what `benchmarks.enhanced_videos` made of it. Twice answered: by
the judge, and by whoever looks at FOLDER/pair-NN.png, which don't say which row is which, and writes a letter a line
("07 B") into a file for `--answers`. FOLDER/key.json, which says it, is not to be opened before.

The judge shrinks what it sees to 64x64 pixels and says how sure it is of what the prompt asks for. So it can notice
faults of the small video that were mended; what only the larger one can show it cannot. What it would say of a perfect
enhancement is measured on renders, whose true larger video is known. Sharpness is a matter of the pictures.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import torch
import typer
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from safetensors import safe_open
from torch import Tensor

from backends.embedded.config import ENHANCED_SIZE
from backends.embedded.judge import Judge
from backends.embedded.pool import FPS, random_start
from backends.embedded.train_enhancer import enlarge
from backends.world import ATTRIBUTES, render, sample_scenes
from benchmarks.judged import Referee, appoint, judge_folder, through
from streaming.codec import Codec
from streaming.keys import Key
from streaming.registry import open_model

Video = UInt8[Tensor, "time 3 rows cols"]
LETTERS = ("A", "B")
APART, TOGETHER = 3, 4
"""Frames of a sheet that are spread over the video, and neighbouring ones, which show what flickers."""
SCALE, GAP, MARGIN = 2, 4, 28
RENDERS = 16
"""On which it is measured what the judge can tell."""
SURE = 0.05
"""Wins that chance brings more rarely tell something."""


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """One video in two ways."""

    name: str
    """As in the files."""
    prompt: str
    """What it should show."""
    asked: Mapping[str, str]
    """The same as words of the world's attributes."""
    size: int
    """Rows and columns that it was enlarged and enhanced from, pixels."""
    enlarged: Video
    """Bicubic."""
    enhanced: Video
    """Of the same size."""


@final
@dataclass(frozen=True)
class Tally:
    """How often one of two was better."""

    won: int
    """Times."""
    count: int
    """Out of so many."""

    @property
    def chance(self) -> float:
        """Of as many wins or more if there were no difference (one-sided binomial test)."""
        return sum(math.comb(self.count, k) for k in range(self.won, self.count + 1)) / 2**self.count

    def __str__(self) -> str:
        return f"{self.won} of {self.count} (p = {self.chance:.2g})"


def main(
    videos: Path,
    enhanced: Path,
    folder: Path,
    model: Annotated[
        str | None, typer.Option(help="Whose autoencoder and judge are used; default: tiny-modelscope")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Model directory that holds judge/; default: the model's")] = None,
    judge_clips: Annotated[int, typer.Option(min=2, help="Renders on which the judge itself is examined")] = 128,
    answers: Annotated[Path | None, typer.Option(help='Lines such as "07 B": the better row of each picture')] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of the rows; default: 0")] = None,
) -> None:
    """Draws the pictures and prints the judge's preference; with --answers, the onlooker's."""
    pairs = read_pairs(videos, enhanced)
    if answers is not None:
        if any(given is not None for given in (model, judge, seed)):
            raise typer.BadParameter("--answers goes by what was drawn: leave --model, --judge and --seed out")
        order = read_key(folder, pairs)
        told = read_answers(answers, order)
        print(f"the onlooker prefers the enhanced video in {tally(told[name] == order[name] for name in order)}")
        return
    draw(folder, pairs, seed or 0)
    opened = open_model(model or "tiny-modelscope")
    referee = appoint(judge_folder(judge, opened.directory), opened.codec, opened.device, clips=judge_clips)
    print(f"the judge is asked about {', '.join(name for name in ATTRIBUTES if referee.may(name))}")
    sharp, mended = control(referee, opened.codec, pairs[0].size)
    gains = [gain(referee, pair.asked, pair.enhanced, pair.enlarged) for pair in pairs]
    for pair, value in zip(pairs, gains, strict=True):
        print(f"{pair.name} {value:+.4f}  {pair.prompt}")
    print(verdict(tally(value > 0 for value in gains), sharp, mended, referee.judge.config.size))


def tally(wins: Iterable[bool]) -> Tally:
    """Of comparisons that were won or not."""
    every = list(wins)
    return Tally(sum(every), len(every))


def draw(folder: Path, pairs: Sequence[Pair], seed: int) -> None:
    """Write pair-NN.png and key.json: the letter of each enhanced video, and which videos are shown."""
    order = {pair.name: LETTERS[int(Key(seed).fold("order", n).integers(0, 2))] for n, pair in enumerate(pairs)}
    folder.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        sheet(pair, order[pair.name]).save(folder / f"pair-{pair.name}.png", optimize=True)
    key = {"enhanced": order, "videos": {pair.name: digest(pair) for pair in pairs}}
    (folder / "key.json").write_text(json.dumps(key, indent=1) + "\n")


def digest(pair: Pair) -> str:
    """Of both videos' bytes, to know them again."""
    told = hashlib.sha256()
    for video in (pair.enlarged, pair.enhanced):
        told.update(video.contiguous().numpy())
    return told.hexdigest()[:16]


def read_key(folder: Path, pairs: Sequence[Pair]) -> dict[str, str]:
    """The letter of each enhanced video, as drawn. Raises BadParameter if nothing or other videos were drawn there."""
    try:
        key = json.loads((folder / "key.json").read_text())
        order, shown = key["enhanced"], key["videos"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter(f"{folder} has no key.json of pictures: draw them first, without --answers") from error
    if shown != {pair.name: digest(pair) for pair in pairs}:
        raise typer.BadParameter(f"the pictures in {folder} show other videos: name those that they were drawn of")
    return order


def read_pairs(videos: Path, enhanced: Path) -> list[Pair]:
    """The videos of both files. Raises BadParameter if their names or lengths differ, or for another size."""
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
            first, second, (prompt, words) = small.get_tensor(name), large.get_tensor(name), told[name]
            if len(first) != len(second):
                raise typer.BadParameter(f"video {name} has {len(first)} and {len(second)} frames: not the same video")
            rows, cols = second.shape[-2:]
            if (rows, cols) != (ENHANCED_SIZE, ENHANCED_SIZE):
                wanted = f"{ENHANCED_SIZE}x{ENHANCED_SIZE}"
                raise typer.BadParameter(f"video {name} has {rows}x{cols} pixels: only {wanted} is compared")
            pairs.append(
                Pair(name=name, prompt=prompt, asked=words, size=first.shape[-1], enlarged=enlarge(first[None])[0],
                     enhanced=second)
            )  # fmt: skip
    return pairs


def sheet(pair: Pair, letter: str) -> Image.Image:
    """Rows A and B, the enhanced video being that of the letter."""
    count, side = len(pair.enhanced), pair.enhanced.shape[-1] * SCALE
    apart = [round(k * (count - 1) / (APART - 1)) for k in range(APART)]
    middle = max(0, (count - TOGETHER) // 2)
    shown = [*apart, *range(middle, min(count, middle + TOGETHER))]
    rows = (pair.enhanced, pair.enlarged) if letter == "A" else (pair.enlarged, pair.enhanced)
    canvas = Image.new("RGB", (MARGIN + len(shown) * (side + GAP), MARGIN + 2 * (side + GAP)), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, 8), f"{pair.prompt}; frames {', '.join(map(str, shown))}", fill="black")
    for row, frames in enumerate(rows):
        top = MARGIN + row * (side + GAP)
        pen.text((8, top + side // 2), LETTERS[row], fill="black")
        for column, frame in enumerate(shown):
            picture = Image.fromarray(frames[frame].permute(1, 2, 0).numpy())
            picture = picture.resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (MARGIN + column * (side + GAP), top))
    return canvas


@torch.inference_mode()
def control(referee: Referee, codec: Codec, size: int) -> tuple[Tally, Tally]:
    """How often the judge prefers a true larger render to one of `size` that was enlarged: sharpness is all that the
    latter lacks; and to one that went through the autoencoder before: that has faults as well. Prints both."""
    key, cpu = Key(0).fold("preference"), torch.device("cpu")
    scenes, start = sample_scenes(RENDERS, key.generator()), random_start(RENDERS, key.fold("start").generator(), cpu)
    length = referee.judge.config.frames
    true, small = (render(scenes, frames=length, start=start, fps=FPS, size=s) for s in (ENHANCED_SIZE, size))
    words = {name: scenes.attribute(name).tolist() for name in ATTRIBUTES}
    print(f"{RENDERS} renders; the judge prefers the true {ENHANCED_SIZE}x{ENHANCED_SIZE} frames to the enlarged ones")
    found = []
    for what, frames in (("", small), (" after the autoencoder", through(codec, small))):
        larger = enlarge(frames)
        gains = []
        for k in range(RENDERS):
            asked = {name: each[words[name][k]] for name, each in ATTRIBUTES.items()}
            gains.append(gain(referee, asked, true[k], larger[k]))
        found.append(tally(value > 0 for value in gains))
        print(f"  of {size}x{size}{what}: in {found[-1]}, mean {sum(gains) / RENDERS:+.4f}")
    return found[0], found[1]


@torch.inference_mode()
def gain(referee: Referee, asked: Mapping[str, str], enhanced: Video, enlarged: Video) -> float:
    """How much likelier what was asked for is to the judge in the enhanced video: mean difference of logarithms.

    asked: words of attributes; those that the judge may not be asked about don't count. Raises BadParameter if none is
    left, and for videos that are shorter than a clip.
    """
    known = {name: referee.words(name).index(word) for name, word in asked.items() if referee.may(name)}
    if not known:
        raise typer.BadParameter(f"the judge knows none of {', '.join(asked)} well enough: name another by --judge")
    least = referee.judge.config.frames
    if len(enhanced) < least:
        raise typer.BadParameter(f"the judge looks at {least} frames: a video has {len(enhanced)} only")
    return float((_belief(referee.judge, enhanced, known) - _belief(referee.judge, enlarged, known)).mean())


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


def verdict(found: Tally, sharp: Tally, mended: Tally, size: int) -> str:
    """The judge's preference, and what it can tell and cannot, by its preferences for true renders."""
    about = {f"whether faults that show at {size}x{size} were mended": mended, "whether the video is sharper": sharp}
    can = " and ".join(what for what, told in about.items() if told.chance < SURE)
    cannot = " or ".join(what for what, told in about.items() if told.chance >= SURE)
    told = ", ".join(part for part in (can and f"it can tell {can}", cannot and f"it cannot tell {cannot}") if part)
    return f"at {size}x{size}, where it looks, the judge prefers the enhanced video in {found}; {told}"


if __name__ == "__main__":
    typer.run(main)
