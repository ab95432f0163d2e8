"""AutoencoderKL, frame by frame, as a codec: one latent frame is one pixel frame."""

from typing import final

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from streaming.codec import Codec
from streaming.errors import UserError
from streaming.types import Frames, Latents

_AT_ONCE = 16
"""Frames coded together on a CPU; so the memory in use does not grow with the length of the video."""
_PIXELS_AT_ONCE = 2**21
"""On a GPU small frames are coded in larger parts, as many as hold so many pixels (two frames of 1280x720)."""


@final
class AutoencoderKLCodec(Codec):
    """`diffusers.AutoencoderKL` with its scaling (and, if it has one, shift) factor."""

    def __init__(self, vae: AutoencoderKL, *, tile: bool = False) -> None:
        """`tile` decodes large frames in overlapping tiles: flat memory at 720p for faint seams."""
        super().__init__()
        self.vae = vae
        if tile:
            vae.enable_tiling()

    @property
    def channels(self) -> int:
        """Latent channels (ModelScope: 4)."""
        return int(self.vae.config["latent_channels"])

    @property
    def factor(self) -> int:
        """2 for each level but the last (ModelScope: 8)."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def latent_frames(self, pixel_frames: int) -> int:
        """As many."""
        return pixel_frames

    def pixel_frames(self, latent_frames: int) -> int:
        """As many."""
        return latent_frames

    def encode(self, frames: Frames) -> Latents:
        """Scaled modes of the posteriors, in the weights' type.

        Raises UserError if rows or columns are not a multiple of `factor`.
        """
        _check_size(frames, self.factor)
        pixels = (2 * frames.flatten(0, 1) - 1).split(_at_once(frames.device, frames.shape[-2] * frames.shape[-1]))
        modes = torch.cat([self.vae.encode(some.to(self.vae.dtype)).latent_dist.mode() for some in pixels])
        return ((modes - self._shift) * self._scale).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def decode(self, latents: Latents) -> Frames:
        """Float32 frames, clamped, on the latents' device."""
        count = _at_once(latents.device, latents.shape[-2] * latents.shape[-1] * self.factor**2)
        maps = (latents.transpose(1, 2).flatten(0, 1) / self._scale + self._shift).split(count)
        frames = torch.cat([self._pixels(some) for some in maps])
        return frames.unflatten(0, (latents.shape[0], latents.shape[2]))

    def _pixels(self, maps: Float[Tensor, "some channels high wide"]) -> Float[Tensor, "some 3 rows cols"]:
        return (self.vae.decode(maps.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    @property
    def _scale(self) -> float:
        return float(self.vae.config["scaling_factor"])

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)


def _at_once(device: torch.device, pixels: int) -> int:
    """Frames of so many pixels that are coded together."""
    return _AT_ONCE if device.type == "cpu" else min(4096, max(_AT_ONCE, _PIXELS_AT_ONCE // pixels))


def _check_size(frames: Frames, factor: int) -> None:
    rows, cols = frames.shape[-2:]
    if rows % factor or cols % factor:
        raise UserError(f"frames of {rows}x{cols} pixels: height and width must be multiples of {factor}")
