"""What stands in the places. Every function paints one kind of thing in place, in an endless row of tiles.

Common arguments: `base` is the height the things stand on ([n, 1, 1, 1] or a number), `speed` the layer's parallax
(1 = the nearest layer), `salt` what makes two rows of one kind differ.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from backends.world.canvas import PERIOD, Colour, Tint, View, box, capsule, ellipse, over, paint

Image = Float[Tensor, "n frames 3 rows cols"]
Height = float | Float[Tensor, "n #frames 1 1"]


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of things on the ground."""

    y: Height
    """Height in the frame."""
    scale: float
    """Size of its things, growing towards the camera."""
    speed: float
    """Parallax."""
    salt: int
    """What sets it apart from other rows."""


def ground_rows(horizon: Float[Tensor, "n 1 1 1"], *rows: tuple[float, float]) -> list[Row]:
    """Rows from (depth, scale), the depth running from 0 at the horizon to 1 at the frame's lower edge."""
    return [
        Row(y=horizon + depth * (1 - horizon), scale=scale, speed=0.50 + 0.42 * depth, salt=100 + 10 * i)
        for i, (depth, scale) in enumerate(rows)
    ]


def sun(image: Image, view: View, colour: Colour, glow: Colour, crescent: bool = False) -> None:
    """A sun or moon with a glow; so far away that it hardly moves."""
    x, y = _far_body(view)
    distance = torch.hypot(x, y) - 0.15
    over(image, glow, (1 - distance / 0.45).clamp_(0, 1).square_() * (0.35 if crescent else 0.65))
    over(image, colour, view.cover(distance))
    if crescent:
        for cx, cy, r in ((-0.05, -0.03, 0.045), (0.05, 0.05, 0.035), (0.045, -0.07, 0.025)):
            over(image, (0.80, 0.79, 0.72), view.cover(torch.hypot(x - cx, y - cy) - r))


def earth(image: Image, view: View) -> None:
    """The blue planet with land, clouds and a night side."""
    x, y = _far_body(view)
    distance = torch.hypot(x, y) - 0.19
    over(image, (0.30, 0.50, 0.95), (1 - distance / 0.12).clamp_(0, 1).square_() * 0.5)
    disc = view.cover(distance)
    over(image, (0.16, 0.42, 0.90), disc)
    for cx, cy, a, b in ((-0.06, -0.04, 0.08, 0.07), (0.08, 0.07, 0.07, 0.05)):
        over(image, (0.24, 0.66, 0.34), disc * view.cover(ellipse(x - cx, y - cy, a, b)))
    for cx, cy, a in ((0.03, -0.10, 0.10), (-0.05, 0.08, 0.11)):
        over(image, (1.0, 1.0, 1.0), disc * view.cover(ellipse(x - cx, y - cy, a, 0.026)) * 0.85)
    over(image, (0.02, 0.03, 0.10), disc * ((x * 0.8 + y * 0.6) / 0.12).clamp_(0, 1) * 0.65)


def _far_body(view: View) -> tuple[Tensor, Tensor]:
    """Offsets from the sun's centre; it goes round once in four half frames, so that at most one is seen."""
    x = view.scroll(0.035) - 1.5 * (view.hidden("sun_x") - 0.5)
    return torch.remainder(x + 2, 4) - 2, view.y + 0.72 - 0.26 * view.hidden("sun_y")


def clouds(image: Image, view: View, colour: Colour, shade: Colour) -> None:
    """Two rows of flat-bottomed clouds that also drift with the wind."""
    for row, (height, scale, speed) in enumerate(((-0.34, 0.62, 0.16), (-0.74, 1.0, 0.22))):
        u, cell = view.tiles(1.6 * scale if row else 1.0, speed, wind=0.012 + 0.008 * row)
        salt = 100 + 10 * row
        u = u - (view.random(salt, cell) - 0.5) * 0.3 * scale
        v = view.y - height - (view.random(salt + 1, cell) - 0.5) * 0.14
        grow = scale * (0.8 + 0.35 * view.random(salt + 2, cell))
        lean = view.random(salt + 3, cell) - 0.5
        puffs = [
            torch.hypot(u - x * grow, v - y * grow) - r * grow for x, y, r in ((-0.22, 0.0, 0.12), (0.24, 0.01, 0.11))
        ]
        puffs.append(torch.hypot(u - 0.16 * lean * grow, v + 0.09 * grow) - 0.19 * grow)
        body = torch.minimum(torch.minimum(puffs[0], puffs[1]), puffs[2])
        # A box closes the bottom between the puffs.
        body = torch.minimum(body, box(u - 0.01, v - 0.05 * grow, 0.22 * grow, 0.06 * grow))
        body = torch.maximum(body, v - 0.10 * grow)
        alpha = view.cover(body) * (view.random(salt + 4, cell) < 0.72)
        over(image, colour, alpha * 0.95)
        over(image, shade, alpha * (v / (0.12 * grow) + 0.15).clamp_(0, 1) * 0.6)


