"""The six places: sky, far and near layers, ground. Each function paints a whole background in place."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from backends.world import scenery as sc
from backends.world.canvas import Tint, View, gradient, over
from backends.world.scene import PLACES

Image = Float[Tensor, "n frames 3 rows cols"]


def paint_place(place: str, image: Image, view: View) -> None:
    """Paint the background of a place (one of `PLACES`) over the whole image, in place."""
    _PAINTERS[place](image, view)


def _backdrop(image: Image, view: View, sky: tuple[Tint, Tint], ground: tuple[Tint, Tint]) -> tuple[Tensor, Tensor]:
    """Paint sky and ground, each from its upper to its lower tint.

    Returns the horizon's height [n, 1, 1, 1] and the ground's colours [n, 1, 3, rows, 1].
    """
    horizon = 0.14 + 0.14 * view.hidden("horizon")
    colours = gradient(view, *(view.mix(*tint) for tint in ground), 0.15, 1.0)
    image.copy_(gradient(view, *(view.mix(*tint) for tint in sky), -1.0, 0.25).expand_as(image))
    over(image, colours, view.cover(horizon - view.y))
    return horizon, colours


def _meadow(image: Image, view: View) -> None:
    horizon, ground = _backdrop(
        image, view,
        sky=(((0.25, 0.55, 0.96), (0.36, 0.50, 0.88)), ((0.80, 0.93, 1.0), (1.0, 0.88, 0.74))),
        ground=(((0.56, 0.80, 0.34), (0.66, 0.74, 0.32)), ((0.28, 0.58, 0.20), (0.34, 0.50, 0.18))),
    )  # fmt: skip
    sc.sun(image, view, (1.0, 0.90, 0.45), glow=(1.0, 0.96, 0.75))
    sc.clouds(image, view, (1.0, 1.0, 1.0), shade=(0.74, 0.82, 0.92))
    sc.hills(image, view, horizon - 0.20, 0.13, 2.6, ((0.50, 0.68, 0.78), (0.58, 0.62, 0.72)), speed=0.14, salt=1)
    sc.hills(image, view, horizon - 0.06, 0.09, 1.9, ((0.36, 0.66, 0.36), (0.48, 0.62, 0.34)), speed=0.28, salt=2)
    over(image, ground, view.cover(horizon - view.y))
    sc.trees(image, view, horizon + 0.05, ((0.16, 0.46, 0.20), (0.26, 0.42, 0.16)), speed=0.45)
    for row in sc.ground_rows(horizon, (0.24, 0.55), (0.50, 0.8), (0.86, 1.15)):
        sc.patches(image, view, row, 0.34, 0.07, (0.66, 0.86, 0.36), 0.45)
        sc.flowers(image, view, row)


def _desert(image: Image, view: View) -> None:
    horizon, ground = _backdrop(
        image, view,
        sky=(((0.30, 0.64, 0.86), (0.46, 0.48, 0.74)), ((1.0, 0.92, 0.74), (1.0, 0.74, 0.50))),
        ground=(((0.94, 0.80, 0.54), (0.92, 0.70, 0.46)), ((0.80, 0.60, 0.34), (0.76, 0.50, 0.30))),
    )  # fmt: skip
    sc.sun(image, view, (1.0, 0.95, 0.70), glow=(1.0, 0.90, 0.60))
    sc.mesas(image, view, horizon, ((0.80, 0.50, 0.34), (0.72, 0.38, 0.32)), speed=0.14)
    sc.hills(image, view, horizon - 0.03, 0.08, 2.2, ((0.90, 0.72, 0.46), (0.86, 0.60, 0.40)), speed=0.28, salt=3)
    over(image, ground, view.cover(horizon - view.y))
    sc.cacti(image, view, horizon + 0.10, (0.20, 0.44, 0.22), speed=0.48)
    for row in sc.ground_rows(horizon, (0.28, 0.6), (0.55, 0.9), (0.88, 1.3)):
        sc.patches(image, view, row, 0.40, 0.045, (0.66, 0.44, 0.24), 0.6)
        sc.patches(image, view, row, 0.40, 0.040, (1.0, 0.90, 0.66), 0.6, lift=0.05)
        sc.stones(image, view, row, (0.56, 0.36, 0.24), (0.80, 0.58, 0.40))


def _city(image: Image, view: View) -> None:
    horizon, ground = _backdrop(
        image, view,
        sky=(((0.03, 0.04, 0.14), (0.07, 0.03, 0.16)), ((0.16, 0.18, 0.42), (0.38, 0.16, 0.40))),
        ground=(((0.23, 0.23, 0.28), (0.25, 0.22, 0.27)), ((0.13, 0.13, 0.17), (0.14, 0.12, 0.16))),
    )  # fmt: skip
    sc.stars(image, view)
    sc.sun(image, view, (0.97, 0.95, 0.84), glow=(0.55, 0.58, 0.80), crescent=True)
    sc.skyline(
        image, view, horizon, ((0.19, 0.21, 0.44), (0.33, 0.18, 0.42)), width=0.5, height=0.62, speed=0.14, salt=1
    )
    sc.skyline(
        image,
        view,
        horizon,
        ((0.07, 0.08, 0.18), (0.11, 0.07, 0.18)),
        width=0.64,
        height=0.44,
        speed=0.30,
        salt=2,
        windows=True,
    )
    over(image, ground, view.cover(horizon - view.y))
    over(image, (0.36, 0.36, 0.42), view.cover((view.y - horizon - 0.07).abs() - 0.035))
    sc.lamps(image, view, horizon + 0.10, speed=0.55)
    sc.dashes(image, view, 0.52, 0.035, speed=0.72)
    over(image, (0.40, 0.40, 0.46), view.cover(0.93 - view.y))
    sc.kerb(image, view, 0.93, speed=0.98)


def _ocean(image: Image, view: View) -> None:
    horizon, ground = _backdrop(
        image, view,
        sky=(((0.28, 0.60, 0.96), (0.42, 0.42, 0.80)), ((0.82, 0.95, 1.0), (1.0, 0.78, 0.62))),
        ground=(((0.22, 0.68, 0.78), (0.38, 0.56, 0.74)), ((0.02, 0.30, 0.50), (0.06, 0.22, 0.46))),
    )  # fmt: skip
    sc.sun(image, view, (1.0, 0.92, 0.55), glow=(1.0, 0.94, 0.75))
    sc.clouds(image, view, (1.0, 1.0, 1.0), shade=(0.76, 0.82, 0.92))
    sc.islands(image, view, horizon, ((0.30, 0.52, 0.50), (0.34, 0.40, 0.52)), speed=0.18)
    over(image, ground, view.cover(horizon - view.y))
    sc.glitter(image, view, horizon)
    sc.boats(image, view, horizon + 0.07, speed=0.40)
    for row in sc.ground_rows(horizon, (0.16, 0.45), (0.36, 0.7), (0.60, 1.0), (0.88, 1.3)):
        sc.waves(image, view, row)


def _snow(image: Image, view: View) -> None:
    horizon, ground = _backdrop(
        image, view,
        sky=(((0.46, 0.64, 0.86), (0.52, 0.54, 0.78)), ((0.88, 0.94, 0.98), (0.98, 0.86, 0.86))),
        ground=(((0.94, 0.97, 1.0), (0.97, 0.94, 0.97)), ((0.74, 0.82, 0.92), (0.78, 0.78, 0.90))),
    )  # fmt: skip
    sc.sun(image, view, (1.0, 0.98, 0.86), glow=(1.0, 0.98, 0.92))
    sc.clouds(image, view, (0.96, 0.97, 1.0), shade=(0.68, 0.75, 0.86))
    sc.peaks(image, view, horizon, ((0.48, 0.56, 0.70), (0.52, 0.50, 0.66)), (0.97, 0.98, 1.0), speed=0.14)
    over(image, ground, view.cover(horizon - view.y))
    sc.pines(image, view, horizon + 0.06, (0.13, 0.34, 0.30), speed=0.45)
    for row in sc.ground_rows(horizon, (0.30, 0.6), (0.58, 0.9), (0.90, 1.3)):
        sc.patches(image, view, row, 0.42, 0.07, (0.52, 0.64, 0.85), 0.75)
        sc.patches(image, view, row, 0.40, 0.05, (1.0, 1.0, 1.0), 0.85, lift=0.06)
        sc.stones(image, view, row, (0.46, 0.50, 0.60), (1.0, 1.0, 1.0))


def _moon(image: Image, view: View) -> None:
    horizon, ground = _backdrop(
        image, view,
        sky=(((0.01, 0.01, 0.03), (0.02, 0.01, 0.05)), ((0.04, 0.05, 0.11), (0.08, 0.05, 0.13))),
        ground=(((0.60, 0.60, 0.63), (0.62, 0.59, 0.60)), ((0.36, 0.36, 0.40), (0.38, 0.35, 0.38))),
    )  # fmt: skip
    sc.stars(image, view)
    sc.earth(image, view)
    sc.hills(image, view, horizon - 0.10, 0.12, 1.5, ((0.34, 0.34, 0.38), (0.36, 0.32, 0.38)), speed=0.18, salt=4)
    sc.hills(image, view, horizon + 0.01, 0.05, 1.1, ((0.50, 0.50, 0.53), (0.52, 0.49, 0.52)), speed=0.34, salt=5)
    over(image, ground, view.cover(horizon + 0.05 - view.y))
    for row in sc.ground_rows(horizon, (0.26, 0.5), (0.54, 0.85), (0.88, 1.25)):
        sc.craters(image, view, row)


_PAINTERS: dict[str, Callable[[Image, View], None]] = dict(
    zip(PLACES, (_meadow, _desert, _city, _ocean, _snow, _moon), strict=True)
)
