"""Every number of one evaluation against that of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from streaming.comparison.read import VERDICT, Evaluation, Pairing, Video, pair
from streaming.comparison.settings import Difference, check, differences
from streaming.errors import UserError
from streaming.metrics.contract import Number
from streaming.metrics.paired import Paired, Procedure, Value, compare_pairs, holm


@final
@dataclass(frozen=True, kw_only=True)
class Compared:
    """One evaluation against the first."""

    label: str
    """Of the evaluation that stands against the first."""
    pairing: Pairing
    """Which videos belong together."""
    differences: tuple[Difference, ...]
    """What was measured differently and yet is compared."""
    numbers: Mapping[str, Paired]
    """By name: those that both have."""
    corrected: Mapping[str, Value]
    """P-values corrected by Holm for all comparisons of the report."""
    left_out: tuple[str, ...]
    """Names of numbers, of those asked for, that not both have."""
    unlike: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Pairs, by the first's file, whose verdicts are left out: the aspects that only one of the two judged."""


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole report."""

    first: str
    """Label of the evaluation that the others are compared with."""
    others: tuple[Compared, ...]
    """The others, in the order given."""
    meanings: Mapping[str, Number]
    """What the numbers mean."""
    how: Procedure
    """Of the statistics."""
    tests: int
    """P-values that the correction is for."""


def compare(
    evaluations: Sequence[Evaluation], how: Procedure, *, numbers: Sequence[str] = (), despite: Sequence[str] = ()
) -> Comparison:
    """The first evaluation against each of the others.

    numbers: names of those to compare; empty: all. despite: settings that may differ.
    Raises UserError for less than two evaluations, videos that cannot be paired, none that both evaluated, other
    differences of settings, and a number that no evaluation has.
    """
    if len(evaluations) < 2:
        raise UserError("one result cannot be compared: name two or more, the one to compare with first")
    first, *rest = evaluations
    meanings = {name: meaning for each in reversed(evaluations) for name, meaning in each.meanings.items()}
    if unknown := [name for name in numbers if name not in meanings]:
        raise UserError(f"no result has a number '{unknown[0]}': choose among {', '.join(meanings)}")
    pairings = [_paired(first, other, despite) for other in rest]
    found = [_numbers(pairing, [*(numbers or first.meanings)], meanings, how) for pairing, _ in pairings]
    for other, each in zip(rest, found, strict=True):
        if not each:
            wanted = f" of {', '.join(numbers)}" if numbers else ""
            raise UserError(f"{first.label} and {other.label} have no number{wanted} in common: evaluate both alike")
    corrected = iter(holm([number.p for each in found for number in each.values()]))
    others = tuple(
        Compared(
            label=other.label,
            pairing=pairing,
            differences=differing,
            numbers=each,
            corrected={name: next(corrected) for name in each},
            left_out=tuple(
                dict.fromkeys(name for name in numbers or (*first.meanings, *other.meanings) if name not in each)
            ),
            unlike=_unlike(pairing) if VERDICT in each else (),
        )
        for other, (pairing, differing), each in zip(rest, pairings, found, strict=True)
    )
    tests = sum(number.p is not None for each in found for number in each.values())
    return Comparison(first=first.label, others=others, meanings=meanings, how=how, tests=tests)


def _paired(first: Evaluation, other: Evaluation, despite: Sequence[str]) -> tuple[Pairing, tuple[Difference, ...]]:
    pairing = pair(first, other)
    if not pairing.pairs:
        raise UserError(f"{first.label} and {other.label} have no video that both could evaluate: nothing to compare")
    found = differences(pairing)
    check(found, (first.label, other.label), despite)
    return pairing, found


def _numbers(
    pairing: Pairing, names: Sequence[str], meanings: Mapping[str, Number], how: Procedure
) -> dict[str, Paired]:
    """Numbers that some video of either side has; where a video lacks one, it is absent."""
    sides = list(zip(*((_numbers_of(one, two), _numbers_of(two, one)) for one, two in pairing.pairs), strict=True))
    return {
        name: compare_pairs(
            [each.get(name) for each in sides[0]],
            [each.get(name) for each in sides[1]],
            how,
            name=name,
            better=meanings[name].better,
        )
        for name in names
        if all(any(name in each for each in side) for side in sides)
    }


def _numbers_of(video: Video, other: Video) -> Mapping[str, Value]:
    """Without the verdict if it is of other aspects than the other one's: then they cannot be compared."""
    if _judged_by_one(video, other):
        return {name: None if name == VERDICT else value for name, value in video.numbers.items()}
    return video.numbers


def _judged_by_one(one: Video, other: Video) -> tuple[str, ...]:
    """Aspects that only one of two verdicts judged; none where a verdict is absent or needs no aspects."""
    if one.judged is None or other.judged is None or None in (one.numbers[VERDICT], other.numbers[VERDICT]):
        return ()
    return tuple(sorted(one.judged ^ other.judged))


def _unlike(pairing: Pairing) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((one.file, only) for one, two in pairing.pairs if (only := _judged_by_one(one, two)))
