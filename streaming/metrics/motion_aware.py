"""MAWE of a stream, in the three variants that the paper, its supplement and the published code have."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import final

import torch

from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.mawe import COEFFICIENT, mawe
from streaming.metrics.running import Curve, Moments, ratio


@final
@dataclass(frozen=True, kw_only=True)
class MotionAwareWarpError(Metric):
    """MAWE [StreamingT2V §5.1]: warp error for the motion there is. W, the error, is one for all variants.

    - `mawe_ratio_of_means`, the paper's main text: mean W / (c * mean flow), so that no single pair decides.
    - `mawe_paper`, the paper's supplement: mean W / mean squared flow, no constant.
    - `mawe_official`, the published code: mean over pairs of W / (c * mean flow). One pair without motion makes it
      infinite (the code gives NaN if the pair has no error either).

    A pair of which the warp reaches no pixel shows no error. The published code counts it as 0; the other two leave it
    out, errors and motion, and `mawe_unreached` tells how many those are.

    None may be trusted alone: jitter, blur and shuffled frames often score better than the original, and values depend
    on the resolution (the paper's: 720x720 with RAFT).
    """

    coefficient: float = COEFFICIENT
    """c."""

    @property
    def numbers(self) -> Mapping[str, Number]:
        """The variants, and the parts that they consist of."""
        told = {
            "mawe_official": "MAWE, mean of the pairs' ratios (published code)",
            "mawe_paper": "MAWE, mean error by mean squared flow (the paper's supplement)",
            "mawe_ratio_of_means": "MAWE, mean error by mean flow (the paper's main text)",
        }
        parts = {
            "mawe_error": Number(meaning="mean squared difference after the warp", unit="grey levels²"),
            "mawe_reached": Number(meaning="share of the pixels that the warp reaches"),
            "mawe_unreached": Number(meaning="pairs of which the warp reaches nothing", unit="pairs"),
        }
        return {
            name: Number(meaning=meaning, better="lower", frozen="infinite") for name, meaning in told.items()
        } | parts

    @property
    def needs(self) -> frozenset[Need]:
        """Flow."""
        return frozenset({"flow"})

    def start(self, tools: Tools) -> Meter:
        """No pairs so far."""
        return _Meter(self.coefficient)


@final
class _Meter(Meter):
    """Errors and motions, pair by pair. Equal frames have no motion, whatever the flow says."""

    def __init__(self, coefficient: float) -> None:
        self._coefficient = coefficient
        self._curve = Curve(first=1)
        self._ratios, self._reached = Moments(), Moments()
        self._errors, self._motions, self._squares = Moments(), Moments(), Moments()  # of pairs that are reached
        self._endless = False

    def add(self, seen: Observation) -> None:
        if seen.flow is None or seen.previous is None:
            return
        found = mawe(torch.stack((seen.previous, seen.frame)), seen.flow[None])
        moved, known = seen.difference > 0, int(found.known[0])
        error, motion = float(found.errors[0]), float(found.motions[0]) if moved else 0.0
        one = ratio(error, self._coefficient * motion)
        if one is None or one == inf:
            self._endless = True
        else:
            self._ratios.add(one)
        self._reached.add(known / seen.lengths.numel())
        if known:
            self._errors.add(error)
            self._motions.add(motion)
            self._squares.add(float(seen.lengths.double().square().mean()) if moved else 0.0)
        self._curve.add(error)

    def result(self) -> Values:
        error, motion = self._errors.mean, self._motions.mean
        parts = {
            "mawe_error": error,
            "mawe_reached": self._reached.mean,
            "mawe_unreached": float(self._reached.count - self._errors.count) if self._reached.count else None,
        }
        if error is None:  # nothing was compared: no pairs, or a flow that leads everything out of the frame
            return dict.fromkeys(("mawe_official", "mawe_paper", "mawe_ratio_of_means")) | parts
        return parts | {
            "mawe_official": inf if self._endless else self._ratios.mean,
            "mawe_paper": ratio(error, self._squares.mean) if motion else inf,
            "mawe_ratio_of_means": ratio(error, self._coefficient * motion) if motion else inf,
        }

    def curves(self) -> Mapping[str, Curve]:
        return {"mawe_error": self._curve}
