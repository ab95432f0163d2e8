"""Rectified flow of Open-Sora 1.2: times that depend on size and length, frames that are kept or edited, the loss.

As everywhere here and in diffusers, a network predicts noise - x_0. Open-Sora's predicts x_0 - noise: its backend
negates that. Time is 1000 where all is noise. `Sampler("euler", 30)` with `flow_scheduler` samples as the
published code does, under `ClassifierFree(GUIDANCE)`.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streaming.errors import UserError
from streaming.sample import Sampler, Step, StepNoise
from streaming.types import Latents

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin

Times = Float[Tensor, " times"]
FrameShares = Float[Tensor, "batch frames"]
Generated = Bool[Tensor, "batch frames"]

LEVELS = 1000
"""The time at which nothing but noise is left."""
STEPS, GUIDANCE = 30, 7.0
"""Of the released inference configurations."""
_AREA = 512 * 512
"""Pixels of the frames whose times stay as they are, for an image."""
_PIECE, _PACKED = 17, 5
"""Pixel frames and latents of a piece, by which length is counted."""

DenoiseFrames: TypeAlias = Callable[[Latents, Step, Generated], Latents]
"""Latents, step, and which frames are being generated -> the network's (guided) prediction of noise - x_0."""


def flow_shift(height: int, width: int, frames: int) -> float:
    """How much longer a larger or longer video stays noisy: sqrt(area / 512^2) * sqrt(latent frames).

    Of pixel frames, those of an unfinished piece don't count [published code]; an image counts as one.
    Raises UserError for 2 to 16 frames, for which that would be 0 and every time not a number.
    """
    if height < 1 or width < 1:
        raise UserError(f"a size of {width}x{height}: width and height must be at least 1")
    if frames != 1 and frames < _PIECE:
        raise UserError(
            f"Open-Sora 1.2 cannot make {frames} frames (its times would all become 0): "
            f"ask for 1, or for {_PIECE} or a multiple of that"
        )
    latents = 1 if frames == 1 else frames // _PIECE * _PACKED
    return math.sqrt(height * width / _AREA * latents)


def shifted(times: Times, shift: float) -> Times:
    """Times in 0..1000 after the shift s of a size: share t of 1000 becomes s t / (1 + (s - 1) t)."""
    shares = times / LEVELS
    return LEVELS * shift * shares / (1 + (shift - 1) * shares)


def flow_scheduler(height: int, width: int, frames: int) -> "FlowMatchEulerDiscreteScheduler":
    """diffusers' scheduler for videos of this size in pixels, with which `Sampler("euler", N)` takes Open-Sora's times.

    Raises UserError as `flow_shift` does.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS, shift=flow_shift(height, width, frames))


def sample_frames(
    denoise: DenoiseFrames,
    start: Latents,
    noise: StepNoise,
    scheduler: "SchedulerMixin",
    *,
    shares: FrameShares,
    steps: int = STEPS,
) -> Latents:
    """Latents at the end of a trajectory that keeps, edits or generates each frame [published code].

    shares, of every latent frame: 1 generates it from noise, 0 keeps it, r between them edits it: it rests until the
    time has come down to 1000 r, is noised to the level of that step, and goes on with the others. `start` holds noise
    in the first kind of frames, clean latents in the rest. The network is told which frames are under way; the others
    stay what they were. `noise` is asked in every step in which a frame begins.
    Raises UserError for shares outside 0..1, and as `Sampler.plan` does.
    """
    if bool(((shares < 0) | (shares > 1)).any()):
        raise UserError("a frame's share of the trajectory must lie between 0 (keep) and 1 (generate)")
    _, plan = Sampler("euler", steps).plan(scheduler)
    latents, begun = start, shares >= 1
    for step, after in zip(plan, [*(step.level.noise for step in plan[1:]), 0.0], strict=True):
        active = begun | (shares * LEVELS >= step.time)
        if bool((active & ~begun).any()):
            noised = step.level.signal * latents + step.level.noise * noise(step.index).to(latents)
            latents = torch.where(_over_latents(active & ~begun), noised, latents)
        moved = latents - (step.level.noise - after) * denoise(latents, step, active)
        latents, begun = torch.where(_over_latents(active), moved, latents), active
    return latents


def noised(
    clean: Latents, noise: Latents, time: Float[Tensor, " batch"], generated: Generated | None = None
) -> Latents:
    """x_t = (1 - t / 1000) x_0 + t / 1000 noise in the frames being generated, x_0 in the others; None: in all."""
    share = (time / LEVELS).view(-1, 1, 1, 1, 1)
    mixed = (1 - share) * clean + share * noise
    return mixed if generated is None else torch.where(_over_latents(generated), mixed, clean)


def flow_loss(
    prediction: Latents, clean: Latents, noise: Latents, generated: Generated | None = None
) -> Float[Tensor, " batch"]:
    """Mean squared error of each video's predicted noise - x_0 over the frames being generated (none of them: 0)."""
    squares = (prediction - (noise - clean)).square().mean(dim=(1, 3, 4))
    if generated is None:
        return squares.mean(dim=1)
    return (squares * generated).sum(dim=1) / generated.sum(dim=1).clamp(min=1)


def _over_latents(mask: Generated) -> Bool[Tensor, "batch 1 frames 1 1"]:
    return mask[:, None, :, None, None]
