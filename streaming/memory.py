"""Contracts of the two memories, and the memories that remember nothing."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, final

from torch import nn

from streaming.backbone import Call
from streaming.sites import Deltas
from streaming.types import Frames, Latents

if TYPE_CHECKING:
    from pathlib import Path

    from streaming.model import Model

S = TypeVar("S")


@final
@dataclass(frozen=True)
class Tail:
    """The end of the previous chunk; memories may condition on its pixels or on its latents."""

    frames: Frames
    """Pixel frames of the overlap, in [0, 1], as decoded (never quantised)."""
    latents: Latents
    """The same frames as latents [batch, channels, overlap, high, wide]."""


class ShortTermMemory(nn.Module, ABC, Generic[S]):
    """What a chunk knows of the end of the chunk before it; refreshed by every chunk."""

    @abstractmethod
    def remember(self, tail: Tail) -> S:
        """The state for one chunk; computed once, before its first denoising step."""

    @abstractmethod
    def deltas(self, state: S, call: Call) -> Deltas:
        """What to add at feature sites for this evaluation.

        The state has batch 1 or the number of videos; `call` has their guidance rows, row-major (all videos of the
        first row, then of the second, ...).
        """

    def rewrite(self, state: S, call: Call) -> Call:
        """The call as the denoiser is to see it, e.g. with given frames in place of noisy ones. Default: unchanged."""
        del state
        return call


class LongTermMemory(nn.Module, ABC, Generic[S]):
    """What every chunk knows of the anchor frame; set once, or whenever the anchor policy says so."""

    borrowed: tuple[nn.Module, ...] = ()
    """Frozen modules that it computes with, but neither trains nor saves: the model's image encoder, for example. A
    video can only be continued with the same ones."""

    @abstractmethod
    def remember(self, anchor: Frames) -> S:
        """The state for all chunks that share the anchor [batch, time, 3, rows, cols] (the paper: one frame)."""

    @abstractmethod
    def deltas(self, state: S, call: Call) -> Deltas:
        """What to add at context sites for this evaluation; rows without `anchor` get the memory's notion of none."""

    def rewrite(self, state: S, call: Call) -> Call:
        """The call as the denoiser is to see it, with more text tokens for example. Default: unchanged.

        Latents stay as they are, and all rows keep one length of text; rows without `anchor` get the memory's notion of
        none. The short-term memory reads the text as it was.
        """
        del state
        return call


@final
class NoShortTerm(ShortTermMemory[None]):
    """Remembers nothing: chunks are independent."""

    def remember(self, tail: Tail) -> None:
        """Nothing."""

    def deltas(self, state: None, call: Call) -> Deltas:
        """None."""
        return {}


@final
class NoLongTerm(LongTermMemory[None]):
    """Remembers nothing of the anchor frame."""

    def remember(self, anchor: Frames) -> None:
        """Nothing."""

    def deltas(self, state: None, call: Call) -> Deltas:
        """None."""
        return {}


def no_short_term(model: "Model", weights: "Path | None") -> NoShortTerm:
    """Entry point `none`."""
    return NoShortTerm()


def no_long_term(model: "Model", weights: "Path | None") -> NoLongTerm:
    """Entry point `none`."""
    return NoLongTerm()
