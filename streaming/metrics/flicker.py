"""Flicker, and seams: how much neighbouring frames differ, and whether they differ more at chunk borders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from streaming.metrics.borders import Borders
from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.looks import grey_levels
from streaming.metrics.running import Curve, Moments, departure, ratio


@final
@dataclass(frozen=True, kw_only=True)
class Flicker(Metric):
    """VBench's temporal flickering, and flicker of the brightness alone, which motion does not hide."""

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Two."""
        vbench = "1 - mean absolute difference of neighbouring frames / 255 (VBench); little motion scores well, too"
        told = "distance of a frame's mean brightness from the middle of its neighbours'"
        return {
            "flicker_vbench": Number(meaning=vbench, better="higher", frozen="absent"),
            "flicker_brightness": Number(meaning=told, unit="grey levels", better="lower", frozen="absent"),
        }

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _FlickerMeter()


@final
class _FlickerMeter(Meter):
    def __init__(self) -> None:
        self._differences = Curve(first=1)
        self._bends = Moments()
        self._last: tuple[float, ...] = ()

    def add(self, seen: Observation) -> None:
        if seen.previous is not None:
            self._differences.add(seen.difference)
        self._last = (*self._last, float(grey_levels(seen.frame).mean()))[-3:]
        if len(self._last) == 3:
            before, middle, after = self._last
            self._bends.add(abs(middle - (before + after) / 2))

    def result(self) -> Values:
        difference = self._differences.mean()
        vbench = None if difference is None else 1 - difference / 255
        return {"flicker_vbench": vbench, "flicker_brightness": self._bends.mean}

    def curves(self) -> Mapping[str, Curve]:
        return {"difference": self._differences}


@final
@dataclass(frozen=True, kw_only=True)
class SeamRatio(Metric):
    """Mean absolute difference of the frames at a chunk border, by that of neighbours inside chunks; 1: no seam.

    More than 1 is a jump at the joins, less a stutter: a frame shown twice. So the ratio ranks nothing, its departure
    from 1 does.
    """

    borders: Borders
    """Where chunks begin."""

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Four. The ratio is infinite if only borders change anything, the departure also if no border does."""
        border = Number(meaning="mean absolute difference of the frames at chunk borders", unit="grey levels")
        inside = Number(meaning="mean absolute difference of neighbours inside chunks", unit="grey levels")
        told = "difference at chunk borders by difference inside"
        off = "distance of the seam ratio from 1, which is no seam: |ln|"
        return {
            "seam_ratio": Number(meaning=told, frozen="absent"),
            "seam_departure": Number(meaning=off, better="lower", frozen="absent"),
            "seam_border": border,
            "seam_inside": inside,
        }

    def start(self, tools: Tools) -> Meter:
        """No pairs so far."""
        return _SeamMeter(self.borders)


@final
class _SeamMeter(Meter):
    def __init__(self, borders: Borders) -> None:
        self._borders, self._border, self._inside = borders, Moments(), Moments()

    def add(self, seen: Observation) -> None:
        if seen.previous is not None:
            (self._border if self._borders.begins(seen.index) else self._inside).add(seen.difference)

    def result(self) -> Values:
        border, inside = self._border.mean, self._inside.mean
        seam = ratio(border, inside)
        return {
            "seam_ratio": seam,
            "seam_departure": departure(seam),
            "seam_border": border,
            "seam_inside": inside,
        }
