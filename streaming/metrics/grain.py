"""Grain: noise that is new in every frame, and the fine detail that is left without it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import expm1, log1p
from statistics import NormalDist
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.errors import UserError
from streaming.metrics.carry import bring_back
from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.detail import LAPLACIAN, Octaves
from streaming.metrics.looks import LUMA
from streaming.metrics.running import Moments


@final
@dataclass(frozen=True, kw_only=True)
class Grain(Metric):
    """Standard deviation of what comes anew with every frame, and the finest scale's detail without that.

    A frame brought back along the flow leaves a residual to the one before. Where the flow is right it holds the noise
    of both frames and nothing else; where it is wrong, and at edges, it holds more. So a low quantile of the
    residual's absolute Laplacian is taken, over every other pixel of every other row, to tell noise, which is
    everywhere, from errors, which are not (a robust estimate in the way of [Donoho & Johnstone 1994, "Ideal spatial
    adaptation"], of a residual in time). Pairs are averaged by the geometric mean of 1 + deviation, in which a few
    cuts hardly count. Noise that stays where it is, or moves along with the picture, is texture and is not seen; nor is
    grain that is much coarser than a pixel.

    `clean_detail` is `fine_detail` with the grain's part of the detail taken away, so that grain does not pass for
    sharpness. Bringing back smoothes one of the two frames, by as much as the flow ends between pixels; so the
    variance is 1 to 2 times as large as told, and `doubt` times it is taken away.

    At the evaluation's resolution, or the video's own if that has fewer pixels.
    """

    quantile: float = 0.25
    """Of the residual's absolute Laplacian; a Gaussian's at that share gives the standard deviation."""
    doubt: float = 1.5
    """How many times the variance is taken away."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1 or not self.doubt >= 0:
            raise UserError(
                f"a quantile of {self.quantile} and a doubt of {self.doubt}: give one between 0 and 1, and 0 or more"
            )

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Two. None for less than two frames and for sides under 6 pixels."""
        told = "standard deviation of noise that is new in every frame"
        clean = "variance of the Laplacian, less the grain's, by what the coarser octaves let one expect"
        return {
            "grain": Number(meaning=told, unit="grey levels", better="lower", frozen="absent"),
            "clean_detail": Number(meaning=clean, better="higher", frozen="absent"),
        }

    @property
    def needs(self) -> frozenset[Need]:
        """Flow."""
        return frozenset({"flow"})

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter(self)


@final
class _Meter(Meter):
    """Keeps the last frame as it is in the video, if that is smaller than the evaluation's."""

    def __init__(self, metric: Grain) -> None:
        self._metric = metric
        self._noise, self._grey, self._octaves = Moments(), Moments(), Octaves()
        self._last: UInt8[Tensor, "3 shown_rows shown_cols"] | None = None

    def add(self, seen: Observation) -> None:
        if seen.detail is not None:
            self._octaves.add(seen.detail)
            if seen.flow is not None:
                colours, grey = deviations(self._residual(seen, seen.flow), self._metric.quantile)
                self._noise.add(log1p(colours))
                self._grey.add(log1p(grey))
        self._last = seen.shown if seen.coarser else None

    def _residual(
        self, seen: Observation, flow: Float[Tensor, "2 rows cols"]
    ) -> Float[Tensor, "3 some_rows some_cols"]:
        if self._last is None:
            return seen.residual
        size = torch.tensor(self._last.shape[-2:])
        shrunk = functional.interpolate(flow[None], tuple(size.tolist()), mode="bilinear", antialias=True)[0]
        scale = (size / torch.tensor(flow.shape[-2:])).flip(0)[:, None, None]  # sizes are (rows, cols), flows (x, y)
        return bring_back(seen.shown.float(), shrunk * scale)[0] - self._last.float()

    def result(self) -> Values:
        noise, grey = self._noise.mean, self._grey.mean
        if noise is None or grey is None:
            return {"grain": None, "clean_detail": None}
        clean = self._octaves.sharpness(self._metric.doubt * expm1(grey) ** 2)
        return {"grain": expm1(noise), "clean_detail": clean}


def deviations(residual: Float[Tensor, "3 rows cols"], quantile: float) -> tuple[float, float]:
    """Standard deviation of the noise of one frame, of which the residual holds two: of its colours (root of the
    channels' mean square), and of their grey level. Sides are 3 pixels or more.
    """
    middle = -4 * residual[:, 1:-1:2, 1:-1:2]
    across = residual[:, 1:-1:2, :-2:2] + residual[:, 1:-1:2, 2::2]
    along = residual[:, :-2:2, 1:-1:2] + residual[:, 2::2, 1:-1:2]
    bends = middle + across + along
    grey = (torch.tensor(LUMA)[:, None, None] * bends).sum(dim=0, keepdim=True)
    sizes = torch.cat((bends, grey)).flatten(1).abs()
    found = sizes.kthvalue(max(1, round(quantile * sizes.shape[1])), dim=1).values
    # By the quantile of a standard Gaussian's absolute value; two frames have twice the variance of one.
    told = found / (NormalDist().inv_cdf((1 + quantile) / 2) * (2 * LAPLACIAN) ** 0.5)
    return float(told[:3].square().mean().sqrt()), float(told[3])
