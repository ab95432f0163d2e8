"""Published weights of Open-Sora's transformers, put into ours strictly and without renaming."""

from collections.abc import Mapping

import torch
from torch import Tensor

from backends.image_weights import fill
from backends.opensora_config import CHANNELS, SQUARE, Grid, STDiTConfig, read_config, version_of
from backends.opensora_stdit import STDiT
from backends.opensora_stdit2 import STDiT2
from backends.opensora_stdit3 import STDiT3
from streaming.errors import UserError


def load_stdit(
    weights: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype = torch.float32,
    *,
    heads: int | None = None,
    channels: int = CHANNELS,
    square: int = SQUARE,
) -> STDiT | STDiT2 | STDiT3:
    """The transformer with these weights, on the CPU, in eval mode and frozen; sizes are those of the tensors.

    The frequencies of rotations stay float32, whatever `dtype` is.
    `where` names the weights in errors; heads, channels, square: as `read_config`. Raises UserError for other models'
    weights, for weights that are missing, foreign, of another shape or not finite.
    """
    config = read_config(weights, where, heads=heads, channels=channels, square=square)
    network = fill(lambda: _hollow(config, weights, where), weights, where, dtype)
    if not isinstance(network, STDiT):
        network.rope.freqs = weights["rope.freqs"].float()
    return network


def _hollow(config: STDiTConfig, weights: Mapping[str, Tensor], where: str) -> STDiT | STDiT2 | STDiT3:
    with torch.device("meta"):
        match version_of(weights, where):
            case "1.0":
                return STDiT(config, read_grid(weights, where))
            case "1.1":
                return STDiT2(config)
            case "1.2":
                return STDiT3(config)


def read_grid(weights: Mapping[str, Tensor], where: str) -> Grid:
    """The size that a transformer 1.0 was made for, by the tables of places in its weights.

    Raises UserError if there are none, as in checkpoints from training.
    """
    places, frames = (weights.get(name) for name in ("pos_embed", "pos_embed_temporal"))
    if places is None or frames is None or places.ndim != 3 or frames.ndim != 3:
        raise UserError(
            f"{where} has no pos_embed and pos_embed_temporal, so its size is unknown: give the published safetensors, "
            "for example hpcai-tech/OpenSora-STDiT-v1-HQ-16x256x256, or add backends.opensora_stdit.tables"
        )
    row = places[0, :, places.shape[2] // 2 :]
    cols = max(1, int((row == row[0]).all(dim=1).sum()))  # NaN equals nothing
    return Grid(frames=frames.shape[1], rows=len(row) // cols, cols=cols)
