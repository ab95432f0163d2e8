"""`streamingt2v compare`: evaluations of the same prompts against each other, with how sure the differences are."""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from streaming.cli import checks
from streaming.errors import UserError

INTERVALS = ("bca", "percentile")
SUFFIXES = (".json", ".md")


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT", help="What `evaluate` wrote: results.json, or the folder; first the base."),
    ],
    number: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare this number only; may be given several times.  [default: all]"),
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence of the intervals.")] = 0.95,
    interval: Annotated[str, typer.Option(metavar="KIND", help="Bootstrap interval: bca or percentile.")] = "bca",
    resamples: Annotated[
        int, typer.Option(help="Of the bootstrap; also drawn sign patterns where there are too many to try all.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 0,
    despite: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING", help="Compare although this differs; may be given several times."),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write it to a .json or .md, too; may be given several times."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
) -> int:
    """Compare evaluations pair by pair: differences, bootstrap intervals, permutation p-values.

    The first result is what the others are compared with. Videos are paired by name, or by order if no names agree.
    Results that were measured with other settings are refused.
    """
    checks.choice("--interval", interval, INTERVALS)
    checks.number("--level", level, 0.5, 0.999)
    checks.whole("--resamples", resamples, 1000, 1_000_000)
    checks.whole("--seed", seed, 0, 2**63 - 1)
    for file in output or ():
        _check_output(file, overwrite)
    if len(results) < 2:
        raise UserError("one result cannot be compared: name two or more, the one to compare with first")
    from streaming.comparison import compared, report
    from streaming.comparison.read import read
    from streaming.metrics.paired import Procedure

    kind = cast(Literal["bca", "percentile"], interval)
    how = Procedure(interval=kind, level=level, resamples=resamples, seed=seed)
    found = compared.compare(read(results), how, numbers=number or (), despite=despite or ())
    text = report.markdown(found)
    for file in output or ():
        _write(file, report.as_json(found) if file.suffix.lower() == ".json" else text)
    print(text, end="")
    return 0


def _check_output(file: Path, overwrite: bool) -> None:
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {file}: JSON and Markdown are written, so let the name end in .json or .md")
    if file.is_dir():
        raise UserError(f"--output {file} is a folder: name a file in it")
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists already: choose another --output, or replace it with --overwrite")
    if not file.parent.is_dir():
        raise UserError(f"--output {file}: there is no folder {file.parent}, make it first or choose another place")


def _write(file: Path, text: str) -> None:
    from streaming.files import replacing

    with replacing(file, "the comparison") as waiting:
        waiting.write_text(text, encoding="utf-8")
