"""When nothing moves: stagnant pairs of frames, and videos that are frozen."""

from collections import deque
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from streaming.errors import UserError
from streaming.metrics.contract import Observation
from streaming.metrics.described import Described


@final
@dataclass(frozen=True, kw_only=True)
class Stillness(Described):
    """Where motion begins. Small objects move in large still pictures, so what moves most counts.

    Flow alone would take faint noise on a still picture, and what compression makes of it, for motion. Noise comes and
    goes where it is, what moves adds up: so a pair is also still if the frame is nearly that of some frames before.
    """

    pixels: float = 0.2
    """Mean length of the longest flow vectors below which a pair is still, in pixels of a frame whose shorter side has
    256; scaled for others."""
    fastest: float = 0.05
    """Share of the pixels that are the fastest ones [VBench's dynamic degree looks at as many]."""
    levels: float = 0.1
    """Mean absolute difference, grey levels of 255, up to which a pair is still whatever the flow says, unless a small
    object moves: some estimators see motion between equal frames."""
    change: float = 2.0
    """Levels (mean over the channels) by which the cells that change most do so, against any of the last `reach`
    frames, up to which a pair is still whatever the flow says. At the video's start, where there are fewer frames, in
    proportion fewer levels."""
    reach: int = 4
    """Frames before this one that it is compared with."""
    cells: int = 16
    """Means in either direction (or as many as there are pixels) that are compared."""
    most: float = 0.02
    """Share of the cells that change most."""
    faint: float = 4.0
    """Mean absolute difference, levels, beyond which it is not noise that leaves the cells as they are: a pattern finer
    than a cell may be moving."""
    clear: float = 6.0
    """Levels by which the cells that change most do so from which on a pair is not still though the fastest pixels
    are slow on average, if half of the cells change by less than `change`: a small object moves in a still picture.
    What a common change of light explains does not count. Frames that differ by `levels` or less must do so by their
    part of it, one of `reach`, since the previous frame."""
    share: float = 0.95
    """Share of still pairs from which on a video is frozen."""

    def __post_init__(self) -> None:
        if self.reach < 1 or self.cells < 1:
            raise UserError(f"stillness over {self.reach} frames in {self.cells} cells: give 1 or more of each")

    def start(self) -> "Watch":
        """For a new video."""
        return Watch(self)


@final
class Watch:
    """Tells, frame by frame, whether anything moves. Keeps `reach` small pictures."""

    def __init__(self, limits: Stillness) -> None:
        self._limits = limits
        self._last: deque[Float[Tensor, "3 high wide"]] = deque(maxlen=limits.reach)

    def still(self, seen: Observation) -> bool:
        """Whether nothing moved since the previous frame, which it must have been shown. False for the first frame."""
        limits, earlier = self._limits, tuple(self._last)
        rows, cols = (min(limits.cells, side) for side in seen.frame.shape[-2:])
        small = functional.adaptive_avg_pool2d(seen.frame.float(), (rows, cols))
        self._last.append(small)
        if seen.previous is None:
            return False
        last = torch.stack(earlier)
        if seen.difference <= limits.levels:
            return not self._small_object(small, last, just_now=True)
        change = float(self._most((small - last).abs()).max())
        if seen.difference <= limits.faint and change < limits.change * len(last) / limits.reach:
            return True
        return not self._small_object(small, last) and seen.flow is not None and self._slow(seen)

    def _small_object(
        self, small: Float[Tensor, "3 high wide"], last: Float[Tensor, "frames 3 high wide"], *, just_now: bool = False
    ) -> bool:
        """Whether a few cells change clearly and half of them hardly; just_now: since the previous frame, too."""
        own = beyond_light(small, last)
        most, usual = self._most(own), own.mean(dim=1).flatten(1).median(dim=1).values
        lately = not just_now or float(most[-1]) > self._limits.clear / self._limits.reach
        return lately and float(most.max()) > self._limits.clear and float(usual.max()) < self._limits.change

    def _most(self, apart: Float[Tensor, "frames 3 high wide"]) -> Float[Tensor, " frames"]:
        """The cells that change most, levels: the mean of theirs, for each of the frames that are kept."""
        cells = apart.mean(dim=1).flatten(1)
        return cells.topk(max(1, round(self._limits.most * cells.shape[1])), dim=1, sorted=False).values.mean(dim=1)

    def _slow(self, seen: Observation) -> bool:
        lengths = seen.lengths.flatten()
        longest = torch.topk(lengths, max(1, round(self._limits.fastest * len(lengths))), sorted=False).values
        return float(longest.mean()) < self._limits.pixels * min(seen.frame.shape[-2:]) / 256


def beyond_light(
    small: Float[Tensor, "3 high wide"], last: Float[Tensor, "frames 3 high wide"]
) -> Float[Tensor, "frames 3 high wide"]:
    """By how many levels each cell changes, 0 or more, beyond what a common change of light may do to it.

    What light does to a cell lies between nothing (it is white or black already) and the larger of two: the levels by
    which the channel's middle cell changes, and the factor by which it does (a level is added, for what is black).
    """
    change = small - last
    offset = _middle(change).expand_as(change)
    gain = (_middle((small + 1) / (last + 1)) - 1) * (last + 1)
    least = torch.minimum(offset, gain).clamp(max=0)
    largest = torch.maximum(offset, gain).clamp(min=0)
    return (change - torch.maximum(torch.minimum(change, largest), least)).abs()


def _middle(cells: Float[Tensor, "frames 3 high wide"]) -> Float[Tensor, "frames 3 1 1"]:
    return cells.flatten(2).median(dim=2).values[..., None, None]
