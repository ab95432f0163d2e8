"""Checkpoint files of any size, read and written piece by piece: what converters are made of.

Pickles are read by PyTorch's restricted reader only: code in them is never run.
"""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, final

import torch
from torch import Tensor

from streaming.convert import ConvertOptions
from streaming.errors import UserError

DIFFUSERS = "diffusion_pytorch_model"
"""Stem of the weight files of diffusers' models."""
TRANSFORMERS = "model"
"""Stem of those of transformers' models, and ours."""
_BREATH = 250_000_000
"""Bytes of a checkpoint that are read before its pages are given back to the system."""
_SPARE = 100_000_000
"""Bytes of the disk that are left free besides."""
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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
        kind = _word(checkpoint.meta[wrong[0]].dtype)
        raise UserError(
            f"{checkpoint.path}: {wrong[0]}{more} of type {kind} should be of floating-point numbers: give the file as "
            "it was published, not a quantised one"
        )


def same(value: Tensor) -> Tensor:
    """The tensor as it is."""
    return value


@final
@dataclass(frozen=True)
class Take:
    """Where a tensor of ours comes from."""

    name: str
    """In the checkpoint."""
    change: Callable[[Tensor], Tensor] = same
    """What is done with it (a reshape, a slice); works on the meta device, too."""


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """A network of the model folder."""

    folder: str
    """Inside the target, for example "unet"; "" is the target itself."""
    config: Mapping[str, Any]
    """Content of its config.json."""
    source: Checkpoint
    """Where its tensors are."""
    tensors: Mapping[str, Take]
    """By the name that they get."""
    stem: str = DIFFUSERS
    """Its weight files are called so."""
    index: Literal["file", "config"] = "file"
    """Where several weight files are listed: in an index file (diffusers, transformers), or as "weights" in
    config.json (ours)."""


def write_parts(target: Path, parts: Sequence[Part], options: ConvertOptions) -> None:
    """Write networks into a new folder: each a config.json and safetensors files of `options.shard_bytes` at most.

    Raises UserError, before anything is written, if the disk has too little room; and for numbers that are not finite
    in `options.dtype`.
    """
    total = sum(_bytes(part, name, options.dtype) for part in parts for name in part.tensors)
    _check_room(target, total)
    done = 0
    for part in parts:
        for name, size in _write_part(target / part.folder, part, options):
            done += size
            options.report(f"{part.folder}/{name}".lstrip("/"), done, total)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A file with a JSON object; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Consecutive names, so many that a shard's sizes sum up to `limit` at most, or a single name that is larger."""
    found: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and found[-1]:
            found.append([])
            room = limit
        found[-1].append(name)
        room -= size
    return found


def shard_names(stem: str, count: int) -> list[str]:
    """Names of a network's weight files, as diffusers and transformers know them."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _write_part(folder: Path, part: Part, options: ConvertOptions) -> Iterator[tuple[str, int]]:
    """Names and sizes of the weight files, each when it is written; config.json comes last."""
    sizes = {name: _bytes(part, name, options.dtype) for name in part.tensors}
    groups = shards(sizes, options.shard_bytes)
    names = shard_names(part.stem, len(groups))
    folder.mkdir(parents=True, exist_ok=True)
    for name, group in zip(names, groups, strict=True):
        _write_shard(folder / name, part, group, options.dtype)
        yield name, sum(sizes[each] for each in group)
    placed = {each: name for name, group in zip(names, groups, strict=True) for each in group}
    listed = {"weights": placed if len(names) > 1 else names[0]} if part.index == "config" else {}
    if part.index == "file" and len(names) > 1:
        about = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": placed}
        write_json(folder / f"{part.stem}.safetensors.index.json", about)
    write_json(folder / "config.json", {**part.config, **listed})


def _write_shard(path: Path, part: Part, names: Sequence[str], dtype: torch.dtype) -> None:
    """A safetensors file, written tensor by tensor, since its own library wants all of them in memory at once."""
    takes = [part.tensors[name] for name in names]
    values = part.source.read([take.name for take in takes])
    with path.open("wb") as file:
        file.write(_header(part, names, dtype))
        for name, take, value in zip(names, takes, values, strict=True):
            ready = take.change(value).to(_target(value, dtype)).contiguous()
            _check_finite(part, name, value, ready)
            _put(file, ready)


def _header(part: Part, names: Sequence[str], dtype: torch.dtype) -> bytes:
    """Length and JSON that a safetensors file begins with; padded, so that the numbers are aligned."""
    about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        value = _after(part, name)
        end = start + _bytes(part, name, dtype)
        kind = _NAMES[_target(value, dtype)]
        about[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _put(file: BinaryIO, value: Tensor) -> None:
    file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def _after(part: Part, name: str) -> Tensor:
    """A tensor as it will be but for its type, on the meta device."""
    take = part.tensors[name]
    return take.change(part.source.meta[take.name])


def _target(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.is_floating_point() else value.dtype


def _bytes(part: Part, name: str, dtype: torch.dtype) -> int:
    value = _after(part, name)
    return math.prod(value.shape) * _target(value, dtype).itemsize


def _check_finite(part: Part, name: str, before: Tensor, after: Tensor) -> None:
    if not after.is_floating_point() or bool(torch.isfinite(after).all()):
        return
    where = f"{part.source.path}: {part.tensors[name].name}"
    if bool(torch.isfinite(before).all()):
        raise UserError(f"{where} holds numbers too large for {_word(after.dtype)}: choose --dtype float32")
    raise UserError(f"{where} holds NaN or infinite numbers: the file is damaged, download it again")


def _check_room(target: Path, total: int) -> None:
    free, needed = shutil.disk_usage(target).free, total + _SPARE
    if free < needed:
        unit, name = (1e8, "GB") if needed >= 1e9 else (1e5, "MB")  # tenths; rounded apart, so that they differ
        raise UserError(
            f"{math.ceil(needed / unit) / 10:.1f} {name} are needed at {target.parent}, "
            f"{math.floor(free / unit) / 10:.1f} {name} are free: make room, write to another disk, or choose "
            "--dtype float16"
        )


def _word(dtype: torch.dtype) -> str:
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
    return "" if value.dtype in _NAMES else f"is of type {_word(value.dtype)}"


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
