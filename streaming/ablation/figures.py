"""Means with intervals, and what became of the claims. The unit is the prompt: a prompt's seeds are averaged first."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import final

import torch

from streaming.ablation.plan import Table, Wanted
from streaming.ablation.run import Found
from streaming.ablation.store import by_prompt
from streaming.keys import Key
from streaming.metrics.paired import Paired, Procedure, Value, bootstrap, compare_pairs, holm, signed_ranks

HIGHER = ("pattern_kept", "object_found")
"""Numbers of which more is better; of all others but `NEITHER`, less."""
NEITHER = ("seam_ratio", "object_jump_ratio", "object_jump_border", "pattern_kept_chance")
"""Numbers that describe: at chunk borders as much has to move as elsewhere, not less; chance is what it is."""


@final
@dataclass(frozen=True, kw_only=True)
class Mean:
    """A number of a variant."""

    value: Value
    """Mean over the prompts with a finite value; infinite if there are only infinite ones; None if it is defined for
    none."""
    interval: tuple[float, float] | None
    """Bootstrap interval of it, prompts resampled."""
    infinite: int = 0
    """Prompts for which it is infinite, which the mean leaves out."""
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
    ranked: float
    """Sum of the signed ranks of the differences better - worse, what p tells of where a value is infinite."""
    corrected: Value
    """p-value after Holm's correction for all claims of the table."""

    @property
    def holds(self) -> bool:
        """Whether the difference has the claimed sign and p is below .01, uncorrected."""
        p = self.paired.p
        return p is not None and p < 0.01 and self.sign > 0

    @property
    def sign(self) -> int:
        """1 if the difference is as claimed, -1 if it is the other way round, 0 if there is none: by what p is of, the
        mean difference or the ranks."""
        change = self.ranked if self.paired.ranks else self.paired.difference or 0.0
        less = (change < 0) - (change > 0)
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
    """Of which both variants and the number are there."""
    unmeasured: Mapping[str, str]
    """Why a number of the table is told of no variant."""
    untested: tuple[tuple[Wanted, str], ...]
    """Claims that could not be tested, and why."""


def figures(table: Table, found: Found, how: Procedure) -> Figures:
    """Everything that is told of a table."""
    rows = {each.name: found.rows[each.file] for each in table.variants if each.file in found.rows}
    known = [name for name in table.numbers if any(name in row.numbers for each in rows.values() for row in each)]
    values = {(variant, name): by_prompt(each, name) for variant, each in rows.items() for name in known}
    means = {variant: {name: _mean(values[variant, name], how, name) for name in known} for variant in rows}
    asked = [each for each in table.wanted if each.number in known and {each.better, each.worse} <= set(rows)]
    paired = [_pair(each, values[each.worse, each.number], values[each.better, each.number], how) for each in asked]
    ranked = [_ranked(each, values[each.worse, each.number], values[each.better, each.number]) for each in asked]
    corrected = holm([each.p for each in paired])
    claims = zip(asked, paired, ranked, corrected, strict=True)
    missing = {name: found.unmeasured.get(name, "no variant tells it") for name in table.numbers if name not in known}
    skipped = {each.name: found.skipped.get(each.file, "it was not made") for each in table.variants}
    return Figures(
        table=table,
        means=means,
        claims=tuple(Claim(wanted=wanted, paired=each, ranked=r, corrected=p) for wanted, each, r, p in claims),
        unmeasured=missing,
        untested=tuple((each, _why(each, rows, missing, skipped)) for each in table.wanted if each not in asked),
    )


def _why(wanted: Wanted, there: Container[str], missing: Mapping[str, str], skipped: Mapping[str, str]) -> str:
    """Why a claim could not be tested."""
    reasons = [f"{name} is missing: {skipped[name]}" for name in (wanted.better, wanted.worse) if name not in there]
    return "; ".join(reasons) or missing[wanted.number]


def _pair(wanted: Wanted, worse: Sequence[Value], better: Sequence[Value], how: Procedure) -> Paired:
    way = "higher" if wanted.number in HIGHER else "lower"
    return compare_pairs(worse, better, how, name=wanted.number, better=way)


def _ranked(wanted: Wanted, worse: Sequence[Value], better: Sequence[Value]) -> float:
    """Infinity is as bad as can be: below all other values if more is better; two of them are no difference."""
    bad = -inf if wanted.number in HIGHER else inf
    used = [(bad if abs(a) == inf else a, bad if abs(b) == inf else b)
            for a, b in zip(worse, better, strict=True) if a is not None and b is not None]  # fmt: skip
    return float(signed_ranks(torch.tensor([0.0 if a == b else b - a for a, b in used], dtype=torch.float64)).sum())


def _mean(values: Sequence[Value], how: Procedure, name: str) -> Mean:
    used = [value for value in values if value is not None]
    if not used:
        return Mean(value=None, interval=None, prompts=0)
    finite = [value for value in used if value != inf]
    if not finite:
        return Mean(value=inf, interval=None, infinite=len(used), prompts=len(used))
    there = torch.tensor(finite, dtype=torch.float64)
    interval = bootstrap(there, how, Key(how.seed).fold("ablation", name))
    return Mean(value=float(there.mean()), interval=interval, infinite=len(used) - len(finite), prompts=len(used))
