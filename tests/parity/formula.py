"""Weights that a fixture does not store but names: pseudo-random numbers that depend on a parameter's name alone."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

_MASK = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

_PIECES = ("splitmix64", "(crc32(name)<<32)", "0x9E3779B97F4A7C15", "1.5/sqrt(prod(shape[1:]))", "(0.4,1.0) for 0-d")
"""Of the text of the formula that is known."""


def is_known(text: str) -> bool:
    """Whether a metadata's `weights_formula` is the one that `formula` computes."""
    return all(piece in text.replace(" ", "") or piece in text for piece in _PIECES)


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """The metadata's `weights_formula`: splitmix64 from crc32(name), scaled by the parameter's rank, bf16-exact."""
    uniform = _uniform(name, math.prod(shape))
    if len(shape) == 0:
        middle, half = 0.4, 1.0
    elif len(shape) == 1:
        middle, half = float(name.endswith(".weight")), 0.2
    else:
        middle, half = 0.0, 1.5 / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy((middle + half * uniform).astype(np.float32)).bfloat16().float().reshape(shape)


def _uniform(name: str, count: int) -> np.ndarray:
    """In [-1, 1)."""
    with np.errstate(over="ignore"):
        z = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) + np.arange(1, count + 1, dtype=np.uint64)
        z = z * _MASK[0]
        z = (z ^ (z >> np.uint64(30))) * _MASK[1]
        z = (z ^ (z >> np.uint64(27))) * _MASK[2]
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / 2**23 - 1
