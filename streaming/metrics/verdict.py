"""The summary verdict: one number for a whole video, made to withstand ten known ways to fool single metrics and noise.

No single measure can do that. MAWE, the paper's, prefers blurred and jittery videos to their originals, a frozen video
has no cuts and no flicker, shuffled frames are as sharp as ordered ones, and noise passes for sharpness. So each defect
has its own measure, and the verdict adds up how far a video is out of what genuine video shows; see docs/metrics.md for
what was tried on what, and for what escapes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log2
from types import MappingProxyType
from typing import final

from streaming.metrics.jumps import Jumps
from streaming.metrics.results import Results

WORST = 3.0
"""Highest grade of an aspect, so that none decides all."""
CLEAR = 0.5
"""Grade from which on an aspect is a reason."""
ENOUGH = 5
"""Frames from which on all aspects can be judged."""


@final
@dataclass(frozen=True, kw_only=True)
class Aspect:
    """One thing that can be wrong with a video."""

    number: str
    """Name of the metric's number that tells it."""
    fine: float
    """Value up to which there is nothing to object, in the number's unit."""
    bad: float
    """Value of a clear defect, grade 1. Beyond, the grade grows at the same rate up to `WORST`."""
    weight: float
    """How much a grade counts. A defect of every frame counts more than one of a few frames."""
    reason: str
    """What is wrong then; `{value}` stands for the number."""

    def grade(self, value: float) -> float:
        """0 for nothing to object, 1 for a clear defect, up to `WORST`: the grade of an infinite value, on any side."""
        if not isfinite(value):
            return WORST
        return min(WORST, max(0.0, (value - self.fine) / (self.bad - self.fine)))

    def told(self, value: float) -> str:
        """What is wrong, with the value."""
        return self.reason.format(value=value) if isfinite(value) else f"its {self.number} is infinite"


ASPECTS: Mapping[str, Aspect] = MappingProxyType(
    {
        "stagnation": Aspect(
            number="stagnant", fine=0.15, bad=0.5, weight=2.0,
            reason="it stagnates: nothing moves in {value:.0%} of the pairs of frames",
        ),
        "order": Aspect(
            number="disorder", fine=0.65, bad=0.85, weight=2.0,
            reason="its frames have no order: neighbours differ {value:.2f} times as much as frames further apart",
        ),
        "camera": Aspect(
            number="camera_shake", fine=0.8, bad=3.0, weight=2.0,
            reason="it jitters: from frame to frame the picture's motion changes by {value:.1f} % of its side",
        ),
        "brightness": Aspect(
            number="flicker_brightness", fine=2.0, bad=6.0, weight=2.0,
            reason="it flickers: frames are {value:.1f} grey levels brighter or darker than their neighbours",
        ),
        "sharpness": Aspect(
            number="clean_detail", fine=0.5, bad=0.2, weight=2.0,
            reason="it is blurred: without grain it has {value:.2f} of the detail that coarser scales let expect",
        ),
        "noise": Aspect(
            number="grain", fine=1.5, bad=6.0, weight=2.0,
            reason="it is noisy: {value:.1f} grey levels come and go with every frame",
        ),
        "colour": Aspect(
            number="tint_drift", fine=6.0, bad=12.0, weight=1.0,
            reason="its colours drift by {value:.0f} levels",
        ),
        "cuts": Aspect(
            number="jumps", fine=0.0, bad=2.0, weight=1.0,
            reason="it is cut: jumps between frames, {value:.0f} in all",
        ),
    }
)  # fmt: skip
"""What is judged. Cuts count by their number's logarithm, see `verdict`."""


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong with a video, if anything."""

    badness: float | None
    """Sum of the grades by their weights: 0 is best, `UNWATCHABLE` what a frozen video gets. None, and no verdict, if
    any aspect could not be judged: what is not known to be good is not called good."""
    judged: tuple[str, ...]
    """Names of the aspects that were judged. Compare only verdicts that judged the same."""
    grades: Mapping[str, float | None]
    """By aspect: 0 nothing to object, 1 a clear defect, up to 3. None: not judged, or the video is bad as a whole."""
    reasons: tuple[str, ...]
    """What is wrong in words, the worst first; then what could not be judged. Empty for a good video."""


UNWATCHABLE = WORST * sum(aspect.weight for aspect in ASPECTS.values())
"""The highest badness there is."""


def verdict(results: Results) -> Verdict:
    """Judges one video by its own numbers, without any other to compare it with.

    An aspect whose number is missing (no optical flow, too few frames) is not judged, and then there is no verdict:
    badness is None, and a reason names what is missing. So neither leaving measures out nor a video of a few frames
    makes a good one. An infinite number gets the worst grade. A frozen video and one of a single frame are as bad as
    can be, judged in all aspects: that all else is calm there is no merit.
    """
    if results.frozen or results.frames < 2:
        told = "it is frozen: nothing moves" if results.frozen else "it has a single frame: give a video"
        return Verdict(badness=UNWATCHABLE, judged=tuple(ASPECTS), grades=dict.fromkeys(ASPECTS), reasons=(told,))
    values = {name: results.numbers.get(aspect.number) for name, aspect in ASPECTS.items()}
    grades = {name: None if value is None else _grade(name, value, results) for name, value in values.items()}
    costs = {name: ASPECTS[name].weight * grade for name, grade in grades.items() if grade is not None}
    wrong = sorted((name for name in costs if (grades[name] or 0) >= CLEAR), key=lambda name: -costs[name])
    told = [ASPECTS[name].told(value) for name in wrong if (value := values[name]) is not None]
    return Verdict(
        badness=sum(costs.values()) if len(costs) == len(ASPECTS) else None,
        judged=tuple(costs),
        grades=grades,
        reasons=(*told, *_missing(results, [name for name in ASPECTS if name not in costs])),
    )


def _missing(results: Results, aspects: Sequence[str]) -> list[str]:
    """In a line what was not judged, and why if that is known."""
    if not aspects:
        return []
    few = f" (it has {results.frames} frames: give {ENOUGH} or more)" if results.frames < ENOUGH else ""
    numbers = ", ".join(f"{name} ({ASPECTS[name].number} is missing)" for name in aspects)
    flow = " (measure with optical flow)" if not few and results.settings.get("flow") is None else ""
    return [f"no verdict, as these were not judged: {numbers}{few or flow}"]


def _grade(name: str, value: float, results: Results) -> float:
    """Of cuts: 0.5 for one, 1 for 3, 2 for 15; where there are none up to 0.25 for what nearly is one."""
    if name != "cuts":
        return ASPECTS[name].grade(value)
    nearly = min(1.0, max(0.0, ((results.numbers.get("jump_strongest") or 1.0) - 1) / (Jumps.least - 1)))
    return ASPECTS[name].grade(log2(1 + value)) if value else 0.25 * nearly
