"""The world as a dataset of captioned clips."""

from typing import final

import torch

from backends.world import captions, complete_captions, object_mask, render, sample_scenes
from streaming.datasets import CaptionedClips, ClipDataset

FPS = 8.0
"""Frames a second."""
LATEST_START = 60.0
"""Clips begin between 0 and this many seconds after their video's beginning."""


@final
class ProceduralWorld(ClipDataset):
    """Clips of random scenes of the split "train", 8 frames a second."""

    def clips(
        self,
        n: int,
        generator: torch.Generator,
        *,
        frames: int,
        size: int,
        device: torch.device,
        context_seconds: float = 30.0,
    ) -> CaptionedClips:
        """See `ClipDataset.clips`. Half of the anchors are frame 0, the rest from some time before the clip.

        Captions say nothing of an object's look: that is what memories are there to keep.
        """
        scenes = sample_scenes(n, generator, split="train")
        lines = captions(scenes, generator, looks=False)
        start = torch.rand(n, generator=generator) * LATEST_START
        earlier = (start - torch.rand(n, generator=generator) * context_seconds).clamp(min=0)
        anchor = torch.where(torch.rand(n, generator=generator) < 0.5, 0.0, earlier)
        scenes, start = scenes.to(device), start.to(device)
        return CaptionedClips(
            frames=render(scenes, frames=frames, start=start, fps=FPS, size=size),
            anchors=render(scenes, frames=1, start=anchor.to(device), fps=FPS, size=size)[:, 0],
            captions=lines,
            subject=object_mask(scenes, frames=frames, start=start, fps=FPS, size=size),
        )

    def prompts(self, n: int, generator: torch.Generator) -> list[str]:
        """Complete captions of scenes of the split "train": everything is named that a caption can name but looks."""
        return complete_captions(sample_scenes(n, generator, split="train"))

    def openings(self, n: int, generator: torch.Generator) -> list[str]:
        """The same captions with the objects' patterns."""
        return complete_captions(sample_scenes(n, generator, split="train"), looks=True)
