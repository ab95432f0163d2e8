"""The diffusion of Open-Sora 1.0: a chain of fewer levels, a learned variance, guidance of three channels.

Improved DDPM [arXiv 2102.09672]; its tables are in double precision.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from streaming.backbone import Guided, NoiseLevel
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, Guidance, Predictions
from streaming.sample import Denoise, Solver, Step, StepNoise
from streaming.types import Latents

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, SchedulerMixin

Table: TypeAlias = Float64[np.ndarray, " levels"]
Learned: TypeAlias = Float[Tensor, "batch outputs frames high wide"]
"""Predicted noise in the first half of the channels, in the second the share (-1..1) of the variance's range."""
Indices: TypeAlias = Int[Tensor, " batch"]

LEVELS, FIRST_BETA, LAST_BETA = 1000, 1e-4, 0.02
STEPS, GUIDANCE, GUIDED_CHANNELS = 100, 7.0, 3
"""Of the released inference configurations; the published code guides 3 of the 4 channels."""


def iddpm_scheduler(
    levels: int = LEVELS, first_beta: float = FIRST_BETA, last_beta: float = LAST_BETA
) -> "DDPMScheduler":
    """diffusers' scheduler with Open-Sora 1.0's noise schedule."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=levels,
        beta_start=first_beta,
        beta_end=last_beta,
        beta_schedule="linear",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample=False,
    )


@final
@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the latents one level lower, as a prediction has them."""

    mean: Latents
    """Of the Gaussian."""
    log_variance: Latents
    """Natural logarithm."""
    clean: Latents
    """The clean latents that the prediction stands for."""


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """Levels of a diffusion, from the cleanest on, and what follows from them."""

    betas: Table
    """Variance that each level adds."""
    times: tuple[int, ...]
    """Each level's number in the full chain, which the network is told."""

    @cached_property
    def kept(self) -> Table:
        """The signal's variance at each level (alpha bar)."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def kept_before(self) -> Table:
        """That of the level below; 1 below the first."""
        return np.append(1.0, self.kept[:-1])

    @cached_property
    def posterior_variance(self) -> Table:
        """Of the level below, given the clean latents."""
        return self.betas * (1 - self.kept_before) / (1 - self.kept)

    @cached_property
    def posterior_log_variance(self) -> Table:
        """Its logarithm, where it is 0 that of the next one (of a single level: of its beta)."""
        second = self.posterior_variance[1] if len(self.betas) > 1 else self.betas[0]
        return np.log(np.append(second, self.posterior_variance[1:]))

    @cached_property
    def posterior_clean(self) -> Table:
        """Factor of the clean latents in the posterior's mean."""
        return self.betas * np.sqrt(self.kept_before) / (1 - self.kept)

    @cached_property
    def posterior_noisy(self) -> Table:
        """Factor of the noisy latents in the posterior's mean."""
        return (1 - self.kept_before) * np.sqrt(1 - self.betas) / (1 - self.kept)

    def noised(self, clean: Latents, noise: Latents, index: Indices) -> Latents:
        """x_t at each row's level."""
        return _at(np.sqrt(self.kept), index, clean) * clean + _at(np.sqrt(1 - self.kept), index, clean) * noise

    def posterior(self, clean: Latents, latents: Latents, index: Indices) -> Latents:
        """Mean of the level below, given the clean latents and those of each row's level."""
        return _at(self.posterior_clean, index, latents) * clean + _at(self.posterior_noisy, index, latents) * latents

    def moments(self, prediction: Learned, latents: Latents, index: Indices) -> Moments:
        """What a prediction at each row's level says of the level below.

        A prediction with as many channels as the latents has no variance: it is the posterior's then.
        Raises UserError for any number of channels but once or twice the latents'.
        """
        noise, share = split(prediction, latents.shape[1])
        clean = _at(np.sqrt(1 / self.kept), index, latents) * latents
        clean = clean - _at(np.sqrt(1 / self.kept - 1), index, latents) * noise
        low = _at(self.posterior_log_variance, index, latents)
        if share is None:
            log_variance = low.expand_as(latents)
        else:
            upper = (share + 1) / 2
            log_variance = upper * _at(np.log(self.betas), index, latents) + (1 - upper) * low
        return Moments(mean=self.posterior(clean, latents, index), log_variance=log_variance, clean=clean)


