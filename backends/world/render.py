"""From scenes to frames. Everything is a function of scene, time and pixel, computed in batches of bounded memory."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from backends.world.canvas import Colour, View, over, paint
from backends.world.motion import GROUND, Pose, frame_times, pose
from backends.world.places import paint_place
from backends.world.scene import CAMERAS, PLACES, PLAIN, SHAPES, Scenes
from backends.world.shapes import RING_MIDDLE, Body, body

PIXELS_AT_ONCE = 2**24
"""Most pixels drawn together: about 1.5 GB of float32 temporaries."""

_COLOURS = (
    (0.90, 0.09, 0.11), (1.00, 0.50, 0.03), (1.00, 0.88, 0.12), (0.08, 0.66, 0.20),
    (0.11, 0.28, 0.95), (0.54, 0.14, 0.80), (1.00, 0.50, 0.76), (0.98, 0.98, 0.98),
)  # fmt: skip
_SECOND_COLOURS = ((0.98, 0.98, 0.98), (0.10, 0.10, 0.13), (0.40, 0.90, 0.98), (0.60, 0.34, 0.15))
_OUTLINES = ((0.06, 0.05, 0.10), (1.0, 1.0, 1.0))
_OUTLINE_WIDTH = (0.055, 0.16)  # half frames (1.8 pixels of 64), but at most this part of the radius
_HALO_WIDTH = 0.07
_CORES = (0.50, 0.46, 0.38, 0.42, 0.40, RING_MIDDLE)  # radii of the middle part, shape by shape
_PAN_SPEED = 0.80  # of the nearest layer (half frames a second), varied by 15 % either way


def render(
    scenes: Scenes, *, frames: int = 16, start: float | Float[Tensor, " n"] = 0.0, fps: float = 8.0, size: int = 64
) -> UInt8[Tensor, "n frames 3 {size} {size}"]:
    """Frames of every scene from `start` (seconds; one for all, or one a scene) on, RGB, on the scenes' device."""
    out = torch.empty(len(scenes), frames, 3, size, size, dtype=torch.uint8, device=scenes.device)
    for rows, part, begin in _batches(scenes, start, frames * size * size):
        out[rows] = _draw(part, _view(part, frames, begin, fps, size))
    return out


def object_mask(
    scenes: Scenes, *, frames: int = 16, start: float | Float[Tensor, " n"] = 0.0, fps: float = 8.0, size: int = 64
) -> Float[Tensor, "n frames {size} {size}"]:
    """How much of every pixel the object covers with its outline, in [0, 1]; arguments as in `render`."""
    out = torch.zeros(len(scenes), frames, size, size, device=scenes.device)
    for rows, part, begin in _batches(scenes, start, frames * size * size):
        view = _view(part, frames, begin, fps, size)
        place = pose(part, view.time)
        for shape in range(len(SHAPES)):
            chosen = (part.shape == shape).nonzero()[:, 0]
            if len(chosen):
                group = _choose(place, chosen)
                distance = _body(shape, group, view).distance * group.radius[:, None, None, None]
                out[rows][chosen] = view.cover(distance)
    return out


def object_track(
    scenes: Scenes, *, frames: int = 16, start: float | Float[Tensor, " n"] = 0.0, fps: float = 8.0
) -> Float[Tensor, "n frames 2"]:
    """The object's centre (x to the right, y down, both in [-1, 1]); arguments as in `render`."""
    place = pose(scenes, frame_times(len(scenes), frames, start, fps, scenes.device))
    return torch.stack((place.x, place.y), dim=-1)


def _batches(scenes: Scenes, start: float | Tensor, pixels: int) -> list[tuple[slice, Scenes, float | Tensor]]:
    """Slices of scenes that are small enough to be drawn together."""
    count = max(1, PIXELS_AT_ONCE // pixels)
    slices = [slice(i, i + count) for i in range(0, len(scenes), count)]
    return [(s, scenes[s], start[s] if isinstance(start, Tensor) and start.ndim else start) for s in slices]


def _view(scenes: Scenes, frames: int, start: float | Tensor, fps: float, size: int) -> View:
    time = frame_times(len(scenes), frames, start, fps, scenes.device)
    directions = torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64, device=scenes.device)
    assert CAMERAS == ("static", "pans left", "pans right")
    velocity = directions[scenes.camera] * _PAN_SPEED * (0.85 + 0.30 * scenes.hidden_value("pan"))
    pan = velocity[:, None] * time
    centres = (torch.arange(size, device=scenes.device, dtype=torch.float32) + 0.5) * (2 / size) - 1
    return View(
        scenes=scenes, time=time, pan=pan, size=size, x=centres[None, None, None, :], y=centres[None, None, :, None]
    )


