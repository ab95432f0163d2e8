"""Which weights computed a number: SHA-256 of files and of loaded networks, once in a process for each."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from streaming.errors import UserError


def file_sha256(path: Path) -> str:
    """Of a file's bytes, as the command sha256sum tells it. Raises UserError if it cannot be read."""
    try:
        about = path.stat()
        return _of_file(path, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"the weights {path} cannot be read ({reason}): give another file") from error


@lru_cache(maxsize=64)
def _of_file(path: Path, stamp: tuple[int, ...]) -> str:
    """`stamp` tells whether the file is still the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors by name: the same whatever file they came from and in whatever order they stand in it."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
