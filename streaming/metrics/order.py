"""Disorder: whether neighbouring frames are nearer to each other than frames further apart."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from streaming.errors import UserError
from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.running import Moments, ratio


@final
@dataclass(frozen=True, kw_only=True)
class Disorder(Metric):
    """Mean difference of neighbouring frames by the largest of those of frames 2 to `reach` apart.

    Where things move, frames grow apart with time: the ratio is small. It is 1 where time has no order: shuffled
    frames, fresh noise on a still picture, random flicker or shifts. Frames are compared as `cells` x `cells` means, so
    that grain counts little. What changes at random in earnest (fire, rain on water) has no order, either.
    """

    reach: int = 8
    """Frames apart at most; 2 or more."""
    cells: int = 16
    """Means in either direction (or as many as there are pixels)."""

    def __post_init__(self) -> None:
        if self.reach < 2 or self.cells < 1:
            raise UserError(f"frames up to {self.reach} apart in {self.cells} cells: give 2 or more and 1 or more")

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One. None for fewer than 3 frames."""
        told = "difference of neighbouring frames by that of frames further apart; 1: no order"
        return {"disorder": Number(meaning=told, better="lower", frozen="absent")}

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter(self)


@final
class _Meter(Meter):
    """Keeps `reach` small pictures."""

    def __init__(self, metric: Disorder) -> None:
        self._cells = metric.cells
        self._last: deque[Float[Tensor, "3 high wide"]] = deque(maxlen=metric.reach)
        self._apart = [Moments() for _ in range(metric.reach)]

    def add(self, seen: Observation) -> None:
        rows, cols = (min(self._cells, side) for side in seen.frame.shape[-2:])
        small = functional.adaptive_avg_pool2d(seen.frame.float(), (rows, cols))
        for moments, before in zip(self._apart, reversed(self._last), strict=False):
            moments.add(float((small - before).abs().mean()))
        self._last.append(small)

    def result(self) -> Values:
        near, *far = (moments.mean for moments in self._apart)
        return {"disorder": ratio(near, max((mean for mean in far if mean is not None), default=None))}
