"""Autoencoders as diffusers wrote them until 0.17: their attention's names it still takes, not its 1x1 convolutions."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from backends.modelscope_folder import check_finite, check_weights, load_part, quiet
from backends.modelscope_settings import first_line, read_json
from streaming.errors import UserError
from streaming.weights import Checkpoint

_TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn|to_q|to_k|to_v|to_out\.0)\.(weight|bias)")


def load_autoencoder(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder in the folder, frozen; today's or an old one. Raises UserError as `load_part` does."""
    path = _old(folder)
    if path is None:
        return load_part({"AutoencoderKL": AutoencoderKL}, folder, dtype)
    check_weights(folder)
    checkpoint = Checkpoint(path)
    values = checkpoint.read(list(checkpoint.meta))
    state = {today(name): flat(name, value).to(dtype) for name, value in zip(checkpoint.meta, values, strict=True)}
    try:
        with quiet():
            part: Any = AutoencoderKL.from_config(read_json(folder / "config.json"))
        part.load_state_dict(state)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot load {folder}: config.json and the weights don't fit together ({first_line(error)}): "
            "copy the folder again"
        ) from error
    part.to(dtype)
    check_finite(part, folder)
    return part.eval().requires_grad_(False)


def today(name: str) -> str:
    """The name that diffusers gives an autoencoder's tensor today."""
    match = _OLD.fullmatch(name)
    return f"{match[1]}.{_TODAY.get(match[2], match[2])}.{match[3]}" if match else name


def flat(name: str, value: Tensor) -> Tensor:
    """An attention's matrix that is kept as a 1x1 convolution [out, in, 1, 1], as a matrix; others as they are."""
    return value.flatten(1) if value.ndim == 4 and _OLD.fullmatch(name) else value


def _old(folder: Path) -> Path | None:
    """The weights of an old autoencoder in the folder; None if it is today's, or something else is wrong with it."""
    files = sorted(folder.glob("*.safetensors"))
    files = [path for path in files if ".fp16" not in path.name] or files
    try:
        of_kind = read_json(folder / "config.json").get("_class_name") == "AutoencoderKL"
        old = [path for path in files if _has_convolutions(Checkpoint(path))]
    except UserError:
        return None
    return old[0] if of_kind and len(files) == 1 and old else None


def _has_convolutions(checkpoint: Checkpoint) -> bool:
    return any(value.ndim == 4 and _OLD.fullmatch(name) for name, value in checkpoint.meta.items())
