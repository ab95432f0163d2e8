"""Where the object is: its path, turn, and squash at any time, periodic and so endless.

Frame coordinates: x to the right and y down, both in [-1, 1]. Phases are reduced in float64, so an hour is as
smooth as a second.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from backends.world.scene import ACTIONS, SHAPES, Scenes
from backends.world.shapes import reach

GROUND = 0.70
"""Height at which objects stand (frame coordinate y)."""
RADII = (0.26, 0.32, 0.40)
"""Radius of the sizes small, medium, big (half frames)."""
_TAU = 2 * math.pi


@final
@dataclass(frozen=True, kw_only=True)
class Pose:
    """The object's placement in every frame."""

    x: Float[Tensor, "n frames"]
    """Centre (frame coordinates)."""
    y: Float[Tensor, "n frames"]
    """Centre (frame coordinates, down)."""
    angle: Float[Tensor, "n frames"]
    """Turn (radians, clockwise)."""
    squash: Float[Tensor, "n frames"]
    """Width over the unsquashed width; the height is divided by it."""
    radius: Float[Tensor, " n"]
    """Radius (half frames)."""


def frame_times(
    n: int, frames: int, start: float | Float[Tensor, " n"], fps: float, device: torch.device
) -> Float64[Tensor, "n frames"]:
    """Seconds of every frame."""
    begin = torch.as_tensor(start, dtype=torch.float64, device=device).expand(n)
    return begin[:, None] + torch.arange(frames, dtype=torch.float64, device=device) / fps


def pose(scenes: Scenes, time: Float64[Tensor, "n frames"]) -> Pose:
    """Placement of every scene's object at times [n, frames] (seconds)."""
    radius = torch.tensor(RADII, dtype=torch.float64, device=scenes.device)[scenes.size]
    r = radius[:, None]
    every = [_ACTIONS[action](scenes, time, r) for action in ACTIONS]
    chosen = scenes.action[None, :, None].expand(1, *time.shape)
    x, y, angle, squash, grounded = (torch.stack(part).gather(0, chosen)[0] for part in zip(*every, strict=True))
    down = torch.stack([reach(shape, angle) for shape in range(len(SHAPES))])
    down = down.gather(0, scenes.shape[None, :, None].expand(1, *time.shape))[0]
    # For what rolls and bounces, y is the height of the lowest point above the ground.
    y = torch.where(grounded > 0.5, GROUND - y - down * r / squash, y)
    placed = (part.float() for part in (x, y, torch.remainder(angle, _TAU), squash, radius))
    return Pose(**dict(zip(("x", "y", "angle", "squash", "radius"), placed, strict=True)))


def _phase(scenes: Scenes, time: Tensor, period: float, column: str = "phase") -> Tensor:
    """Phase in [0, 1) of a cycle of about `period` seconds; the scene's speed varies it by 12 % either way."""
    rate = (0.88 + 0.24 * scenes.hidden_value("speed"))[:, None] / period
    return torch.remainder(time * rate + scenes.hidden_value(column)[:, None], 1.0)


def _wave(phase: Tensor) -> Tensor:
    return torch.sin(_TAU * phase)


def _zigzag(phase: Tensor, sharp: float) -> Tensor:
    """A triangle wave in [-1, 1] with rounded corners, sharper towards sharp = 1."""
    return torch.asin(sharp * _wave(phase)) / math.asin(sharp)


def _heading(scenes: Scenes) -> Tensor:
    return torch.where(scenes.hidden_value("heading") < 0.5, -1.0, 1.0).double()[:, None]


def _column(scenes: Scenes, name: str) -> Tensor:
    """A hidden value spread over [-1, 1)."""
    return 2 * scenes.hidden_value(name)[:, None] - 1


_Part = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, y, angle, squash, 1 where y is a height above the ground


def _rolls(scenes: Scenes, time: Tensor, r: Tensor) -> _Part:
    x = (0.96 - r) * _zigzag(_phase(scenes, time, 4.0), 0.95)
    angle = x / (0.95 * r) + _TAU * scenes.hidden_value("turn")[:, None]
    return x, torch.zeros_like(x), angle, torch.ones_like(x), torch.ones_like(x)


def _bounces(scenes: Scenes, time: Tensor, r: Tensor) -> _Part:
    x = (0.70 - r) * _wave(_phase(scenes, time, 7.0, "phase2"))
    fall = _phase(scenes, time, 1.0)
    contact = torch.minimum(fall, 1 - fall)
    squash = 1 + 0.26 * torch.exp(-((contact / 0.09) ** 2)) - 0.05 * torch.exp(-(((contact - 0.22) / 0.10) ** 2))
    height = (0.78 - 0.5 * (r - 0.26)) * 4 * fall * (1 - fall)
    angle = 0.16 * _wave(_phase(scenes, time, 7.0, "turn"))
    return x, height, angle, squash, torch.ones_like(x)


def _floats(scenes: Scenes, time: Tensor, r: Tensor) -> _Part:
    x = 0.34 * _wave(_phase(scenes, time, 6.5))
    y = -0.16 + 0.17 * _wave(_phase(scenes, time, 2.8, "phase2"))
    angle = 0.22 * _wave(_phase(scenes, time, 3.7, "turn"))
    return x, y, angle, torch.ones_like(x), torch.zeros_like(x)


def _spins(scenes: Scenes, time: Tensor, r: Tensor) -> _Part:
    x = 0.25 * _column(scenes, "rest_x") + 0.02 * _wave(_phase(scenes, time, 3.1, "phase2"))
    y = -0.06 + 0.14 * _column(scenes, "rest_y") + 0.03 * _wave(_phase(scenes, time, 2.3, "turn"))
    angle = _TAU * _heading(scenes) * _phase(scenes, time, 1.9)
    return x, y, angle, torch.ones_like(x), torch.zeros_like(x)


def _zigzags(scenes: Scenes, time: Tensor, r: Tensor) -> _Part:
    x = (0.92 - r) * _zigzag(_phase(scenes, time, 6.4), 0.97)
    y = -0.10 + 0.38 * _zigzag(_phase(scenes, time, 1.25, "phase2"), 0.985)
    angle = 0.10 * _wave(_phase(scenes, time, 2.5, "turn"))
    return x, y, angle, torch.ones_like(x), torch.zeros_like(x)


def _flies_in_circles(scenes: Scenes, time: Tensor, r: Tensor) -> _Part:
    turn = _TAU * _phase(scenes, time, 2.3) * _heading(scenes)
    x, y = 0.46 * torch.cos(turn), -0.10 + 0.38 * torch.sin(turn)
    angle = 0.30 * _heading(scenes) * torch.cos(turn)
    return x, y, angle, torch.ones_like(x), torch.zeros_like(x)


_ACTIONS = {
    "rolls": _rolls,
    "bounces": _bounces,
    "floats": _floats,
    "spins": _spins,
    "zigzags": _zigzags,
    "flies in circles": _flies_in_circles,
}
