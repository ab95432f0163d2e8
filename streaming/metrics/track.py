"""An object's track through a video, from pixels alone: does it jump where chunks meet, shrink, change its colour?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.errors import UserError
from streaming.metrics.borders import Borders
from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.running import Curve, Moments, check_share, departure, ratio
from streaming.metrics.track_find import Colour, Found, find

COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (0.90, 0.09, 0.11), "orange": (1.00, 0.50, 0.03), "yellow": (1.00, 0.88, 0.12),
        "green": (0.08, 0.66, 0.20), "blue": (0.11, 0.28, 0.95), "purple": (0.54, 0.14, 0.80),
        "pink": (1.00, 0.50, 0.76), "white": (0.98, 0.98, 0.98),
    }
)  # fmt: skip
"""RGB in [0, 1] of the procedural world's objects before they are shaded."""
SECOND_COLOURS: tuple[Colour, ...] = ((0.98, 0.98, 0.98), (0.10, 0.10, 0.13), (0.40, 0.90, 0.98), (0.60, 0.34, 0.15))
"""Likewise those of their patterns."""
SIDE = 64
"""Shorter side at which objects are looked for, pixels: that of the procedural world."""


@final
@dataclass(frozen=True, kw_only=True)
class ObjectTrack(Metric):
    """Position, size and colour of the object in videos of the procedural world, and its jumps.

    Its place is the middle of what has its colour or its pattern's, which is told by the first frame with an object.
    A jump is the way from one frame to the next. Where the object has the colour of what is behind it (white on snow),
    it may be lost or something else be taken for it: read the figures beside `object_found` and over many videos.
    """

    borders: Borders | None = None
    """Where chunks begin; None: no jumps at borders."""
    colour: str | None = None
    """Its colour's name, if a prompt tells it; None: the likeliest one in the first frame but white."""
    radii: tuple[float, ...] = (0.22, 0.26, 0.32, 0.40)
    """Radii that it may have, in halves of the frame's shorter side (what a small star fills, then the world's small,
    medium and big)."""
    least: float = 0.12
    """Score from which on something is the object: share of its colours inside less that around it."""
    share: float = 0.15
    """Of the frames in which it is found, at the start and at the end, that are compared for drift."""

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.colour is not None and self.colour not in COLOURS:
            raise UserError(f"no object is '{self.colour}': choose one of {', '.join(COLOURS)}")

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Eight, in pixels of the video."""
        at = "mean way of the object from frame to frame"
        return {
            "object_found": Number(meaning="share of the frames in which the object is found", better="higher"),
            "object_jump_border": Number(meaning=f"{at}, at chunk borders", unit="pixels"),
            "object_jump_inside": Number(meaning=f"{at}, inside chunks", unit="pixels"),
            "object_jump_ratio": Number(meaning="the object's way at chunk borders by that inside", frozen="absent"),
            "object_jump_departure": Number(
                meaning="distance of the ratio of the object's ways from 1: |ln|", better="lower", frozen="absent"
            ),
            "object_size": Number(
                meaning="diameter of a disc as large as what has the object's colours", unit="pixels"
            ),
            "object_size_drift": Number(
                meaning="change of the size from start to end, share of it", better="lower", frozen="absent"
            ),
            "object_colour_drift": Number(
                meaning="distance in RGB of its colours at start and end",
                unit="levels",
                better="lower",
                frozen="absent",
            ),
        }

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter(self)


@final
class _Meter(Meter):
    def __init__(self, metric: ObjectTrack) -> None:
        self._metric, self._palette = metric, None if metric.colour is None else COLOURS[metric.colour]
        self._seconds: tuple[Colour | None, ...] = (None, *SECOND_COLOURS)  # those it may have
        self._frames, self._fresh = 0, False  # whether it was found in the last frame
        self._last: tuple[float, float] | None = None  # where it was found last
        self._border, self._inside = Moments(), Moments()
        self._x, self._y, self._size, self._colour = Curve(), Curve(), Curve(), tuple(Curve() for _ in range(3))

    def add(self, seen: Observation) -> None:
        small, scale = _small(seen.shown)
        found = self._find(small)
        self._frames += 1
        if found.score < self._metric.least:
            self._fresh = False
        else:
            self._take(found, scale, seen.index)
        if self._last is not None:
            self._x.add(self._last[0] * scale)
            self._y.add(self._last[1] * scale)
        else:
            self._x.first = self._y.first = seen.index + 1

    def _find(self, picture: Float[Tensor, "3 rows cols"]) -> Found:
        radii, least = self._metric.radii, self._metric.least
        if self._palette is None:
            coloured = {
                name: find(picture, rgb, radii, None, self._seconds) for name, rgb in COLOURS.items() if name != "white"
            }
            best = max(coloured, key=lambda name: coloured[name].score)
            found = coloured[best]
            if found.score >= least:
                self._palette = COLOURS[best]
        else:
            found = find(picture, self._palette, radii, self._last, self._seconds)
        if found.score >= least:  # its look stays: a choice made anew in every frame would move its centre
            self._seconds = (found.second,)
        return found

    def _take(self, found: Found, scale: float, index: int) -> None:
        """The object is at a new place."""
        if self._fresh and self._last is not None:
            borders = self._metric.borders
            jump = math.hypot(found.x - self._last[0], found.y - self._last[1]) * scale
            (self._border if borders is not None and borders.begins(index) else self._inside).add(jump)
        self._last, self._fresh = (found.x, found.y), True
        self._size.add(2 * math.sqrt(found.area / math.pi) * scale)
        for curve, value in zip(self._colour, found.colour, strict=True):
            curve.add(value)

    def result(self) -> Values:
        share = self._metric.share
        sizes, colours = self._size.ends(share), [curve.ends(share) for curve in self._colour]
        drift = [ends[1] - ends[0] for ends in colours if ends is not None]
        jump = ratio(self._border.mean, self._inside.mean)
        return {
            "object_found": ratio(self._size.count, self._frames),
            "object_jump_border": self._border.mean,
            "object_jump_inside": self._inside.mean,
            "object_jump_ratio": jump,
            "object_jump_departure": departure(jump),
            "object_size": self._size.mean(),
            "object_size_drift": None if sizes is None else abs(sizes[1] - sizes[0]) / sizes[0],
            "object_colour_drift": math.hypot(*drift) if drift else None,
        }

    def curves(self) -> Mapping[str, Curve]:
        """Where it was last, from the first frame in which it is found on."""
        return {"object_x": self._x, "object_y": self._y}


def _small(frame: UInt8[Tensor, "3 rows cols"]) -> tuple[Float[Tensor, "3 low_rows low_cols"], float]:
    """RGB in [0, 1] with a shorter side of `SIDE`, and how many pixels of the video one of these is."""
    scale = min(frame.shape[-2:]) / SIDE
    picture = frame.float() / 255
    if scale == 1:
        return picture, 1.0
    size = tuple(max(1, round(side / scale)) for side in frame.shape[-2:])
    mode = "area" if scale > 1 else "nearest"
    return functional.interpolate(picture[None], size, mode=mode)[0], scale
