"""The temporal autoencoder of Open-Sora 1.2, under the published names: spatial latents to fewer frames and back.

Convolutions see no later frame, but the group norms average over time: a frame changes every latent of its piece.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from streaming.errors import UserError

Maps = Float[Tensor, "batch channels frames high wide"]
Shorter = Float[Tensor, "batch few latents high wide"]

STRIDE = 2
"""Frames that become one where time is shortened."""


@final
@dataclass(frozen=True, kw_only=True)
class TemporalSizes:
    """Widths and depths of a temporal autoencoder."""

    channels: int
    """Of the spatial latents."""
    latents: int
    """Channels of the latents in the end."""
    inner: int
    """Channels between encoder and the last projection."""
    entry: int
    """Channels after the first convolution."""
    widths: tuple[int, ...]
    """Channels of each level."""
    blocks: int
    """Residual blocks of each level."""
    shortened: tuple[int, ...]
    """Levels after which two frames become one."""
    groups: int
    """Of the group norms; the only size that no tensor's shape tells."""

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], groups: int = 32) -> "TemporalSizes":
        """From the shapes of a checkpoint's tensors, named without `temporal_vae.`; groups: 32 in the published model.

        Raises UserError if tensors are missing, and if the channels don't split into the groups.
        """
        try:
            sizes = cls._of(shapes, groups)
        except KeyError as error:
            raise UserError(f"no temporal autoencoder of Open-Sora 1.2: {error.args[0]} is missing") from error
        if odd := [width for width in (sizes.entry, *sizes.widths) if width % groups]:
            raise UserError(f"{odd[0]} channels of the temporal autoencoder do not split into {groups} groups")
        return sizes

    @classmethod
    def _of(cls, shapes: Mapping[str, tuple[int, ...]], groups: int) -> "TemporalSizes":
        kernel = "encoder.block_res_blocks.{}.{}.conv1.conv.weight".format
        levels = max(1, _count(shapes, kernel(r"(\d+)", 0)))
        entry, channels = shapes["encoder.conv_in.conv.weight"][:2]
        return cls(
            channels=channels,
            latents=shapes["post_quant_conv.conv.weight"][1],
            inner=shapes["decoder.conv1.conv.weight"][1],
            entry=entry,
            widths=tuple(shapes[kernel(level, 0)][0] for level in range(levels)),
            blocks=_count(shapes, kernel(0, r"(\d+)")),
            shortened=tuple(i for i in range(levels - 1) if f"encoder.conv_blocks.{i}.conv.weight" in shapes),
            groups=groups,
        )


def _count(names: Mapping[str, object], pattern: str) -> int:
    """Different values of the pattern's group among the names."""
    return len({match[1] for name in names if (match := re.fullmatch(pattern, name))})


