"""What Open-Sora's transformers 1.0, 1.1 and 1.2 have in common; parameters have their published names.

Tokens are [batch, frames, positions, width]; positions are the patches of a frame, row by row. Modulations
[batch, moments, parts, width] have one moment for each row, or one for each frame.
"""

from collections.abc import Mapping
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backends.opensora_config import STDiTConfig
from backends.opensora_places import angles
from backends.timm_attention import ShortAttention
from streaming.sites import ContextSite, Delta, Deltas, FeatureSite
from streaming.types import Features, Latents, TokenMask, Tokens

Times = Float[Tensor, "batch times width"]
"""Embedded times of rows (times = 1) or of frames."""
Given = Float[Tensor, "batch 1 width"]
"""Time 0, embedded: that of given frames."""
Modulation = Float[Tensor, "batch moments parts width"]
"""Shifts, scales and gates before a block adds its own."""
Part = Float[Tensor, "batch moments 1 width"]
"""One of them with the block's own, for all positions."""
FrameMask = Bool[Tensor, "batch frames"]
"""True where a frame is to be generated, False where it is given."""
Sizes = Float[Tensor, " batch"]
"""One number for each row."""

NO_DELTAS: Mapping[str, Delta] = {}
EPS = 1e-6
WAVES = 256
"""Channels of the waves that a number becomes before it is embedded."""


@final
class PatchEmbedder(nn.Module):
    """Patches to tokens. Sizes that do not divide into patches are filled up with zeros below and on the right."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        size = (1, *config.patch)
        self.proj = nn.Conv3d(config.channels, config.width, size, stride=size)

    def grid(self, latents: Latents) -> tuple[int, int]:
        """Rows and columns of patches."""
        return -(-latents.shape[3] // self.patch[0]), -(-latents.shape[4] // self.patch[1])

    def forward(self, latents: Latents) -> Features:
        """Tokens; the convolution is a product with the patches, as these do not overlap."""
        high, wide = self.patch
        filled = F.pad(latents, (0, -latents.shape[4] % wide, 0, -latents.shape[3] % high))
        patches = rearrange(filled, "b c t (h p) (w q) -> b t (h w) (c p q)", p=high, q=wide)
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


@final
class NumberEmbedder(nn.Module):
    """A time, a frame rate or a size as channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Float[Tensor, "*numbers"]) -> Float[Tensor, "*numbers width"]:
        """Embeds the cosines, then the sines, of the numbers."""
        turned = angles(numbers, WAVES // 2)
        first: nn.Linear = self.mlp[0]  # pyright: ignore[reportAssignmentType]
        return self.mlp(torch.cat((turned.cos(), turned.sin()), dim=-1).to(first.weight.dtype))


@final
class TextEmbedder(nn.Module):
    """Text tokens as cross-attentions read them; `y_embedding` is what stands for no text, before it is projected."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.y_proj = mlp(config.text_depth, config.width, config.width)
        self.register_buffer("y_embedding", torch.randn(config.text_tokens, config.text_depth))

    def forward(self, text: Tokens) -> Float[Tensor, "batch tokens width"]:
        """Each token by itself, padding included."""
        return self.y_proj(text.to(self.y_proj.fc1.weight.dtype))


@final
class CrossAttention(nn.Module):
    """All tokens of a row read the text of the row."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_linear = nn.Linear(config.width, config.width)
        self.kv_linear = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Features, text: Tokens, mask: TokenMask | None) -> Features:
        """What to add to x."""
        queries = rearrange(self.q_linear(x), "b t s (n d) -> b n (t s) d", n=self.heads)
        keys, values = rearrange(self.kv_linear(text), "b l (two n d) -> two b n l d", two=2, n=self.heads)
        seen = None if mask is None else mask[:, None, None, :]
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        return self.proj(rearrange(read, "b n (t s) d -> b t s (n d)", t=x.shape[1]))


