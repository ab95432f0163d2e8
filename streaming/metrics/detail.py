"""Fine detail: whether pictures are as sharp as their coarser structure lets one expect, whatever they show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import final

from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.running import Moments

LAPLACIAN = 20
"""Sum of the squared weights of the Laplacian (four neighbours): what it makes of the variance of white noise."""
FLOOR, FALL = 8.0, 0.5
"""Variance of the Laplacian, grey levels², that rounding and x264 (crf 18) leave of a picture without detail, and what
is left of that in the next coarser octave."""
CLEAR = 10
"""Times the floor that the detail to be expected has to be, or an octave tells nothing."""
EDGES = 0.5
"""Detail of sharp edges by what is to be expected."""
COARSER = (1, 2)
"""Octaves that count `PART` each beside the finest, up to `EDGES`."""
PART = 0.1


@final
@dataclass(frozen=True, kw_only=True)
class FineDetail(Metric):
    """Variance of the Laplacian by what the coarser octaves (means of 2x2, 4x4 ... pixels) let one expect of it.

    Pictures look alike at all scales (spectra of natural images fall as a power of the frequency [Field 1987]). A
    picture of sharp edges, which has the least fine detail of all sharp ones, has in each octave half of what it has in
    the next coarser one. So the finest octave's variance is divided by the largest of the coarser ones', halved for
    each octave that lies between. Rounding and compression leave some fine noise in any picture: `FLOOR` is taken off
    first. Where even the detail to be expected is not clearly more than that, as in mist, the next octave is judged
    instead; where no octave has any, as in a clear sky, there is nothing to object to: 1. The next two octaves, each by
    those coarser than itself, count a little: the stronger a blur is, the more octaves it takes.

    Each variance is averaged over the video. Measured at the evaluation's resolution, or at the video's own if that has
    fewer pixels, as making frames larger is a blur itself; a blur of less than these pixels is not seen.
    """

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One. About 0.3 to 0.8 for sharp frames, under 0.1 for blurred ones."""
        told = "variance of the Laplacian by what the coarser octaves let one expect"
        return {"fine_detail": Number(meaning=told, better="higher", frozen="absent")}

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter()


@final
class Octaves:
    """Variances of the Laplacian by octave, the finest first, averaged over a video."""

    def __init__(self) -> None:
        self._moments: list[Moments] = []

    def add(self, detail: Sequence[float]) -> None:
        """A frame's."""
        self._moments = self._moments or [Moments() for _ in detail]
        for moments, value in zip(self._moments, detail, strict=True):
            moments.add(value)

    def sharpness(self, noise: float = 0.0) -> float | None:
        """See `sharpness`; None without frames."""
        means = [mean for moments in self._moments if (mean := moments.mean) is not None]
        return sharpness(means, noise) if means else None


@final
class _Meter(Meter):
    def __init__(self) -> None:
        self._octaves = Octaves()

    def add(self, seen: Observation) -> None:
        if seen.detail is not None:
            self._octaves.add(seen.detail)

    def result(self) -> Values:
        return {"fine_detail": self._octaves.sharpness()}


def sharpness(octaves: Sequence[float], noise: float = 0.0) -> float | None:
    """Detail by what is to be expected, see `FineDetail`.

    octaves: two variances of the Laplacian or more, the finest first. noise: variance of white noise in grey levels,
    whose part is taken off. Infinite for detail of which the coarser octaves have nothing; None without any.
    """
    if not any(octaves):
        return None
    floors = [FLOOR * FALL**k for k in range(len(octaves))]
    noises = [LAPLACIAN * noise / 4**k for k in range(len(octaves))]
    left = [max(0.0, v - f - n) for v, f, n in zip(octaves, floors, noises, strict=True)]
    expected = [max(value / 2**i for i, value in enumerate(octaves[k + 1 :])) for k in range(len(octaves) - 1)]
    found = [left[k] / value if value >= CLEAR * floors[k] else None for k, value in enumerate(expected)]
    if not any(value is not None for value in found):
        return inf if left[0] > CLEAR * FLOOR else 1.0
    told = [next((value for value in found[k:] if value is not None), EDGES) for k in range(len(found))]
    coarser = [min(EDGES, told[k]) for k in COARSER if k < len(told)]
    return (1 - PART * len(coarser)) * told[0] + PART * sum(coarser)
