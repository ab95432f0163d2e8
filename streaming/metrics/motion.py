"""How much moves, how often nothing does, and how evenly the motion goes on over chunk joins."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import pstdev
from typing import final

from streaming.errors import UserError
from streaming.metrics.borders import Borders
from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.running import Curve, Moments, check_share, ratio


@final
@dataclass(frozen=True, kw_only=True)
class Motion(Metric):
    """Flow score, share of stagnant pairs, and whether the motion dies down or runs wild towards the end."""

    share: float = 0.15
    """Of the pairs, at the start and at the end, that are compared [FramePack's start-end contrast]."""

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Three. Much motion is neither good nor bad; none is bad."""
        drift = "difference of the mean flow at the start and at the end"
        return {
            "flow_score": Number(meaning="mean length of the optical flow", unit="pixels"),
            "stagnant": Number(meaning="share of pairs of frames in which nothing moves", better="lower"),
            "drift_motion": Number(meaning=drift, unit="pixels", better="lower", frozen="absent"),
        }

    @property
    def needs(self) -> frozenset[Need]:
        """Flow."""
        return frozenset({"flow"})

    def start(self, tools: Tools) -> Meter:
        """No pairs so far."""
        return _MotionMeter(self.share)


@final
class _MotionMeter(Meter):
    def __init__(self, share: float) -> None:
        self._share, self._motion, self._still = share, Curve(first=1), 0

    def add(self, seen: Observation) -> None:
        if seen.flow is not None:
            self._motion.add(seen.motion)
            self._still += seen.still

    def result(self) -> Values:
        ends = self._motion.ends(self._share)
        return {
            "flow_score": self._motion.mean(),
            "stagnant": ratio(self._still, self._motion.count),
            "drift_motion": None if ends is None else abs(ends[1] - ends[0]),
        }

    def curves(self) -> Mapping[str, Curve]:
        return {"motion": self._motion}


@final
@dataclass(frozen=True, kw_only=True)
class FlowSpread(Metric):
    """Standard deviations of the flow's length: over time, over a frame's pixels, and around chunk joins.

    The paper compares blendings by "the standard deviation of the flow magnitude between consecutive frames"
    [StreamingT2V §5.3], which may mean either of the first two. A join is better looked at alone: the pairs up to
    `reach` before and behind it.
    """

    borders: Borders | None = None
    """Where chunks begin; None: joins are not looked at."""
    reach: int = 2
    """Pairs on either side of a join."""

    def __post_init__(self) -> None:
        if self.reach < 1:
            raise UserError(f"a reach of {self.reach} pairs around a join: give 1 or more")

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Three, in pixels."""
        told = {
            "flow_std": "standard deviation over time of each pair's mean flow",
            "flow_std_pixels": "standard deviation of the flow over a frame, averaged",
            "flow_std_joins": "standard deviation of the mean flow around a chunk join, averaged",
        }
        better = {"flow_std": "lower", "flow_std_joins": "lower", "flow_std_pixels": None}
        return {
            name: Number(meaning=meaning, unit="pixels", better=better[name], frozen="absent")
            for name, meaning in told.items()
        }

    @property
    def needs(self) -> frozenset[Need]:
        """Flow."""
        return frozenset({"flow"})

    def start(self, tools: Tools) -> Meter:
        """No pairs so far."""
        return _SpreadMeter(self)


@final
class _SpreadMeter(Meter):
    def __init__(self, metric: FlowSpread) -> None:
        self._metric = metric
        self._time, self._pixels, self._joins = Moments(), Moments(), Moments()
        self._around: deque[tuple[bool, float]] = deque(maxlen=2 * metric.reach + 1)  # (at a join, mean flow)

    def add(self, seen: Observation) -> None:
        if seen.flow is None:
            return
        borders = self._metric.borders
        self._time.add(seen.motion)
        self._pixels.add(float(seen.lengths.std(correction=0)))
        self._around.append((borders is not None and borders.begins(seen.index), seen.motion))
        behind = len(self._around) - 1 - self._metric.reach
        if behind >= 0 and self._around[behind][0]:
            self._joins.add(pstdev(motion for _, motion in list(self._around)[max(0, behind - self._metric.reach) :]))

    def result(self) -> Values:
        return {
            "flow_std": self._time.std,
            "flow_std_pixels": self._pixels.mean,
            "flow_std_joins": self._joins_with_last(),
        }

    def _joins_with_last(self) -> float | None:
        """Mean over the joins, also those whose surroundings the end of the video cuts off; None if there are none."""
        pairs, reach = list(self._around), self._metric.reach
        last = [i for i, (join, _) in enumerate(pairs) if join and i >= len(pairs) - reach and len(pairs) > 1]
        spreads = [pstdev(motion for _, motion in pairs[max(0, i - reach) :]) for i in last]
        total = (self._joins.mean or 0.0) * self._joins.count + sum(spreads)
        count = self._joins.count + len(spreads)
        return total / count if count else None
