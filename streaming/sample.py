"""Samplers: functions over a denoiser. The schedules are diffusers', the randomness is ours and counter-based."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch

from streaming.backbone import NoiseLevel
from streaming.errors import UserError
from streaming.types import Latents

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

KINDS = ("ddim", "dpm++", "dpm++sde", "euler")
"""DDIM; DPM-Solver++ 2M; its SDE form; Euler for rectified flow."""


@final
@dataclass(frozen=True)
class Step:
    """Where a trajectory is."""

    index: int
    """0 for the first (noisiest) step taken."""
    time: float
    """In the scheduler's unit: 0..999 for a diffusion, 1000 * t for a rectified flow."""
    level: NoiseLevel
    """Signal and noise in the latents at this time."""


Denoise: TypeAlias = Callable[[Latents, Step], Latents]
"""Noisy latents at a step -> the network's (guided) prediction, in float32 and in the scheduler's prediction type.

A rectified flow's network predicts noise - x_0, the direction towards the noise (negate a network that predicts
x_0 - noise).
"""

StepNoise: TypeAlias = Callable[[int], Latents]
"""Index of a step -> standard normal noise of the latents' shape, for solvers that add some."""


class Solver(ABC):
    """Takes latents along a trajectory, from noise to a clean video; holds no state between trajectories."""

    steps: int
    """Evaluations in a trajectory; a field of every solver."""

    @abstractmethod
    def plan(self, scheduler: "SchedulerMixin", strength: float = 1.0) -> tuple[Any, list[Step]]:
        """Whatever the solver needs, and the steps that it will take. Raises UserError as a trajectory would."""

    @abstractmethod
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
        """Latents at the end of a trajectory.

        start: standard normal noise. With `clean` (SDEdit) the trajectory begins with `clean` noised by `start` at the
        share `strength` of the noise schedule, and all `steps` fall into that part; `noise` gives what a stochastic
        solver adds after a step. `scheduler` gives the noise schedule and the prediction type; it is never changed.
        Raises UserError for a strength outside (0, 1], more steps than the schedule has times, and a model that the
        solver does not suit.
        """


