"""The published checkpoint's names, with small tensors."""

import gzip
import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_IMAGE = {1280: 16, 5120: 64, 3840: 48, 1024: 16, 257: 17, 14: 4}
_TEXT = {1024: 16, 4096: 32}
_VAE = {128: 8, 256: 16, 512: 24}
_RESAMPLER = {1024: 16, 1280: 12, 16384: 16 * 16}
_CONDITION = {32: 4, 96: 6, 256: 8, 512: 10, 320: 8}
_UNET = {512: 64, 4096: 512, 2048: 256, 1024: 16}


@cache
def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all 3407 tensors, in the checkpoint's order."""
    packed = (Path(__file__).parent / "data" / "streamingt2v_keys.json.gz").read_bytes()
    return {name: tuple(shape) for name, shape in json.loads(gzip.decompress(packed)).items()}


def small() -> dict[str, Tensor]:
    """All of them, thin: widths 8, 16, 32, 32 (autoencoder 8, 16, 24, 24); text of 16; drawn anew from one seed."""
    generator = torch.Generator().manual_seed(7)
    return {name: _draw(name, _thin(name, shape), generator) for name, shape in published().items()}


def _thin(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    for begin, sizes in (
        ("image_encoder.", _IMAGE),
        ("text_encoder.", _TEXT),
        ("vae.", _VAE),
        ("resampler.", _RESAMPLER),
        ("unet.controlnet_cond_embedding.", _CONDITION),
    ):
        if name.startswith(begin):
            return tuple(sizes.get(size, size) for size in shape)
    return tuple(_UNET.get(size, size // 40 if size % 320 == 0 else size) for size in shape)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of a size that keeps a forward pass finite; norms near 1."""
    value = 0.1 * torch.randn(shape, generator=generator)
    return value + 1 if value.ndim == 1 and name.endswith("weight") else value
