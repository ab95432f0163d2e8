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
"""On a GPU small frames are coded in larger parts, as many as hold so many pixels."""
_LARGE = 512 * 512
"""Frames of more pixels are coded one by one, and in tiles."""
_TILE = 512
"""Rows and columns of a tile, in pixels; 64 latents for ModelScope's autoencoder."""
_OVERLAP = 0.25
"""Share of a tile that its neighbour covers too, where the two are cross-faded."""


@final
class AutoencoderKLCodec(Codec):
    """`diffusers.AutoencoderKL` with its scaling (and, if it has one, shift) factor."""

    def __init__(self, vae: AutoencoderKL, *, tile: bool | None = None, tile_size: int = _TILE) -> None:
        """`tile`: code frames in overlapping tiles of about `tile_size` pixels, for less memory and faint seams.

        True: all that are larger than a tile; None: those of more than 512x512 pixels; False: none.
        """
        super().__init__()
        self.vae, self.tile, self.tile_size = vae, tile, tile_size
        vae.tile_overlap_factor = _OVERLAP

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
        self._set_tiling(frames.shape[-2], frames.shape[-1])
        pixels = (2 * frames.flatten(0, 1) - 1).split(_at_once(frames.device, frames.shape[-2] * frames.shape[-1]))
        modes = torch.cat([self.vae.encode(some.to(self.vae.dtype)).latent_dist.mode() for some in pixels])
        return ((modes - self._shift) * self._scale).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def decode(self, latents: Latents) -> Frames:
        """Float32 frames, clamped, on the latents' device."""
        rows, cols = latents.shape[-2] * self.factor, latents.shape[-1] * self.factor
        self._set_tiling(rows, cols)
        count = _at_once(latents.device, rows * cols)
        maps = (latents.transpose(1, 2).flatten(0, 1) / self._scale + self._shift).split(count)
        frames = torch.cat([self._pixels(some) for some in maps])
        return frames.unflatten(0, (latents.shape[0], latents.shape[2]))

    def _pixels(self, maps: Float[Tensor, "some channels high wide"]) -> Float[Tensor, "some 3 rows cols"]:
        return (self.vae.decode(maps.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def _set_tiling(self, rows: int, cols: int) -> None:
        """diffusers keeps its settings in the autoencoder; they do nothing to frames that fit a tile."""
        tile = fitting_tile(rows // self.factor, cols // self.factor, self.tile_size // self.factor)
        self.vae.use_tiling = rows * cols > _LARGE if self.tile is None else self.tile
        self.vae.tile_latent_min_size, self.vae.tile_sample_min_size = tile, tile * self.factor

    @property
    def _scale(self) -> float:
        return float(self.vae.config["scaling_factor"])

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)


def fitting_tile(high: int, wide: int, tile: int) -> int:
    """The side of the tiles that a frame is coded in, all in latents: within a quarter of `tile`, a multiple of 4.

    diffusers begins a tile every 3/4 of a side, also shortly before the frame's end; a narrow tile sees too little for
    its normalisations, so the side is chosen that leaves the widest last tiles.
    """
    low, most = max(tile * 3 // 4, 4), max(tile * 5 // 4, 4)
    sides = [side for side in range(low, most + 1) if side % 4 == 0]
    return max(sides, key=lambda side: (_narrowest(high, wide, side), side))


def _narrowest(high: int, wide: int, side: int) -> int:
    """Latents along the shorter side of the last tile; a frame that exceeds a tile one way is cut both ways."""
    if max(high, wide) <= side:
        return side
    stride = side * 3 // 4
    return min(length - (length - 1) // stride * stride for length in (high, wide))


def _at_once(device: torch.device, pixels: int) -> int:
    """Frames of so many pixels that are coded together."""
    if pixels > _LARGE:
        return 1
    return _AT_ONCE if device.type == "cpu" else min(4096, max(_AT_ONCE, _PIXELS_AT_ONCE // pixels))


def _check_size(frames: Frames, factor: int) -> None:
    rows, cols = frames.shape[-2:]
    if rows % factor or cols % factor:
        raise UserError(f"frames of {rows}x{cols} pixels: height and width must be multiples of {factor}")