@final
class CausalConv3d(nn.Module):
    """A convolution that is padded with zeros: evenly in space, in time only in front."""

    def __init__(self, source: int, target: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.front = kernel - stride
        pad = kernel // 2
        self.conv = nn.Conv3d(source, target, kernel, stride=(stride, 1, 1), padding=(0, pad, pad), bias=bias)

    def forward(self, maps: Maps) -> Shorter:
        """As many frames, or their number divided by the stride."""
        return self.conv(F.pad(maps, (0, 0, 0, 0, self.front, 0)) if self.front > 0 else maps)


@final
class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice; the sum with the input, projected where widths differ. No biases."""

    def __init__(self, source: int, target: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, source)
        self.conv1 = CausalConv3d(source, target, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, target)
        self.conv2 = CausalConv3d(target, target, 3, bias=False)
        self.conv3 = None if source == target else CausalConv3d(source, target, 1, bias=False)

    def forward(self, maps: Maps) -> Float[Tensor, "batch target frames high wide"]:
        """Of the target's width."""
        hidden = self.conv1(F.silu(self.norm1(maps)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (maps if self.conv3 is None else self.conv3(maps))


def _blocks(source: int, target: int, sizes: TemporalSizes) -> nn.ModuleList:
    first = [ResidualBlock(source, target, sizes.groups)] if sizes.blocks else []
    return nn.ModuleList(first + [ResidualBlock(target, target, sizes.groups) for _ in range(sizes.blocks - 1)])


@final
class TemporalEncoder(nn.Module):
    """Spatial latents to mean and log variance, before the last projection."""

    def __init__(self, sizes: TemporalSizes) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(sizes.channels, sizes.entry, 3, bias=False)
        sources = (sizes.entry, *sizes.widths)
        levels = zip(sources, sizes.widths, strict=False)
        self.block_res_blocks = nn.ModuleList(_blocks(source, target, sizes) for source, target in levels)
        self.conv_blocks = nn.ModuleDict(
            {str(i): CausalConv3d(sizes.widths[i], sizes.widths[i], 3, stride=STRIDE) for i in sizes.shortened}
        )
        self.res_blocks = _blocks(sizes.widths[-1], sizes.widths[-1], sizes)
        self.norm1 = nn.GroupNorm(sizes.groups, sizes.widths[-1])
        self.conv2 = CausalConv3d(sizes.widths[-1], 2 * sizes.inner, 1)

    def forward(self, maps: Maps) -> Shorter:
        """A multiple of the compression's frames to that many times fewer."""
        maps = self.conv_in(maps)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                maps = block(maps)
            if str(level) in self.conv_blocks:
                maps = self.conv_blocks[str(level)](maps)
        for block in self.res_blocks:
            maps = block(maps)
        return self.conv2(F.silu(self.norm1(maps)))


@final
class TemporalDecoder(nn.Module):
    """The way back: where time was shortened, pairs of channels become pairs of frames."""

    def __init__(self, sizes: TemporalSizes) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(sizes.inner, sizes.widths[-1], 3)
        self.res_blocks = _blocks(sizes.widths[-1], sizes.widths[-1], sizes)
        sources = (*sizes.widths[1:], sizes.widths[-1])
        levels = zip(sources, sizes.widths, strict=True)
        self.block_res_blocks = nn.ModuleList(_blocks(source, target, sizes) for source, target in levels)
        later = [sizes.widths[i + 1] for i in sizes.shortened]
        doubling = zip(sizes.shortened, later, strict=True)
        self.conv_blocks = nn.ModuleDict({str(i): CausalConv3d(n, STRIDE * n, 3) for i, n in doubling})
        self.norm1 = nn.GroupNorm(sizes.groups, sizes.widths[0])
        self.conv_out = CausalConv3d(sizes.widths[0], sizes.channels, 3)

    def forward(self, maps: Maps) -> Shorter:
        """Spatial latents, the compression times as many frames."""
        maps = self.conv1(maps)
        for block in self.res_blocks:
            maps = block(maps)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:  # pyright: ignore[reportGeneralTypeIssues]
                maps = block(maps)
            if str(level - 1) in self.conv_blocks:
                maps = _lengthened(self.conv_blocks[str(level - 1)](maps))
        return self.conv_out(F.silu(self.norm1(maps)))


def _lengthened(maps: Float[Tensor, "batch twice frames high wide"]) -> Float[Tensor, "batch half more high wide"]:
    """Neighbouring channels become neighbouring frames."""
    return maps.unflatten(1, (-1, STRIDE)).movedim(2, 3).flatten(2, 3)


@final
class TemporalVAE(nn.Module):
    """Encoder, decoder and their projections; state names as in the published model."""

    def __init__(self, sizes: TemporalSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder, self.decoder = TemporalEncoder(sizes), TemporalDecoder(sizes)
        self.quant_conv = CausalConv3d(2 * sizes.inner, 2 * sizes.latents, 1)
        self.post_quant_conv = CausalConv3d(sizes.latents, sizes.inner, 1)

    @property
    def factor(self) -> int:
        """Frames that a latent stands for (published: 4)."""
        return STRIDE ** len(self.sizes.shortened)

    def moments(self, maps: Maps) -> Shorter:
        """Mean and log variance [batch, 2 latents, ceil(frames / factor), high, wide], zeros in front of the frames."""
        return self.quant_conv(self.encoder(F.pad(maps, (0, 0, 0, 0, -maps.shape[2] % self.factor, 0))))

    def decode(self, latents: Shorter, frames: int) -> Float[Tensor, "batch channels frames high wide"]:
        """The last `frames` frames of those that the latents hold."""
        maps = self.decoder(self.post_quant_conv(latents))
        return maps[:, :, maps.shape[2] - frames :]
