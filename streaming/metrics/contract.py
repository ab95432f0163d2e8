"""Contracts of the measures: what a metric is shown of a video, what it says of itself, and what it hands back.

A metric is a frozen value that holds its settings; `start` gives a meter, which is shown the video frame by frame and
keeps a few numbers, however long the video is. What several metrics need (optical flow, embeddings) is computed once
for a frame and shared.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.metrics.carry import bring_back
from streaming.metrics.described import Described
from streaming.metrics.looks import grey_levels, unevenness

if TYPE_CHECKING:
    from streaming.metrics.clip import ClipEncoder
    from streaming.metrics.flow import OpticalFlow
    from streaming.metrics.running import Curve

Need: TypeAlias = Literal["flow", "backward", "embedding"]
"""What must be computed for a metric: flow from the previous frame, flow back to it, embedding of the frame."""

Values: TypeAlias = Mapping[str, float | None]
"""Numbers by name. Infinite: as bad as can be; None: not defined for this video. Never NaN."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """A new frame, and what was computed for it."""

    index: int
    """Its place in the video, from 0."""
    shown: UInt8[Tensor, "3 shown_rows shown_cols"]
    """The frame as it is in the video, RGB."""
    frame: UInt8[Tensor, "3 rows cols"]
    """The frame at the resolution of the evaluation."""
    previous: UInt8[Tensor, "3 rows cols"] | None = None
    """The frame before it at that resolution; None for the first one."""
    flow: Float[Tensor, "2 rows cols"] | None = None
    """Optical flow (x, y) from the previous frame to this one, pixels of the evaluation's resolution."""
    backward: Float[Tensor, "2 rows cols"] | None = None
    """Flow from this frame to the previous one."""
    embedding: Float[Tensor, " width"] | None = None
    """The encoder's embedding of `shown`, of length 1."""
    still: bool = False
    """Whether nothing moved since the previous frame (see `streaming.metrics.still`)."""

    @cached_property
    def lengths(self) -> Float[Tensor, "rows cols"]:
        """Lengths of the flow's vectors, pixels. For frames that have a flow only."""
        assert self.flow is not None, "a metric that reads the flow says so in `needs`"
        return torch.hypot(self.flow[0], self.flow[1])

    @cached_property
    def motion(self) -> float:
        """Mean length of the flow, pixels."""
        return float(self.lengths.mean())

    @cached_property
    def difference(self) -> float:
        """Mean absolute difference from the previous frame, grey levels (0..255). For frames that have one only."""
        assert self.previous is not None, "the first frame has no difference"
        return float((self.frame.to(torch.int16) - self.previous.to(torch.int16)).abs().float().mean())

    @cached_property
    def residual(self) -> Float[Tensor, "3 rows cols"]:
        """This frame brought back along the flow, less the previous one, grey levels. For frames that have a flow."""
        assert self.flow is not None and self.previous is not None, "a metric that reads the flow says so in `needs`"
        return bring_back(self.frame.float(), self.flow)[0] - self.previous.float()

    @property
    def coarser(self) -> bool:
        """Whether the video has fewer pixels than the evaluation: enlarging has blurred `frame` then."""
        return self.shown[0].numel() < self.frame[0].numel()

    @cached_property
    def detail(self) -> tuple[float, ...] | None:
        """Variance of the Laplacian of the grey levels, and of that at half the size (2x2 means), at a quarter and so
        on down to sides of 6 pixels, two values at least; grey levels².

        At the evaluation's resolution, or at the video's own if that has fewer pixels. None for sides under 6 pixels.
        """
        grey = grey_levels(self.shown if self.coarser else self.frame)
        if min(grey.shape) < 6:  # half of it has no Laplacian
            return None
        found = [unevenness(grey)]
        while len(found) < 2 or min(grey.shape) >= 12:
            grey = functional.avg_pool2d(grey[None], 2)[0]
            found.append(unevenness(grey))
        return tuple(found)


@final
@dataclass(frozen=True, kw_only=True)
class Number:
    """What one number of a metric means."""

    meaning: str
    """In a few words."""
    unit: str = ""
    """Empty for plain numbers."""
    better: Literal["lower", "higher"] | None = None
    """Which of two videos it speaks for; None: it describes, and ranks nothing."""
    frozen: Literal["as is", "absent", "infinite"] = "as is"
    """What is reported of a video in which nothing moves, for which continuity is no merit."""


@final
@dataclass(frozen=True, kw_only=True)
class Tools:
    """What frames are looked at with."""

    flow: "OpticalFlow | None" = None
    """Gives optical flow."""
    clip: "ClipEncoder | None" = None
    """Gives embeddings of frames and texts."""


class Metric(Described, ABC):
    """A measure of videos. Final ones are frozen dataclasses whose fields are all the settings that change a number."""

    @property
    @abstractmethod
    def numbers(self) -> Mapping[str, Number]:
        """The numbers that it reports, by names that no other metric has."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be computed for it. Default: nothing, it looks at the frames."""
        return frozenset()

    @abstractmethod
    def start(self, tools: Tools) -> "Meter":
        """A meter for a new video. Raises UserError if something it works with is missing."""


class Meter(ABC):
    """What a metric has seen of a video so far."""

    @abstractmethod
    def add(self, seen: Observation) -> None:
        """Show it the next frame."""

    @abstractmethod
    def result(self) -> Values:
        """Its numbers for the frames shown so far: exactly those that the metric names."""

    def curves(self) -> "Mapping[str, Curve]":
        """What it saw over time, by name. Default: nothing."""
        return {}

    def events(self) -> Mapping[str, list[int]]:
        """Frames at which something happened, by name; so many at most that memory does not grow. Default: nothing."""
        return {}
