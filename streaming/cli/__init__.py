"""The command line `streamingt2v`. Importing it imports neither torch nor a model, so that `--help` is quick."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 done, 1 a defect or a problem found, 2 something the user can fix, 130 stopped."""
    with warnings.catch_warnings():
        warnings.showwarning = _one_line
        sys.exit(_run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    import typer

    from streaming.cli.app import command
    from streaming.errors import UserError

    whole = command()
    try:
        return whole.main(list(argv) or ["--help"], prog_name="streamingt2v", standalone_mode=False) or 0
    except UserError as error:
        return _say(str(error), 2)
    except typer.TyperException as error:
        help = " ".join(["streamingt2v", *[word for word in argv[:1] if word in whole.commands], "--help"])
        return _say(f"{error.format_message()} (see {help})", error.exit_code)
    except typer.Abort:
        return 130
    except Exception:
        traceback.print_exc()
        return _say("this is a bug in streamingt2v or in a plugin, please report it with the lines above", 1)


def _say(text: str, code: int) -> int:
    print("error:", " ".join(text.split()), file=sys.stderr)
    return code


def _one_line(message: Warning | str, *place: object) -> None:
    print("warning:", " ".join(str(message).split()), file=sys.stderr)
