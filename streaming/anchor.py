"""When the anchor frame, which the long-term memory holds on to, is renewed."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.errors import UserError
from streaming.types import Frames

Anchor: TypeAlias = Float[Tensor, "batch 1 3 rows cols"]
"""One frame of each video, RGB in [0, 1]."""

BINS = 8
"""Brightness bins of a colour channel's histogram."""


class AnchorPolicy(ABC):
    """Asked after every chunk but the first, for each video of a batch on its own."""

    @abstractmethod
    def renew(self, previous_anchor: Anchor, chunk_frames: Frames, index: int, prompt_changed: bool) -> Anchor | None:
        """The anchor [1, 1, 3, rows, cols] for the chunks to come; None: the previous one stays.

        chunk_frames [1, time, 3, rows, cols] are the new frames of chunk `index`; `prompt_changed` tells whether the
        chunk followed another prompt than the chunk before it.
        """


@final
@dataclass(frozen=True)
class Never(AnchorPolicy):
    """The first frame of the video for ever [StreamingT2V §4.2]."""

    def renew(self, previous_anchor: Anchor, chunk_frames: Frames, index: int, prompt_changed: bool) -> None:
        """None."""


@final
@dataclass(frozen=True)
class OnPromptChange(AnchorPolicy):
    """After a chunk with another prompt its last frame, the one that shows most of what is new."""

    def renew(self, previous_anchor: Anchor, chunk_frames: Frames, index: int, prompt_changed: bool) -> Anchor | None:
        """The chunk's last frame if its prompt is another one."""
        return chunk_frames[:, -1:] if prompt_changed else None


@final
@dataclass(frozen=True)
class OnSceneChange(AnchorPolicy):
    """A chunk's last frame as soon as its colours are too far from the anchor's, wherever things have moved."""

    threshold: float = 0.5
    """Share of the pixels, 0 to 1, that would have to change their colour (see `colour_distance`)."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"a scene-change threshold of {self.threshold}: choose more than 0 and at most 1")

    def renew(self, previous_anchor: Anchor, chunk_frames: Frames, index: int, prompt_changed: bool) -> Anchor | None:
        """The chunk's last frame if it is further than `threshold` from the anchor."""
        last = chunk_frames[:, -1:]
        return last if colour_distance(previous_anchor, last) > self.threshold else None


@final
@dataclass(frozen=True)
class AtChunks(AnchorPolicy):
    """The last frame of the chunks that the user names."""

    indices: frozenset[int]
    """Chunk numbers, from 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", frozenset(self.indices))
        if any(index < 1 for index in self.indices):
            raise UserError(f"an anchor at chunk {min(self.indices)}: later chunks count from 1")

    def renew(self, previous_anchor: Anchor, chunk_frames: Frames, index: int, prompt_changed: bool) -> Anchor | None:
        """The chunk's last frame if the chunk is named."""
        return chunk_frames[:, -1:] if index in self.indices else None


def colour_distance(left: Float[Tensor, "... 3 rows cols"], right: Float[Tensor, "... 3 rows cols"]) -> float:
    """Total variation distance, 0 to 1, of two videos' (or images') colour histograms, mean of the three channels."""
    distances = [(_histogram(left[..., c, :, :]) - _histogram(right[..., c, :, :])).abs().sum() / 2 for c in range(3)]
    return float(sum(distances) / 3)


def _histogram(channel: Tensor) -> Tensor:
    counts = torch.histc(channel.float(), bins=BINS, min=0.0, max=1.0)
    return counts / counts.sum()
