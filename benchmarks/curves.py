"""`python -m benchmarks.curves LOGS OUTPUT.png`: the losses in training's `work/logs/*.jsonl`, one panel a part."""

import json
from pathlib import Path

import typer

COLUMNS = 5


def main(logs: Path, output: Path) -> None:
    """Draws every loss over the seconds of training; logarithmic, since most of a loss falls at the start."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    paths = sorted(logs.glob("*.jsonl"), key=lambda path: path.stem)  # without the ending "base" is before "base-2"
    if not paths:
        raise typer.BadParameter(f"{logs} has no *.jsonl: name the folder of a training's logs", param_hint="LOGS")
    columns = min(COLUMNS, len(paths))
    rows = -(-len(paths) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(13, 3.25 * rows), squeeze=False)
    about = ("step", "steps", "learning_rate", "clips_per_second", "clips", "skipped", "seconds")
    for path, panel in zip(paths, panels.flat, strict=False):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        for name in (name for name in entries[0] if name not in about):
            panel.plot([e["seconds"] for e in entries], [e[name] for e in entries], label=name)
        panel.set(title=f"{path.stem}: {entries[-1]['clips']:,} clips", xlabel="seconds", yscale="log")
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(paths) :]:
        panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(output, dpi=80)


if __name__ == "__main__":
    typer.run(main)
