"""Warp error: how far a frame differs from the next one brought back along the flow, where both see the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor

from streaming.metrics.carry import bring_back
from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.running import Moments


@final
@dataclass(frozen=True, kw_only=True)
class WarpError(Metric):
    """Mean squared difference, values in [0, 1], over the pixels that are not occluded [Lai et al., ECCV 2018].

    A pixel is occluded if flow and backward flow do not lead back to it, |f + b|² > part (|f|² + |b|²) + pixels²
    [Sundaram et al., ECCV 2010], or lead out of the frame.
    """

    part: float = 0.01
    """Of the squared flows."""
    squared_pixels: float = 0.5
    """Squared distance that is always forgiven, pixels²."""

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Two. A video in which nothing moves has no warp error to speak of."""
        error = "mean squared difference to the next frame brought back by the flow"
        return {
            "warp_error": Number(meaning=error, better="lower", frozen="absent"),
            "occluded": Number(meaning="share of the pixels that the other frame does not show"),
        }

    @property
    def needs(self) -> frozenset[Need]:
        """Flow in both directions."""
        return frozenset({"flow", "backward"})

    def start(self, tools: Tools) -> Meter:
        """No pairs so far."""
        return _Meter(self)


@final
class _Meter(Meter):
    def __init__(self, metric: WarpError) -> None:
        self._metric, self._errors, self._occluded = metric, Moments(), Moments()

    def add(self, seen: Observation) -> None:
        if seen.previous is None or seen.flow is None or seen.backward is None:
            return
        visible = consistent(seen.flow, seen.backward, self._metric.part, self._metric.squared_pixels)
        squares = (seen.residual / 255).square().mean(dim=0)[visible]
        self._occluded.add(1 - float(visible.float().mean()))
        if len(squares):  # a pair that shows nothing twice says nothing
            self._errors.add(float(squares.mean()))

    def result(self) -> Values:
        return {"warp_error": self._errors.mean, "occluded": self._occluded.mean}


def consistent(
    flow: Float[Tensor, "2 rows cols"], backward: Float[Tensor, "2 rows cols"], part: float, squared_pixels: float
) -> Bool[Tensor, "rows cols"]:
    """Whether the backward flow leads each pixel back to where it came from; see `WarpError`."""
    back, inside = bring_back(backward, flow)
    off = (flow + back).square().sum(dim=0)
    forgiven = part * (flow.square().sum(dim=0) + back.square().sum(dim=0)) + squared_pixels
    return inside & (off <= forgiven)