@final
@dataclass(frozen=True)
class Sampler(Solver):
    """A solver of diffusers and its settings; holds no state between trajectories."""

    kind: str
    """One of `KINDS`."""
    steps: int
    """Evaluations in a trajectory."""
    eta: float = 1.0
    """DDIM only: 0 deterministic, 1 as much fresh noise as ancestral sampling."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown sampler '{self.kind}': choose one of {', '.join(KINDS)}")
        if not 1 <= self.steps <= 1000:
            raise UserError(f"{self.steps} denoising steps: choose between 1 and 1000")
        if not 0 <= self.eta <= 1:
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
        """Latents at the end of a trajectory.

        start: standard normal noise. With `clean` (SDEdit) the trajectory begins with `clean` noised by `start` at the
        share `strength` of the noise schedule, and all `steps` fall evenly into that part. `scheduler` gives the noise
        schedule and the prediction type; it is copied, never changed.
        Raises UserError as `plan` does.
        """
        solver, steps = self.plan(scheduler, strength)
        first = steps[0].level
        latents = start if clean is None else first.signal * clean + first.noise * start
        for step, after in zip(steps, [*steps[1:], None], strict=True):
            latents = self._advance(solver, denoise(latents, step), latents, step, after, noise)
        return latents

    def plan(self, scheduler: "SchedulerMixin", strength: float = 1.0) -> tuple[Any, list[Step]]:
        """A fresh solver and the steps that it will take.

        Raises UserError for a strength outside (0, 1], more steps than the schedule has times, and a sampler that
        does not belong to the kind of model.
        """
        if not 0 < strength <= 1:
            raise UserError(f"a strength of {strength}: choose more than 0 and at most 1")
        solver = self._solver(scheduler)
        levels = solver.config["num_train_timesteps"]
        most = int(levels * strength) - self.kind.startswith("dpm++")  # which needs a time between any two steps
        if self.steps > most:
            raise UserError(too_many(self.steps, strength, most))
        if self.kind == "euler":
            sigmas = strength * np.linspace(1, 1 / self.steps, self.steps)
            solver.set_timesteps(sigmas=sigmas.tolist())  # the shift is applied to these, once
        elif strength < 1:
            self._set_times(solver, [round(strength * levels * i / self.steps) - 1 for i in range(self.steps, 0, -1)])
        else:
            solver.set_timesteps(self.steps)
        if self.kind.startswith("dpm++") and not bool(torch.isfinite(solver.sigmas).all()):
            raise UserError(
                f"this noise schedule ends without any signal, where '{self.kind}' cannot begin: choose a strength "
                "below 1 or the sampler ddim"
            )
        if self.kind.startswith("dpm++") and len(solver.timesteps) > self.steps:  # rounding: one too many at the end
            self._set_times(solver, solver.timesteps[: self.steps].tolist())
        if self.kind != "ddim":
            solver.set_begin_index(0)
        times = solver.timesteps[: self.steps]
        if self.kind != "euler" and float(times.max()) >= levels:
            raise UserError(
                f"{self.steps} steps go past the noise schedule of this model: choose fewer than {levels - 1}"
            )
        return solver, [Step(i, float(t), _level(solver, i)) for i, t in enumerate(times)]

    def _set_times(self, solver: Any, times: list[int]) -> None:
        if self.kind == "ddim":
            solver.set_timesteps(len(times))
            solver.timesteps = torch.tensor(times)
        else:
            solver.set_timesteps(timesteps=times)

    def _solver(self, scheduler: "SchedulerMixin") -> Any:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

        config = dict(scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
        is_diffusion = "beta_schedule" in config
        if is_diffusion == (self.kind == "euler"):
            suitable = ", ".join(KINDS[:3]) if is_diffusion else KINDS[3]
            model = "a diffusion" if is_diffusion else "a rectified flow"
            raise UserError(f"the sampler '{self.kind}' does not suit {model}, which this model is: choose {suitable}")
        if self.kind == "euler":
            return FlowMatchEulerDiscreteScheduler.from_config(known(config, FlowMatchEulerDiscreteScheduler))
        if self.kind == "ddim":
            return DDIMScheduler.from_config(known(config, DDIMScheduler))
        algorithm = "sde-dpmsolver++" if self.kind == "dpm++sde" else "dpmsolver++"
        own = known(config, DPMSolverMultistepScheduler)
        return DPMSolverMultistepScheduler.from_config(own, algorithm_type=algorithm)

    def _advance(
        self, solver: Any, prediction: Latents, latents: Latents, step: Step, after: Step | None, noise: StepNoise
    ) -> Latents:
        if self.kind == "ddim":
            return self._ddim(solver, prediction, latents, step, after, noise)
        time = solver.timesteps[solver.begin_index + step.index]
        if self.kind == "dpm++sde":
            fresh = noise(step.index).to(latents)
            return solver.step(prediction, time, latents, variance_noise=fresh).prev_sample
        return solver.step(prediction, time, latents).prev_sample

    def _ddim(
        self, solver: Any, prediction: Latents, latents: Latents, step: Step, after: Step | None, noise: StepNoise
    ) -> Latents:
        """DDIM to the next time of the plan. (diffusers' own goes 1000 // steps back, past it for most step counts.)"""
        clean = solver.step(prediction, int(step.time), latents).pred_original_sample
        now, then = step.level, after.level if after else _level_of(float(solver.final_alpha_cumprod))
        added = self.eta * then.noise / now.noise * max(0.0, 1 - (now.signal / then.signal) ** 2) ** 0.5
        kept = max(0.0, then.noise**2 - added**2) ** 0.5
        latents = then.signal * clean + kept * (latents - now.signal * clean) / now.noise
        return latents + added * noise(step.index).to(latents) if added else latents


def known(config: dict[str, Any], solver: Any) -> dict[str, Any]:
    """The part of a configuration that a solver reads; diffusers warns of the rest."""
    import inspect

    return {name: value for name, value in config.items() if name in inspect.signature(solver.__init__).parameters}


def _level(solver: Any, index: int) -> NoiseLevel:
    """Level of the solver's time at an index."""
    if not hasattr(solver, "sigmas"):
        return _level_of(float(solver.alphas_cumprod[int(solver.timesteps[index])]))
    sigma = float(solver.sigmas[index])
    if not hasattr(solver, "alphas_cumprod"):
        return NoiseLevel(1 - sigma, sigma)
    return _level_of(1 / (sigma**2 + 1))


def too_many(steps: int, strength: float, most: int) -> str:
    """What is wrong with more steps than a part of the schedule has times, in one line."""
    change = f"choose at most {most} steps" if most > 0 else "choose a larger strength"
    return f"{steps} steps at strength {strength:g}: {change}"


def _level_of(kept: float) -> NoiseLevel:
    return NoiseLevel(kept**0.5, (1 - kept) ** 0.5)
