"""Files that are replaced whole: whatever happens, a path holds the old content or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streaming.errors import UserError


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """A path beside `path` to write to; on leaving, it is flushed to the disk and takes the place of `path`.

    If anything goes wrong (Ctrl-C included) it is removed and `path` stays as it was. what: for the message, e.g. "the
    checkpoint". Raises UserError if the file system refuses.
    """
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield waiting
        _sync(waiting, os.O_RDWR)
        os.replace(waiting, path)
        if os.name != "nt":  # Windows opens no folders; its rename is durable by itself
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write {what} {path}: {error.strerror or error}; make room or write elsewhere"
        ) from error
    finally:
        waiting.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
