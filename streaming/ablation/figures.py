"""Means with intervals, and what became of the claims. The unit is the prompt: a prompt's seeds are averaged first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import final

import torch

from streaming.ablation.plan import Table, Wanted
from streaming.ablation.run import Found
from streaming.ablation.store import by_prompt
from streaming.keys import Key
from streaming.metrics.paired import Paired, Procedure, Value, bootstrap, compare_pairs, holm

HIGHER = ("pattern_kept", "object_found")
"""Numbers of which more is better; of all others, less."""


@final
@dataclass(frozen=True, kw_only=True)
class Mean:
    """A number of a variant."""

    value: Value
    """Mean over the prompts; infinite if it is for one; None if it is defined for none."""
    interval: tuple[float, float] | None
    """Bootstrap interval, prompts resampled."""
    prompts: int
    """For which it is defined."""


@final
@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim and the figures."""

    wanted: Wanted
    """What is claimed."""
    paired: Paired
    """The better variant against the worse one, by prompts: differences are better - worse."""
    corrected: Value
    """p-value after Holm's correction for all claims of the table."""

    @property
    def holds(self) -> bool:
        """Whether the difference has the claimed sign and p is below .01, uncorrected."""
        p = self.paired.p
        return p is not None and p < 0.01 and self.sign > 0

    @property
    def sign(self) -> int:
        """1 if the difference is as claimed, -1 if it is the other way round, 0 if there is none."""
        first, second = self.paired.means  # worse, better
        if first is None or second is None:
            return 0
        less = (first > second) - (first < second)
        return -less if self.wanted.number in HIGHER else less


@final
@dataclass(frozen=True, kw_only=True)
class Figures:
    """One table, filled in."""

    table: Table
    """Of which."""
    means: Mapping[str, Mapping[str, Mean]]
    """By variant, then by number; variants that were skipped are missing."""
    claims: tuple[Claim, ...]
    """Of which both variants are there."""


def figures(table: Table, found: Found, how: Procedure) -> Figures:
    """Everything that is told of a table."""
    rows = {each.name: found.rows[each.file] for each in table.variants if each.file in found.rows}
    known = [name for name in table.numbers if any(name in row.numbers for each in rows.values() for row in each)]
    values = {(variant, name): by_prompt(each, name) for variant, each in rows.items() for name in known}
    means = {variant: {name: _mean(values[variant, name], how, name) for name in known} for variant in rows}
    asked = [each for each in table.wanted if each.number in known and {each.better, each.worse} <= set(rows)]
    paired = [_pair(each, values[each.worse, each.number], values[each.better, each.number], how) for each in asked]
    corrected = holm([each.p for each in paired])
    claims = zip(asked, paired, corrected, strict=True)
    return Figures(
        table=table,
        means=means,
        claims=tuple(Claim(wanted=wanted, paired=each, corrected=p) for wanted, each, p in claims),
    )


def _pair(wanted: Wanted, worse: Sequence[Value], better: Sequence[Value], how: Procedure) -> Paired:
    way = "higher" if wanted.number in HIGHER else "lower"
    return compare_pairs(worse, better, how, name=wanted.number, better=way)


def _mean(values: Sequence[Value], how: Procedure, name: str) -> Mean:
    used = [value for value in values if value is not None]
    if not used:
        return Mean(value=None, interval=None, prompts=0)
    if inf in used:
        return Mean(value=inf, interval=None, prompts=len(used))
    there = torch.tensor(used, dtype=torch.float64)
    interval = bootstrap(there, how, Key(how.seed).fold("ablation", name))
    return Mean(value=float(there.mean()), interval=interval, prompts=len(used))
