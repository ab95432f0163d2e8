"""Puts the commands together."""

from typing import Any

import typer

from streaming.cli.ablate import ablate
from streaming.cli.compare import compare
from streaming.cli.convert import convert
from streaming.cli.doctor import doctor
from streaming.cli.enhance import enhance
from streaming.cli.evaluate import evaluate
from streaming.cli.generate import generate
from streaming.cli.models import models
from streaming.cli.train import train


def command() -> Any:
    """The whole command, to be called with arguments."""
    app = typer.Typer(
        help="Endless video from text, chunk by chunk [StreamingT2V, arXiv 2403.14773].",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for function in (generate, enhance, evaluate, compare, ablate, train, convert, models, doctor):
        app.command()(function)
    return typer.main.get_command(app)
