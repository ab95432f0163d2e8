"""Statistics of pairs: how much one way of making videos differs from another on the same prompts, and how surely.

Paired bootstrap (Efron's BCa interval, or percentiles) for the mean difference; sign-flip permutation for its p-value;
Holm's correction for several of them. The randomness is keyed: the same values give the same figures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum, inf, isinf
from statistics import NormalDist
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float64
from torch import Tensor

from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics.described import Described

Value: TypeAlias = float | None
"""A number of a video. Infinite: as bad as can be; None: not defined."""

_NORMAL = NormalDist()
_TIE = 1e-12
"""Sums that differ by less, relative to the largest there can be, are equal but for rounding."""
_CELLS = 2**20
"""Random numbers that are held at once."""


@final
@dataclass(frozen=True, kw_only=True)
class Procedure(Described):
    """How pairs are compared: everything that changes a figure beside the values."""

    interval: Literal["bca", "percentile"] = "bca"
    """Bootstrap interval of the mean difference: bias-corrected and accelerated, or plain percentiles."""
    level: float = 0.95
    """Confidence of the interval."""
    resamples: int = 10_000
    """Of the bootstrap, and sign patterns that are drawn where there are too many to try all."""
    exact: int = 16
    """Pairs with a difference up to which all sign patterns are tried."""
    seed: int = 0
    """Names the randomness."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.level <= 0.999:
            raise UserError(f"a confidence level of {self.level:g}: choose one from 0.5 to 0.999")
        if not 1000 <= self.resamples <= 1_000_000:
            raise UserError(f"{self.resamples} resamples: choose a number from 1000 to 1000000")
        if not 0 <= self.exact <= 20:
            raise UserError(f"exact tests of up to {self.exact} pairs: choose a number from 0 to 20")


@final
@dataclass(frozen=True, kw_only=True)
class Paired:
    """One number compared: the second against the first, over pairs in which both have a value."""

    pairs: int
    """Pairs that were used."""
    left_out: int
    """Pairs left out because the number is not defined for one of the two, or both."""
    absent: tuple[int, int]
    """Pairs in which it is not defined for the first, and for the second."""
    infinite: tuple[int, int]
    """Used pairs in which the first's value is infinite, and in which the second's is."""
    means: tuple[Value, Value]
    """Of the first and of the second over the used pairs; infinite if one value is; None without pairs."""
    difference: Value
    """Mean of second - first; None without pairs and where a value is infinite."""
    interval: tuple[float, float] | None
    """Confidence interval of the difference; None where there is no difference, and for less than two pairs."""
    p: Value
    """Two-sided p-value of "which of the two made which video of a pair makes no difference"; None without pairs."""
    exact: bool
    """Whether all sign patterns were tried."""
    ranks: bool
    """Whether the test is of signed ranks (Wilcoxon's statistic), as it is where a value is infinite."""


def compare_pairs(
    first: Sequence[Value],
    second: Sequence[Value],
    how: Procedure,
    *,
    name: str = "",
    better: Literal["lower", "higher"] | None = None,
) -> Paired:
    """One number of two ways to make the same videos: values of video i at place i of both.

    name: of the number, for its randomness. better: which way infinity, as bad as can be, lies from all other values.
    Raises ValueError for lists of different lengths and for NaN.
    """
    used = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if any(value != value for pair in used for value in pair):
        raise ValueError("a value is NaN: give None for what is not defined")
    infinite = (sum(isinf(a) for a, _ in used), sum(isinf(b) for _, b in used))
    ranks, key = any(infinite), Key(how.seed).fold("compare", name)
    worst = -inf if better == "higher" else inf
    changes = torch.tensor([_change(a, b, worst) for a, b in used], dtype=torch.float64)
    p, exact = sign_flip(signed_ranks(changes) if ranks else changes, how, key.fold("signs"))
    return Paired(
        pairs=len(used),
        left_out=len(first) - len(used),
        absent=(sum(a is None for a in first), sum(b is None for b in second)),
        infinite=infinite,
        means=(_mean([a for a, _ in used]), _mean([b for _, b in used])),
        difference=None if ranks else _mean(changes.tolist()),
        interval=None if ranks else bootstrap(changes, how, key.fold("bootstrap")),
        p=p if used else None,
        exact=exact,
        ranks=ranks,
    )


