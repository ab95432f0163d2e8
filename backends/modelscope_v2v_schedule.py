"""The noise schedule of ModelScope's Video-to-Video model, as a scheduler of diffusers."""

import math
from pathlib import Path

import numpy as np
from diffusers import DDIMScheduler
from jaxtyping import Float

LEVELS = 1000
"""Noise levels."""
_LOGSNR = 15.0
"""The cosine schedule's log signal-to-noise ratio goes from this to its negative, before it is shifted."""
_SCALES = (2.0, 4.0)
"""Shifts, as factors of the resolution: of the first level and of the last."""


def video_to_video_sigmas() -> Float[np.ndarray, " levels"]:
    """Noise in the latents at each level, rising to exactly 1: level 599 has 0.97236 (and a signal of 0.2335).

    The log signal-to-noise ratio is that of the cosine schedule, lowered by 2 log(scale), where scale rises from 2 to 4
    (its logarithm linearly in the level); then all is stretched, the lowest value kept, so that the last level is noise
    alone (zero terminal signal-to-noise ratio) [convention of the published code].
    """
    share = np.linspace(0, 1, LEVELS)
    first, last = (math.atan(math.exp(-sign * _LOGSNR / 2)) for sign in (1, -1))
    cosine = -2 * np.log(np.tan(first + share * (last - first)))
    low, high = (math.log(scale) for scale in _SCALES)
    logsnr = cosine - 2 * (low + share * (high - low))
    sigmas = np.sqrt(1 / (1 + np.exp(logsnr)))
    return sigmas[0] + (sigmas - sigmas[0]) * (1 - sigmas[0]) / (sigmas[-1] - sigmas[0])


def video_to_video_scheduler() -> DDIMScheduler:
    """The schedule with v-prediction; every solver of `streaming.sample` and `streaming.sample_sde` can read it.

    Its betas are given one by one. At strength 1 the trajectory would begin without any signal, where DPM-Solver++
    divides by it: `Sampler` refuses that, DDIM and `TrailingSDE` can begin there.
    """
    kept = 1 - video_to_video_sigmas() ** 2
    kept[-1] = 0.0
    betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
    return DDIMScheduler(
        num_train_timesteps=LEVELS,
        trained_betas=betas.tolist(),  # pyright: ignore[reportArgumentType]
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def save_scheduler(directory: Path) -> None:
    """Writes scheduler_config.json into a folder, which is made if need be."""
    video_to_video_scheduler().save_pretrained(str(directory))
