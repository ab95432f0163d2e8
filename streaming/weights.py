"""Checkpoint files of any size, read tensor by tensor.

Pickles are read by PyTorch's restricted reader only: code in them is never run.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from streaming.errors import UserError

_BREATH = 250_000_000
"""Bytes of a checkpoint that are read before its pages are given back to the system."""
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Types that a safetensors file can hold, as it names them."""


@final
class Checkpoint:
    """The tensors of a file: `torch.save`'s (a state dict, or a training checkpoint with one in it) or safetensors.

    Or of several: an index file (*.index.json, *.index.fp16.json) stands for those that it lists, in its own folder.
    Only names, shapes and types are kept; the numbers stay in the file until they are asked for.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file is missing, a folder, truncated, no checkpoint, or a pickle that holds code.

        Also for tensors that are sparse, complex, quantised or without numbers (on the meta device).
        """
        self.path = path
        self.meta: Mapping[str, Tensor] = _meta(path, _stamp(path))
        """Every tensor by name, on the meta device."""
        if not self.meta:
            raise UserError(f"{path} holds no tensors by name: give a file with a model's weights")

    def read(self, names: Sequence[str]) -> Iterator[Tensor]:
        """The tensors of these names, one after the other; use each before the next. Little memory is in use."""
        tensors, taken = _open(self.path), 0
        for name in names:
            if taken > _BREATH:  # closing the file frees what was read of it
                tensors, taken = _open(self.path), 0
            value = tensors[name]
            taken += value.nbytes
            yield value
            del value


def check_floats(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Raises UserError, naming it, if one of these tensors does not hold floating-point numbers."""
    wrong = [name for name in names if not checkpoint.meta[name].is_floating_point()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        kind = type_name(checkpoint.meta[wrong[0]].dtype)
        raise UserError(
            f"{checkpoint.path}: {wrong[0]}{more} of type {kind} should be of floating-point numbers: give the file as "
            "it was published, not a quantised one"
        )


def type_name(dtype: torch.dtype) -> str:
    """For example "float32"."""
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=4)
def _meta(path: Path, stamp: tuple[int, ...]) -> Mapping[str, Tensor]:
    """Several converters look at a file one after the other; `stamp` tells whether it is still the same."""
    return {name: value.to("meta") for name, value in _open(path).items()}


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        about = path.stat()
    except OSError:
        return ()
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)


def _open(path: Path) -> dict[str, Tensor]:
    """Tensors by name, their numbers still in the file."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a checkpoint file")
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: give the path of a checkpoint") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"cannot read {path} ({reason}): give another file") from error
    if path.suffix == ".json" and ".index." in path.name:
        return _indexed(path)
    if start[:4] == b"PK\x03\x04":
        return _torch_tensors(path)
    if start[8:9] == b"{":
        return _safetensors(path)
    raise UserError(f"{path} is no checkpoint: {_told(start)}; give a file that torch.save or safetensors has written")


def _indexed(path: Path) -> dict[str, Tensor]:
    """What an index file lists. Only files beside it are opened."""
    try:
        placed: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        files = sorted({path.with_name(name) for name in placed.values()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of weight files ({_first_line(error)}): download it again") from error
    opened = {file.name: _open(file) for file in files if ".index." not in file.name}
    lost = [name for name, file in placed.items() if name not in opened.get(file, {})]
    if lost:
        raise UserError(f"{path} lists {lost[0]} in {placed[lost[0]]}, which does not hold it: download both again")
    return {name: value for each in opened.values() for name, value in each.items()}


def _told(start: bytes) -> str:
    if not start:
        return "the file is empty"
    if start[:1] == b"\x80":
        return "it is a pickle by itself (as PyTorch before 1.6 wrote), which is never opened"
    if start.startswith(b"version https:"):  # how a Git LFS pointer begins
        return "it is a pointer of Git LFS, the file itself was not downloaded"
    return "it is neither of PyTorch's nor of safetensors' format"


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    from pickle import UnpicklingError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} holds more than numbers ({_culprit(error)}), which is never run: get the file from its publisher"
        ) from error
    except Exception as error:  # a damaged pickle may make the reader raise anything
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}): download it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no tensors by name: give a file with a model's weights")
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, value in found.items():
        if odd := _odd(value):
            raise UserError(f"{path}: {name} {odd}: give a file of plain floating-point numbers, none left out")
    return found


def _odd(value: Tensor) -> str:
    """What keeps a tensor from being written; "" if nothing does."""
    if value.is_meta:
        return "has a shape but no numbers"
    if value.layout != torch.strided:
        return f"is stored as {str(value.layout).removeprefix('torch.')}"
    return "" if value.dtype in NAMES else f"is of type {type_name(value.dtype)}"


def _culprit(error: Exception) -> str:
    """The name of what the pickle would call, from PyTorch's message."""
    import re

    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else _first_line(error)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}): download it again") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0][:160] if lines else type(error).__name__