def _draw(scenes: Scenes, view: View) -> UInt8[Tensor, "n frames 3 rows cols"]:
    """All scenes of a batch: backgrounds place by place, then objects shape by shape."""
    image = torch.empty(*view.time.shape, 3, view.size, view.size, device=scenes.device)
    for index, place in enumerate(PLACES):
        chosen = (scenes.place == index).nonzero()[:, 0]
        if len(chosen):
            image[chosen] = _background(place, _choose_view(view, chosen))
    placement = pose(scenes, view.time)
    for shape in range(len(SHAPES)):
        chosen = (scenes.shape == shape).nonzero()[:, 0]
        if len(chosen):
            part = image[chosen]
            _paint_object(part, shape, _choose(placement, chosen), _choose_view(view, chosen))
            image[chosen] = part
    return image.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _background(place: str, view: View) -> Float[Tensor, "n frames 3 rows cols"]:
    image = torch.empty(*view.time.shape, 3, view.size, view.size, device=view.x.device)
    paint_place(place, image, view)
    return image


def _choose_view(view: View, chosen: Tensor) -> View:
    scenes, time, pan = view.scenes[chosen], view.time[chosen], view.pan[chosen]
    return View(scenes=scenes, time=time, pan=pan, size=view.size, x=view.x, y=view.y)


def _choose(place: Pose, chosen: Tensor) -> Pose:
    return Pose(**{name: getattr(place, name)[chosen] for name in ("x", "y", "angle", "squash", "radius")})


def _body(shape: int, place: Pose, view: View) -> Body:
    x, y, angle, squash = (t[:, :, None, None] for t in (place.x, place.y, place.angle, place.squash))
    radius = place.radius[:, None, None, None]
    return body(shape, (view.x - x) / (radius * squash), (view.y - y) / (radius / squash), angle)


def _paint_object(image: Tensor, shape: int, place: Pose, view: View) -> None:
    """Shadow, halo, outline, and the shaded and patterned body."""
    _shadow(image, place, view)
    scenes, radius = view.scenes, place.radius[:, None, None, None]
    drawn = _body(shape, place, view)
    distance = drawn.distance * radius
    main = _pick(_COLOURS, scenes.colour)
    second, outline = _pick(_SECOND_COLOURS, scenes.second_colour), _pick(_OUTLINES, scenes.outline)
    second = torch.where((scenes.pattern == PLAIN)[:, None, None, None, None], main, second)
    over(image, 1 - outline, (1 - distance / _HALO_WIDTH).clamp_(0, 1).square_() * 0.45)
    over(image, outline, view.cover(distance))
    painted = torch.maximum(_pattern(shape, scenes.pattern, *drawn.face), drawn.painted)
    colour = torch.lerp(main, second, view.cover(painted * radius)[:, :, None]).mul_(drawn.shade[:, :, None])
    gloss = drawn.gloss[:, :, None]
    colour = (colour + gloss * (1 - colour)).clamp_(0, 1)
    over(image, colour, view.cover(distance + (_OUTLINE_WIDTH[1] * radius).clamp(max=_OUTLINE_WIDTH[0])))


def _pick(palette: tuple[Colour, ...], index: Tensor) -> Float[Tensor, "n 1 3 1 1"]:
    return torch.stack([paint(colour, index.device) for colour in palette])[index][:, None]


def _pattern(shape: int, kind: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance (radii) to where the second colour is: areas that are as wide as fits on the shape, since latents
    of 8 × 8 pixels lose smaller ones."""
    core = torch.hypot(u, v) - _CORES[shape]
    halves = 0.06 - v
    band = v.abs() - 0.27
    quarters = torch.where(u * v > 0, -1.0, 1.0) * torch.minimum(u.abs(), v.abs())
    kind = kind[:, None, None, None]
    return torch.where(kind < 2, torch.where(kind < 1, core, halves), torch.where(kind < 3, band, quarters))


def _shadow(image: Tensor, place: Pose, view: View) -> None:
    """A flat soft shadow on the ground, smaller and fainter the higher the object is."""
    x, y, squash = (t[:, :, None, None] for t in (place.x, place.y, place.squash))
    radius = place.radius[:, None, None, None]
    height = ((GROUND - radius - y) / 1.4).clamp(0, 1)
    wide = radius * squash * (1.05 - 0.35 * height)
    away = ((view.x - x) / wide).square() + ((view.y - GROUND - 0.01) / (0.30 * wide)).square()
    over(image, (0.02, 0.02, 0.06), (1.15 - away).clamp_(0, 1) * (0.48 - 0.28 * height))
