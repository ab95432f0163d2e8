"""The six shapes: signed distances, pseudo-3D shading, and how far each reaches down when it stands on the ground.

Lengths are in units of the object's radius, x to the right and y down. A shape is given in its own turned frame.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from backends.world.scene import SHAPES

BALL, CUBE, STAR, HEART, TRIANGLE, RING = range(len(SHAPES))

_BALL_RADIUS = 0.95
_CUBE_HALF = 0.74
_CUBE_DEPTH = (0.32, -0.27)  # from the front face to the back face, on screen
_STAR_OUTER, _STAR_INNER = 1.16, 0.58
_HEART_LOBE, _HEART_RISE, _HEART_RADIUS, _HEART_TIP = 0.48, 0.30, 0.54, 1.02
_TRIANGLE_OUTER = 1.30  # before rounding
_ROUND = 0.08
RING_MIDDLE, _RING_HALF = 0.71, 0.36
_LIGHT = (-0.45, -0.70, 0.55)  # towards the light: left, up, out of the screen


@final
@dataclass(frozen=True, kw_only=True)
class Body:
    """What a shape looks like at every pixel, before its colours."""

    distance: Float[Tensor, "n frames rows cols"]
    """Signed distance to the silhouette, negative inside (radii)."""
    shade: Float[Tensor, "n frames rows cols"]
    """Brightness factor around 1."""
    gloss: Float[Tensor, "n frames rows cols"]
    """How much white to add, 0 to 1."""
    painted: Float[Tensor, "n frames rows cols"]
    """Signed distance to the region that carries the pattern, negative inside (radii)."""
    face: tuple[Float[Tensor, "n frames rows cols"], Float[Tensor, "n frames rows cols"]]
    """Pattern coordinates (radii)."""


def body(
    shape: int,
    x: Float[Tensor, "n frames 1 cols"],
    y: Float[Tensor, "n frames rows 1"],
    angle: Float[Tensor, "n frames 1 1"],
) -> Body:
    """The shape number `shape` of `SHAPES` turned by `angle` (radians, clockwise), at offsets x, y from its centre."""
    cos, sin = angle.cos(), angle.sin()
    u, v = cos * x + sin * y, cos * y - sin * x
    if shape == CUBE:
        return _cube(u, v, cos, sin)
    distance = {BALL: _ball, STAR: _star, HEART: _heart, TRIANGLE: _triangle, RING: _ring}[shape](u, v)
    shade, gloss = _shading(shape, x, y, u, v, angle)
    return Body(distance=distance, shade=shade, gloss=gloss, painted=distance, face=(u, v))


def reach(shape: int, angle: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """How far below its centre the shape's lowest point lies when turned by `angle` (radii)."""
    cos, sin = angle.cos(), angle.sin()
    if shape == BALL:
        return torch.full_like(angle, _BALL_RADIUS)
    if shape == RING:
        return torch.full_like(angle, RING_MIDDLE + _RING_HALF)
    if shape == CUBE:
        return _CUBE_HALF * (cos.abs() + sin.abs()) + abs(_CUBE_DEPTH[1]) / 2
    if shape == HEART:
        tip = _HEART_TIP * cos
        lobes = [s * _HEART_LOBE * sin - _HEART_RISE * cos + _HEART_RADIUS for s in (-1, 1)]
        return torch.maximum(tip, torch.maximum(*lobes))
    corners, outer, extra = (5, _STAR_OUTER, 0.0) if shape == STAR else (3, _TRIANGLE_OUTER - 2 * _ROUND, _ROUND)
    # The lowest corner: turn into the sector around straight down.
    sector = 2 * math.pi / corners
    off = torch.remainder(angle + math.pi + sector / 2, sector) - sector / 2
    return outer * off.cos() + extra


def _ball(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - _BALL_RADIUS


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - RING_MIDDLE).abs_() - _RING_HALF


def _fold(u: Tensor, v: Tensor, corners: int) -> Tensor:
    """Angle to the nearest of `corners` tips (radians, signed); one tip points up."""
    sector = 2 * math.pi / corners
    return torch.remainder(torch.atan2(u, -v) + sector / 2, sector) - sector / 2


