"""Tint drift: slow change of all colours together, which the content does not explain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.running import Curve


@final
@dataclass(frozen=True, kw_only=True)
class TintDrift(Metric):
    """How far small changes of the pixels' colours add up, frame by frame, to a change of tint.

    From frame to frame every channel of every pixel counts with its change, but with `most` levels at most, averaged
    over the frame: what moves or cuts counts little, what creeps over all pixels in full. A tint is a sum's departure
    from grey (the three channels less their mean, as a length). Over a long video the little that motion leaves adds
    up, too; so a tint counts as far as the frame's own mean colour has left the first one's. Reported is the farthest
    that both get from the start. Light that really changes its colour (dusk) is drift, too.
    """

    most: float = 3.0
    """Change of a pixel that counts at most, levels of 255 a frame."""

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise UserError(f"changes of up to {self.most} levels: give more than 0")

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One."""
        told = "farthest that small changes of colour lead from the start"
        return {"tint_drift": Number(meaning=told, unit="levels", better="lower", frozen="absent")}

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter(self.most)


@final
class _Meter(Meter):
    def __init__(self, most: float) -> None:
        self._most, self._sum, self._tints = most, torch.zeros(3, dtype=torch.float64), Curve(first=1)
        self._start: Float[Tensor, 3] | None = None
        self._farthest: float | None = None

    def add(self, seen: Observation) -> None:
        mean = seen.frame.double().mean(dim=(1, 2))
        if seen.previous is None or self._start is None:
            self._start = mean
            return
        change = seen.frame.float() - seen.previous.float()
        self._sum += change.clamp_(-self._most, self._most).mean(dim=(1, 2)).double()
        tint = min(_tint(self._sum), _tint(mean - self._start))
        self._tints.add(tint)
        self._farthest = max(tint, self._farthest or 0.0)

    def result(self) -> Values:
        return {"tint_drift": self._farthest}

    def curves(self) -> Mapping[str, Curve]:
        return {"tint": self._tints}


def _tint(colour: Float[Tensor, "3"]) -> float:
    return float((colour - colour.mean()).norm())
