"""Finding the object of a picture by its colour and size: a blob in that colour, whatever is behind."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Picture: TypeAlias = Float[Tensor, "3 rows cols"]
Colour: TypeAlias = tuple[float, float, float]

GREY = 0.13
"""Saturation below which a palette colour has no hue."""
HUE = 10.0
"""Degrees that a hue may differ from the palette's: shading and gloss do not change it."""
RING = 1.7
"""Outer radius of a blob's surroundings, in radii of the blob: a colour that goes on there is no object."""
NEAR, FAR, DISTANCE_WEIGHT = 0.08, 0.38, 1.75
"""Distances from the last position, in shorter sides, from which on and up to which a place loses, and how much a
shorter side costs; an object may jump, but not to any speck of its colour."""


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """The object in a picture, in pixels of that picture."""

    score: float
    """Share of the object's colour inside the blob, less that around it, less the cost of its distance; up to 1."""
    x: float
    """Centre of the pixels in its colour, from the left edge of the picture."""
    y: float
    """Likewise from the upper edge."""
    area: float
    """Number of these pixels."""
    colour: Colour
    """Mean RGB of the blob's inside, 0..255."""


def find(picture: Picture, palette: Colour, radii: tuple[float, ...], last: tuple[float, float] | None) -> Found:
    """The likeliest place of an object.

    picture, palette: RGB in [0, 1]. radii: in half shorter sides. last: (x, y) where it was before, in pixels.
    """
    members = has_colour(picture, palette)
    rows, cols = members.shape
    side = min(rows, cols)
    cost = _cost(rows, cols, last)
    best = (-math.inf, 0, 0, 0.0)
    for share in radii:
        radius = share * side / 2
        kernel = _kernel(radius)
        scores = functional.conv2d(members[None, None].float(), kernel, padding=kernel.shape[-1] // 2)[0, 0] - cost
        top = int(scores.argmax())
        best = max(best, (float(scores.flatten()[top]), top % cols, top // cols, radius))
    score, x, y, radius = best
    away = _distances(rows, cols, x + 0.5, y + 0.5)
    inside = members & (away <= 1.3 * radius)
    area = float(inside.sum())
    if not area:
        return Found(score=-math.inf, x=x + 0.5, y=y + 0.5, area=0.0, colour=(0.0, 0.0, 0.0))
    grid_y, grid_x = inside.nonzero().float().mean(dim=0).tolist()
    red, green, blue = (255 * picture[:, away <= 0.8 * radius].mean(dim=1)).tolist()
    return Found(score=score, x=grid_x + 0.5, y=grid_y + 0.5, area=area, colour=(red, green, blue))


def has_colour(picture: Picture, palette: Colour) -> Bool[Tensor, "rows cols"]:
    """Which pixels may be the palette colour, shaded: of its hue and nearly its saturation; for white, bright grey."""
    hue, saturation, value = _hsv(picture)
    wanted = torch.tensor(palette)[:, None, None]
    [[palette_hue]], [[palette_saturation]], _ = (each.tolist() for each in _hsv(wanted))
    if palette_saturation < GREY:
        return (saturation < GREY) & (value > 0.75)
    off = ((hue - palette_hue + 180) % 360 - 180).abs()
    low, high = 0.72 * palette_saturation, 1.25 * palette_saturation + 0.05
    return (off < HUE) & (saturation > low) & (saturation < high) & (value > 0.35)


def _hsv(picture: Picture) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees, saturation and value, [rows, cols] each."""
    red, green, blue = picture
    most = picture.amax(dim=0)
    spread = most - picture.amin(dim=0)
    safe = spread.clamp(min=1e-6)
    hue = torch.where(
        most == red,
        (green - blue) / safe % 6,
        torch.where(most == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return 60 * hue, spread / most.clamp(min=1e-6), most


@lru_cache(maxsize=64)
def _kernel(radius: float) -> Float[Tensor, "1 1 taps taps"]:
    """Mean over a disc less mean over the ring around it."""
    reach = math.ceil(RING * radius)
    away = _distances(2 * reach + 1, 2 * reach + 1, reach + 0.5, reach + 0.5)
    disc, ring = away <= radius, (away > radius) & (away <= RING * radius)
    return (disc / disc.sum() - ring / ring.sum())[None, None]


def _distances(rows: int, cols: int, x: float, y: float) -> Float[Tensor, "rows cols"]:
    """Of the pixels' centres from a place."""
    down, across = torch.arange(rows) + 0.5 - y, torch.arange(cols) + 0.5 - x
    return torch.hypot(down[:, None], across[None])


def _cost(rows: int, cols: int, last: tuple[float, float] | None) -> Tensor:
    if last is None:
        return torch.zeros(rows, cols)
    away = _distances(rows, cols, *last) / min(rows, cols)
    return DISTANCE_WEIGHT * (away - NEAR).clamp(0, FAR - NEAR)
