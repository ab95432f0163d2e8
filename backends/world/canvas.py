"""Drawing in frame coordinates: a view of a group of scenes, endless rows of tiles, and soft-edged paint.

Layers scroll past at their own speeds. A layer's offset is reduced modulo `PERIOD` in float64; everything in a layer
repeats after `PERIOD`, so the world has no edge.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from backends.world.scene import Scenes

PERIOD = 256
"""Length after which a layer repeats (half frames); every tile width divides it."""

Colour = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""

Tint = tuple[Colour, Colour]
"""A colour at noon and at dusk; a scene's light lies between."""


@lru_cache(maxsize=1024)
def paint(colour: Colour, device: torch.device) -> Float[Tensor, "3 1 1"]:
    """A colour as a tensor; kept, because copying numbers to a GPU waits for it."""
    return torch.tensor(colour, device=device)[:, None, None]


@final
@dataclass(frozen=True, kw_only=True)
class View:
    """The pixels of a group of scenes in some frames. Positions: x right, y down, the frame is [-1, 1]²."""

    scenes: Scenes
    """The group."""
    time: Float64[Tensor, "n frames"]
    """Seconds of every frame."""
    pan: Float64[Tensor, "n frames"]
    """How far the camera has gone to the right, for the nearest layer (half frames)."""
    size: int
    """Rows and columns."""
    x: Float[Tensor, "1 1 1 cols"]
    """Pixel centres."""
    y: Float[Tensor, "1 1 rows 1"]
    """Pixel centres."""

    @property
    def pixel(self) -> float:
        """Width of a pixel (half frames)."""
        return 2 / self.size

    def hidden(self, name: str) -> Float[Tensor, "n 1 1 1"]:
        """A hidden value in [0, 1) of every scene."""
        return self.scenes.hidden_value(name).float()[:, None, None, None]

    def random(
        self, salt: int, index: Int[Tensor, "n frames rows cols"] | int = 0
    ) -> Float[Tensor, "n #frames #rows #cols"]:
        """Numbers in [0, 1) that depend on the scene's layout, the salt, and a tile's index only."""
        mask = 0xFFFFFFFF
        seed = self.scenes.layout[:, None, None, None]
        h = (seed * 2654435761 + index * 1540483477 + salt * 3266489917) & mask
        for shift, factor in ((15, 1103515245), (13, 1597334677)):
            h = ((h ^ (h >> shift)) * factor) & mask
        return ((h ^ (h >> 16)) & 0xFFFFFF).float() / 0x1000000

    def scroll(self, speed: float, wind: float = 0.0) -> Float[Tensor, "n frames 1 cols"]:
        """World x of every column in a layer that moves at `speed` times the nearest layer's speed.

        `wind` moves it without the camera (half frames a second).
        """
        offset = torch.remainder(self.pan * speed + self.time * wind, PERIOD)
        return self.x + offset.float()[:, :, None, None]

    def tiles(
        self, width: float, speed: float, wind: float = 0.0
    ) -> tuple[Float[Tensor, "n frames 1 cols"], Int[Tensor, "n frames 1 cols"]]:
        """A row of tiles: position from the tile's centre (half frames), and the tile's index."""
        x = self.scroll(speed, wind)
        cell = torch.floor(x / width)
        return x - (cell + 0.5) * width, cell.long() % round(PERIOD / width)

    def cover(self, distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Soft-edged coverage in [0, 1] of the region where a signed distance is negative."""
        return (0.5 - distance / self.pixel).clamp_(0, 1)

    def mix(self, noon: Colour, dusk: Colour) -> Float[Tensor, "n 1 3 1 1"]:
        """A colour between two, by the scene's hidden light."""
        light = self.hidden("light")[..., None]
        a, b = (paint(c, light.device) for c in (noon, dusk))
        return a + (b - a) * light


def ellipse(x: Tensor, y: Tensor, a: float | Tensor, b: float | Tensor) -> Tensor:
    """Roughly the signed distance to a flat ellipse with half axes a >= b about the origin."""
    return (torch.hypot(x / a, y / b) - 1) * b


def box(x: Tensor, y: Tensor, a: float | Tensor, b: float | Tensor) -> Tensor:
    """Distance (mitred outside) to a box with half sides a and b about the origin."""
    return torch.maximum(x.abs() - a, y.abs() - b)


def capsule(x: Tensor, y: Tensor, half: float | Tensor, radius: float | Tensor) -> Tensor:
    """Distance to an upright capsule about the origin: a segment of half length `half`, thickened by `radius`."""
    return torch.hypot(x, (y.abs() - half).clamp(min=0)) - radius


def over(
    image: Float[Tensor, "n frames 3 rows cols"],
    colour: Colour | Tensor,
    alpha: Float[Tensor, "#n #frames #rows #cols"],
) -> None:
    """Lay a colour (a triple, or a tensor that broadcasts to the image) over the image in place."""
    if isinstance(colour, tuple):
        colour = paint(colour, image.device)
    image.lerp_(colour, alpha[:, :, None])


def gradient(view: View, top: Tensor, bottom: Tensor, start: float | Tensor, end: float | Tensor) -> Tensor:
    """A colour that runs from `top` at height `start` to `bottom` at height `end`: [n, 1, 3, rows, 1]."""
    t = ((view.y - start) / (end - start)).clamp(0, 1)[:, :, None]
    return top + (bottom - top) * t
