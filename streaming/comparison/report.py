"""A comparison as text for people (Markdown that reads well in a terminal) and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import inf

from streaming.comparison.compared import Compared, Comparison
from streaming.metrics.contract import Number
from streaming.metrics.paired import Paired, Value
from streaming.metrics.results import INFINITE

FEW = 10
"""Pairs below which bootstrap intervals are clearly too narrow."""
_ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}


def markdown(found: Comparison) -> str:
    """A table for each comparison, with what has to be known to read it."""
    return "\n\n".join([*(_section(found, other) for other in found.others), _explained(found)]) + "\n"


def as_json(found: Comparison) -> str:
    """As strict JSON; infinity is the word "infinite"."""
    told = {
        "version": 1,
        "statistics": found.how.settings(),
        "tests": found.tests,
        "first": found.first,
        "meanings": {name: asdict(meaning) for name, meaning in found.meanings.items()},
        "comparisons": [_plain(other) for other in found.others],
    }
    return json.dumps(told, allow_nan=False, indent=1) + "\n"


def _plain(other: Compared) -> dict[str, object]:
    pairing = other.pairing
    return {
        "second": other.label,
        "paired_by": pairing.by,
        "pairs": [[a.file, b.file] for a, b in pairing.pairs],
        "alone": list(pairing.alone),
        "failed": list(pairing.failed),
        "despite": [asdict(each) for each in other.differences],
        "not_compared": list(other.left_out),
        "verdicts_of_different_aspects": [{"file": file, "aspects": list(only)} for file, only in other.unlike],
        "numbers": {
            name: {
                **asdict(number),
                "means": [INFINITE if mean == inf else mean for mean in number.means],
                "p_holm": other.corrected[name],
            }
            for name, number in other.numbers.items()
        },
    }


def _section(found: Comparison, other: Compared) -> str:
    pairing = other.pairing
    told = [f"## {other.label} against {found.first}", "", f"{_many(len(pairing.pairs), 'pair')}, by {pairing.by}."]
    if pairing.alone:
        told.append(f"Without a partner: {_few(pairing.alone)}.")
    if pairing.failed:
        told.append(f"Not evaluated on one side or both: {_few(pairing.failed)}.")
    if other.left_out:
        told.append(f"Numbers that not both have: {_few(other.left_out)}.")
    if other.unlike:
        file, only = other.unlike[0]
        told.append(
            f"Verdicts left out in {_many(len(other.unlike), 'pair')}, as they judged different aspects: "
            f"{file} ({_few(only)})" + (", ..." if len(other.unlike) > 1 else "") + "."
        )
    for each in other.differences:
        values = f"{each.values[0]} and {each.values[1]}"
        told.append(f"MEASURED DIFFERENTLY in {_many(each.pairs, 'pair')}: {each.name} ({values}).")
    percent = f"{100 * found.how.level:g} %"
    head = ["number", found.first, other.label, "difference", f"{percent} interval", "p", "p (Holm)", "pairs"]
    rows = [_row(name, found.meanings[name], each, other.corrected[name]) for name, each in other.numbers.items()]
    return "\n".join([*told, "", *_table(head, rows)])


def _row(name: str, meaning: Number, number: Paired, corrected: Value) -> list[str]:
    unit = f" ({meaning.unit})" if meaning.unit else ""
    interval = "—" if number.interval is None else f"{number.interval[0]:+.4g} … {number.interval[1]:+.4g}"
    difference = "—" if number.difference is None else f"{number.difference:+.4g}"
    kind = "" if number.p is None or number.exact else " ~"
    ranks = " r" if number.ranks else ""
    return [
        f"{name}{unit}{_ARROWS[meaning.better]}",
        *(_value(mean) for mean in number.means),
        difference,
        interval,
        _p(number.p) + kind + ranks,
        _p(corrected),
        _pairs(number),
    ]


def _p(value: Value) -> str:
    return "—" if value is None else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _pairs(number: Paired) -> str:
    counts = {"absent": number.absent, "infinite": number.infinite}
    notes = ", ".join(f"{what}: {first} and {second}" for what, (first, second) in counts.items() if first or second)
    of = f" of {number.pairs + number.left_out}" if number.left_out else ""
    return f"{number.pairs}{of}" + (f" ({notes})" if notes else "")


def _explained(found: Comparison) -> str:
    how = found.how
    kind = "BCa" if how.interval == "bca" else "percentile"
    lines = [
        "↓ less is better, ↑ more is better. Difference: mean over pairs of the second minus the first. "
        f"Interval: paired bootstrap, {kind}, {how.resamples} resamples, seed {how.seed}.",
        "p: two-sided sign-flip permutation test of the mean difference, all sign patterns up to "
        f"{how.exact} pairs that differ; ~: {how.resamples} drawn patterns. "
        f"p (Holm): corrected for the {_many(found.tests, 'test')} of this report.",
    ]
    numbers = [number for other in found.others for number in other.numbers.values()]
    if any(number.ranks for number in numbers):
        lines.append(
            "r: some values are infinite, as bad as can be (how many of the first and of the second stands behind the "
            "pairs): the mean is infinite, the difference not defined, and the test is of signed ranks (Wilcoxon's)."
        )
    if any(number.left_out for number in numbers):
        lines.append(
            "Absent: a number that is not defined for a video of the first, or of the second, as `warp_error` is not "
            "for one in which nothing moves; the pair is left out, so look which side loses its videos."
        )
    if any(name.startswith("mawe_") for other in found.others for name in other.numbers):
        from streaming.evaluation.document import MAWE_ALONE

        lines.append(MAWE_ALONE)
    if pairs := max((number.pairs for number in numbers), default=0):
        lines += _warning(pairs, found)
    return "\n".join(f"- {line}" for line in lines)


def _warning(pairs: int, found: Comparison) -> list[str]:
    """What so few pairs cannot tell."""
    if pairs >= FEW:
        return []
    least = 2 / 2**pairs
    after = f", {_p(min(1.0, least * found.tests))} after the correction" if found.tests > 1 else ""
    return [
        f"Few pairs: with {pairs}, intervals are too narrow, and p is {_p(least)} at least{after}. Compare more "
        "videos, or fewer numbers that you choose before you look (--number)."
    ]


def _value(mean: Value) -> str:
    return "—" if mean is None else "infinite" if mean == inf else f"{mean:.4g}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table with columns of equal width, numbers to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    last = len(head) - 1

    def line(row: list[str]) -> str:
        return "| " + " | ".join(_padded(cell, width, i in (0, last)) for i, (cell, width) in aligned(row)) + " |"

    def aligned(row: list[str]) -> list[tuple[int, tuple[str, int]]]:
        return list(enumerate(zip(row, widths, strict=True)))

    rule = ["-" * width if i in (0, last) else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [line(cells[0]), "| " + " | ".join(rule) + " |", *(line(row) for row in cells[1:])]


def _padded(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)
