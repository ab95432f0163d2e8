"""Training of the embedded base model: 16 frames of 64x64 pixels from text and noise."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backends.embedded.config import FRAMES, SIZE, build_base, build_scheduler
from backends.embedded.pool import FPS, PERIOD, encode, object_shares, random_start, two_captions
from backends.embedded.report import judged_samples, report, sample_clips
from backends.embedded.train_unet import (
    Batch,
    Empty,
    Frozen,
    UNetTraining,
    some_text,
    train_unet,
)
from backends.world import render
from backends.world.scene import Scenes
from streaming.datasets import Samples
from streaming.keys import Key
from streaming.noising import Diffusion
from streaming.subject_weight import subject_weight
from streaming.training import Recipe, TrainOptions

RECIPE = Recipe(steps=6250, batch=256, learning_rate=8e-4, warmup=200, weight_decay=0.01, ema=0.999, log_every=25)
SHIFT = 2.0
"""Of times towards noise: an object's pattern is decided above time 600, where without it 4 of 10 clips would lie.
(Before, predictions from 48 noised clips lay .43 of the way to another pattern at time 800, .27 at 600, .13 at 400.)"""
TOY = Recipe(steps=60, batch=4, learning_rate=2e-3, warmup=10, ema=0.9, log_every=10)


def train_base(options: TrainOptions) -> None:
    """Train and write `work/unet` and `work/scheduler`; needs the autoencoder and the text encoder."""
    training = UNetTraining(
        name="base",
        folder="unet",
        build=build_base,
        frames=FRAMES,
        size=SIZE,
        slices=clips,
        period=PERIOD,
        noised=noised_batch,
        finished=_judged,
    )
    train_unet(training, options, TOY if options.toy else RECIPE)


def clips(parts: Frozen) -> Callable[[Scenes, torch.Generator], Samples]:
    """Makes slices: `latents` [clips, channels, frames, high, wide], `object` [clips, 1, frames, high, wide] (how much
    of a cell it covers), `text` of two captions each."""

    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        start = random_start(len(scenes), generator, scenes.device)
        latents = encode(parts.vae, render(scenes, frames=FRAMES, start=start, fps=FPS, size=SIZE))
        return {
            "latents": latents.half(),
            "object": object_shares(scenes, start, frames=FRAMES, size=SIZE).half(),
            "text": two_captions(parts.tokenizer, parts.text_encoder, scenes, generator).half(),
        }

    return make


def noised_batch(drawn: Mapping[str, Tensor], empty: Empty, diffusion: Diffusion, generator: torch.Generator) -> Batch:
    """A batch of `DiffusionObjective` from rows of a pool: noise, timesteps, one of two captions or none."""
    clean = drawn["latents"].float()
    text = some_text(drawn["text"], empty, generator)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    time = diffusion.times(len(clean), generator, shift=SHIFT)
    return {
        "noisy": diffusion.noised(clean, noise, time),
        "target": diffusion.target(clean, noise, time),
        "text": text,
        "time": time,
        "weight": subject_weight(drawn["object"].float(), *diffusion.levels(time)),
    }


def _judged(options: TrainOptions, unet: Any, parts: Frozen) -> None:
    """What the judge says of samples, and a sheet of them."""
    steps, n = (2, 2) if options.toy else (20, 96)
    sample = partial(sample_clips, unet, build_scheduler(), steps=steps, key=Key(0).fold("noise"))
    made = judged_samples(options.work, unet, sample, parts.vae, parts.tokenizer, parts.text_encoder, n=n)
    report(options.work, "base", made)
