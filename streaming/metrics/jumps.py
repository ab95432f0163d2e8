"""Jumps: cuts between pictures that look alike, as where chunks don't continue each other, which SCuts does not see."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import final

import torch

from streaming.errors import UserError
from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.cuts import LISTED

LEVELS, PERCENT = 0.5, 0.05
"""Floors under the neighbours' difference (grey levels) and change of flow (% of the shorter side)."""
REACH = 3
"""Pairs on either side that are looked at."""


@final
@dataclass(frozen=True, kw_only=True)
class Jumps(Metric):
    """Pairs of frames that differ more than the pairs around them while the flow breaks off.

    A pair's strength is the geometric mean of two ratios: its difference by the largest of the two pairs before and
    behind; and the change of the flow (mean over the pixels of the vectors' change) to or from it, by the two smallest
    of such changes two or three pairs away. A first ratio under 1 stands alone, whatever the flow does. Fast motion
    alone has none of the two: its neighbours are as fast. Of the differences two pairs away the larger one is let off
    if it is the largest of all, so that cuts two frames apart are two. A single odd frame makes two equal pairs side by
    side and is none.
    """

    least: float = 2.6
    """Strength from which on it is a jump."""

    def __post_init__(self) -> None:
        if not self.least > 1:
            raise UserError(f"jumps from a strength of {self.least} on: give more than 1, which is ordinary")

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Two."""
        strength = "strength of the strongest: how far it stands out, in difference and flow, from the pairs around"
        return {
            "jumps": Number(meaning="jumps found", unit="jumps", better="lower", frozen="absent"),
            "jump_strongest": Number(meaning=strength, better="lower", frozen="absent"),
        }

    @property
    def needs(self) -> frozenset[Need]:
        """Flow."""
        return frozenset({"flow"})

    def start(self, tools: Tools) -> Meter:
        """No pairs so far."""
        return _Meter(self.least)


@final
class _Meter(Meter):
    """Keeps the differences and changes of flow of the last seven pairs, and the last flow."""

    def __init__(self, least: float) -> None:
        self._least, self._flow = least, None
        self._pairs: deque[tuple[float, float]] = deque(maxlen=2 * REACH + 1)  # (difference, change before it)
        self._count = self._jumps = 0
        self._strongest: float | None = None
        self._first: list[int] = []

    def add(self, seen: Observation) -> None:
        if seen.flow is None:
            return
        change = 0.0 if self._flow is None else float(torch.hypot(*(seen.flow - self._flow)).mean())
        self._flow = seen.flow
        self._pairs.append((seen.difference, 100 * change / min(seen.frame.shape[-2:])))
        self._count += 1
        if (middle := len(self._pairs) - 1 - REACH) >= 0:
            self._take(middle)

    def _take(self, place: int) -> None:
        found = strength(list(self._pairs), place)
        if found is None:
            return
        self._strongest = max(found, self._strongest or 0.0)
        if found >= self._least:
            self._jumps += 1
            self._first = (self._first + [self._frame(place)])[:LISTED]

    def _frame(self, place: int) -> int:
        """The frame that ends the pair at a place of those kept."""
        return self._count - len(self._pairs) + place + 1

    def _rest(self) -> list[tuple[int, float]]:
        """Frames and strengths of the last pairs, with what there is behind them."""
        places = range(max(0, len(self._pairs) - REACH), len(self._pairs))
        found = [(self._frame(place), strength(list(self._pairs), place)) for place in places]
        return [(frame, value) for frame, value in found if value is not None]

    def result(self) -> Values:
        rest = [value for _, value in self._rest()]
        late = sum(value >= self._least for value in rest)
        values = rest if self._strongest is None else [*rest, self._strongest]
        if not values:
            return {"jumps": None, "jump_strongest": None}
        return {"jumps": float(self._jumps + late), "jump_strongest": max(values)}

    def events(self) -> Mapping[str, list[int]]:
        late = [frame for frame, value in self._rest() if value >= self._least]
        return {"jumps": (self._first + late)[:LISTED]}


def strength(pairs: list[tuple[float, float]], place: int) -> float | None:
    """How far a pair stands out among those around: (difference in grey levels, change of the flow before it in %).

    None if there is no pair on one of its sides, or too few for both ratios.
    """
    if not 0 < place < len(pairs) - 1:
        return None
    next_to = max(pairs[place - 1][0], pairs[place + 1][0])
    around = sorted(pairs[i][0] for i in (place - 2, place - 1, place + 1, place + 2) if 0 <= i < len(pairs))
    # The change that belongs to a pair leads to it or from it; the video's first pair has none before it.
    own = max(pairs[place][1], pairs[place + 1][1])
    away = sorted(pairs[i][1] for i in (place - 2, place - 1, place + 2, place + 3) if 0 < i < len(pairs))
    if not away:
        return None
    difference = pairs[place][0] / (max(next_to, around[-2]) + LEVELS)
    if difference < 1:
        return difference
    return sqrt(difference * own / (fmean(away[:2]) + PERCENT))