def hills(
    image: Image, view: View, base: Height, swing: float, length: float, tint: Tint, speed: float, salt: int
) -> None:
    """A rolling ridge about height `base`; `length` is that of its longest wave (half frames)."""
    x = view.scroll(speed)
    ridge = torch.zeros_like(x)
    for wave, weight in enumerate((0.55, 0.30, 0.15)):
        # Whole waves in a period, so that the ridge closes on itself.
        count = round(PERIOD / length * (1.0, 1.73, 2.9)[wave])
        ridge += weight * torch.sin(2 * math.pi * (x * (count / PERIOD) + view.random(300 + 10 * salt + wave)))
    top = base + swing * ridge
    over(image, view.mix(*tint), view.cover(top - view.y))
    over(image, (1.0, 1.0, 1.0), view.cover(top - view.y) * (1 - (view.y - top) / 0.10).clamp_(0, 1) * 0.12)


def mesas(image: Image, view: View, base: Height, tint: Tint, speed: float) -> None:
    """Table mountains with a lit top and layers."""
    u, cell = view.tiles(1.28, speed)
    half = 0.22 + 0.22 * view.random(31, cell)
    tall = 0.24 + 0.24 * view.random(32, cell)
    u = u - (view.random(33, cell) - 0.5) * 0.3
    v = view.y - base + tall
    body = torch.maximum((u.abs() - half - 0.35 * v.clamp(min=0)) * 0.9, -v)
    alpha = view.cover(body) * (view.random(34, cell) < 0.8)
    over(image, view.mix(*tint), alpha)
    over(image, (0.55, 0.26, 0.22), alpha * view.cover((v - 0.13).abs() - 0.03) * 0.5)
    over(image, (0.40, 0.20, 0.24), alpha * ((u + 0.05) / 0.30).clamp_(0, 1) * 0.45)


def peaks(image: Image, view: View, base: Height, rock: Tint, cap: Colour, speed: float) -> None:
    """Mountains with snow on their tops and a shaded side."""
    for row, width in enumerate((1.28, 1.0)):
        u, cell = view.tiles(width, speed * (1 + 0.5 * row))
        tall = (0.50 if row == 0 else 0.32) * (0.65 + 0.5 * view.random(40 + row, cell))
        u = u - (view.random(42 + row, cell) - 0.5) * 0.36
        v = view.y - base + tall
        body = (u.abs() - 0.95 * v) * 0.72
        alpha = view.cover(body) * (1.0 if row else 0.9)
        over(image, view.mix(*rock) * (1.0 - 0.14 * row), alpha)
        ragged = 0.15 + 0.045 * torch.sin(u * 34 + 6 * view.random(44 + row, cell))
        over(image, cap, alpha * view.cover(v - ragged))
        over(image, (0.26, 0.32, 0.52), alpha * view.cover(-u - 0.10 * v) * 0.35)


def islands(image: Image, view: View, base: Height, tint: Tint, speed: float) -> None:
    """Low islands on the horizon."""
    u, cell = view.tiles(2.0, speed)
    half, tall = 0.30 + 0.35 * view.random(51, cell), 0.10 + 0.16 * view.random(52, cell)
    u = u - (view.random(53, cell) - 0.5) * 0.6
    body = ellipse(u, view.y - base, half, tall)
    hump = ellipse(u - 0.45 * half, view.y - base, 0.6 * half, 0.7 * tall)
    over(image, view.mix(*tint), view.cover(torch.minimum(body, hump)) * (view.random(54, cell) < 0.85))


