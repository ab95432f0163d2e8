"""The solver that the published enhancer uses: DPM-Solver++ 2M SDE over its own times."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Float

from streaming.backbone import NoiseLevel
from streaming.errors import UserError
from streaming.sample import KINDS, Denoise, Sampler, Solver, Step, StepNoise, known, too_many
from streaming.types import Latents

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

TRAILING_SDE = "dpm++sde-trailing"
"""Name of this solver where `streaming.sample.KINDS` name the others."""


@final
@dataclass(frozen=True)
class TrailingSDE(Solver):
    """DPM-Solver++ 2M SDE (midpoint) from the last level down in even strides, which need not be whole.

    Of L levels it takes the times L - 1 - k L / (steps + 1) for k = 0 .. steps - 1, then goes to the clean video at
    once: one stride more would be the next to last, which is left out. Signal and noise at a time between two levels
    are interpolated in the logarithm of their ratio; the network is told the nearest level, and its prediction is read
    at that one [convention of the published code; DPM-Solver++, arXiv 2211.01095].
    """

    steps: int
    """Evaluations in a trajectory (published enhancer: 30)."""
    eta: float = 1.0
    """0 deterministic, 1 as much fresh noise as the reverse diffusion has."""
    published_start: bool = False
    """Whether an SDEdit trajectory begins as in the published code, whose latents are too small by the factor of their
    noise (0.972 at level 599); without `clean` nothing differs."""

    def __post_init__(self) -> None:
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
        """Latents at the end of a trajectory, see `Solver`; `noise` is asked after each step but the last.

        The noise of a step is the increment of a Brownian path over it, made a standard normal one; those of different
        steps are independent. Raises UserError as `plan` does.
        """
        kind = str(dict(scheduler.config).get("prediction_type"))  # pyright: ignore[reportAttributeAccessIssue]
        ratios, steps = self.plan(scheduler, strength)
        first = _level(ratios[0])
        latents = start if clean is None else first.signal * clean + first.noise * start
        if clean is not None and self.published_start:
            latents = first.noise * latents
        before: Latents | None = None
        for step in steps:
            found = clean_video(kind, denoise(latents, step), latents, step.level)
            latents = self._advance(step.index, ratios, latents, found, before, noise)
            before = found
        return latents

    def plan(self, scheduler: "SchedulerMixin", strength: float = 1.0) -> tuple[list[float], list[Step]]:
        """Noise / signal in the latents at each step and at the end (0), and the steps that it will take.

        A step's time and level are those that the network is told. Raises UserError for a strength outside (0, 1], more
        steps than levels, and a rectified flow.
        """
        if not 0 < strength <= 1:
            raise UserError(f"a strength of {strength}: choose more than 0 and at most 1")
        kept = _kept(scheduler)
        levels = round(strength * len(kept))
        if self.steps > levels - 1:
            raise UserError(too_many(self.steps, strength, levels - 1))
        with np.errstate(divide="ignore"):
            ratios = np.sqrt((1 - kept) / kept)
        times = [levels - 1 - k * levels / (self.steps + 1) for k in range(self.steps)]
        steps = [Step(i, float(round(t)), _level(ratios[round(t)])) for i, t in enumerate(times)]
        return [*(_between(ratios, t) for t in times), 0.0], steps

    def _advance(
        self,
        index: int,
        ratios: list[float],
        latents: Latents,
        found: Latents,
        before: Latents | None,
        noise: StepNoise,
    ) -> Latents:
        """One step of the solver from `latents`, with the clean video that it found there and one step earlier."""
        now, then = ratios[index], ratios[index + 1]
        if then == 0:
            return found
        ahead, shrink = _level(then), then / now
        turned = shrink ** (1 + self.eta)  # what is left of this step's noise, of which a part is drawn anew
        clean = found
        if before is not None and math.isfinite(ratios[index - 1]):
            slope = (math.log(now) - math.log(then)) / (math.log(ratios[index - 1]) - math.log(now))
            clean = found + 0.5 * slope * (found - before)
        signal = ahead.signal * (1 - turned)
        latents = ahead.noise / _level(now).noise * shrink**self.eta * latents + signal * clean
        fresh = ahead.noise * math.sqrt(1 - shrink ** (2 * self.eta))
        return latents + fresh * noise(index).to(latents) if fresh else latents


def make_solver(kind: str, steps: int, eta: float = 1.0, *, published_start: bool = False) -> Solver:
    """The solver of a name: `TRAILING_SDE`, or one of `streaming.sample.KINDS`. Raises UserError for another name.

    published_start: see `TrailingSDE`; the others have no such thing.
    """
    if kind == TRAILING_SDE:
        return TrailingSDE(steps, eta, published_start)
    if kind not in KINDS:
        raise UserError(f"unknown sampler '{kind}': choose one of {', '.join((*KINDS, TRAILING_SDE))}")
    return Sampler(kind, steps, eta)


def clean_video(kind: str, prediction: Latents, latents: Latents, level: NoiseLevel) -> Latents:
    """The clean latents that a prediction of the scheduler's type (`kind`) stands for at a level.

    Raises UserError for an unknown type, and for predicted noise where there is no signal left.
    """
    if kind == "v_prediction":
        return level.signal * latents - level.noise * prediction
    if kind == "sample":
        return prediction
    if kind != "epsilon":
        raise UserError(f"this solver reads v_prediction, epsilon and sample, not '{kind}': choose another sampler")
    if level.signal == 0:
        raise UserError(
            "this noise schedule ends without any signal, where predicted noise says nothing: lower --strength"
        )
    return (latents - level.noise * prediction) / level.signal


def _kept(scheduler: "SchedulerMixin") -> Float[np.ndarray, " levels"]:
    """The signal's variance at each level; from betas given one by one in double precision, unlike diffusers'."""
    config = dict(scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
    if "beta_schedule" not in config:
        raise UserError(
            f"the sampler '{TRAILING_SDE}' does not suit a rectified flow, which this model is: choose {KINDS[3]}"
        )
    if config.get("trained_betas") is not None and not config.get("rescale_betas_zero_snr"):
        return np.cumprod(1 - np.asarray(config["trained_betas"], dtype=np.float64))
    from diffusers import DDIMScheduler

    plain: Any = DDIMScheduler.from_config(known(config, DDIMScheduler))
    return plain.alphas_cumprod.double().numpy()


def _between(ratios: Float[np.ndarray, " levels"], time: float) -> float:
    """noise / signal at a time that may lie between two levels."""
    low, share = math.floor(time), time % 1
    if not share:
        return float(ratios[low])
    return float(math.exp((1 - share) * math.log(ratios[low]) + share * math.log(ratios[low + 1])))


def _level(ratio: float) -> NoiseLevel:
    """Signal and noise of a variance-preserving diffusion, of which the ratio noise / signal is given."""
    if math.isinf(ratio):
        return NoiseLevel(0.0, 1.0)
    return NoiseLevel(1 / math.sqrt(1 + ratio**2), ratio / math.sqrt(1 + ratio**2))
