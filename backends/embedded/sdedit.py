"""SDEdit with the embedded U-Nets, for training: small videos as the base model might have made them."""

from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from backends.embedded.config import FRAMES, SIZE, build_defaults, build_scheduler
from backends.embedded.pool import decode, encode
from backends.embedded.train_unet import Empty
from streaming.datasets import half_precision
from streaming.guidance import Guidance, scaled
from streaming.model import Defaults
from streaming.sample import Sampler, Step
from streaming.types import Latents

Clips: TypeAlias = UInt8[Tensor, "clips time 3 rows cols"]
REMAKING_STEPS = 4
"""Of the base model, for the part of its schedule by which a video is remade."""


@torch.no_grad()
def remade(
    base: Any,
    vae: Any,
    frames: Clips,
    text: Float[Tensor, "clips tokens depth"],
    empty: Empty,
    share: float,
    generator: torch.Generator,
) -> Clips:
    """Small clips with the base model's faults: noised by this share of its schedule and denoised by it again."""
    settings = replace(build_defaults(SIZE, FRAMES)[0], steps=REMAKING_STEPS, strength=share)
    return decode(vae, edited(base, encode(vae, frames), text, empty, settings, generator))


def edited(
    unet: Any,
    clean: Float[Tensor, "clips channels time high wide"],
    text: Float[Tensor, "clips tokens depth"],
    empty: Empty,
    settings: Defaults,
    generator: torch.Generator,
) -> Float[Tensor, "clips channels time high wide"]:
    """SDEdit of latents by these settings, with noise of the generator on their device."""
    noise, none = torch.randn(clean.shape, generator=generator, device=clean.device), torch.zeros_like(clean)
    predict = partial(_velocity, unet, scaled(settings.guidance, settings.rescale), text, empty)
    sampler = Sampler(settings.sampler, settings.steps, settings.eta)
    return sampler(predict, noise, lambda _: none, build_scheduler(), strength=settings.strength, clean=clean)


def _velocity(
    unet: Any,
    guidance: Guidance,
    text: Float[Tensor, "clips tokens depth"],
    empty: Empty,
    latents: Latents,
    step: Step,
) -> Latents:
    said = torch.cat([text if row.text else empty.expand_as(text) for row in guidance.rows])
    rows = latents.repeat(len(guidance.rows), 1, 1, 1, 1)
    time = torch.full((len(rows),), step.time, device=latents.device)
    with half_precision(latents.device):
        velocity = unet(rows, time, encoder_hidden_states=said).sample.float()
    return guidance.combine(velocity.unflatten(0, (-1, len(latents))))
