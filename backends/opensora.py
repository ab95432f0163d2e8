"""Open-Sora 1.0, 1.1 and 1.2: a folder with the published files, or small ones of the same format, as a base model.

- DIR/transformer: the safetensors file or shards as published (hpcai-tech/OpenSora-STDiT-v3 and others), whatever they
  are called. Version and sizes are read from the tensors; a config.json is looked at for 1.0's `num_heads` alone;
- DIR/vae: of 1.2 the published file (hpcai-tech/OpenSora-VAE-v1.2), in whose config.json, if there is one,
  `norm_num_groups` counts, by default 32; of 1.0 and 1.1 an AutoencoderKL in diffusers format
  (stabilityai/sd-vae-ft-ema). The latter may also stand beside a small 1.2, whose latents are then single frames;
- DIR/text_encoder, tokenizer: T5's encoder in transformers format (DeepFloyd/t5-v1_1-xxl, as safetensors), or for
  small models CLIP's text model;
- DIR/scheduler: optional, of diffusers; it serves frames of every size. Without it 1.0 and 1.1 have the published
  diffusion's, 1.2 its rectified flow's, whose times depend on the size of the frames and the length of the window;
- DIR/image_encoder: what APM sees the anchor frame with, optional, see `backends.image_folder`;
- DIR/streamingt2v.json: settings, optional, see `backends.opensora_settings`.
"""

import json
from pathlib import Path
from typing import final

import torch

from backends.opensora_config import LATER, version_of
from streaming.errors import UserError
from streaming.model import Backend, Model

_LONGEST = 100_000_000
"""Bytes of a safetensors header, as the format limits them."""


@final
class OpenSora(Backend):
    """The family of STDiT, STDiT2 and STDiT3."""

    def describe(self) -> str:
        """For `streamingt2v models`."""
        return "Open-Sora 1.0, 1.1 and 1.2 (STDiT): the published safetensors in one folder"

    def matches(self, directory: Path) -> bool:
        """Whether the names of the tensors in `transformer`, or beside where that should be, are Open-Sora's.

        So are those of later versions, and pickles in `transformer`; `load` says what is wrong with them.
        """
        pickled = any(directory.glob("transformer/*.pth"))
        return pickled or any(_are_ours(tensor_names(folder)) for folder in (directory / "transformer", directory))

    def load(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """The base model in the folder, frozen, in eval mode. Raises UserError as `Backend.load` says."""
        folder = _checked(directory)
        from backends.opensora_parts import load_open_sora

        return load_open_sora([folder], device=device, dtype=dtype)


def _checked(directory: Path | None) -> Path:
    if directory is None:
        raise UserError("no published Open-Sora weights ship with this package: name their folder (--model DIR)")
    if not directory.exists():
        raise UserError(f"no model at {directory}: there is no such folder")
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: a model is a folder, with the transformer's file in its 'transformer'")
    if not (directory / "transformer").is_dir() and _are_ours(tensor_names(directory)):
        raise UserError(f"{directory} holds the transformer's file itself: put it into a folder 'transformer' there")
    return directory


def _are_ours(names: list[str]) -> bool:
    try:
        return bool(version_of(dict.fromkeys(names, torch.empty(0)), "it"))
    except UserError:
        return any(name.startswith(LATER) for name in names)


def tensor_names(folder: Path) -> list[str]:
    """Names of the tensors in the folder's safetensors files, also in truncated ones; only their headers are read."""
    return [name for path in sorted(folder.glob("*.safetensors")) for name in _header(path)]


def _header(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            names = json.loads(file.read(length)) if length <= _LONGEST else {}
    except (OSError, ValueError):
        return []
    return [name for name in names if name != "__metadata__"] if isinstance(names, dict) else []
