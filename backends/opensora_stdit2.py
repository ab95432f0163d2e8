"""Open-Sora 1.1's transformer, STDiT2: as 1.0's, but of any size, with rotations over time, and given frames."""

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from timm.layers.norm import RmsNorm
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn

from backends.opensora_config import STDiTConfig
from backends.opensora_layers import (
    NO_DELTAS,
    CrossAttention,
    FinalLayer,
    FrameMask,
    Given,
    Modulation,
    NumberEmbedder,
    PatchEmbedder,
    Sizes,
    TextEmbedder,
    Times,
    at_site,
    block_sites,
    frame_times,
    mlp,
    modulate,
    modulator,
    new_table,
    norm,
    over_space,
    over_time,
    parts,
    recomputed,
    self_attention,
)
from backends.opensora_places import Rope, scaled_table
from streaming.short_attention import attention
from streaming.sites import Deltas, check_sites
from streaming.types import Features, Latents, TokenMask, Tokens

Modulations = tuple[Modulation, Float[Tensor, "batch moments three width"]]
"""Six parts for space and MLP, and three for time."""


@final
@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all blocks of an evaluation share."""

    tokens: Features
    """The latents as tokens that know their places: what the first block takes."""
    times: Times
    """Embedded times, of rows or frames, as if every frame was to be generated."""
    given: Given
    """Time 0 and the size, embedded: that of given frames in the last layer."""
    modulations: Modulations
    """Shifts, scales and gates of rows or frames."""
    text: Tokens
    """Projected text."""
    text_mask: TokenMask | None
    """True where a token is read."""
    rope: Float[Tensor, "frames turns"]
    """Rotations that tell the frames' numbers."""


