"""MAWE of a stream, in the three variants that the paper, its code and common sense ask for."""

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

    - `mawe_official`, published code: mean over pairs of W / (c * mean flow). One pair without motion makes it
      infinite (the code gives NaN if the pair has no error either).
    - `mawe_paper`, the paper's text: mean W / mean squared flow, no constant.
    - `mawe_ratio_of_means`: mean W / (c * mean flow), so that no single pair decides.

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
            "mawe_paper": "MAWE, error by mean squared flow (the paper's text)",
            "mawe_ratio_of_means": "MAWE, mean error by mean flow",
        }
        parts = {
            "mawe_error": Number(meaning="mean squared difference after the warp", unit="grey levels²"),
            "mawe_reached": Number(meaning="share of the pixels that the warp reaches"),
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
        self._errors = Curve(first=1)
        self._ratios, self._motions, self._squares, self._reached = Moments(), Moments(), Moments(), Moments()
        self._endless = False

    def add(self, seen: Observation) -> None:
        if seen.flow is None or seen.previous is None:
            return
        found = mawe(torch.stack((seen.previous, seen.frame)), seen.flow[None])
        moved = seen.difference > 0
        error, motion = float(found.errors[0]), float(found.motions[0]) if moved else 0.0
        one = ratio(error, self._coefficient * motion)
        if one is None or one == inf:
            self._endless = True
        else:
            self._ratios.add(one)
        self._errors.add(error)
        self._motions.add(motion)
        self._squares.add(float(seen.lengths.double().square().mean()) if moved else 0.0)
        self._reached.add(int(found.known[0]) / seen.lengths.numel())

    def result(self) -> Values:
        error, reached = self._errors.mean(), self._reached.mean
        if not reached:  # nothing was compared: no pairs, or a flow that leads everything out of the frame
            return dict.fromkeys(("mawe_official", "mawe_paper", "mawe_ratio_of_means", "mawe_error"), None) | {
                "mawe_reached": reached
            }
        motion = self._motions.mean
        return {
            "mawe_official": inf if self._endless else self._ratios.mean,
            "mawe_paper": inf if not motion else ratio(error, self._squares.mean),
            "mawe_ratio_of_means": inf if not motion else ratio(error, self._coefficient * motion),
            "mawe_error": error,
            "mawe_reached": reached,
        }

    def curves(self) -> Mapping[str, Curve]:
        return {"mawe_error": self._errors}
