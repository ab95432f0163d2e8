"""Where the object's pixels go from one frame to the next, exactly: what measures of motion are checked against."""

import torch
from jaxtyping import Float
from torch import Tensor

from backends.world.motion import Pose, frame_times, pose
from backends.world.render import object_mask
from backends.world.scene import Scenes


def object_flow(
    scenes: Scenes, *, frames: int = 16, start: float | Float[Tensor, " n"] = 0.0, fps: float = 8.0, size: int = 64
) -> Float[Tensor, "n pairs 2 {size} {size}"]:
    """Flow (x, y) in pixels from each frame to the next of `render` with these arguments; pairs = frames - 1.

    Pixels that the object covers by half or more move as its surface does (of a cube, as its front: the sides do not
    turn with it). All others have flow 0, which is true of scenes with a static camera but for the shadow and for what
    drifts there by itself (clouds, waves, glitter).
    """
    times = frame_times(len(scenes), frames, start, fps, scenes.device)
    place = pose(scenes, times)
    centres = (torch.arange(size, device=scenes.device) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    before, after = _at(place, slice(None, -1)), _at(place, slice(1, None))
    there = _onto(after, *_body(before, x, y))
    flow = torch.stack((there[0] - x, there[1] - y), dim=2) * (size / 2)
    mask = object_mask(scenes, frames=frames, start=start, fps=fps, size=size)[:, :-1]
    return flow * (mask >= 0.5)[:, :, None]


def _at(place: Pose, frames: slice) -> Pose:
    moving = {name: getattr(place, name)[:, frames] for name in ("x", "y", "angle", "squash")}
    return Pose(**moving, radius=place.radius)


def _scales(place: Pose) -> tuple[Tensor, Tensor]:
    """Half frames a unit of the body, to the right and down: [n, frames, 1, 1] each."""
    radius = place.radius[:, None]
    return (radius * place.squash)[:, :, None, None], (radius / place.squash)[:, :, None, None]


def _body(place: Pose, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Frame coordinates in the body's own turned frame: [n, frames, rows, cols] each."""
    wide, high = _scales(place)
    x, y = (x - place.x[:, :, None, None]) / wide, (y - place.y[:, :, None, None]) / high
    cos, sin = place.angle.cos()[:, :, None, None], place.angle.sin()[:, :, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _onto(place: Pose, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The body's own coordinates in the frame: the inverse of `_body`."""
    wide, high = _scales(place)
    cos, sin = place.angle.cos()[:, :, None, None], place.angle.sin()[:, :, None, None]
    x, y = cos * u - sin * v, sin * u + cos * v
    return place.x[:, :, None, None] + wide * x, place.y[:, :, None, None] + high * y