def _star(u: Tensor, v: Tensor, corners: int = 5, outer: float = _STAR_OUTER, inner: float = _STAR_INNER) -> Tensor:
    """Distance to the edge from a tip to the notch beside it, in the folded half sector."""
    rho, fold = torch.hypot(u, v), _fold(u, v, corners).abs_()
    along, across = rho * fold.cos(), rho * fold.sin()
    end = (inner * math.cos(math.pi / corners) - outer, inner * math.sin(math.pi / corners))
    length = math.hypot(*end)
    ex, ey = end[0] / length, end[1] / length
    dx = along - outer
    t = (dx * ex + across * ey).clamp_(0, length)
    distance = torch.hypot(dx - t * ex, across - t * ey)
    inside = dx * ey - across * ex < 0
    return torch.where(inside, -distance, distance)


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """Two round lobes and the wedge between their lower tangents, which meet in the tip."""
    u = u.abs()
    lobe = torch.hypot(u - _HEART_LOBE, v + _HEART_RISE) - _HEART_RADIUS
    drop = _HEART_TIP + _HEART_RISE
    slope = math.acos(-_HEART_RADIUS / math.hypot(_HEART_LOBE, drop)) - math.atan2(drop, _HEART_LOBE)
    nx, ny = math.cos(slope), math.sin(slope)
    tangent = nx * u + ny * (v - _HEART_TIP)
    below_contact = ny * (u - _HEART_LOBE) - nx * (v + _HEART_RISE)
    wedge = torch.maximum(torch.maximum(tangent, below_contact), -_HEART_RISE - v)
    return torch.minimum(lobe, wedge)


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral, one corner up, corners slightly rounded: a star of three tips whose notches lie on its edges."""
    sharp = _TRIANGLE_OUTER - 2 * _ROUND
    return _star(u, v, corners=3, outer=sharp, inner=sharp / 2) - _ROUND


def _cube(u: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Body:
    """A box in oblique projection: a front face, swept along the depth direction."""
    du = cos * _CUBE_DEPTH[0] + sin * _CUBE_DEPTH[1]
    dv = cos * _CUBE_DEPTH[1] - sin * _CUBE_DEPTH[0]
    # The sweep of a square along a vector is a hexagon: three pairs of parallel lines.
    length = math.hypot(*_CUBE_DEPTH)
    side = _CUBE_HALF * (du.abs() + dv.abs()) / length
    across = (u * dv - v * du).abs_() / length - side
    hull = torch.maximum(u.abs() - du.abs() / 2, v.abs() - dv.abs() / 2) - _CUBE_HALF
    hull = torch.maximum(hull, across)
    fu, fv = u + du / 2, v + dv / 2  # relative to the front face's centre
    past_u, past_v = fu.abs() - _CUBE_HALF, fv.abs() - _CUBE_HALF
    front = torch.maximum(past_u, past_v)
    # Going back to the front along the depth, a point on a side enters through the face that takes longest.
    on_u = past_u * dv.abs() > past_v * du.abs()
    sign_u, sign_v = torch.sign(du), torch.sign(dv)
    light_u = -(cos * sign_u * _LIGHT[0] + sin * sign_u * _LIGHT[1])
    light_v = -(cos * sign_v * _LIGHT[1] - sin * sign_v * _LIGHT[0])
    side_shade = torch.where(on_u, 0.68 - 0.30 * light_u, 0.68 - 0.30 * light_v)
    return Body(
        distance=hull, shade=torch.where(front < 0, 1.0, side_shade), gloss=torch.zeros_like(hull), painted=front,
        face=(fu, fv),
    )  # fmt: skip


def _shading(shape: int, x: Tensor, y: Tensor, u: Tensor, v: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Brightness factor and gloss; the light stays in place while the object turns."""
    if shape in (BALL, RING):
        rho = torch.hypot(x, y).clamp_(min=1e-4)
        tilt = rho / _BALL_RADIUS if shape == BALL else (rho - RING_MIDDLE) / _RING_HALF
        tilt = tilt.clamp(-1, 1) * 0.92
        facing = (x * _LIGHT[0] + y * _LIGHT[1]) / rho * tilt + (1 - tilt * tilt).sqrt_() * _LIGHT[2]
        gloss = ((facing - 0.86) / 0.14).clamp_(0, 1).square_() * (0.75 if shape == BALL else 0.45)
        return 0.76 + 0.34 * facing, gloss
    shade = 1.0 - 0.10 * x * 0.5 - 0.14 * y
    if shape == STAR:
        fold = _fold(u, v, 5)
        tip = torch.atan2(x, -y) - fold  # direction of the nearest tip on screen
        normal = tip + torch.sign(fold) * 0.9
        shade = 0.98 + 0.14 * torch.cos(normal + 0.57)
    highlight = (1 - ((x + 0.34) / 0.42).square() - ((y + 0.40) / 0.26).square()).clamp_(0, 1)
    return shade, highlight * (0.0 if shape == STAR else 0.28)
