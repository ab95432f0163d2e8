"""The loss that Open-Sora 1.0's noise and variance are trained with [improved DDPM, arXiv 2102.09672]."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from backends.opensora_iddpm import Chain, Indices, Learned, split
from streaming.errors import UserError
from streaming.types import Latents

PerVideo = Float[Tensor, " batch"]

_HALF_BIN = 1 / 255
"""Half the distance of two of 256 values in -1..1, which the lowest level's likelihood is of [published code]."""
_EDGE = 0.999
"""Beyond it a value counts as the outermost of them."""


@final
@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of each video."""

    noise: PerVideo
    """Mean squared error of the predicted noise."""
    bound: PerVideo
    """The variational bound's term of the level, in bits a number; only the variance learns from it."""

    @property
    def total(self) -> PerVideo:
        """What is minimised."""
        return self.noise + self.bound


def training_losses(chain: Chain, prediction: Learned, clean: Latents, noise: Latents, index: Indices) -> Losses:
    """Of the prediction for `chain.noised(clean, noise, index)`. Raises UserError if it holds no variance."""
    predicted, share = split(prediction, clean.shape[1])
    if share is None:
        raise UserError("a network that predicts no variance: give one with twice the latents' channels")
    latents = chain.noised(clean, noise, index)
    found = chain.moments(torch.cat([predicted.detach(), share], dim=1), latents, index)
    true = chain.posterior(clean, latents, index)
    low = torch.from_numpy(chain.posterior_log_variance).to(latents.device, torch.float32)[index]
    between = _divergence(true, low.view(-1, 1, 1, 1, 1), found.mean, found.log_variance)
    lowest = -_log_likelihood(clean, found.mean, 0.5 * found.log_variance)
    bits = torch.stack([value.flatten(1).mean(dim=1) / math.log(2) for value in (between, lowest)])
    return Losses(
        noise=(predicted - noise).square().flatten(1).mean(dim=1), bound=torch.where(index == 0, bits[1], bits[0])
    )


def _divergence(
    mean: Latents, log_variance: Float[Tensor, "batch 1 1 1 1"], other: Latents, other_log_variance: Latents
) -> Latents:
    """Kullback-Leibler divergence of one Gaussian from another, number by number."""
    apart = log_variance - other_log_variance
    return 0.5 * (apart.exp() - apart - 1 + (mean - other).square() * (-other_log_variance).exp())


def _log_likelihood(values: Latents, mean: Latents, log_deviation: Latents) -> Latents:
    """Of the bin in which a value lies; the outermost bins have no end."""
    scale = (-log_deviation).exp()
    above = _cumulative(scale * (values - mean + _HALF_BIN))
    below = _cumulative(scale * (values - mean - _HALF_BIN))
    mass = torch.where(values < -_EDGE, above, torch.where(values > _EDGE, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def _cumulative(value: Latents) -> Latents:
    """The normal distribution's, nearly (by a hyperbolic tangent, as in the published code)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))
