"""Shapes that the contracts speak of. Checked under pytest only (see the test extra), never at run time."""

from typing import TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor

Frames: TypeAlias = Float[Tensor, "batch time 3 rows cols"]
"""RGB video in [0, 1]."""

Latents: TypeAlias = Float[Tensor, "batch channels frames high wide"]
"""A codec's latents, scaled as the denoiser wants them (unit variance or thereabouts)."""

Features: TypeAlias = Float[Tensor, "batch span positions width"]
"""Activations at a feature site; positions are the H*W cells of a UNet level or the spatial tokens of a DiT."""

SiteFeatures: TypeAlias = Float[Tensor, "_ _ _ _"]
"""Features where several sites stand side by side, each with its own positions and width."""

Tokens: TypeAlias = Float[Tensor, "batch tokens depth"]
"""Text or image tokens as cross-attention reads them."""

TokenMask: TypeAlias = Bool[Tensor, "batch tokens"]
"""True where a token is to be read; encoders that pad with meaningful tokens (CLIP) give none."""