def boats(image: Image, view: View, base: Height, speed: float) -> None:
    """Sailing boats."""
    u, cell = view.tiles(1.6, speed)
    u = u - (view.random(61, cell) - 0.5) * 0.9
    v = view.y - base
    there = (view.random(62, cell) < 0.75).float()
    sail = torch.maximum(torch.maximum(-u + 0.005, v + 0.055), (u + 0.55 * (v + 0.36)) * -1 + 2 * u - 0.01)
    jib = torch.maximum(torch.maximum(u + 0.025, v + 0.07), -u - 0.42 * (v + 0.32))
    hull = torch.maximum(torch.maximum(u.abs() - 0.15 + v, -v - 0.035), v - 0.025)
    over(image, (0.99, 0.98, 0.94), view.cover(sail) * there)
    over(image, (0.95, 0.80, 0.72), view.cover(jib) * there)
    over(image, (0.45, 0.22, 0.16), view.cover(hull) * there)


def trees(image: Image, view: View, base: Height, tint: Tint, speed: float) -> None:
    """Round-crowned trees."""
    u, cell = view.tiles(0.8, speed)
    grow = 0.75 + 0.5 * view.random(71, cell)
    u = (u - (view.random(72, cell) - 0.5) * 0.34) / grow
    v = (view.y - base) / grow
    there = (view.random(73, cell) < 0.75).float()
    over(image, (0.36, 0.24, 0.14), view.cover(box(u, v + 0.06, 0.024, 0.08) * grow) * there)
    crown = torch.minimum(torch.hypot(u, v + 0.26) - 0.145, torch.hypot(u.abs() - 0.10, v + 0.18) - 0.10)
    alpha = view.cover(crown * grow) * there
    over(image, view.mix(*tint), alpha)
    over(image, (0.62, 0.86, 0.36), alpha * (1 - torch.hypot(u + 0.06, v + 0.32) / 0.17).clamp_(0, 1) * 0.75)


def pines(image: Image, view: View, base: Height, colour: Colour, speed: float) -> None:
    """Pines with snow on their branches."""
    u, cell = view.tiles(0.64, speed)
    grow = 0.75 + 0.55 * view.random(81, cell)
    u = (u - (view.random(82, cell) - 0.5) * 0.22) / grow
    v = (view.y - base) / grow
    there = (view.random(83, cell) < 0.8).float()
    over(image, (0.34, 0.24, 0.18), view.cover(box(u, v + 0.02, 0.022, 0.05) * grow) * there)
    for low, high, wide in ((-0.05, -0.26, 0.150), (-0.16, -0.36, 0.118), (-0.27, -0.46, 0.085)):
        slope = wide / (low - high)
        layer = torch.maximum((u.abs() - slope * (v - high)) * 0.8, v - low)
        alpha = view.cover(layer * grow) * there
        over(image, colour, alpha)
        over(image, (0.93, 0.96, 1.0), alpha * view.cover((v - high - 0.085) * grow) * 0.9)


def cacti(image: Image, view: View, base: Height, colour: Colour, speed: float) -> None:
    """Saguaros with two arms."""
    u, cell = view.tiles(1.0, speed)
    grow = 0.8 + 0.45 * view.random(91, cell)
    flip = torch.where(view.random(92, cell) < 0.5, -1.0, 1.0)
    u = (u - (view.random(93, cell) - 0.5) * 0.5) / grow * flip
    v = (view.y - base) / grow
    body = capsule(u, v + 0.20, 0.20, 0.052)
    for x, y, half in ((-0.13, 0.25, 0.06), (0.13, 0.31, 0.06)):
        body = torch.minimum(body, capsule(u - x, v + y, half, 0.036))
        body = torch.minimum(body, capsule(v + y - half, u - x / 2, abs(x) / 2, 0.036))
    body = torch.maximum(body, v - 0.03)
    alpha = view.cover(body * grow) * (view.random(94, cell) < 0.8)
    over(image, colour, alpha)
    over(image, (0.55, 0.74, 0.34), alpha * view.cover((u * flip + 0.018).abs() * grow - 0.016) * 0.7)


