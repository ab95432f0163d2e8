"""Weights of image encoders: read without running any code, put into a tower that was made without them, strictly."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from streaming.errors import UserError
from streaming.keys import initial_weights
from streaming.weights import Checkpoint

_PARALLEL = "module."

N = TypeVar("N", bound=nn.Module)


def read_weights(files: Iterable[Path], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of safetensors or PyTorch files, by name.

    prefix: if some names begin with it, only those are taken, and it is dropped; so a whole CLIP may be given for its
    vision tower. So is "module." before every name (data-parallel training). Raises UserError for files that are
    missing, truncated, or hold more than numbers.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        checkpoint = Checkpoint(file)
        names = list(checkpoint.meta)
        inside = [name for name in names if name.removeprefix(_PARALLEL).startswith(prefix)]
        taken = inside or names
        found.update(zip(taken, checkpoint.read(taken), strict=True))
    if all(name.startswith(_PARALLEL) for name in found):
        found = {name.removeprefix(_PARALLEL): value for name, value in found.items()}
    return {name.removeprefix(prefix): value for name, value in found.items()}


def fill(make: Callable[[], N], weights: Mapping[str, Tensor], where: Path | str, dtype: torch.dtype) -> N:
    """The network that `make` gives, with these weights as `dtype`, on the CPU, in eval mode and frozen.

    where: names the weights in errors. Raises UserError if one is missing, foreign, not finite, or of another shape or
    kind of number.
    """
    with initial_weights(0):  # they are replaced; this spares torch's own generator
        network = make()
    wanted = network.state_dict()
    _check_names(wanted, weights, where)
    for name, value in weights.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{where} does not fit: {name} is {_size(value)} there, the model takes {_size(wanted[name])}; "
                "give the weights of this very model"
            )
        if value.is_floating_point() != wanted[name].is_floating_point():
            raise UserError(
                f"{where} does not fit: {name} is of type {_word(value.dtype)}, not of {_word(wanted[name].dtype)}; "
                "give the weights of this very model, not quantised"
            )
    ready = {name: _as(value, dtype) for name, value in weights.items()}
    for name, value in ready.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"{where}: {name} holds NaN or infinite numbers as {_word(dtype)}: "
                "the file is damaged, or needs another --dtype"
            )
    network.load_state_dict(ready, assign=True)
    return network.to(dtype).eval().requires_grad_(False)


def _check_names(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: Path | str) -> None:
    missing, foreign = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if not missing and not foreign:
        return
    told = [f"{len(missing)} are missing, {missing[0]} for one"] if missing else []
    told += [f"{len(foreign)} do not belong there, {foreign[0]} for one"] if foreign else []
    raise UserError(f"the weights in {where} are not this model's: {'; '.join(told)}: give those of this very model")


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).contiguous() if value.is_floating_point() else value


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a single number"