def full_chain(scheduler: "SchedulerMixin") -> Chain:
    """All levels of a scheduler's noise schedule. Raises UserError for one that is neither linear nor listed."""
    config: Any = dict(scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    elif config.get("beta_schedule") == "linear":
        betas = np.linspace(config["beta_start"], config["beta_end"], config["num_train_timesteps"], dtype=np.float64)
    else:
        raise UserError("the sampler iddpm suits a diffusion with linear betas, which this model is not")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise UserError(f"the sampler iddpm reads predicted noise, this model predicts {config['prediction_type']}")
    return Chain(betas, tuple(range(len(betas))))


def spaced_times(levels: int, steps: int) -> tuple[int, ...]:
    """So many of the levels, evenly spaced, first and last included; a half is rounded to the even level.

    Strides are added up one by one, as in the published code: with halves between levels the last bits decide.
    """
    stride = (levels - 1) / (steps - 1) if steps > 1 else 1.0
    return tuple(round(time) for time in accumulate(repeat(stride, steps - 1), initial=0.0))


def respaced(chain: Chain, times: Sequence[int]) -> Chain:
    """A chain of some of the levels, whose betas lead from each to the next."""
    kept = chain.kept[list(times)]
    return Chain(1 - kept / np.append(1.0, kept[:-1]), tuple(chain.times[time] for time in times))


@final
@dataclass(frozen=True)
class IDDPM(Solver):
    """Ancestral sampling with the learned variance, or DDIM, on evenly spaced levels [Open-Sora 1.0's sampler].

    The network may give the variance in as many channels more; DDIM does without it.
    """

    steps: int = STEPS
    """Evaluations in a trajectory."""
    eta: float | None = None
    """None: ancestral. Otherwise DDIM: 0 deterministic, 1 as much fresh noise as the posterior has."""

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= 1000:
            raise UserError(f"{self.steps} denoising steps: choose between 2 and 1000")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"an eta of {self.eta}: choose between 0 and 1")

    def __call__(
        self,
        denoise: Denoise,
        start: Latents,
        noise: StepNoise,
        scheduler: "SchedulerMixin",
        *,
        strength: float = 1.0,
        clean: Latents | None = None,
    ) -> Latents:
        """Latents at the end of a trajectory, see `Solver`; `noise` is asked after each step but the last.

        Raises UserError as `plan` does.
        """
        chain, plan = self.plan(scheduler, strength)
        first = plan[0].level
        latents = start if clean is None else first.signal * clean + first.noise * start
        for step in plan:
            index = torch.full((len(latents),), self.steps - 1 - step.index, device=latents.device)
            latents = self._advance(chain, denoise(latents, step), latents, index, step, noise)
        return latents

    def plan(self, scheduler: "SchedulerMixin", strength: float = 1.0) -> tuple[Chain, list[Step]]:
        """The shorter chain, and the steps down it.

        Raises UserError for a strength outside (0, 1], more steps than the schedule has levels, and a model that is no
        diffusion with linear betas and predicted noise.
        """
        if not 0 < strength <= 1:
            raise UserError(f"a strength of {strength}: choose more than 0 and at most 1")
        full = full_chain(scheduler)
        levels = round(strength * len(full.betas))
        if self.steps > levels:
            raise UserError(f"{self.steps} steps at strength {strength:g}: choose at most {levels} steps")
        chain = respaced(full, spaced_times(levels, self.steps))
        steps = enumerate(zip(reversed(chain.times), reversed(chain.kept.tolist()), strict=True))
        return chain, [Step(i, float(t), NoiseLevel(math.sqrt(kept), math.sqrt(1 - kept))) for i, (t, kept) in steps]

    def _advance(
        self, chain: Chain, prediction: Learned, latents: Latents, index: Indices, step: Step, noise: StepNoise
    ) -> Latents:
        """From one level to the one below; from the lowest to the mean."""
        moments = chain.moments(prediction, latents, index)
        last = step.index == self.steps - 1
        if self.eta is None:
            spread = (0.5 * moments.log_variance).exp()
            return moments.mean if last else moments.mean + spread * noise(step.index).to(latents)
        now, then = _at(chain.kept, index, latents), _at(chain.kept_before, index, latents)
        direction = _at(np.sqrt(1 / chain.kept), index, latents) * latents - moments.clean
        direction = direction / _at(np.sqrt(1 / chain.kept - 1), index, latents)
        added = self.eta * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
        latents = then.sqrt() * moments.clean + (1 - then - added.square()).clamp(min=0).sqrt() * direction
        return latents if last or not self.eta else latents + added * noise(step.index).to(latents)


@final
@dataclass(frozen=True)
class FirstChannels(Guidance):
    """Classifier-free guidance of the first channels; the others, and the variance, are the conditional row's."""

    scale: float = GUIDANCE
    """1 is the conditional prediction."""
    channels: int = GUIDED_CHANNELS
    """How many are guided (published code: 3 of 4 latent channels)."""

    @property
    def rows(self) -> tuple[Guided, ...]:
        """Unconditional first, then conditional."""
        return ClassifierFree(self.scale).rows

    def combine(self, predictions: Predictions) -> Latents:
        """One prediction for each video, of as many channels as the network gives."""
        guided = ClassifierFree(self.scale).combine(predictions[:, :, : self.channels])
        return torch.cat([guided, predictions[1][:, self.channels :]], dim=1)


def split(prediction: Learned, channels: int) -> tuple[Latents, Latents | None]:
    """Predicted noise, and the variance's share if the network gives one. Raises UserError for other channels."""
    given = prediction.shape[1]
    if given not in (channels, 2 * channels):
        raise UserError(f"a prediction of {given} channels for latents of {channels}: expected once or twice as many")
    return prediction[:, :channels], prediction[:, channels:] if given > channels else None


def _at(table: Table, index: Indices, like: Tensor) -> Float[Tensor, "batch 1 1 1 1"]:
    """A table's entries, one for each row."""
    values = torch.from_numpy(table).to(torch.float32)
    return values.to(like.device)[index].view(-1, 1, 1, 1, 1)
