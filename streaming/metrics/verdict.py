"""The summary verdict: one number for a whole video that none of ten known ways to fool single metrics can fool.

No single measure can do that. MAWE, the paper's, prefers blurred and jittery videos to their originals, a frozen video
has no cuts and no flicker, and shuffled frames are as sharp as ordered ones. So each defect has its own measure, and
the verdict adds up how far a video is out of what genuine video shows; see docs/metrics.md for what was tried on what.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from types import MappingProxyType
from typing import final

from streaming.metrics.jumps import Jumps
from streaming.metrics.results import Results

WORST = 3.0
"""Highest grade of an aspect, so that none decides all."""
CLEAR = 0.5
"""Grade from which on an aspect is a reason."""


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
        """0 for nothing to object, 1 for a clear defect, up to `WORST`."""
        return min(WORST, max(0.0, (value - self.fine) / (self.bad - self.fine)))


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
            number="fine_detail", fine=0.5, bad=0.2, weight=2.0,
            reason="it is blurred: its finest scale has {value:.2f} of the detail of the next one",
        ),
        "colour": Aspect(
            number="tint_drift", fine=6.0, bad=12.0, weight=1.0,
            reason="its colours drift by {value:.0f} levels",
        ),
        "cuts": Aspect(
            number="jumps", fine=0.0, bad=2.0, weight=1.0,
            reason="it is cut: {value:.0f} jumps between frames",
        ),
    }
)  # fmt: skip
"""What is judged. Cuts count by their number's logarithm, see `verdict`."""


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong with a video, if anything."""

    badness: float
    """Sum of the grades by their weights: 0 is best, `UNWATCHABLE` what a frozen video gets."""
    grades: Mapping[str, float | None]
    """By aspect: 0 nothing to object, 1 a clear defect, up to 3; None: not judged."""
    reasons: tuple[str, ...]
    """What is wrong in words, the worst first; then what could not be judged. Empty for a good video."""


UNWATCHABLE = WORST * sum(aspect.weight for aspect in ASPECTS.values())
"""The highest badness there is."""


def verdict(results: Results) -> Verdict:
    """Judges one video by its own numbers, without any other to compare it with.

    Aspects whose number is missing (no optical flow, too few frames) are not judged and count nothing, and a reason
    says so: compare only verdicts of the same aspects. A frozen video and one of a single frame are as bad as can be:
    that all else is calm there is no merit.
    """
    if results.frozen or results.frames < 2:
        told = "it is frozen: nothing moves" if results.frozen else "it has a single frame: give a video"
        return Verdict(badness=UNWATCHABLE, grades=dict.fromkeys(ASPECTS), reasons=(told,))
    values = {name: results.numbers.get(aspect.number) for name, aspect in ASPECTS.items()}
    grades = {name: None if value is None else _grade(name, value, results) for name, value in values.items()}
    costs = {name: ASPECTS[name].weight * grade for name, grade in grades.items() if grade is not None}
    wrong = sorted((name for name in costs if (grades[name] or 0) >= CLEAR), key=lambda name: -costs[name])
    missing = [f"not judged: {name} ({ASPECTS[name].number} is missing)" for name in ASPECTS if name not in costs]
    told = [ASPECTS[name].reason.format(value=values[name]) for name in wrong]
    return Verdict(badness=sum(costs.values()), grades=grades, reasons=(*told, *missing))


def _grade(name: str, value: float, results: Results) -> float:
    """Of cuts: 0.5 for one, 1 for 3, 2 for 15; where there are none up to 0.25 for what nearly is one."""
    if name != "cuts":
        return ASPECTS[name].grade(value)
    nearly = min(1.0, max(0.0, ((results.numbers.get("jump_strongest") or 1.0) - 1) / (Jumps.least - 1)))
    return ASPECTS[name].grade(log2(1 + value)) if value else 0.25 * nearly
