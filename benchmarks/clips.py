"""Prompts of the procedural world, and many videos made side by side, for the commands of this folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import UInt8
from torch import Tensor

from backends.world import Scenes, canonical_captions, complete_captions, sample_scenes
from backends.world.scene import Split
from streaming.keys import Key
from streaming.loop import chunk_lengths, stream
from streaming.openings import TextOpening
from streaming.parts import Parts
from streaming.prompts import PromptSchedule

Video = UInt8[Tensor, "time 3 rows cols"]


@final
@dataclass(frozen=True)
class Prompts:
    """Captions and the scenes that they describe (what the judge is asked about)."""

    scenes: Scenes
    """Named attributes, as sampled."""
    texts: list[str]
    """Caption of each."""
    openings: list[str] | None = None
    """What the first chunk is asked for, if that is something else."""


def draw_prompts(
    count: int, seed: int, *, split: Split = "train", complete: bool = False, told: bool = False
) -> Prompts:
    """Prompts of random scenes.

    split: pairs of shape and colour that training shows, or those that it never does. complete: everything is named but
    looks; else "medium" and a static camera go without saying, and the model is free to choose another. told: complete,
    and the opening names the object's pattern, which later only a memory can know.
    """
    key = Key(seed).fold("benchmark", "prompts", *(() if split == "train" else (split,)))
    scenes = sample_scenes(count, key.generator(), split=split)
    texts = complete_captions(scenes) if complete or told else canonical_captions(scenes)
    return Prompts(scenes, texts, complete_captions(scenes, looks=True) if told else None)


def make_videos(
    parts: Parts, texts: list[str], frames: int, *, seed: int, batch: int, openings: list[str] | None = None
) -> Iterator[Video]:
    """Videos of at least `frames` frames cut to that length, one for each text, in order, on the CPU.

    openings: what their first chunks are asked for instead.
    """
    first, _ = chunk_lengths(parts, TextOpening())
    schedules = [PromptSchedule.fixed(text) for text in texts]
    if openings is not None:
        schedules = [PromptSchedule.of({0: a, first: b}) for a, b in zip(openings, texts, strict=True)]
    for begin in range(0, len(texts), batch):
        pieces, made = [], 0
        key = Key(seed).fold("group", begin)
        for chunk in stream(parts, schedules[begin : begin + batch], TextOpening(), key=key):
            pieces.append(chunk.frames.mul(255).round().to(torch.uint8))
            made += chunk.frames.shape[1]
            if made >= frames:
                break
        yield from torch.cat(pieces, dim=1)[:, :frames]
