"""Folders that are replaced whole: files of the old content and of the new never stand side by side."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def save_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Replace a folder, whatever it holds, by what `write` puts into a new one beside it.

    If `write` or the swap fails, the old folder stays as it was. A program killed between the two renames of the swap
    leaves no folder of that name, and both, whole, beside it under names that begin with a dot. Raises OSError.
    """
    folder = resolved(folder)
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        for file in partial.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def resolved(path: Path) -> Path:
    """The path without links. Raises OSError for links that lead in a circle, on every version of Python."""
    try:
        return path.resolve()
    except RuntimeError as error:  # Python 3.12 and before
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
