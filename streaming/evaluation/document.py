"""What an evaluation found, as data: results.json, which `streamingt2v compare` reads, and what reports share."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf
from statistics import fmean
from typing import TYPE_CHECKING, Any, final

from streaming.evaluation.files import Failed
from streaming.evaluation.run import Evaluated, Outcome
from streaming.metrics.contract import Number
from streaming.metrics.described import Plain
from streaming.metrics.results import INFINITE

if TYPE_CHECKING:
    from streaming.metrics.verdict import Verdict

VERSION = 1
"""Of results.json's layout."""

MAWE_ALONE = (
    "MAWE alone fails the panel of corruptions: jittered, blurred and shuffled videos often have a better one than "
    "the original, and it changes with the resolution. Read it beside the cuts, the share of stagnant pairs and the "
    "verdict."
)
"""Stands wherever MAWE is printed."""

VERDICT = (
    "The verdict's badness says how bad a whole video is, 0 is best: the sum of its grades (0: nothing to object, 1: a "
    "clear defect, 3: the worst), some of which count twice. It is absent (–) where something could not be judged, for "
    "want of frames or of a measure: such a video is not good, only unknown. It knows nothing of prompts."
)
"""Stands above the verdicts."""

HEADLINES = (
    "scuts", "scuts_min1", "scuts_transnetv2", "mawe_official", "mawe_paper", "mawe_ratio_of_means", "warp_error",
    "flow_score", "stagnant", "flow_std_joins", "seam_ratio", "object_jump_ratio", "anchor_distance", "anchor_lpips",
    "clip_score", "narrative_accuracy", "narrative_order",
)  # fmt: skip
"""Numbers of the overview, where there are any."""


@final
@dataclass(frozen=True)
class Document:
    """All outcomes of one evaluation."""

    outcomes: Sequence[Outcome]
    """In the order in which the files were given."""
    unused: Sequence[Failed] = ()
    """Prompts that belong to no video: what they are called, and why."""

    @cached_property
    def evaluated(self) -> list[Evaluated]:
        """Those with results."""
        return [each for each in self.outcomes if isinstance(each, Evaluated)]

    @cached_property
    def failed(self) -> list[Failed]:
        """Those without."""
        return [each for each in self.outcomes if isinstance(each, Failed)]

    @cached_property
    def verdicts(self) -> "list[Verdict]":
        """Of those with results."""
        from streaming.metrics.verdict import verdict

        return [verdict(each.results) for each in self.evaluated]

    @cached_property
    def settings(self) -> dict[str, Plain]:
        """Settings that all results share."""
        told = [each.results.settings for each in self.evaluated]
        return {
            name: value
            for name, value in (told[0] if told else {}).items()
            if all(other.get(name) == value for other in told)
        }

    @cached_property
    def meanings(self) -> dict[str, Number]:
        """Of every number that any video has, in the order in which they were measured."""
        return {name: number for each in self.evaluated for name, number in each.results.meanings.items()}

    @cached_property
    def headlines(self) -> list[str]:
        """Numbers of the overview: those that some video has."""
        return [name for name in HEADLINES if self.mean(name)[1]]

    @cached_property
    def aspects(self) -> list[str]:
        """What verdicts grade, of some video at least."""
        graded = [name for rated in self.verdicts for name in rated.grades]
        judged = {name for rated in self.verdicts for name, grade in rated.grades.items() if grade is not None}
        return [name for name in dict.fromkeys(graded) if name in judged]

    def mean(self, name: str) -> tuple[float | None, int]:
        """A number's mean over the videos for which it is defined, and how many those are."""
        values = [value for each in self.evaluated if (value := each.results.numbers.get(name)) is not None]
        return (fmean(values) if values else None), len(values)

    def told_mean(self, name: str) -> str:
        """For people; in brackets over how many videos, where that is not all of them."""
        value, count = self.mean(name)
        return shown(value) + (f" ({count})" if 0 < count < len(self.evaluated) else "")

    def to_json(self) -> str:
        """results.json."""
        rated = iter(self.verdicts)
        videos = [_entry(each, next(rated)) if isinstance(each, Evaluated) else _failed(each) for each in self.outcomes]
        unused = [{"prompt": each.file, "error": each.error} for each in self.unused]
        told = {"version": VERSION, "settings": self.settings, "videos": videos, "unused_prompts": unused}
        return json.dumps(told, allow_nan=False, indent=1) + "\n"


def _entry(each: Evaluated, rated: "Verdict") -> dict[str, Any]:
    prompts = None if each.prompts is None else {str(frame): text for frame, text in each.prompts.entries}
    return {
        "file": each.file,
        "prompts": prompts,
        "results": json.loads(each.results.to_json()),
        "verdict": finite(asdict(rated)),
        "narrative": None if each.narrative is None else finite(asdict(each.narrative)),
        "warnings": list(each.warnings),
    }


def _failed(each: Failed) -> dict[str, str]:
    return {"file": each.file, "error": each.error}


def finite(value: Any) -> Any:
    """With the word "infinite" for what JSON cannot tell."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return INFINITE if value == inf else value


def shown(value: float | None) -> str:
    """A number for people."""
    if value is None:
        return "–"
    if value == inf:
        return "∞"
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def arrow(number: Number) -> str:
    """Which way is better."""
    return {"lower": " ↓", "higher": " ↑", None: ""}[number.better]


def told_settings(settings: Mapping[str, Plain]) -> list[tuple[str, str]]:
    """Settings, one a line; of those of the metrics, which are in results.json, only the weights that they use."""
    told = [(name, _told(value)) for name, value in settings.items() if name != "metrics"]
    return told + [(f"weights of {kind}", sha256) for kind, sha256 in _weights(settings.get("metrics"))]


def _weights(value: Plain) -> Iterator[tuple[str, str]]:
    """Kinds of what has weights, and the weights' SHA-256."""
    if isinstance(value, dict) and isinstance(sha256 := value.get("sha256"), str):
        yield str(value.get("kind")), f"sha256 {sha256}"
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _weights(each)


def _told(value: Plain) -> str:
    if isinstance(value, dict):
        kind = str(value["kind"]) if "kind" in value else ""
        inside = ", ".join(f"{name} {_told(each)}" for name, each in value.items() if name != "kind")
        return f"{kind} ({inside})" if kind and inside else kind or inside
    if isinstance(value, list):
        return " x ".join(map(_told, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)
