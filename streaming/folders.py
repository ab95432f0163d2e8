"""Folders that are replaced whole: files of the old content and of the new never stand side by side."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def save_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Replace a folder, whatever it holds, by what `write` puts into a new one beside it.

    If `write` fails, the old folder stays as it was. A program killed between the two renames of the swap leaves no
    folder of that name, and both, whole, beside it under names that begin with a dot.
    """
    folder = folder.resolve()
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
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
