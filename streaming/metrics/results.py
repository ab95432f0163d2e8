"""What an evaluation hands back: plain data that says how each number came about."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf, isnan
from typing import Any, Literal, final

from streaming.errors import UserError
from streaming.metrics.contract import Number, Values
from streaming.metrics.described import Plain

INFINITE = "infinite"
"""How JSON, which has no such number, tells infinity."""


@final
@dataclass(frozen=True, kw_only=True)
class Series:
    """A value over time."""

    first: int
    """Frame of the first value."""
    stride: int
    """Neighbouring values that each point is the mean of; 1 for videos of up to 4096 frames."""
    points: tuple[float, ...]
    """The means."""


@final
@dataclass(frozen=True, kw_only=True)
class Results:
    """The numbers of one video."""

    numbers: Values
    """By name. Infinite: as bad as can be; None: not defined for this video. Never NaN."""
    meanings: Mapping[str, Number]
    """What each number means, and which of two is better."""
    series: Mapping[str, Series]
    """What was seen over time, by name."""
    events: Mapping[str, tuple[int, ...]]
    """Frames at which something happened, by name: the first 1000 each."""
    frames: int
    """Of the video."""
    fps: float
    """Frames a second, as told."""
    shown: tuple[int, int]
    """Rows and columns of the video."""
    frozen: bool
    """Whether nothing moves: continuity is no merit then, and its numbers are absent or infinite."""
    settings: Mapping[str, Plain]
    """Everything else that changes a number: resolution, flow, encoder, metrics, versions."""

    def to_json(self) -> str:
        """As strict JSON; infinity is the word "infinite"."""
        told = asdict(self)
        told["numbers"] = {name: INFINITE if value == inf else value for name, value in self.numbers.items()}
        return json.dumps(told, allow_nan=False, indent=1)

    @staticmethod
    def from_json(text: str) -> "Results":
        """What `to_json` wrote. Raises UserError for anything else."""
        try:
            told: dict[str, Any] = json.loads(text)
            if set(told) != {field.name for field in fields(Results)}:
                raise ValueError("other fields than the results of an evaluation")
            told["numbers"] = {name: inf if value == INFINITE else value for name, value in told["numbers"].items()}
            told["meanings"] = {name: Number(**one) for name, one in told["meanings"].items()}
            told["series"] = {
                name: Series(first=one["first"], stride=one["stride"], points=tuple(one["points"]))
                for name, one in told["series"].items()
            }
            told["events"] = {name: tuple(frames) for name, frames in told["events"].items()}
            told["shown"] = (told["shown"][0], told["shown"][1])
            return Results(**told)
        except (ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
            raise UserError(f"these are no results of an evaluation ({error}): evaluate the video again") from error


def badness(value: float | None, better: Literal["lower", "higher"]) -> float:
    """A number to sort by, best first: what is absent or infinite comes last whichever way is better."""
    if value is None or abs(value) == inf:
        return inf
    return value if better == "lower" else -value


def checked(values: Values, meanings: Mapping[str, Number], frozen: bool) -> dict[str, float | None]:
    """A metric's numbers, with those withdrawn for which nothing moving is no merit.

    Raises ValueError for NaN and for other numbers than the metric named: defects of the metric.
    """
    if set(values) != set(meanings):
        raise ValueError(f"a metric gives {', '.join(sorted(values))} but names {', '.join(sorted(meanings))}")
    if wrong := [name for name, value in values.items() if value is not None and isnan(value)]:
        raise ValueError(f"the metric's {wrong[0]} is NaN: a metric gives None for what is not defined")
    return {name: _withdrawn(value, meanings[name]) if frozen else value for name, value in values.items()}


def _withdrawn(value: float | None, meaning: Number) -> float | None:
    return {"as is": value, "absent": None, "infinite": inf}[meaning.frozen]
