"""What frames look like in numbers: brightness, contrast, saturation, sharpness."""

from typing import TypeAlias

from jaxtyping import Float, UInt8
from torch import Tensor

Frame: TypeAlias = UInt8[Tensor, "3 rows cols"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey level [ITU-R BT.601]."""


def grey_levels(frame: Frame) -> Float[Tensor, "rows cols"]:
    """Luma, 0..255."""
    red, green, blue = frame.float()
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def brightness(frame: Frame) -> float:
    """Mean grey level, 0..255."""
    return float(grey_levels(frame).mean())


def contrast(frame: Frame) -> float:
    """Standard deviation of the grey levels."""
    return float(grey_levels(frame).std(correction=0))


def saturation(frame: Frame) -> float:
    """Mean over the pixels of largest minus smallest channel, 0..255."""
    return float((frame.amax(dim=0) - frame.amin(dim=0)).float().mean())


def sharpness(frame: Frame) -> float:
    """Variance of the Laplacian of the grey levels; see `unevenness`."""
    return unevenness(grey_levels(frame))


def unevenness(grey: Float[Tensor, "rows cols"]) -> float:
    """Variance of the Laplacian (four neighbours), border pixels left out; 0 for tiny pictures."""
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var(correction=0))
