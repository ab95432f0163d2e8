"""Presets: the settings of a rollout as functions of a model. docs/presets.md lists each difference between them.

`paper` (the default) is the method as published, its defects repaired; `official` is what the published code computes.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, final

from streaming.backbone import Backbone
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, Guidance, scaled
from streaming.model import Model
from streaming.noise import Keyed, Noise, OneGenerator
from streaming.sample import Sampler, Solver

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

PRESETS = ("paper", "official")
"""Their names."""


@final
@dataclass(frozen=True, kw_only=True)
class FirstChunk:
    """How the first chunk of a video from text is made, where not like the later ones."""

    backbone: Backbone
    """The denoiser, without memories; it has as many frames as the later chunks'."""
    guidance: Guidance
    """Which conditionings are evaluated and how they are combined."""
    sampler: Solver
    """Solver and steps."""
    scheduler: "SchedulerMixin"
    """The diffusers scheduler that gives the noise schedule and the prediction type."""


@final
@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset says about a rollout."""

    noise: Noise
    """Where random numbers come from."""
    sampler: Sampler
    """Solver and steps of a chunk."""
    guidance: Guidance
    """Guidance of a chunk."""
    scheduler: "SchedulerMixin"
    """Noise schedule of a chunk."""
    first: FirstChunk | None = None
    """None: the first chunk is made like the others."""
    truncate: bool = False
    """Whether colours are cut to 8 bits in a file (True) or rounded."""

    def but(self, *, kind: str | None = None, steps: int | None = None, scale: float | None = None) -> "Preset":
        """The preset with what is not None in place of its own, in the first chunk as well.

        kind: a sampler's name. steps: denoising steps. scale: of guidance. Raises UserError as `Sampler` does.
        """

        def guided(own: Guidance) -> Guidance:
            rescale = own.rescale if isinstance(own, ClassifierFree) else 0.0
            return own if scale is None else scaled(scale, rescale)

        def changed(own: Sampler) -> Sampler:
            return Sampler(kind or own.kind, own.steps if steps is None else steps, own.eta)

        first = self.first
        if first is not None:
            sampler = changed(first.sampler) if isinstance(first.sampler, Sampler) else first.sampler
            first = replace(first, sampler=sampler, guidance=guided(first.guidance))
        return replace(self, sampler=changed(self.sampler), guidance=guided(self.guidance), first=first)


def make_preset(name: str, model: Model) -> Preset:
    """The preset of that name for a model. Raises UserError for another name and for a model that it does not suit."""
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}': choose one of {', '.join(PRESETS)}")
    return paper(model) if name == "paper" else official(model)


def paper(model: Model) -> Preset:
    """The model's own settings, keyed randomness; the unmodified base model, where there is one, begins the video."""
    first = model.first and FirstChunk(
        backbone=model.first.backbone,
        guidance=_guidance(model.first),
        sampler=_sampler(model.first),
        scheduler=model.first.scheduler,
    )
    return Preset(
        noise=Keyed(),
        sampler=_sampler(model),
        guidance=_guidance(model),
        scheduler=model.scheduler,
        first=first,
    )


def official(model: Model) -> Preset:
    """The settings of the published code (Picsart-AI-Research/StreamingT2V, branch StreamingModelscope).

    Raises UserError for a rectified flow, which that code knows nothing of.
    """
    base = model.first or model
    first = FirstChunk(
        backbone=base.backbone,
        guidance=ClassifierFree(9.0),
        sampler=Sampler("dpm++", 50),
        scheduler=_published(base, "linspace"),
    )
    return Preset(
        noise=OneGenerator(),
        sampler=Sampler("ddim", 50, eta=1.0),
        guidance=ClassifierFree(7.5),
        scheduler=_published(model, "leading"),
        first=first,
        truncate=True,
    )


def _guidance(model: Model) -> Guidance:
    return scaled(model.defaults.guidance, model.defaults.rescale)


def _sampler(model: Model) -> Sampler:
    return Sampler(model.defaults.sampler, model.defaults.steps, model.defaults.eta)


_LEVELS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
"""Of a scheduler's settings those that say which noise levels the network was trained on, and for what."""


def _published(model: Model, spacing: Literal["leading", "linspace"]) -> "SchedulerMixin":
    """The model's noise levels with the published code's choice of times: 981, 961 ... 1 or 999, 979 ... 20.

    The last step of DDIM goes to the schedule's first level, not to zero, and so adds noise.
    """
    from diffusers import DDIMScheduler

    config = dict(model.scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
    if "beta_schedule" not in config:
        raise UserError(f"the preset 'official' is for diffusions and {model.name} is none: choose 'paper'")
    return DDIMScheduler(
        **{name: config[name] for name in _LEVELS if name in config},
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing=spacing,
    )
