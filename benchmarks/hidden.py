"""Whether a video keeps what no prompt names: the pattern, second colour and outline that its first chunk happened to
show.

The judge reads them off the first and the last chunk. A video counts if its first chunk shows a pattern at all; it has
kept an attribute if the last chunk shows the same. Two figures tell what that is worth: how often the judge's two
answers agree for renders of one scene and for renders whose pattern is another in the last chunk (`calibrate`), and how
often the first chunk of one video agrees with the last of any other (`chance`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from backends.embedded.clip_judge import PLAIN_WORD
from backends.embedded.pool import FPS
from backends.world import HIDDEN_ATTRIBUTES, Scenes, render, sample_scenes
from benchmarks.intervals import Estimate, share
from benchmarks.judged import Referee, through
from streaming.codec import Codec
from streaming.keys import Key

Told = Mapping[str, Int[Tensor, "prompts seeds"]]
"""Indices of words, by attribute."""


@final
@dataclass(frozen=True, kw_only=True)
class Kept:
    """One hidden attribute over many videos."""

    shown: Estimate
    """Share of videos whose first chunk shows a pattern."""
    kept: Estimate
    """Share of these whose last chunk shows the same word."""
    chance: float
    """Share of pairs of different videos among these for which first and last chunk agree."""


def kept(first: Told, last: Told, referee: Referee) -> dict[str, Kept]:
    """What the judge's answers say, for the hidden attributes that it may be asked about; {} without patterns."""
    if not referee.may("pattern"):
        return {}
    shown = has_pattern(first, referee)
    return {
        name: Kept(
            shown=share(shown),
            kept=share(first[name] == last[name], shown),
            chance=_agreement(first[name][shown], last[name][shown]),
        )
        for name in HIDDEN_ATTRIBUTES
        if referee.may(name)
    }


def has_pattern(told: Told, referee: Referee) -> Bool[Tensor, "prompts seeds"]:
    """Where the object is not plain."""
    return told["pattern"] != referee.words("pattern").index(PLAIN_WORD)


def _agreement(first: Int[Tensor, " videos"], last: Int[Tensor, " videos"]) -> float:
    """Share of pairs (i, j), i != j, with first[i] == last[j]."""
    n = len(first)
    same = first[:, None] == last[None, :]
    return float(same.sum() - same.diagonal().sum()) / (n * (n - 1)) if n > 1 else float("nan")


@torch.inference_mode()
def calibrate(referee: Referee, codec: Codec, device: torch.device, *, clips: int, frames: int) -> dict[str, float]:
    """`kept` for renders after the autoencoder that are as long as the videos: "same scene" should be near 1,
    "another pattern" near 0. {} if the judge may not be asked about patterns."""
    if not referee.may("pattern"):
        return {}
    scenes = sample_scenes(clips, Key(0).fold("benchmark", "hidden").generator(), split="all").to(device)
    length = referee.judge.config.frames
    start = (frames - length) / FPS
    ends = {
        "first": render(scenes, frames=length, fps=FPS),
        "same scene": render(scenes, frames=length, start=start, fps=FPS),
        "another pattern": render(with_another_pattern(scenes), frames=length, start=start, fps=FPS),
    }
    told = {
        name: {key: value[:, None] for key, value in referee.ask(through(codec, each)).items()}
        for name, each in ends.items()
    }
    first = told.pop("first")
    return {name: kept(first, last, referee)["pattern"].kept.value for name, last in told.items()}


def with_another_pattern(scenes: Scenes) -> Scenes:
    """The same scenes, each with the next pattern."""
    return replace(scenes, pattern=(scenes.pattern + 1) % len(HIDDEN_ATTRIBUTES["pattern"]))
