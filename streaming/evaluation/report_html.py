"""The report as one HTML page that needs nothing else: plots and pictures are inside."""

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from streaming.evaluation.document import MAWE_ALONE, VERDICT, Document, arrow, shown, told_settings
from streaming.evaluation.pictures import Picture
from streaming.evaluation.plots import over_time
from streaming.evaluation.report_markdown import LEGEND, SEGMENTS, UNUSED, facts, segments
from streaming.evaluation.run import Evaluated

if TYPE_CHECKING:
    from streaming.metrics.verdict import Verdict

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1280px; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; overflow-wrap: anywhere; }
h2, h1 { border-bottom: 1px solid #ddd; padding-bottom: .3rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 12.5px; }
th, td { padding: .25rem .4rem; border-bottom: 1px solid #e6e6e6; text-align: left; vertical-align: top; }
th { background: #f6f6f6; vertical-align: bottom; } td:first-child { white-space: nowrap; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.mean td { font-weight: 600; border-top: 2px solid #999; }
.note { background: #fff7e0; border-left: 4px solid #e0a800; padding: .6rem .9rem; margin: 1rem 0; }
.failed { background: #fdecea; border-left: 4px solid #c0392b; padding: .6rem .9rem; margin: 1rem 0; }
figure { margin: 1.2rem 0; } figcaption { font-size: 13px; color: #555; margin-bottom: .3rem; }
img { max-width: 100%; height: auto; } img.pixels { image-rendering: pixelated; }
.key { font-size: 13px; color: #555; } .key b { font-weight: 600; }
summary { cursor: pointer; color: #1f4e79; } ul { padding-left: 1.2rem; margin: .4rem 0; } a { color: #1f4e79; }
"""


def html(document: Document) -> str:
    """The whole page. Raises UserError without matplotlib."""
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', "<title>Evaluation</title>",
        f"<style>{_STYLE}</style>", "</head>", "<body>", "<h1>Evaluation</h1>", *_overview(document),
        *_failed(document),
    ]  # fmt: skip
    for place, (each, rated) in enumerate(zip(document.evaluated, document.verdicts, strict=True)):
        parts += _video(place, each, rated)
    return "\n".join([*parts, *_settings(document), "</body>", "</html>", ""])


def _overview(document: Document) -> Iterator[str]:
    names = document.headlines
    links = [f'<a href="#v{place}">{escape(each.file)}</a>' for place, each in enumerate(document.evaluated)]
    graded = [
        [link, str(each.results.frames), shown(rated.badness), *(shown(rated.grades.get(a)) for a in document.aspects)]
        for link, each, rated in zip(links, document.evaluated, document.verdicts, strict=True)
    ]
    yield f"<p>{escape(VERDICT)}</p>"
    yield _table(["video", "frames", "badness ↓", *document.aspects], graded)
    rows = [
        [link, *(shown(each.results.numbers.get(name)) for name in names)]
        for link, each in zip(links, document.evaluated, strict=True)
    ]
    means = [f"mean of {len(rows)}", *(document.told_mean(name) for name in names)]
    head = ["video", *(name + arrow(document.meanings[name]) for name in names)]
    titles = ["", *(document.meanings[name].meaning for name in names)]
    yield f"<p>{escape(LEGEND)}</p>"
    if names:
        yield _table(head, rows, titles=titles, last=means if len(rows) > 1 else None)
    if any(name.startswith("mawe") for name in names):
        yield f'<p class="note">{escape(MAWE_ALONE)}</p>'


def _failed(document: Document) -> Iterator[str]:
    for head, failed in (("Not evaluated", document.failed), (UNUSED, document.unused)):
        if failed:
            lines = "".join(f"<li><b>{escape(each.file)}</b>: {escape(each.error)}</li>" for each in failed)
            yield f'<div class="failed">{head}:<ul>{lines}</ul></div>'


def _video(place: int, each: Evaluated, rated: "Verdict") -> Iterator[str]:
    yield f'<h2 id="v{place}">{escape(each.file)}</h2>'
    yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in facts(each, rated)) + "</ul>"
    if each.narrative is not None and each.narrative.segments:
        yield _table(SEGMENTS, [[escape(cell) for cell in row] for row in segments(each)])
    pictures = {picture.name: picture for picture in each.pictures}
    yield from (_figure(pictures[name]) for name in ("sheet", "slice", "joins") if name in pictures)
    plot = over_time(each.results, each.borders, each.prompts)
    if plot:
        yield (
            '<figure><figcaption class="key">Over time. <b style="color:#999">grey</b>: chunk joins, '
            '<b style="color:#c0392b">red</b>: cuts found, <b style="color:#2980b9">blue</b>: the prompt changes'
            f"</figcaption>{_image('svg+xml', plot.encode(), 'metrics over time')}</figure>"
        )
    yield from (_figure(pictures[name]) for name in ("flow", "change") if name in pictures)
    yield f"<details><summary>All numbers of {escape(each.file)}</summary>{_numbers(each)}</details>"


def _numbers(each: Evaluated) -> str:
    rows = [
        [f"{escape(name)}{arrow(number)}", shown(each.results.numbers[name]), escape(number.unit),
         escape(number.meaning)]
        for name, number in each.results.meanings.items()
    ]  # fmt: skip
    return _table(["number", "value", "unit", "meaning"], rows)


def _settings(document: Document) -> Iterator[str]:
    if document.settings:
        yield "<h2>Settings</h2>"
        yield "<p>Whatever else changes a number, the metrics' own settings too, stands in results.json.</p>"
        yield _table(["setting", "value"], [[escape(n), escape(v)] for n, v in told_settings(document.settings)])


def _figure(picture: Picture) -> str:
    image = _image(picture.kind, picture.data, picture.caption, picture.pixelated)
    return f"<figure><figcaption>{escape(picture.caption)}</figcaption>{image}</figure>"


def _image(kind: str, data: bytes, alt: str, pixelated: bool = False) -> str:
    pixels = ' class="pixels"' if pixelated else ""
    return f'<img{pixels} alt="{escape(alt)}" src="data:image/{kind};base64,{b64encode(data).decode()}">'


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], titles: Sequence[str] = (), last: Sequence[str] | None = None
) -> str:
    """Cells are HTML; those that are numbers stand at the right."""
    titled = [*titles, *[""] * (len(head) - len(titles))]
    top = "".join(
        f'<th title="{escape(title)}">{_breakable(name)}</th>' if title else f"<th>{_breakable(name)}</th>"
        for name, title in zip(head, titled, strict=True)
    )
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    end = f'<tr class="mean">{_cells(last)}</tr>' if last is not None else ""
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}{end}</tbody></table></div>'


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>").replace(" ", "&nbsp;")


def _cells(row: Sequence[str]) -> str:
    return "".join(f'<td class="n">{cell}</td>' if _is_number(cell) else f"<td>{cell}</td>" for cell in row)


def _is_number(cell: str) -> bool:
    cell = re.sub(r" \(\d+\)$", "", cell)  # a mean, and over how many videos
    try:
        float(cell)
    except ValueError:
        return cell in ("–", "∞")
    return True
