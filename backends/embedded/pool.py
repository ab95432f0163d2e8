"""Rolling pools of rendered scenes: what each part trains on, made on the training device a slice at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from backends.embedded.tokenizer import UNKNOWN, token_numbers
from backends.world import captions, object_mask, render, sample_scenes
from backends.world.scene import Scenes, Split
from streaming.datasets import RollingPool, Samples, half_precision
from streaming.errors import UserError
from streaming.keys import Key
from streaming.training import TrainOptions

FPS = 8.0
"""Frames a second of every clip."""
FACTOR = 8
"""Pixels on each side of a latent cell's picture."""
LATEST_START = 60.0
"""Clips begin between 0 and this many seconds."""
PERIOD = 6
"""How often a clip is used on average: rendering and encoding then cost about a tenth of the time."""
FRAMES_AT_ONCE = {"cuda": 512, "cpu": 16}
"""64 × 64 frames (or as many pixels) that are coded together: a CPU is slow with more."""


def check_options(options: TrainOptions) -> None:
    """The embedded parts need the world's masks and attributes, and little memory.

    Raises UserError for another dataset and for gradient checkpointing.
    """
    if options.dataset != "procedural-world":
        raise UserError(f'this part trains on "procedural-world" only, not on --dataset {options.dataset}')
    if options.checkpoint_gradients:
        raise UserError("this part has no gradient checkpointing: leave --checkpoint-gradients out, or lower --batch")


def world_pool(
    key: Key,
    device: torch.device,
    make: Callable[[Scenes, torch.Generator], Samples],
    *,
    clips: int,
    slices: int,
    period: int = PERIOD,
    split: Split = "train",
) -> RollingPool:
    """A pool of `slices` × `clips` samples; `make` gets the scenes of one slice (on `device`) and a CPU generator.

    split: which pairs of shape and colour there are; what makes videos must never see those that are held out.
    """

    def slice_of(index: int) -> Samples:
        generator = key.fold("slice", index).generator()
        scenes = sample_scenes(clips, generator, split=split)
        with torch.no_grad():
            return make(scenes.to(device), generator)

    return RollingPool(slice_of, slices=slices, period=period)


def random_start(n: int, generator: torch.Generator, device: torch.device) -> Float[Tensor, " n"]:
    """Start times in seconds."""
    return (torch.rand(n, generator=generator) * LATEST_START).to(device)


def signed(frames: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """RGB bytes to [-1, 1]."""
    return frames.float() / 127.5 - 1


def freeze(model: nn.Module, device: torch.device) -> Any:
    """A model for use without training, on the device."""
    return model.requires_grad_(False).eval().to(device)


@torch.no_grad()
def encode(vae: Any, frames: UInt8[Tensor, "clips time 3 rows cols"]) -> Float[Tensor, "clips channels time high wide"]:
    """Latents (means of the posterior) of clips."""
    flat = frames.flatten(0, 1)
    count = max(1, FRAMES_AT_ONCE[frames.device.type] * 64 * 64 // (flat.shape[-1] * flat.shape[-2]))
    with half_precision(frames.device):
        means = [vae.encode(signed(part)).latent_dist.mean.float() for part in flat.split(count)]
    return torch.cat(means).unflatten(0, frames.shape[:2]).transpose(1, 2)


@torch.no_grad()
def decode(
    vae: Any, latents: Float[Tensor, "clips channels time high wide"]
) -> UInt8[Tensor, "clips time 3 rows cols"]:
    """Clips of latents."""
    flat = latents.transpose(1, 2).flatten(0, 1)
    count = max(1, FRAMES_AT_ONCE[latents.device.type] * 64 // (flat.shape[-1] * flat.shape[-2]))
    with half_precision(latents.device):
        parts = [vae.decode(part).sample.float() for part in flat.split(count)]
    frames = ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return frames.unflatten(0, (latents.shape[0], latents.shape[2]))


@torch.no_grad()
def text_states(tokenizer: Any, encoder: Any, lines: Sequence[str]) -> Float[Tensor, "lines tokens depth"]:
    """What the U-Net reads of captions: the text encoder's last states, padding included."""
    numbers = caption_numbers(tokenizer, lines).to(encoder.device)
    return encoder(numbers).last_hidden_state.float()


def caption_numbers(tokenizer: Any, lines: Sequence[str]) -> Int[Tensor, "lines tokens"]:
    """Padded token numbers of captions, on the CPU.

    Raises UserError if captions have words that the tokenizer, made for another version of the world, lacks.
    """
    numbers = token_numbers(tokenizer, lines)
    if (numbers == UNKNOWN).any():
        known = tokenizer.get_vocab()
        words = sorted({word for line in lines for word in line.replace(",", " ").split()} - set(known))
        raise UserError(
            f"the tokenizer in this --work does not know words of today's captions ({', '.join(words)}): begin in a "
            "new --work"
        )
    return numbers


def two_captions(
    tokenizer: Any, encoder: Any, scenes: Scenes, generator: torch.Generator
) -> Float[Tensor, "clips 2 tokens depth"]:
    """The states of two captions of each scene."""
    on_cpu = scenes.to("cpu")
    lines = captions(on_cpu, generator) + captions(on_cpu, generator)
    return text_states(tokenizer, encoder, lines).unflatten(0, (2, len(scenes))).transpose(0, 1)


def object_shares(
    scenes: Scenes, start: Float[Tensor, " clips"], *, frames: int, size: int
) -> Float[Tensor, "clips 1 time high wide"]:
    """How much of the picture of each latent cell the object covers, in [0, 1]."""
    return F.avg_pool2d(object_mask(scenes, frames=frames, start=start, fps=FPS, size=size), FACTOR)[:, None]


def latent_slices(
    vae: Any, tokenizer: Any, text_encoder: Any, *, frames: int, size: int
) -> Callable[[Scenes, torch.Generator], Samples]:
    """Makes slices: latents [clips, channels, frames, high, wide], two captions' states [clips, 2, tokens, depth]."""

    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        start = random_start(len(scenes), generator, scenes.device)
        latents = encode(vae, render(scenes, frames=frames, start=start, fps=FPS, size=size))
        states = two_captions(tokenizer, text_encoder, scenes, generator)
        return {"latents": latents.half(), "text": states.half()}

    return make