@final
class FinalLayer(nn.Module):
    """Tokens to patches of the prediction."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        high, wide = self.patch = config.patch
        self.norm_final = norm(config.width)
        self.scale_shift_table = new_table(2, config.width)
        self.linear = nn.Linear(config.width, high * wide * config.outputs)
        nn.init.zeros_(self.linear.weight)

    def forward(
        self, x: Features, times: Times, given: Given | None, generated: FrameMask | None, latents: Latents
    ) -> Float[Tensor, "batch outputs frames high wide"]:
        """The prediction, in size and type of the latents.

        given: the time 0 as the frames have it that `generated` excludes. These are normalised twice, which the
        published code does by mistake; nobody reads their prediction.
        """
        x = self._modulated(x, times)
        if generated is not None and given is not None:
            x = torch.where(generated[:, :, None, None], x, self._modulated(x, given))
        high, wide = self.patch
        rows = -(-latents.shape[3] // high)
        video = rearrange(self.linear(x), "b t (h w) (p q c) -> b c t (h p) (w q)", h=rows, p=high, q=wide)
        return video[..., : latents.shape[3], : latents.shape[4]].to(latents.dtype)

    def _modulated(self, x: Features, times: Times) -> Features:
        shift, scale = parts(self.scale_shift_table, times[:, :, None].expand(-1, -1, 2, -1))
        return modulate(self.norm_final(x), shift, scale)


def modulate(x: Features, shift: Part, scale: Part) -> Features:
    """x shifted and scaled."""
    return x * (1 + scale) + shift


def parts(table: Float[Tensor, "parts width"], modulation: Modulation) -> tuple[Part, ...]:
    """Shifts, scales and gates, the block's own (`table`) added."""
    return (table + modulation).chunk(len(table), dim=2)


def frame_times(times: Times, given: Given, generated: FrameMask | None) -> Float[Tensor, "batch moments width"]:
    """The time of each frame: `given` for those that are not to be generated."""
    return times if generated is None else torch.where(generated[:, :, None], times, given)


def over_space(attention: nn.Module, x: Features) -> Features:
    """Attention inside each frame."""
    return attention(x.flatten(0, 1)).view_as(x)


def over_time(attention: nn.Module, x: Features, rope: Float[Tensor, "frames turns"] | None = None) -> Features:
    """Attention along the frames at each position."""
    columns = rearrange(x, "b t s c -> (b s) t c")
    read = attention(columns) if rope is None else attention(columns, rope)
    return rearrange(read, "(b s) t c -> b t s c", b=x.shape[0])


def block_sites(config: STDiTConfig) -> tuple[tuple[FeatureSite, ...], tuple[ContextSite, ...]]:
    """Sites of 1.0 and 1.1, in order of evaluation: outputs of the last half of the blocks [StreamingT2V §5.2],
    `block14` to `block27` in the published models, and the projected text as each cross-attention reads it,
    `block0.text` and so on."""
    depth, width = config.depth, config.width
    features = tuple(FeatureSite(f"block{i}", width) for i in range(depth - depth // 2, depth))
    return features, tuple(ContextSite(f"block{i}.text", width, config.text_tokens) for i in range(depth))


def at_site(deltas: Deltas, site: str, value: Tensor) -> Tensor:
    """The value at a site with what is to be added there; left alone, bit for bit, if nothing is."""
    return value + deltas[site](value) if site in deltas else value


def self_attention(config: STDiTConfig) -> ShortAttention:
    """timm's attention with the published names."""
    return ShortAttention(config.width, config.heads, qk_norm=config.qk_norm)


def mlp(width: int, hidden: int, out: int) -> Mlp:
    """timm's MLP with the approximate GELU of all these models."""
    return Mlp(width, hidden, out, act_layer=partial(nn.GELU, approximate="tanh"))  # pyright: ignore[reportArgumentType]


def norm(width: int) -> nn.LayerNorm:
    """A layer norm without parameters."""
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


def new_table(count: int, width: int) -> nn.Parameter:
    """A block's own shifts, scales and gates before training."""
    return nn.Parameter(torch.randn(count, width) / width**0.5)


def modulator(width: int, count: int) -> nn.Sequential:
    """Times to `count` shifts, scales and gates, side by side."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


def recomputed(block: nn.Module, *values: object) -> Tensor:
    """What the block makes of the values; its activations are computed anew in the backward pass, not kept."""
    return checkpoint(block, *values, use_reentrant=False)  # pyright: ignore[reportReturnType]
