"""Packages that only the evaluation needs: one line says what to install."""

from importlib import import_module
from types import ModuleType

from streaming.errors import UserError

_EXTRA = ("cv2", "scenedetect")


def need(module: str, what: str, package: str | None = None) -> ModuleType:
    """The module. what: the thing that needs it, for the error; package: its name on the index, if another.

    Raises UserError, with what to install, if it cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        command = "pip install 'streamingt2v[evaluate]'" if module in _EXTRA else f"pip install {package or module}"
        raise UserError(f"{what} needs the package {package or module} ({error}): {command}") from error