def bootstrap(differences: Float64[Tensor, " pairs"], how: Procedure, key: Key) -> tuple[float, float] | None:
    """Confidence interval of the mean by resampling the pairs; None for less than two [Efron & Tibshirani §14.3]."""
    count = len(differences)
    if count < 2:
        return None
    mean = fsum(differences.tolist()) / count
    away = differences - mean
    unit = float(away.abs().max())
    if float(differences.min()) == float(differences.max()) or unit == 0:
        return mean, mean
    away = away / unit
    means = torch.cat([away[picked].mean(1) for picked in _draws(count, count, how.resamples, key)])
    low, high = (1 - how.level) / 2, (1 + how.level) / 2
    if how.interval == "bca":
        low, high = _accelerated(away, means, low, high)
    found = torch.quantile(means, torch.tensor([low, high], dtype=torch.float64)).tolist()
    ends = [mean + unit * end for end in found]
    low, high = (0.0 if abs(end) <= _TIE * unit else end for end in ends)  # not a hair's breadth beside "no difference"
    return low, high


def sign_flip(differences: Float64[Tensor, " pairs"], how: Procedure, key: Key) -> tuple[float, bool]:
    """Two-sided p-value of the mean when every difference could as well have the other sign, and whether it is exact.

    Exact: the share of all sign patterns whose sum is as far from 0 as the one seen. Drawn patterns: that share, the
    pattern seen counted in, which makes the test valid for any number of draws [Phipson & Smyth 2010].
    """
    changed = differences[differences != 0]  # the others add nothing whatever their sign
    if not len(changed):
        return 1.0, True
    changed = changed / changed.abs().max()
    enough = abs(fsum(changed.tolist())) - _TIE * float(changed.abs().sum())
    if len(changed) <= how.exact:
        return float((_all_signs(len(changed)) @ changed).abs().ge(enough).double().mean()), True
    blocks = _draws(2, len(changed), how.resamples, key)
    reached = sum(int(((2.0 * block - 1) @ changed).abs().ge(enough).sum()) for block in map(Tensor.double, blocks))
    return (1 + reached) / (1 + how.resamples), False


def signed_ranks(differences: Float64[Tensor, " pairs"]) -> Float64[Tensor, " pairs"]:
    """Ranks of the sizes, 1 for the smallest, equal ones sharing their mean rank, with the signs; 0 stays 0."""
    sizes = differences.abs()
    below = (sizes[:, None] > sizes).double().sum(1)
    equal = (sizes[:, None] == sizes).double().sum(1)
    return differences.sign() * (below + (equal + 1) / 2)


def holm(values: Sequence[Value]) -> list[Value]:
    """P-values corrected for their number: the chance of one wrong rejection stays below the level [Holm 1979].

    What is None stays so and does not count.
    """
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    found: list[Value] = [None] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        found[i] = highest
    return found


def _change(first: float, second: float, worst: float) -> float:
    """second - first; both infinite: nothing, since both are as bad as can be."""
    if isinf(first) and isinf(second):
        return 0.0
    return -worst if isinf(first) else worst if isinf(second) else second - first


def _mean(values: Sequence[float]) -> Value:
    if not values:
        return None
    return inf if any(map(isinf, values)) else fsum(values) / len(values)


def _draws(options: int, width: int, rows: int, key: Key) -> Iterator[Tensor]:
    """Integers below `options`, [some, width] at a time, `rows` in all."""
    step = max(1, _CELLS // width)
    for start in range(0, rows, step):
        yield key.fold("block", start).integers(0, options, min(step, rows - start), width)


def _all_signs(count: int) -> Float64[Tensor, "patterns count"]:
    """Half of the sign patterns, those that keep the last sign: the others only turn sums around."""
    bits = torch.arange(2 ** (count - 1))[:, None] >> torch.arange(count) & 1
    return 1.0 - 2.0 * bits.double()


def _accelerated(
    away: Float64[Tensor, " pairs"], means: Float64[Tensor, " resamples"], low: float, high: float
) -> tuple[float, float]:
    """Which quantiles of the resampled means the BCa interval takes; differences have mean 0 and are 1 at most."""
    share = float(((means < -_TIE).double() + (means.abs() <= _TIE).double() / 2).mean())
    edge = 0.5 / len(means)
    bias = _NORMAL.inv_cdf(min(max(share, edge), 1 - edge))
    skew = float((away**3).sum()) / (6 * float((away**2).sum()) ** 1.5)

    def moved(quantile: float) -> float:
        shift = bias + _NORMAL.inv_cdf(quantile)
        return _NORMAL.cdf(bias + shift / (1 - skew * shift))

    return moved(low), moved(high)
