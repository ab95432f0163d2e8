"""Guidance as an object: which rows one guided evaluation needs, and how their predictions become one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from streaming.backbone import Guided
from streaming.types import Latents

Predictions = Float[Tensor, "rows batch channels frames high wide"]


class Guidance(ABC):
    """Turns the predictions of several conditionings into one."""

    @property
    @abstractmethod
    def rows(self) -> tuple[Guided, ...]:
        """The evaluations needed for each video, in the order in which `combine` gets them."""

    @abstractmethod
    def combine(self, predictions: Predictions) -> Latents:
        """One prediction for each video."""


@final
@dataclass(frozen=True)
class Unguided(Guidance):
    """One evaluation with prompt and anchor, taken as it is."""

    @property
    def rows(self) -> tuple[Guided, ...]:
        """Prompt and anchor."""
        return (Guided(text=True, anchor=True),)

    def combine(self, predictions: Predictions) -> Latents:
        """The only row."""
        return predictions[0]


@final
@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """u + scale * (c - u); u has neither prompt nor anchor (convention of the published code)."""

    scale: float
    """1 is the conditional prediction; the published code uses 7.5."""
    rescale: float = 0.0
    """Share of the result brought back to the conditional row's standard deviation over a chunk (enhancer: 0.2)."""

    @property
    def rows(self) -> tuple[Guided, ...]:
        """Unconditional first, then conditional."""
        return (Guided(text=False, anchor=False), Guided(text=True, anchor=True))

    def combine(self, predictions: Predictions) -> Latents:
        """One prediction for each video."""
        free, bound = predictions[0], predictions[1]
        guided = free + self.scale * (bound - free)
        if not self.rescale:
            return guided
        return guided * (self.rescale * _spread(bound) / _spread(guided) + 1 - self.rescale)


def scaled(scale: float, rescale: float = 0.0) -> Guidance:
    """Guidance of a scale; 1 is the conditional prediction itself: one evaluation instead of two."""
    return Unguided() if scale == 1 else ClassifierFree(scale, rescale)


@final
@dataclass(frozen=True)
class TextThenAnchor(Guidance):
    """Three evaluations, a scale for the prompt and one for the anchor on top of it [StreamingT2V, appendix]."""

    text: float = 7.5
    """Scale of (text - unconditional)."""
    anchor: float = 7.5
    """Scale of (text and anchor - text)."""

    @property
    def rows(self) -> tuple[Guided, ...]:
        """Unconditional, text, text and anchor."""
        return (Guided(text=False, anchor=False), Guided(text=True, anchor=False), Guided(text=True, anchor=True))

    def combine(self, predictions: Predictions) -> Latents:
        """One prediction for each video."""
        free, text, both = predictions[0], predictions[1], predictions[2]
        return free + self.text * (text - free) + self.anchor * (both - text)


def _spread(value: Latents) -> Float[Tensor, "batch 1 1 1 1"]:
    return value.flatten(1).std(dim=1).view(-1, 1, 1, 1, 1)
