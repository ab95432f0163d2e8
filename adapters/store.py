"""Folders of trained adapters: config.json, and fp16 safetensors in parts small enough for any repository."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streaming.errors import UserError
from streaming.folders import save_folder
from streaming.model import Model
from streaming.sites import ContextSite, FeatureSite, InputSite, Site
from streaming.weights_write import shard_names, shards

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG = "config.json"
WEIGHTS = "model"
PART_BYTES = 15_000_000
"""Largest weight file, unless a single tensor is larger."""

C = TypeVar("C")
Sites = Sequence[FeatureSite] | Sequence[ContextSite] | Sequence[InputSite]


def adapter_folder(model: Model, weights: Path | None, name: str) -> Path:
    """The folder asked for, else the one called `name` beside the model's parts. Raises UserError if there is none."""
    folder = weights if weights is not None else model.directory / name if model.directory else None
    if folder is None or not (folder / CONFIG).is_file():
        where = "this model comes without one" if folder is None else f"there is none in {folder}"
        raise UserError(
            f"no trained {name}: {where}; train it with `streamingt2v train {name} --work DIR` or choose another memory"
        )
    return folder


def write_adapter(folder: Path, kind: str, config: "DataclassInstance", tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's folder; an older one is replaced whole, so that parts of both can't be loaded together.

    Raises UserError if a weight is not finite in half precision, or if the folder holds files of something else.
    """
    _check_own(folder)
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in tensors.items()}
    _check_finite(folder, half)
    parts = [{name: half[name] for name in part} for part in _parts(half)]
    names = shard_names(WEIGHTS, len(parts))
    index = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    about = {"class": kind, **asdict(config), "weights": index if len(parts) > 1 else names[0]}

    def write(target: Path) -> None:
        for name, part in zip(names, parts, strict=True):
            save_file(part, target / name, metadata={"format": "pt"})
        (target / CONFIG).write_text(json.dumps(about, indent=1) + "\n")

    save_folder(folder, write)


def read_config(folder: Path, kind: str, config: type[C]) -> C:
    """The configuration in an adapter's folder. Raises UserError if it is damaged or another class's."""
    about = read_about(folder)
    if about.get("class") != kind:
        raise UserError(
            f"{folder} holds a {about.get('class', 'model of unknown class')}, not a {kind}: give another folder"
        )
    known = {field.name: field.type for field in fields(config)}  # pyright: ignore[reportArgumentType]
    values = {name: value for name, value in about.items() if name not in ("class", "weights")}
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{folder / CONFIG} has settings that this version does not know: {', '.join(unknown)}")
    try:
        return config(**{name: _revived(known[name], value) for name, value in values.items()})
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{folder / CONFIG} is damaged or too old ({error}): train or download the {kind} again"
        ) from error


def check_sites(folder: Path, saved: Sites, there: Sites) -> None:
    """Raises UserError, listing the differences, unless an adapter was made for a backbone with these sites."""
    mine, theirs = ({site.name: _size(site) for site in sites} for sites in (saved, there))
    wrong = [f"{n}: {mine.get(n, 'none')} there, {theirs.get(n, 'none')} here" for n in {**mine, **theirs}
             if mine.get(n) != theirs.get(n)]  # fmt: skip
    if not wrong and list(mine) != list(theirs):
        wrong = ["the same sites in another order"]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(f"{folder} was trained for another base model ({'; '.join(wrong[:4])}{more})")


def load_weights(folder: Path, module: nn.Module) -> None:
    """Fill a module with an adapter's weights. Raises UserError for files that are missing, damaged or do not fit."""
    tensors = _tensors(folder)
    wanted = module.state_dict()
    missing, foreign = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or foreign:
        told = f"{missing[0]} is missing" if missing else f"{foreign[0]} does not belong there"
        raise UserError(f"the weights in {folder} do not fit its {CONFIG} ({told}): train or download them again")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"the weights in {folder} do not fit this base model ({name}: "
                f"{tuple(value.shape)} there, {tuple(wanted[name].shape)} here): give the folder trained for it"
            )
    _check_finite(folder, tensors)
    module.load_state_dict(tensors)


def read_about(folder: Path) -> dict[str, Any]:
    """What an adapter's folder says of itself. Raises UserError if it says nothing, or is damaged."""
    try:
        about = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is no adapter's folder, {CONFIG} is missing: give another folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read ({error}): train or download the adapter again") from error
    if not isinstance(about, dict):
        raise UserError(f"{folder / CONFIG} is not an adapter's: give another folder")
    return about


def _tensors(folder: Path) -> dict[str, Tensor]:
    index = read_about(folder).get("weights", f"{WEIGHTS}.safetensors")
    names = sorted(set(index.values())) if isinstance(index, dict) else [index]
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / Path(str(name)).name
        if not path.is_file():
            raise UserError(f"{path} is missing: train or download the adapter again")
        try:
            tensors |= load_file(path)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} is truncated or no safetensors file ({reason}): train or download it again"
            ) from error
    return tensors


def _check_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{name} for {folder} holds NaN or infinite values: train it again from an earlier state")


def _parts(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of consecutive tensors, so many that a part stays below `PART_BYTES`."""
    return shards({name: value.nbytes for name, value in tensors.items()}, PART_BYTES)


def _check_own(folder: Path) -> None:
    """Replacing a folder must cost nobody their files."""
    there = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    for path in there:
        if path.name != CONFIG and not path.match(f"{WEIGHTS}*.safetensors"):
            raise UserError(f"{path} is no part of an adapter: move it away, or save to another folder")


def _revived(kind: Any, value: Any) -> Any:
    """A field's value as it was before it became JSON: lists are tuples, objects in them sites."""
    if get_origin(kind) is not tuple:
        return value
    item = get_args(kind)[0]
    return tuple(item(**entry) if isinstance(entry, dict) else entry for entry in value)


def _size(site: Site) -> str:
    if isinstance(site, ContextSite):
        return f"{site.tokens} tokens of {site.depth}"
    if isinstance(site, FeatureSite):
        return f"{site.width} wide"
    return f"{site.width} wide, kernel {site.kernel[0]}x{site.kernel[1]}, stride {site.stride[0]}x{site.stride[1]}"
