"""The report as Markdown."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from streaming.evaluation.document import MAWE_ALONE, VERDICT, Document, arrow, shown, told_settings
from streaming.evaluation.run import Evaluated

if TYPE_CHECKING:
    from streaming.metrics.verdict import Verdict

UNUSED = "Prompts without a video"
"""Heads the list of what a prompt file says too much."""
LEGEND = (
    "↓ lower, ↑ higher is better; – not defined for this video; ∞ as bad as can be. A mean with (N) behind it is over "
    "N videos only, those for which it is defined."
)
"""Stands above tables of numbers."""
MOST_COLUMNS = 6
"""Videos up to which the table of all numbers has a column for each."""


def markdown(document: Document) -> str:
    """Overview, verdicts, all numbers, settings, and what could not be evaluated."""
    parts = ["# Evaluation", *_overview(document), *_failed(document)]
    parts += [*_videos(document), *_numbers(document), *_settings(document)]
    return "\n\n".join(parts) + "\n"


def _overview(document: Document) -> list[str]:
    names = document.headlines
    graded = [
        [
            each.file,
            str(each.results.frames),
            shown(rated.badness),
            *(shown(rated.grades.get(a)) for a in document.aspects),
        ]
        for each, rated in zip(document.evaluated, document.verdicts, strict=True)
    ]
    rows = [[each.file, *(shown(each.results.numbers.get(name)) for name in names)] for each in document.evaluated]
    if len(rows) > 1:
        rows.append([f"mean of {len(rows)}", *(document.told_mean(name) for name in names)])
    heads = [["video", "frames", "badness ↓", *document.aspects]]
    heads += [["video", *(name + arrow(document.meanings[name]) for name in names)]]
    warned = [f"**{MAWE_ALONE}**"] if any(name.startswith("mawe") for name in names) else []
    return [VERDICT, table(heads[0], graded), LEGEND, *([table(heads[1], rows)] if names else []), *warned]


def _failed(document: Document) -> list[str]:
    parts = []
    for head, failed in (("Not evaluated", document.failed), (UNUSED, document.unused)):
        if failed:
            lines = (f"- {_plain(each.file)}: {_plain(each.error)}" for each in failed)
            parts += [f"## {head}", "\n".join(lines)]
    return parts


def _videos(document: Document) -> list[str]:
    parts = ["## Videos"]
    for each, rated in zip(document.evaluated, document.verdicts, strict=True):
        parts += [f"### {_plain(each.file)}", "\n".join(f"- {_plain(line)}" for line in facts(each, rated))]
        if each.narrative is not None and each.narrative.segments:
            parts.append(table(SEGMENTS, segments(each)))
    return parts


SEGMENTS = ("from frame", "frames", "prompt", "fit ↑", "margin ↑", "fits best")


def segments(each: Evaluated) -> list[list[str]]:
    """A row for each segment of a narrative score."""
    found = each.narrative.segments if each.narrative is not None else ()
    return [
        [str(one.start), str(one.frames), one.prompt, shown(one.fit), shown(one.margin),
         "its own" if one.best == one.prompt else one.best]
        for one in found
    ]  # fmt: skip


def facts(each: Evaluated, rated: "Verdict") -> list[str]:
    """A few lines about a video: what it is, what it should show, and the verdict's reasons."""
    results = each.results
    rows, cols = results.shown
    seconds = f"{results.frames / results.fps:.1f} s at {results.fps:.4g} frames/s" if results.fps else ""
    lines = [f"{results.frames} frames of {cols}x{rows}, {seconds}"]
    if each.prompts is not None:
        lines += [
            f"prompt{f' from frame {frame}' if len(each.prompts.entries) > 1 else ''}: {text}"
            for frame, text in each.prompts.entries
        ]
    if each.borders is not None:
        joins = [frame for frame in range(1, results.frames) if each.borders.begins(frame)]
        told = ", ".join(map(str, joins[:8])) + (", ..." if len(joins) > 8 else "")
        lines.append(f"{len(joins)} chunk joins{f', at frames {told}' if joins else ''}")
    lines += ["nothing moves: it counts as frozen"] if results.frozen else []
    for name, frames in results.events.items():
        if frames:
            lines.append(f"{name}: at frames {', '.join(map(str, frames[:20]))}{', ...' if len(frames) > 20 else ''}")
    return [*lines, *each.warnings, f"verdict: badness {shown(rated.badness)}", *rated.reasons]


def _numbers(document: Document) -> list[str]:
    parts = ["## All numbers"]
    for start in range(0, len(document.evaluated), MOST_COLUMNS):
        some = document.evaluated[start : start + MOST_COLUMNS]
        head = ["number", "meaning", "unit", *(each.file for each in some)]
        rows = [
            [
                f"`{name}`{arrow(number)}",
                number.meaning,
                number.unit,
                *(shown(e.results.numbers.get(name)) for e in some),
            ]
            for name, number in document.meanings.items()
        ]
        parts.append(table(head, rows))
    return [*parts, LEGEND]


def _settings(document: Document) -> list[str]:
    rows = [[name, value] for name, value in told_settings(document.settings)]
    return ["## Settings", "Whatever else changes a number, the metrics' own settings too, stands in results.json.",
            table(["setting", "value"], rows)]  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text if text.startswith("`") else _plain(text)


def _plain(text: str) -> str:
    """One line in which nothing is markup."""
    return "".join(f"\\{letter}" if letter in "\\|`*_<>[]#" else letter for letter in " ".join(text.split()))
