"""Camera shake: how abruptly the motion of the picture as a whole changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.running import Curve


@final
@dataclass(frozen=True, kw_only=True)
class CameraShake(Metric):
    """Mean change, from pair to pair, of the median flow over the frame, percent of its shorter side.

    The median follows the camera and not what moves in front of it. A pan, however fast, does not shake; jitter does.
    """

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One. None for fewer than 3 frames."""
        told = "mean change of the median flow from pair to pair"
        return {"camera_shake": Number(meaning=told, unit="% of the side", better="lower", frozen="absent")}

    @property
    def needs(self) -> frozenset[Need]:
        """Flow."""
        return frozenset({"flow"})

    def start(self, tools: Tools) -> Meter:
        """No pairs so far."""
        return _Meter()


@final
class _Meter(Meter):
    def __init__(self) -> None:
        self._changes, self._last = Curve(first=2), None

    def add(self, seen: Observation) -> None:
        if seen.flow is None:
            return
        now: Float[Tensor, 2] = seen.flow.flatten(1).median(dim=1).values
        if self._last is not None:
            self._changes.add(100 * float((now - self._last).norm()) / min(seen.frame.shape[-2:]))
        self._last = now

    def result(self) -> Values:
        return {"camera_shake": self._changes.mean()}

    def curves(self) -> Mapping[str, Curve]:
        return {"camera_shake": self._changes}
