"""Confidence intervals of shares and ratios over prompts × seeds; clips of one prompt count as one draw of prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from streaming.keys import Key

LEVEL = 0.95
"""Confidence."""
RESAMPLES = 4000
"""Of the bootstrap."""


@final
@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its interval."""

    value: float
    """The figure; NaN where nothing was counted."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    count: int
    """Clips that were counted."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(hits: Bool[Tensor, "prompts seeds"], counted: Bool[Tensor, "prompts seeds"] | None = None) -> Estimate:
    """Share of clips, with Wilson's interval.

    Its number of draws is that of independent clips with the variance that the prompts' shares show [Kish 1965]: at
    least the number of prompts, at most that of clips. counted: the clips to be looked at; None: all.
    """
    counted = torch.ones_like(hits) if counted is None else counted
    number = int(counted.sum())
    if not number:
        return Estimate(value=math.nan, low=0.0, high=1.0, count=0)
    value = float((hits & counted).sum()) / number
    each = counted.sum(dim=1).double()
    off = ((hits & counted).sum(dim=1) - value * each)[each > 0]
    prompts = len(off)
    variance = float(off.square().sum()) / number**2
    even = number if 0 < value < 1 else prompts  # if all clips agree, who knows whether those of a prompt always do
    draws = value * (1 - value) / variance if variance > 0 else even
    low, high = _wilson(value, min(max(draws, prompts), number))
    return Estimate(value=value, low=low, high=high, count=number)


def _wilson(value: float, draws: float) -> tuple[float, float]:
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    centre = (value + z2 / (2 * draws)) / (1 + z2 / draws)
    reach = math.sqrt(z2) / (1 + z2 / draws) * math.sqrt(value * (1 - value) / draws + z2 / (4 * draws**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def mean(values: Sequence[Sequence[float | None]], key: Key) -> Estimate:
    """Mean of the values of [prompts][seeds] that are not None; bootstrap over prompts."""
    ones = [[None if value is None else 1.0 for value in row] for row in values]
    return ratio(values, ones, key)


def ratio(above: Sequence[Sequence[float | None]], below: Sequence[Sequence[float | None]], key: Key) -> Estimate:
    """Sum of `above` by sum of `below`, [prompts][seeds], where both are given; percentile bootstrap over prompts."""
    sums = torch.tensor(
        [_sums(a, b) for a, b in zip(above, below, strict=True)], dtype=torch.float64
    )  # prompts (above below count)
    sums = sums[sums[:, 2] > 0]
    if not len(sums):
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0)
    top, bottom, count = sums.sum(dim=0).tolist()
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=key.generator())
    resampled: Float64[Tensor, "resamples 3"] = sums[drawn].sum(dim=1)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled[:, 0] / resampled[:, 1], ends).tolist()
    return Estimate(value=top / bottom if bottom else math.nan, low=low, high=high, count=int(count))


def _sums(above: Sequence[float | None], below: Sequence[float | None]) -> tuple[float, float, int]:
    pairs = [(a, b) for a, b in zip(above, below, strict=True) if a is not None and b is not None]
    return math.fsum(a for a, _ in pairs), math.fsum(b for _, b in pairs), len(pairs)