def skyline(
    image: Image, view: View, base: Height, tint: Tint, width: float, height: float, speed: float, salt: int,
    windows: bool = False,
) -> None:  # fmt: skip
    """A row of towers, two to a tile, with lit windows if asked."""
    for part in range(2):
        u, cell = view.tiles(width, speed)
        key = 200 + 20 * salt + 10 * part
        tall = height * (0.45 + 0.75 * view.random(key, cell))
        half = width * (0.20 + 0.08 * view.random(key + 1, cell))
        u = u - (part - 0.5) * width * 0.5
        v = view.y - base + tall
        tower = torch.maximum(u.abs() - half, -v)
        alpha = view.cover(tower)
        over(image, view.mix(*tint), alpha)
        if windows:
            wide, high = 0.14, 0.15
            column, floor = torch.floor(u / wide + 0.5), torch.floor(v / high)
            lit = view.random(key + 2, cell * 4096 + (column.long() + 32) * 64 + floor.long() + 16)
            pane = box(u - column * wide, v - (floor + 0.55) * high, 0.038, 0.042)
            inside = (column.abs() * wide + 0.05 < half) & (floor >= 0)
            over(image, (1.0, 0.84, 0.42), view.cover(pane) * (inside & (lit < 0.62)))


def lamps(image: Image, view: View, base: Height, speed: float) -> None:
    """Street lamps with a warm glow."""
    u, _ = view.tiles(1.28, speed)
    v = view.y - base
    over(image, (0.10, 0.10, 0.13), view.cover(box(u, v + 0.20, 0.018, 0.20)))
    over(image, (1.0, 0.80, 0.45), (1 - torch.hypot(u, v + 0.42) / 0.34).clamp_(0, 1).square_() * 0.55)
    over(image, (1.0, 0.93, 0.70), view.cover(torch.hypot(u, v + 0.42) - 0.05))
    over(image, (1.0, 0.80, 0.45), (1 - torch.hypot(u / 0.40, v / 0.10)).clamp_(0, 1) * 0.28)


def dashes(image: Image, view: View, y: float, half: float, speed: float) -> None:
    """The dashed line of a road."""
    u, _ = view.tiles(0.8, speed)
    over(image, (0.93, 0.86, 0.55), view.cover(box(u, view.y - y, 0.20, half)))


def kerb(image: Image, view: View, y: float, speed: float) -> None:
    """Paving stones along the lower edge."""
    u, _ = view.tiles(0.5, speed)
    over(image, (0.22, 0.22, 0.27), view.cover(u.abs() - 0.022) * view.cover(y - view.y))
    over(image, (0.56, 0.56, 0.62), view.cover((view.y - y).abs() - 0.016))


def patches(
    image: Image, view: View, row: Row, a: float, b: float, colour: Colour, strength: float, lift: float = 0.0
) -> None:
    """Soft flat patches on the ground: grass, dunes, drifts; half axes a, b, `lift` above the row (before scaling)."""
    u, cell = view.tiles(1.28, row.speed)
    u = u - (view.random(row.salt, cell) - 0.5) * 0.3
    wide = a * row.scale * (0.75 + 0.5 * view.random(row.salt + 1, cell))
    v = (view.y - row.y) / row.scale + lift
    over(image, colour, (1 - (u / wide).square() - (v / b).square()).clamp_(0, 1) * strength)


def flowers(image: Image, view: View, row: Row) -> None:
    """Flower heads in three colours."""
    u, cell = view.tiles(0.4, row.speed)
    u = u - (view.random(row.salt + 2, cell) - 0.5) * 0.28
    v = view.y - row.y - 0.05 * row.scale - (view.random(row.salt + 3, cell) - 0.5) * 0.14
    alpha = view.cover(torch.hypot(u, v) - 0.040 * row.scale) * (view.random(row.salt + 4, cell) < 0.6)
    kind = view.random(row.salt + 5, cell)[:, :, None]
    white, gold, rose = (paint(c, u.device) for c in ((1.0, 1.0, 1.0), (1.0, 0.9, 0.3), (1.0, 0.6, 0.75)))
    over(image, torch.where(kind < 0.34, white, torch.where(kind < 0.67, gold, rose)), alpha)


