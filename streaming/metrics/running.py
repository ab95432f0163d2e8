"""Numbers over time in a memory that does not grow: means, spreads, and curves that get coarser as they get longer."""

import math
from typing import final

from streaming.errors import UserError


def ratio(over: float | int | None, under: float | int | None) -> float | None:
    """over / under: infinite for something over nothing; None for nothing over nothing and where one is not defined."""
    if over is None or under is None or (over == 0 and under == 0):
        return None
    return math.inf if under == 0 else over / under


def departure(ratio: float | None) -> float | None:
    """How far a ratio that should be 1 is from it, in either direction: |ln ratio|; infinite for 0 and infinity."""
    if ratio is None:
        return None
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def check_share(share: float) -> None:
    """Raises UserError for a share of a video, at its start and at its end, that is more than half of it, or none."""
    if not 0 < share <= 0.5:
        raise UserError(f"a share of {share} at the start and at the end of a video: give one above 0, up to 0.5")


@final
class Moments:
    """Mean and standard deviation of the values so far (Welford's recurrence: equal values have no spread at all)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = 0.0

    def add(self, value: float) -> None:
        """Take in one value."""
        self.count += 1
        off = value - self._mean
        self._mean += off / self.count
        self._squares += off * (value - self._mean)

    @property
    def mean(self) -> float | None:
        """None without values."""
        return self._mean if self.count else None

    @property
    def std(self) -> float | None:
        """Of the values themselves (divided by their number); None for less than two."""
        return math.sqrt(self._squares / self.count) if self.count > 1 else None


@final
class Curve:
    """Values over time: all of them up to `limit`, then means of 2, 4, 8 ... neighbours."""

    def __init__(self, first: int = 0, limit: int = 4096) -> None:
        """first: the frame of the first value. limit: an even number of points that are kept at most."""
        self.first, self.count, self.stride = first, 0, 1
        self._limit = limit
        self._sums: list[float] = []

    def add(self, value: float) -> None:
        """Take in the next value."""
        if self.count % self.stride == 0:
            if len(self._sums) == self._limit:
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self.stride *= 2
            self._sums.append(0.0)
        self._sums[-1] += value
        self.count += 1

    @property
    def points(self) -> list[float]:
        """Means of `stride` values each (the last one of those that are left)."""
        return [total / min(self.stride, self.count - i * self.stride) for i, total in enumerate(self._sums)]

    def mean(self, start: int = 0, stop: int | None = None) -> float | None:
        """Mean of the values from `start` up to `stop`; None if there are none.

        Exact as long as all values are kept; later, points that are cut count by their share.
        """
        stop = self.count if stop is None else min(stop, self.count)
        total = 0.0
        for i, point in enumerate(self.points):
            low, high = i * self.stride, min((i + 1) * self.stride, self.count)
            total += point * max(0, min(stop, high) - max(start, low))
        return total / (stop - start) if stop > start else None

    def ends(self, share: float) -> tuple[float, float] | None:
        """Means of the first and of the last `share` of the values (one at least); None for less than two values."""
        if self.count < 2:
            return None
        some = min(max(1, round(share * self.count)), self.count // 2)
        start, end = self.mean(0, some), self.mean(self.count - some)
        assert start is not None and end is not None
        return start, end
