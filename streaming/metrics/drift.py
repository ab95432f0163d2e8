"""Start-end contrast: whether a long video slowly gets blurred, pale, flat or dark."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from streaming.metrics import looks
from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.running import Curve, check_share

_LOOKS = {
    "sharpness": (looks.sharpness, "grey levels²"),
    "saturation": (looks.saturation, "levels"),
    "contrast": (looks.contrast, "grey levels"),
    "brightness": (looks.brightness, "grey levels"),
}


@final
@dataclass(frozen=True, kw_only=True)
class Drift(Metric):
    """|mean over the first frames - mean over the last frames| of what frames look like [FramePack]."""

    share: float = 0.15
    """Of the frames, at the start and at the end."""

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def numbers(self) -> Mapping[str, Number]:
        """For each look the drift, and both ends."""
        found = {}
        for name, (_, unit) in _LOOKS.items():
            told = f"difference of the {name} at the start and at the end"
            found[f"drift_{name}"] = Number(meaning=told, unit=unit, better="lower", frozen="absent")
            for end in ("start", "end"):
                found[f"{name}_{end}"] = Number(meaning=f"{name} at the {end}", unit=unit)
        return found

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter(self.share)


@final
class _Meter(Meter):
    def __init__(self, share: float) -> None:
        self._share, self._curves = share, {name: Curve() for name in _LOOKS}

    def add(self, seen: Observation) -> None:
        for name, (look, _) in _LOOKS.items():
            self._curves[name].add(look(seen.frame))

    def result(self) -> Values:
        found: dict[str, float | None] = {}
        for name, curve in self._curves.items():
            ends = curve.ends(self._share)
            found[f"drift_{name}"] = None if ends is None else abs(ends[1] - ends[0])
            found[f"{name}_start"], found[f"{name}_end"] = ends or (None, None)
        return found

    def curves(self) -> Mapping[str, Curve]:
        return dict(self._curves)
