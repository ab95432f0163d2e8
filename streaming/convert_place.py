"""Where a conversion may write: an empty place, or one that holds nothing but what conversions wrote.

What was written is listed in `converted.json`, in the folder itself: paths inside of it, with sizes in bytes.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaming.errors import UserError
from streaming.folders import resolved

LIST = "converted.json"
"""The list of what a conversion wrote, beside it."""


def check_place(place: Path, directory: Path, modelscope: Path | None, overwrite: bool) -> None:
    """Raises UserError if `place` can't be written, or holds something that no conversion wrote.

    place: the folder to write; directory: what the user named, `place` or a folder above it; modelscope: a folder that
    is read meanwhile. overwrite: whether what conversions wrote may be replaced.
    """
    try:
        if modelscope is not None:
            _check_apart(place, modelscope)
        if not place.exists():
            return
        if not place.is_dir():
            raise UserError(f"{place} is a file: name a folder that the model is written to")
        _check_movable(place)
        there = sorted(path.name for path in place.iterdir())
        if there and not overwrite:
            raise UserError(f"{place} exists already: choose another folder, or replace it with --overwrite")
        foreign = there and _foreign(place, directory)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {place} ({_reason(error)}): choose another folder") from error
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{place} holds {foreign[0]}{more}, which no conversion wrote and --overwrite would delete: "
            "move it away or choose another folder"
        )


def look(source: Path) -> os.stat_result | None:
    """What the system knows of a file or folder, None if there is none. Raises UserError if that can't be told."""
    try:
        return source.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {source} ({_reason(error)}): give another file") from error


def write_list(folder: Path) -> None:
    """List all that is in a folder in it."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(_files(folder))}
    content = {"about": "written by streamingt2v convert, which replaces these files only", "files": files}
    (folder / LIST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_apart(place: Path, modelscope: Path) -> None:
    try:
        other = resolved(modelscope)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read --modelscope {modelscope} ({_reason(error)}): give another folder") from error
    one = resolved(place)
    if one == other or one in other.parents or other in one.parents:
        raise UserError(
            f"--modelscope {modelscope} is read while {place} is written: name two folders, neither within the other"
        )


def _check_movable(place: Path) -> None:
    """A folder is written beside its place and then moved there."""
    whole = resolved(place)
    if os.path.ismount(whole):
        raise UserError(f"{place} is where a disk is mounted and can't be replaced: name a folder inside of it")
    here = Path.cwd()
    if whole == here or whole in here.parents:
        raise UserError(f"{place} is, or holds, the current folder and can't be replaced: name a folder inside of it")


def _foreign(place: Path, directory: Path) -> list[str]:
    """What no conversion wrote, or somebody changed since: paths within the place."""
    above = [folder for folder in place.parents if folder == directory or directory in folder.parents]
    if not any((folder / LIST).is_file() for folder in (place, *above)):
        return sorted(path.name for path in place.iterdir())
    paths = list(_walk(place))
    lists = [*above, *(path.parent for path in paths if path.name == LIST and not path.is_symlink())]
    known = {item for folder in lists for item in _listed(folder)}
    folders = {parent for path, _ in known for parent in path.parents}
    return sorted(str(path.relative_to(place)) for path in paths if not _ours(path, known, folders))


def _ours(path: Path, known: set[tuple[Path, int]], folders: set[Path]) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        return path in folders
    return (path.name == LIST and bool(_listed(path.parent))) or (path, path.stat().st_size) in known


def _listed(folder: Path) -> list[tuple[Path, int]]:
    """Files and sizes of a folder's list; none if there is no list, or it is damaged."""
    try:
        content: Any = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return [(folder / name, int(size)) for name, size in content["files"].items()]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in _walk(folder) if not path.is_dir())


def _walk(folder: Path) -> Iterator[Path]:
    """All files and folders within; links are not followed. Raises OSError."""
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _reason(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error)).lower()
