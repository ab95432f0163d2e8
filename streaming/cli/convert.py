"""`streamingt2v convert`: a published checkpoint becomes a model folder."""

import time
from pathlib import Path
from typing import Annotated, final

import typer

from streaming.cli import checks
from streaming.cli.progress import clock, note

DTYPES = ("float32", "float16", "bfloat16")


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint, e.g. streaming_t2v.ckpt.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder to write, for --model DIR.")],
    dtype: Annotated[str, typer.Option(help="Type of the numbers written: float32, float16 or bfloat16.")] = "float32",
    modelscope: Annotated[
        Path | None,
        typer.Option(help="ModelScope's text-to-video model in diffusers format: its tokenizer and first-chunk UNet."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that holds nothing but what conversions wrote.")
    ] = False,
) -> int:
    """Make a model folder of a published checkpoint, in little memory.

    A file that is damaged or of another kind is refused, and so is a folder that is taken or can't be written.
    """
    checks.choice("--dtype", dtype, DTYPES)
    import torch

    from streaming.convert import ConvertOptions
    from streaming.convert import convert as run

    started = time.monotonic()
    options = ConvertOptions(dtype=getattr(torch, dtype), modelscope=modelscope, report=_Progress().tell)
    try:
        written = run(file, directory, options, overwrite=overwrite)
    except KeyboardInterrupt:
        note(f"stopped: nothing was written, {directory} is as it was")
        return 130
    note(f"wrote {written} in {clock(time.monotonic() - started)}")
    return 0


@final
class _Progress:
    """A line for each weight file, with the time that the rest will take."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def tell(self, name: str, done: int, total: int) -> None:
        """As `streaming.convert.Report`."""
        taken = time.monotonic() - self._started
        left = f", {clock(taken * (total - done) / done)} left" if 0 < done < total else ""
        note(f"{name}: {done / 1e9:.2f} of {total / 1e9:.2f} GB{left}")