@final
class RotatedAttention(nn.Module):
    """Attention whose queries and keys are rotated, then normalised; 1.2 and timm do it the other way round."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.heads, head = config.heads, config.width // config.heads
        self.qkv, self.proj = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.q_norm, self.k_norm = (RmsNorm(head) if config.qk_norm else nn.Identity() for _ in range(2))

    def forward(
        self, x: Float[Tensor, "rows frames width"], rope: Float[Tensor, "frames turns"]
    ) -> Float[Tensor, "rows frames width"]:
        """What the frames read of each other."""
        q, k, v = rearrange(self.qkv(x), "b t (three n d) -> three b n t d", three=3, n=self.heads)
        q, k = self.q_norm(apply_rot_embed_cat(q, rope)), self.k_norm(apply_rot_embed_cat(k, rope))
        return self.proj(rearrange(attention(q, k, v), "b n t d -> b t (n d)"))


@final
class Block(nn.Module):
    """Space, time, text, MLP. Attention over time has shift, scale and gate of its own."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.scale_shift_table, self.scale_shift_table_temporal = (new_table(n, config.width) for n in (6, 3))
        self.norm1, self.norm_temp, self.norm2 = (norm(config.width) for _ in range(3))
        self.attn, self.attn_temp = self_attention(config), RotatedAttention(config)
        self.cross_attn = CrossAttention(config)
        self.mlp = mlp(config.width, config.hidden, config.width)

    def forward(
        self,
        x: Features,
        modulations: Modulations,
        text: Tokens,
        mask: TokenMask | None,
        rope: Float[Tensor, "frames turns"],
    ) -> Features:
        """The tokens after the block."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts(self.scale_shift_table, modulations[0])
        x = x + gate * over_space(self.attn, modulate(self.norm1(x), shift, scale))
        shift, scale, gate = parts(self.scale_shift_table_temporal, modulations[1])
        x = x + gate * over_time(self.attn_temp, modulate(self.norm_temp(x), shift, scale), rope)
        x = x + self.cross_attn(x, text, mask)
        return x + mlp_gate * self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale))


@final
class STDiT2(nn.Module):
    """Predicts noise, and the variance in the last half of its output channels. Its sites: see `block_sites`."""

    def __init__(self, config: STDiTConfig) -> None:
        """With random weights; the last layer's are zero."""
        super().__init__()
        self.config, width = config, config.width
        self.recompute = False  # blocks anew in the backward pass, in place of keeping what they computed
        self.feature_sites, self.context_sites = block_sites(config)
        self.rope = Rope(width // config.heads)
        self.x_embedder, self.y_embedder = PatchEmbedder(config), TextEmbedder(config)
        self.t_embedder, self.fl_embedder, self.fps_embedder = (NumberEmbedder(width) for _ in range(3))
        self.csize_embedder, self.ar_embedder = (NumberEmbedder(width // 3) for _ in range(2))
        self.t_block, self.t_block_temp = modulator(width, 6), modulator(width, 3)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        latents: Latents,
        time: Float[Tensor, " batch"] | Float[Tensor, "batch frames"],
        text: Tokens,
        *,
        fps: Sizes,
        height: Sizes,
        width: Sizes,
        aspect: Sizes,
        num_frames: Sizes,
        text_mask: TokenMask | None = None,
        generated: FrameMask | None = None,
        deltas: Deltas = NO_DELTAS,
    ) -> Float[Tensor, "batch outputs frames high wide"]:
        """The prediction, in size and type of the latents. time: 0 is nearly clean, 999 noise.

        fps, height, width, num_frames: of the clip in pixels; the first row's size counts for places. aspect: height
        by width. generated: None if all frames are; the others are at time 0. Raises KeyError for an unknown site.
        """
        check_sites(deltas, (*self.feature_sites, *self.context_sites))
        prepared = self.prepare(
            latents, time, text, fps=fps, height=height, width=width, aspect=aspect, num_frames=num_frames,
            text_mask=text_mask, generated=generated,
        )  # fmt: skip
        x = prepared.tokens
        for i in range(self.config.depth):
            x = self.block(i, x, prepared, deltas)
        return self.final_layer(x, prepared.times, prepared.given, generated, latents)

    def prepare(
        self,
        latents: Latents,
        time: Float[Tensor, " batch"] | Float[Tensor, "batch frames"],
        text: Tokens,
        *,
        fps: Sizes,
        height: Sizes,
        width: Sizes,
        aspect: Sizes,
        num_frames: Sizes,
        text_mask: TokenMask | None = None,
        generated: FrameMask | None = None,
    ) -> Prepared:
        """Everything before the first block; arguments as in `forward`."""
        size = torch.cat((self.csize_embedder(height), self.csize_embedder(width), self.ar_embedder(aspect)), dim=-1)
        length = self.fl_embedder(num_frames) + self.fps_embedder(fps)
        times, given = self.t_embedder(time.view(len(latents), -1)), self.t_embedder(torch.zeros_like(fps)[:, None])
        about = [frame_times(times + extra[:, None], given + extra[:, None], generated) for extra in (size, length)]
        side = (height[0].float() * width[0].float()).sqrt()
        places = scaled_table(*self.x_embedder.grid(latents), side, self.config.square, self.config.width)
        tokens = self.x_embedder(latents)
        return Prepared(
            tokens=tokens + places.to(tokens.dtype),
            times=times,
            given=given + size[:, None],
            modulations=(
                self.t_block(about[0]).unflatten(2, (6, -1)),
                self.t_block_temp(about[1]).unflatten(2, (3, -1)),
            ),
            text=self.y_embedder(text),
            text_mask=text_mask,
            rope=self.rope(latents.shape[2]),
        )

    def block(self, i: int, x: Features, prepared: Prepared, deltas: Deltas = NO_DELTAS) -> Features:
        """The tokens after the i-th block, with what is to be added at the sites there."""
        text, block = at_site(deltas, f"block{i}.text", prepared.text), self.blocks[i]
        run = partial(recomputed, block) if self.recompute and torch.is_grad_enabled() else block
        x = run(x, prepared.modulations, text, prepared.text_mask, prepared.rope)
        return at_site(deltas, f"block{i}", x)
