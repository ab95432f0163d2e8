"""Finding the object of a picture by its colours and size: a blob in one colour, or in two, whatever is behind."""

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
DARK = 0.3
"""Value below which a colour is black."""
HUE = 10.0
"""Degrees that a hue may differ from the palette's: shading and gloss do not change it."""
RING = 1.7
"""Outer radius of a blob's surroundings, in radii of the blob: a colour that goes on there is no object."""
NEAR, FAR, DISTANCE_WEIGHT = 0.08, 0.38, 1.75
"""Distances from the last position, in shorter sides, from which on and up to which a place loses, and how much a
shorter side costs; an object may jump, but not to any speck of its colour."""
MAIN = 0.12
"""Share of a blob in two colours that must have the first of them: the second alone is no object."""
GAIN = 0.1
"""How much a second colour must add to the score: less is what happens to be behind."""


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """The object in a picture, in pixels of that picture."""

    score: float
    """Share of the object's colours inside the blob, less that around it, less the cost of its distance; up to 1."""
    x: float
    """Centre of the pixels in its colours, from the left edge of the picture."""
    y: float
    """Likewise from the upper edge."""
    area: float
    """Number of these pixels."""
    colour: Colour
    """Mean RGB of the blob's inside, 0..255."""
    second: Colour | None
    """Its other colour: one of those that were given, or None."""


def find(
    picture: Picture,
    palette: Colour,
    radii: tuple[float, ...],
    last: tuple[float, float] | None,
    seconds: tuple[Colour | None, ...] = (None,),
) -> Found:
    """The likeliest place of an object.

    picture, palette: RGB in [0, 1]. radii: in half shorter sides. last: (x, y) where it was before, in pixels.
    seconds: colours, of which it may have one on a part of it; None: it may have none.
    """
    main = has_colour(picture, palette)
    sets = torch.stack([main if second is None else main | has_colour(picture, second) for second in seconds])
    rows, cols = main.shape
    side = min(rows, cols)
    cost = _cost(rows, cols, last)
    asked = torch.tensor([0.0 if second is None or len(seconds) == 1 else GAIN for second in seconds])
    best = (-math.inf, 0, 0, 0, 0.0)
    for share in radii:
        radius = share * side / 2
        disc, kernel = _kernels(radius)
        inside = None
        if any(second is not None for second in seconds):
            inside = functional.conv2d(main[None, None].float(), disc, padding=disc.shape[-1] // 2)[0, 0]
        scores = functional.conv2d(sets[:, None].float(), kernel, padding=kernel.shape[-1] // 2)[:, 0] - cost
        scores = scores - asked[:, None, None]
        for which, (scored, second) in enumerate(zip(scores, seconds, strict=True)):
            allowed = scored if second is None or inside is None else scored.where(inside >= MAIN, -math.inf)
            top = int(allowed.argmax())
            best = max(best, (float(allowed.flatten()[top]), which, top % cols, top // cols, radius))
    score, which, x, y, radius = best
    score += float(asked[which])
    away = _distances(rows, cols, x + 0.5, y + 0.5)
    inside = sets[which] & (away <= 1.3 * radius)
    area = float(inside.sum())
    if not area or math.isinf(score):
        return Found(score=-math.inf, x=x + 0.5, y=y + 0.5, area=0.0, colour=(0.0, 0.0, 0.0), second=None)
    grid_y, grid_x = inside.nonzero().float().mean(dim=0).tolist()
    red, green, blue = (255 * picture[:, away <= 0.8 * radius].mean(dim=1)).tolist()
    colour = (red, green, blue)
    return Found(score=score, x=grid_x + 0.5, y=grid_y + 0.5, area=area, colour=colour, second=seconds[which])


def has_colour(picture: Picture, palette: Colour) -> Bool[Tensor, "rows cols"]:
    """Which pixels may be the palette colour, shaded: of its hue and nearly its saturation; for white, bright grey; for
    black, dark ones."""
    hue, saturation, value = _hsv(picture)
    wanted = torch.tensor(palette)[:, None, None]
    [[palette_hue]], [[palette_saturation]], [[palette_value]] = (each.tolist() for each in _hsv(wanted))
    if palette_value < DARK:
        return value < DARK
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
def _kernels(radius: float) -> tuple[Float[Tensor, "1 1 taps taps"], Float[Tensor, "1 1 taps taps"]]:
    """Mean over a disc, and that less the mean over the ring around it."""
    reach = math.ceil(RING * radius)
    away = _distances(2 * reach + 1, 2 * reach + 1, reach + 0.5, reach + 0.5)
    disc, ring = away <= radius, (away > radius) & (away <= RING * radius)
    mean = disc / disc.sum()
    return mean[None, None], (mean - ring / ring.sum())[None, None]


def _distances(rows: int, cols: int, x: float, y: float) -> Float[Tensor, "rows cols"]:
    """Of the pixels' centres from a place."""
    down, across = torch.arange(rows) + 0.5 - y, torch.arange(cols) + 0.5 - x
    return torch.hypot(down[:, None], across[None])


def _cost(rows: int, cols: int, last: tuple[float, float] | None) -> Tensor:
    if last is None:
        return torch.zeros(rows, cols)
    away = _distances(rows, cols, *last) / min(rows, cols)
    return DISTANCE_WEIGHT * (away - NEAR).clamp(0, FAR - NEAR)
