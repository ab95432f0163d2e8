"""Numbers over time as plots: SVG, by matplotlib."""

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from streaming.metrics.borders import Borders
from streaming.metrics.missing import need
from streaming.metrics.results import Results, Series
from streaming.prompts import PromptSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "motion": "motion: mean flow, pixels",
    "difference": "change to the next frame, grey levels",
    "mawe_error": "warp error (W of MAWE), grey levels²",
    "sharpness": "sharpness, grey levels²",
    "saturation": "saturation, levels",
    "contrast": "contrast, grey levels",
    "brightness": "brightness, grey levels",
    "tint": "change of colour since the start, levels",
    "camera_shake": "camera shake, % of the side",
    "clip_score": "CLIP score",
    "anchor_distance": "distance from the first frame (CLIP)",
    "anchor_lpips": "distance from the first frame (LPIPS)",
    "narrative_margin": "fit of its own prompt above the others'",
}
"""What plots are called; others by the series' own name."""

_STYLE = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#888", "axes.linewidth": 0.7, "xtick.color": "#555",
    "ytick.color": "#555", "svg.fonttype": "none", "svg.hashsalt": "streamingt2v", "font.family": "sans-serif",
}  # fmt: skip
_MOST_JOINS = 150


def over_time(results: Results, borders: Borders | None, prompts: PromptSchedule | None) -> str:
    """All series of a video, with joins (grey), cuts (red) and changes of the prompt (blue). Empty if there are none.

    Raises UserError without matplotlib.
    """
    told = {name: series for name, series in results.series.items() if series.points}
    if not told:
        return ""
    matplotlib: Any = need("matplotlib", "plotting")
    figures: Any = need("matplotlib.figure", "plotting")
    with matplotlib.rc_context(_STYLE):
        rows = -(-len(told) // 2)
        high = 1.45 * rows + 0.45
        figure = figures.Figure(figsize=(10, high))
        figure.subplots_adjust(  # fixed margins, as finding them by drawing takes longer than all the rest
            left=0.055, right=0.99, bottom=0.45 / high, top=1 - 0.25 / high, hspace=0.42, wspace=0.12
        )
        grid = figure.subplots(rows, 2, squeeze=False, sharex=True).flatten()
        for axes, (name, series) in zip(grid, told.items(), strict=False):
            _curve(axes, name, series)
            _marks(axes, results, borders, prompts)
        for axes in grid[len(told) :]:
            axes.set_axis_off()
        for axes in grid[: len(told)][-2:]:
            axes.set_xlabel("frame")
            axes.tick_params(labelbottom=True)
        return _svg(figure)


def _curve(axes: "Axes", name: str, series: Series) -> None:
    frames = [series.first + series.stride * i for i in range(len(series.points))]
    axes.plot(frames, series.points, color="#1f4e79", linewidth=1.0, marker="." if len(frames) == 1 else "")
    axes.set_title(NAMES.get(name, name.replace("_", " ")))
    axes.margins(x=0.01)


def _marks(axes: "Axes", results: Results, borders: Borders | None, prompts: PromptSchedule | None) -> None:
    joins = [frame for frame in range(1, results.frames) if borders is not None and borders.begins(frame)]
    cuts = sorted({frame for name, found in results.events.items() if name.startswith("scuts") for frame in found})
    changes = [frame for frame, _ in prompts.entries[1:]] if prompts is not None else []
    _lines(axes, joins if len(joins) <= _MOST_JOINS else [], "#c9c9c9", "-")
    _lines(axes, cuts, "#c0392b", "--")
    _lines(axes, changes, "#2980b9", "-.")


def _lines(axes: "Axes", frames: Sequence[int], colour: str, style: str) -> None:
    for frame in frames:
        axes.axvline(frame, color=colour, linewidth=0.7, linestyle=style, zorder=0)


def _svg(figure: Any) -> str:
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
