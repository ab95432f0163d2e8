"""How the memories are trained: figures, and presets as functions."""

from dataclasses import dataclass, replace
from typing import Literal, final

from streaming.subject_weight import SUBJECT
from streaming.training import Recipe


@final
@dataclass(frozen=True, kw_only=True)
class MemoryRecipe:
    """What the training of CAM and APM needs beside the loop's own recipe."""

    loop: Recipe
    """Steps, batch, learning rate, ..."""
    condition: Literal["pixels", "latents"] | None = None
    """What CAM is conditioned on: decoded frames (the paper) or latents; None: frames, unless the codec packs time."""
    distances: bool = False
    """Whether CAM knows how far away a remembered frame lies (`adapters.distance_bias`); the paper's doesn't."""
    text_dropout: float = 0.1
    """Share of the clips whose caption is replaced by the empty one, for guidance."""
    anchor_dropout: float = 0.1
    """Share of the clips whose anchor is replaced by the grey image. Half of the drops coincide with those of the text,
    since the unconditional row of guidance has neither."""
    condition_noise: float = 0.3
    """Noise on the remembered frames: its standard deviation is uniform up to this, in units of latents or of pixels in
    [-1, 1]. Teaches CAM to bear its own imperfect output; 0 as in the paper."""
    condition_drift: float = 0.05
    """Standard deviation of a gain and an offset for each clip and channel of the remembered frames: colours that have
    drifted are to be brought back, not continued; 0 as in the paper."""
    injected: float = 0.5
    """Share of the clips whose noisy overlap is made of the (imperfect) remembered latents, as injection shows it while
    sampling; there the overlap does not count in the loss."""
    subject: float = SUBJECT
    """How often a cell of the subject counts at most, where the dataset tells (`streaming.subject_weight`); 1 as in the
    paper."""
    forgetting: float = 0.0
    """Share of the clips without their short-term memory, to train a long-term one beside it: as long as a clip's own
    first frames are known, they tell all that the anchor does, and better. 0 as in the paper."""
    encoder_rate: float = 0.5
    """Factor on the learning rate of CAM's copy of the backbone's encoder."""
    gate_rate: float = 8.0
    """Factor on the learning rate of APM's gates, times the standard deviation of the text that they add to. Adam moves
    alpha by the rate a step, whatever the gradient: at 1 the gates hardly opened (SiLU .09 where text spreads by 1),
    and 10 without regard to the text broke a transformer whose projected text spreads by .16."""
    slope_rate: float = 10.0
    """Factor on the learning rate of the slopes by which scores fall with distance: few numbers, on a log scale."""
    period: int = 10
    """How often a clip is used on average, with fresh noise and times; more spares rendering and encoding."""
    slices: int = 32
    """Batches that the pool of clips holds."""
    context_seconds: float = 30.0
    """How far from the clip its anchor may lie."""


def cam_recipe(*, toy: bool = False) -> MemoryRecipe:
    """CAM, on the frozen base."""
    return _sized(Recipe(steps=2000, batch=96, learning_rate=1e-3), toy)


def apm_recipe(*, toy: bool = False) -> MemoryRecipe:
    """APM, on the frozen base with the trained CAM, also frozen; a third of the clips know the anchor alone.

    With CAM at all clips, the embedded model's APM stood still: its loss went
    from .1221 to .1218 over 96 k clips.
    """
    return replace(_sized(Recipe(steps=1200, batch=96, learning_rate=6e-4), toy), forgetting=1 / 3)


def memories_recipe(*, toy: bool = False) -> MemoryRecipe:
    """CAM and APM together (a departure from the paper, which trains one after the other): cheaper for small models.

    As in `apm_recipe`, a third of the clips know the anchor alone; CAM learns from the others.
    """
    return replace(_sized(Recipe(steps=2400, batch=96, learning_rate=1e-3), toy), forgetting=1 / 3)


def _sized(loop: Recipe, toy: bool) -> MemoryRecipe:
    if not toy:
        return MemoryRecipe(loop=loop)
    return MemoryRecipe(loop=replace(loop, steps=4, batch=2, warmup=1, log_every=2), period=2, slices=2)
