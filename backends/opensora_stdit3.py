"""Open-Sora 1.2's transformer, STDiT3: pairs of a spatial and a temporal block, alike but for what they attend to."""

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float
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
from backends.timm_attention import ShortAttentionRope
from streaming.sites import ContextSite, Deltas, FeatureSite, InputSite, check_sites
from streaming.types import Features, Latents, TokenMask, Tokens


@final
@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all blocks of an evaluation share."""

    tokens: Features
    """The latents as tokens that know their places: what the first block takes."""
    times: Times
    """Embedded times, of rows or frames, as if every frame was to be generated."""
    given: Given
    """Time 0, embedded: that of given frames."""
    modulation: Modulation
    """Six shifts, scales and gates of rows or frames."""
    text: Tokens
    """Projected text."""
    text_mask: TokenMask | None
    """True where a token is read."""
    rope: Float[Tensor, "frames turns"]
    """Rotations that tell the frames' numbers."""


@final
class Block(nn.Module):
    """Self-attention, over a frame's positions or over time, then the text, then an MLP."""

    def __init__(self, config: STDiTConfig, attention: nn.Module) -> None:
        """attention: timm's, with rotations if it is to go along time."""
        super().__init__()
        self.scale_shift_table = new_table(6, config.width)
        self.norm1, self.norm2 = norm(config.width), norm(config.width)
        self.attn = attention
        self.cross_attn = CrossAttention(config)
        self.mlp = mlp(config.width, config.hidden, config.width)

    def forward(
        self,
        x: Features,
        modulation: Modulation,
        text: Tokens,
        mask: TokenMask | None,
        rope: Float[Tensor, "frames turns"] | None,
    ) -> Features:
        """The tokens after the block; with rotations it attends along time."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts(self.scale_shift_table, modulation)
        hidden = modulate(self.norm1(x), shift, scale)
        x = x + gate * (over_space(self.attn, hidden) if rope is None else over_time(self.attn, hidden, rope))
        x = x + self.cross_attn(x, text, mask)
        return x + mlp_gate * self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale))


@final
class STDiT3(nn.Module):
    """Predicts the velocity, data minus noise, in the first half of its output channels.

    Sites: `patches`, the tokens that enter the first block; `pair14` to `pair27` (the last half of all), the output of
    a spatial and a temporal block; and `spatial0.text`, `temporal0.text` and so on, the projected text as each
    cross-attention reads it.
    """

    def __init__(self, config: STDiTConfig) -> None:
        """With random weights; the last layer's are zero."""
        super().__init__()
        self.config = config
        self.recompute = False  # blocks anew in the backward pass, in place of keeping what they computed
        self.rope = Rope(config.width // config.heads)
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder, self.fps_embedder = NumberEmbedder(config.width), NumberEmbedder(config.width)
        self.t_block = modulator(config.width, 6)
        self.y_embedder = TextEmbedder(config)
        self.spatial_blocks = nn.ModuleList(Block(config, self_attention(config)) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(Block(config, _turning(config)) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    @property
    def input_site(self) -> InputSite:
        """The patches as tokens, their places added: what a convolution over the latents is part of."""
        return InputSite("patches", self.config.width, kernel=self.config.patch, stride=self.config.patch)

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """Outputs of the last half of the pairs [StreamingT2V §5.2], in order of evaluation."""
        depth = self.config.depth
        return tuple(FeatureSite(f"pair{i}", self.config.width) for i in range(depth - depth // 2, depth))

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        """The text of all cross-attentions, in order of evaluation."""
        names = (f"{kind}{i}.text" for i in range(self.config.depth) for kind in ("spatial", "temporal"))
        return tuple(ContextSite(name, self.config.width, self.config.text_tokens) for name in names)

    def forward(
        self,
        latents: Latents,
        time: Float[Tensor, " batch"] | Float[Tensor, "batch frames"],
        text: Tokens,
        *,
        fps: Sizes,
        height: Sizes,
        width: Sizes,
        text_mask: TokenMask | None = None,
        generated: FrameMask | None = None,
        deltas: Deltas = NO_DELTAS,
    ) -> Float[Tensor, "batch outputs frames high wide"]:
        """The prediction, in size and type of the latents.

        time: 0 is clean, 1000 noise. fps, height, width: of the clip in pixels; the first row's size counts for all.
        generated: None if all frames are; the others are at time 0. Raises KeyError for an unknown site in `deltas`.
        """
        check_sites(deltas, (self.input_site, *self.feature_sites, *self.context_sites))
        prepared = self.prepare(
            latents, time, text, fps=fps, height=height, width=width, text_mask=text_mask, generated=generated
        )
        x = at_site(deltas, "patches", prepared.tokens)
        for i in range(self.config.depth):
            x = self.pair(i, x, prepared, deltas)
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
        text_mask: TokenMask | None = None,
        generated: FrameMask | None = None,
    ) -> Prepared:
        """Everything before the first block; arguments as in `forward`."""
        tokens = self.x_embedder(latents)
        side = (height[0].float() * width[0].float()).sqrt()
        places = scaled_table(*self.x_embedder.grid(latents), side, self.config.square, self.config.width)
        rate = self.fps_embedder(fps)[:, None]
        times = self.t_embedder(time.view(len(latents), -1)) + rate
        given = self.t_embedder(torch.zeros_like(fps)[:, None]) + rate
        seen = frame_times(times, given, generated)
        return Prepared(
            tokens=tokens + places.to(tokens.dtype),
            times=times,
            given=given,
            modulation=self.t_block(seen).unflatten(2, (6, -1)),
            text=self.y_embedder(text),
            text_mask=text_mask,
            rope=self.rope(latents.shape[2]),
        )

    def pair(self, i: int, x: Features, prepared: Prepared, deltas: Deltas = NO_DELTAS) -> Features:
        """The tokens after the i-th spatial and temporal block, with what is to be added at the sites there."""
        text, mask = prepared.text, prepared.text_mask
        spatial, temporal = (at_site(deltas, f"{kind}{i}.text", text) for kind in ("spatial", "temporal"))
        blocks = (self.spatial_blocks[i], spatial, None), (self.temporal_blocks[i], temporal, prepared.rope)
        for block, words, rope in blocks:
            run = partial(recomputed, block) if self.recompute and torch.is_grad_enabled() else block
            x = run(x, prepared.modulation, words, mask, rope)
        return at_site(deltas, f"pair{i}", x)


def _turning(config: STDiTConfig) -> ShortAttentionRope:
    """timm's attention with the published names."""
    return ShortAttentionRope(config.width, config.heads, qk_norm=config.qk_norm)
