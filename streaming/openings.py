"""How a video begins: from text alone, from an image, or as the continuation of a video."""

from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from streaming.errors import UserError
from streaming.types import Frames


@final
@dataclass(frozen=True)
class TextOpening:
    """The unmodified base model makes the first chunk [StreamingT2V §4]."""


@final
@dataclass(frozen=True, eq=False)
class ImageOpening:
    """The video begins with a given image."""

    image: Float[Tensor, "3 rows cols"]
    """RGB in [0, 1], of any size."""

    def __post_init__(self) -> None:
        _check_pixels(self.image, "image")


@final
@dataclass(frozen=True, eq=False)
class VideoOpening:
    """The video continues a given one."""

    frames: Float[Tensor, "time 3 rows cols"]
    """RGB in [0, 1], of any size."""

    def __post_init__(self) -> None:
        _check_pixels(self.frames, "video")


Opening: TypeAlias = TextOpening | ImageOpening | VideoOpening
"""Any of them."""


def opening_frames(opening: ImageOpening | VideoOpening, height: int, width: int) -> Frames:
    """The given frames [1, time, 3, height, width], resized by `fit`."""
    given = opening.image[None] if isinstance(opening, ImageOpening) else opening.frames
    return fit(given, height, width)[None]


def opening_tail(
    opening: ImageOpening | VideoOpening, frames: Frames, needed: int
) -> Float[Tensor, "batch {needed} 3 rows cols"]:
    """The last `needed` frames of an opening's `frames`; an image is repeated.

    Raises UserError if a video is shorter than that.
    """
    if isinstance(opening, ImageOpening):
        return frames.expand(-1, needed, -1, -1, -1)
    if frames.shape[1] < max(needed, 1):
        raise UserError(
            f"a video of {frames.shape[1]} frames is too short to be continued: this model needs at least {needed}"
        )
    return frames[:, frames.shape[1] - needed :]


def fit(images: Float[Tensor, "time 3 rows cols"], height: int, width: int) -> Float[Tensor, "time 3 {height} {width}"]:
    """Images of height x width: scaled (bilinear, antialiased) until they cover it, then cropped at the centre."""
    rows, cols = images.shape[-2:]
    if (rows, cols) != (height, width):
        scale = max(height / rows, width / cols)
        size = (max(height, round(rows * scale)), max(width, round(cols * scale)))
        images = functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width].float().clamp(0, 1)


def _check_pixels(pixels: Tensor, what: str) -> None:
    if not pixels.numel():
        raise UserError(f"the opening {what} is empty")
    if not bool(torch.isfinite(pixels).all()) or float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise UserError(f"the opening {what} has values outside [0, 1]: divide 8-bit colours by 255")
