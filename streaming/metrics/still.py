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
    """Mean absolute difference, grey levels of 255, up to which a pair is still whatever the flow says: some
    estimators see motion between equal frames."""
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
    are slow on average, if half of the cells change by less than `change`: a small object moves in a still picture."""
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
        rows, cols = (min(self._limits.cells, side) for side in seen.frame.shape[-2:])
        small = functional.adaptive_avg_pool2d(seen.frame.float(), (rows, cols))
        (change, usual), before = self._change(small), len(self._last)
        self._last.append(small)
        if seen.previous is None:
            return False
        if seen.difference <= self._limits.levels:
            return True
        if seen.difference <= self._limits.faint and change < self._limits.change * before / self._limits.reach:
            return True
        if change > self._limits.clear and usual < self._limits.change:
            return False
        return seen.flow is not None and self._slow(seen)

    def _change(self, small: Float[Tensor, "3 high wide"]) -> tuple[float, float]:
        """The largest of the differences from the frames that are kept, levels: of the cells that change most, and of
        the middle one."""
        if not self._last:
            return 0.0, 0.0
        apart = (small - torch.stack(tuple(self._last))).abs().mean(dim=1).flatten(1)
        largest = apart.topk(max(1, round(self._limits.most * apart.shape[1])), dim=1, sorted=False).values
        return float(largest.mean(dim=1).max()), float(apart.median(dim=1).values.max())

    def _slow(self, seen: Observation) -> bool:
        lengths = seen.lengths.flatten()
        longest = torch.topk(lengths, max(1, round(self._limits.fastest * len(lengths))), sorted=False).values
        return float(longest.mean()) < self._limits.pixels * min(seen.frame.shape[-2:]) / 256
