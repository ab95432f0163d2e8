"""Sizes and settings of the tiny Open-Sora, and how its transformer is saved."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from backends.embedded.config import FRAMES, OVERLAP, SIZE, TOKENS
from backends.opensora_config import STDiTConfig
from backends.opensora_stdit3 import STDiT3
from streaming.backbone import Window
from streaming.folders import save_folder
from streaming.model import Defaults
from streaming.weights_write import TRANSFORMERS, shard_names, shards

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

FPS = 8.0
"""Frames a second, which the transformer is told."""
SHIFT = 1.0
"""Of the times while sampling; 1 spreads them evenly."""
PART_BYTES = 15_000_000
"""Of a weight file, at most."""


def build_transformer(text_width: int, channels: int, *, toy: bool = False) -> STDiTConfig:
    """STDiT3 with five pairs of width 224 (8.7 M parameters); a token is one latent cell, 8 x 8 pixels.

    channels: of the autoencoder's latents.
    """
    width = 32 if toy else 224
    return STDiTConfig(
        width=width,
        depth=2 if toy else 5,
        heads=2 if toy else 7,
        hidden=4 * width,
        text_depth=text_width,
        text_tokens=TOKENS,
        channels=channels,
        outputs=channels,
        patch=(1, 1),
    )


def build_scheduler() -> "FlowMatchEulerDiscreteScheduler":
    """Rectified flow."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def build_defaults() -> tuple[Defaults, Window]:
    """64x64 pixels, 16 frames of which 8 overlap, as the tiny ModelScope."""
    defaults = Defaults(
        height=SIZE,
        width=SIZE,
        fps=FPS,
        steps=10,
        guidance=3.0,
        eta=0.0,
        sampler="euler",
        short_term="cam+inject",
        long_term="apm",
    )
    return defaults, Window(FRAMES, OVERLAP)


def save_transformer(net: STDiT3, folder: Path) -> None:
    """float16 safetensors under the published names, in files of at most 15 MB; rotations stay exact."""
    state = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in net.state_dict().items()}
    state["rope.freqs"] = net.rope.freqs.detach().cpu()
    groups = shards({name: value.nbytes for name, value in state.items()}, PART_BYTES)

    def write(target: Path) -> None:
        for name, group in zip(shard_names(TRANSFORMERS, len(groups)), groups, strict=True):
            save_file({each: state[each] for each in group}, target / name, {"format": "pt"})

    save_folder(folder, write)
