"""Open-Sora 1.0's transformer, STDiT: every block attends to space, to time, to the text."""

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backends.opensora_config import Grid, STDiTConfig
from backends.opensora_layers import (
    NO_DELTAS,
    CrossAttention,
    FinalLayer,
    Modulation,
    NumberEmbedder,
    PatchEmbedder,
    TextEmbedder,
    Times,
    at_site,
    block_sites,
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
from backends.opensora_places import table, waves
from streaming.errors import UserError
from streaming.sites import Deltas, check_sites
from streaming.types import Features, Latents, TokenMask, Tokens


@final
@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all blocks of an evaluation share."""

    tokens: Features
    """The latents as tokens that know their places: what the first block takes."""
    times: Times
    """Embedded times of rows or frames."""
    modulation: Modulation
    """Six shifts, scales and gates of rows or frames."""
    text: Tokens
    """Projected text."""
    text_mask: TokenMask | None
    """True where a token is read."""


@final
class Block(nn.Module):
    """Space, time, text, MLP. Attention over time reads the tokens as they are and shares the gate of space."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.scale_shift_table = new_table(6, config.width)
        self.norm1, self.norm2 = norm(config.width), norm(config.width)
        self.attn, self.attn_temp = self_attention(config), self_attention(config)
        self.cross_attn = CrossAttention(config)
        self.mlp = mlp(config.width, config.hidden, config.width)

    def forward(
        self,
        x: Features,
        modulation: Modulation,
        text: Tokens,
        mask: TokenMask | None,
        frames: Float[Tensor, "1 frames width"] | None,
    ) -> Features:
        """The tokens after the block.

        frames: waves of their numbers, in the first block only; its attention over time alone reads them.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts(self.scale_shift_table, modulation)
        x = x + gate * over_space(self.attn, modulate(self.norm1(x), shift, scale))
        x = x + gate * over_time(self.attn_temp, x if frames is None else x + frames[:, :, None])
        x = x + self.cross_attn(x, text, mask)
        return x + mlp_gate * self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale))


@final
class STDiT(nn.Module):
    """Predicts noise, and the variance in the last half of its output channels, for latents of one size.

    Its sites: see `block_sites`.
    """

    pos_embed: Float[Tensor, "1 positions width"]
    pos_embed_temporal: Float[Tensor, "1 frames width"]

    def __init__(self, config: STDiTConfig, grid: Grid, *, space_scale: float = 1.0, time_scale: float = 1.0) -> None:
        """With random weights; the last layer's are zero. Scales: as `tables`."""
        super().__init__()
        self.config, self.grid = config, grid
        self.recompute = False  # blocks anew in the backward pass, in place of keeping what they computed
        self.feature_sites, self.context_sites = block_sites(config)
        for name, places in tables(grid, config.width, space_scale=space_scale, time_scale=time_scale).items():
            self.register_buffer(name, places)
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = NumberEmbedder(config.width)
        self.t_block = modulator(config.width, 6)
        self.y_embedder = TextEmbedder(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        latents: Latents,
        time: Float[Tensor, " batch"] | Float[Tensor, "batch frames"],
        text: Tokens,
        *,
        text_mask: TokenMask | None = None,
        deltas: Deltas = NO_DELTAS,
    ) -> Float[Tensor, "batch outputs frames high wide"]:
        """The prediction, in size and type of the latents. time: 0 is nearly clean, 999 noise.

        Raises UserError for latents of another size, and KeyError for an unknown site in `deltas`.
        """
        check_sites(deltas, (*self.feature_sites, *self.context_sites))
        prepared = self.prepare(latents, time, text, text_mask=text_mask)
        x = prepared.tokens
        for i in range(self.config.depth):
            x = self.block(i, x, prepared, deltas)
        return self.final_layer(x, prepared.times, None, None, latents)

    def prepare(
        self,
        latents: Latents,
        time: Float[Tensor, " batch"] | Float[Tensor, "batch frames"],
        text: Tokens,
        *,
        text_mask: TokenMask | None = None,
    ) -> Prepared:
        """Everything before the first block; arguments as in `forward`. Fewer frames than the model's are the first."""
        rows, cols = self.x_embedder.grid(latents)
        frames, grid, (high, wide) = latents.shape[2], self.grid, self.config.patch
        if (rows, cols) != (grid.rows, grid.cols) or frames > grid.frames:
            raise UserError(
                f"latents of {frames} frames, {latents.shape[3]}x{latents.shape[4]}: this Open-Sora 1.0 was made for "
                f"{grid.frames} frames, {grid.rows * high}x{grid.cols * wide}"
            )
        tokens = self.x_embedder(latents)
        times = self.t_embedder(time.float().view(len(latents), -1))
        return Prepared(
            tokens=tokens + self.pos_embed,
            times=times,
            modulation=self.t_block(times).unflatten(2, (6, -1)),
            text=self.y_embedder(text),
            text_mask=text_mask,
        )

    def block(self, i: int, x: Features, prepared: Prepared, deltas: Deltas = NO_DELTAS) -> Features:
        """The tokens after the i-th block, with what is to be added at the sites there."""
        text = at_site(deltas, f"block{i}.text", prepared.text)
        frames = self.pos_embed_temporal[:, : x.shape[1]] if i == 0 else None
        block = self.blocks[i]
        run = partial(recomputed, block) if self.recompute and torch.is_grad_enabled() else block
        x = run(x, prepared.modulation, text, prepared.text_mask, frames)
        return at_site(deltas, f"block{i}", x)


def tables(
    grid: Grid, width: int, *, space_scale: float, time_scale: float
) -> dict[str, Float[Tensor, "1 places width"]]:
    """Waves of the places of patches, and of the frames' numbers, by their published names.

    space_scale: rows and columns are divided by this (published models: 0.5 at 256 pixels, 1 at 512). time_scale: so
    are frames' numbers (2/3 for 64 frames, else 1).
    """
    rows, cols, frames = (torch.arange(n, dtype=torch.float32) for n in (grid.rows, grid.cols, grid.frames))
    return {
        "pos_embed": table(rows / space_scale, cols / space_scale, width)[None],
        "pos_embed_temporal": waves(frames / time_scale, width)[None],
    }
