"""Model folders of any size, written tensor by tensor from a checkpoint: what converters are made of."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, final

import torch
from torch import Tensor

from streaming.convert import ConvertOptions
from streaming.errors import UserError
from streaming.weights import NAMES, Checkpoint, type_name

DIFFUSERS = "diffusion_pytorch_model"
"""Stem of the weight files of diffusers' models."""
TRANSFORMERS = "model"
"""Stem of those of transformers' models, and ours."""
_SPARE = 100_000_000
"""Bytes of the disk that are left free besides."""


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
        kind = NAMES[_target(value, dtype)]
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
        raise UserError(f"{where} holds numbers too large for {type_name(after.dtype)}: choose --dtype float32")
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