def stones(image: Image, view: View, row: Row, colour: Colour, cap: Colour) -> None:
    """Stones with a lit or snowy top."""
    u, cell = view.tiles(0.8, row.speed)
    u = u - (view.random(row.salt + 2, cell) - 0.5) * 0.5
    v = view.y - row.y - (view.random(row.salt + 3, cell) - 0.5) * 0.12
    a = (0.06 + 0.05 * view.random(row.salt + 4, cell)) * row.scale
    body = torch.maximum(ellipse(u, v, a, 0.75 * a), v - 0.35 * a)
    alpha = view.cover(body) * (view.random(row.salt + 5, cell) < 0.7)
    over(image, colour, alpha)
    over(image, cap, alpha * view.cover(ellipse(u + 0.15 * a, v + 0.45 * a, 0.85 * a, 0.42 * a)))


def waves(image: Image, view: View, row: Row) -> None:
    """Crests: light arcs over dark troughs, bobbing."""
    scale = row.scale
    bob = torch.sin(2 * math.pi * torch.remainder(view.time / 2.4 + 0.03 * row.salt, 1.0)).float()
    u, cell = view.tiles(0.8 if scale > 0.8 else 0.5, row.speed, wind=0.03 * scale)
    u = u - (view.random(row.salt, cell) - 0.5) * 0.2
    wide = (0.20 + 0.12 * view.random(row.salt + 1, cell)) * (0.6 + 0.4 * scale)
    v = view.y - row.y - 0.018 * scale * bob[:, :, None, None] - (view.random(row.salt + 2, cell) - 0.5) * 0.05
    ends = (1 - (u / wide).square()).clamp_(0, 1)
    arc = v + 0.05 * scale * ends
    over(image, (0.01, 0.20, 0.38), ends * (1 - ((arc - 0.05 * scale) / (0.055 * scale)).square()).clamp_(0, 1) * 0.45)
    over(image, (0.86, 0.97, 1.0), view.cover(arc.abs() - 0.022 * scale * ends.sqrt()) * (ends > 0) * 0.85)


def glitter(image: Image, view: View, horizon: Height) -> None:
    """The sun's path on the water."""
    x, _ = _far_body(view)
    depth = (view.y - horizon).clamp(min=0)
    ripple = 0.65 + 0.35 * torch.sin(
        60 * depth / (0.5 + depth) + 2 * math.pi * torch.remainder(view.time, 2.0).float()[:, :, None, None] / 2
    )
    glow = torch.exp(-(x / (0.10 + 0.22 * depth)).square()) * ripple * (1 - depth).clamp(0, 1)
    over(image, (1.0, 0.95, 0.75), glow * 0.5 * view.cover(horizon - view.y))


def stars(image: Image, view: View) -> None:
    """Stars of different brightness above the horizon."""
    for row in range(4):
        u, cell = view.tiles(0.32, 0.05)
        key = 500 + 10 * row
        u = u - (view.random(key, cell) - 0.5) * 0.26
        v = view.y + 0.88 - 0.24 * row - (view.random(key + 1, cell) - 0.5) * 0.20
        bright = 0.35 + 0.65 * view.random(key + 2, cell)
        radius = 0.014 + 0.018 * view.random(key + 3, cell)
        over(
            image,
            (1.0, 1.0, 0.94),
            view.cover(torch.hypot(u, v) - radius) * bright * (view.random(key + 4, cell) < 0.75),
        )


def craters(image: Image, view: View, row: Row) -> None:
    """Craters: a dark bowl, its lit near wall, and a bright rim."""
    u, cell = view.tiles(1.0 if row.scale > 0.7 else 0.64, row.speed)
    u = u - (view.random(row.salt, cell) - 0.5) * 0.3
    v = view.y - row.y - (view.random(row.salt + 1, cell) - 0.5) * 0.10
    a = (0.16 + 0.13 * view.random(row.salt + 2, cell)) * row.scale
    b = 0.30 * a
    there = (view.random(row.salt + 3, cell) < 0.8).float()
    over(image, (0.80, 0.80, 0.82), view.cover(ellipse(u, v, a * 1.14, b * 1.28)) * there * 0.75)
    bowl = view.cover(ellipse(u, v, a, b)) * there
    over(image, (0.24, 0.24, 0.28), bowl)
    over(image, (0.46, 0.46, 0.50), bowl * view.cover(-ellipse(u, v + 0.45 * b, a * 1.05, b)))
