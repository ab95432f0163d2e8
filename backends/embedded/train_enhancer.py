"""Training of the embedded enhancer: from videos of 64x64 pixels, enlarged, to what they would be at 128x128.

SDEdit starts from signal(u) * enlarged + noise(u) * eps, where the level u is the strength, and goes on as if
`enlarged` were a clean video; a model that has only seen fine videos was never told what an enlargement lacks. (One
that was trained so repainted the object in every frame, judged by eye; that this is why is a guess, not measured.) So
here the way from one to the other is trained: where clean = fine and noise = eps + signal(u) / noise(u) * (enlarged -
fine), the noised video at u is SDEdit's start, and a deterministic solver that predicts `fine` rightly keeps this noise
down to 0. (Shifting a diffusion by the residual is the idea of ResShift, arXiv 2307.12348; here schedule, prediction
type and samplers stay what they are.)

Small renders have none of the faults that videos of the base model have, and noise in their latents has others. So the
base model remakes them: noised by a part of its schedule and denoised, they keep places and outlines, and what they
lose on the way is lost as it is in its own videos.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from backends.embedded.config import (
    ENHANCED_FRAMES,
    ENHANCED_SIZE,
    SIZE,
    build_defaults,
    build_enhancer,
    trained,
)
from backends.embedded.pool import (
    FPS,
    check_options,
    decode,
    encode,
    freeze,
    object_shares,
    random_start,
    text_states,
    two_captions,
)
from backends.embedded.report import report, sheet
from backends.embedded.sdedit import Clips, edited, remade
from backends.embedded.train_unet import (
    Batch,
    Empty,
    Frozen,
    UNetTraining,
    some_text,
    train_unet,
)
from backends.world import complete_captions, render, sample_scenes
from backends.world.scene import Scenes
from streaming.datasets import Samples, device_generator
from streaming.keys import Key
from streaming.noising import Diffusion
from streaming.subject_weight import subject_weight
from streaming.training import Recipe, TrainOptions

RECIPE = Recipe(steps=4000, batch=48, learning_rate=8e-4, warmup=200, weight_decay=0.01, ema=0.998, log_every=25)
TOY = Recipe(steps=60, batch=4, learning_rate=2e-3, warmup=10, ema=0.9, log_every=10)
PERIOD = 16
"""How often a pair is used on average: on one CPU core (2 pairs, full width) making a batch of them takes 3.2 times as
long as a training step, which a period of 16 turns into 20 % on top; on a GPU this is not measured."""
LEAST, MOST = 99, 700
"""Timesteps at which SDEdit may start, from the first to before the second: `Sampler.plan` begins a strength of 0.1 at
99, one of 0.7 at 699."""
LEAST_REMADE, MOST_REMADE = 0.1, 0.6
"""Shares of the base model's schedule by which small videos are remade; with more, objects stand elsewhere."""
AT_ONCE = 8
"""Clips that are remade by the same share of the schedule, or enhanced together for the report."""
GUIDANCES, STEPS, STRENGTHS = (1.0, 1.5), (1, 6), (0.1, 0.2, 0.3, 0.5)
"""Reported on, all together."""


def train_enhancer(options: TrainOptions) -> None:
    """Train and write `work/enhancer/unet` and its `scheduler`; needs autoencoder, text encoder and base model."""
    from diffusers import UNet3DConditionModel

    check_options(options)
    base = UNet3DConditionModel.from_pretrained(trained(options.work, "unet", "base"), torch_dtype=torch.float32)
    training = UNetTraining(
        name="enhancer",
        folder="enhancer/unet",
        build=build_enhancer,
        frames=ENHANCED_FRAMES,
        size=ENHANCED_SIZE,
        slices=partial(pairs, base),
        period=PERIOD,
        noised=shifted_batch,
        finished=partial(_reported, base),
    )
    train_unet(training, options, TOY if options.toy else RECIPE)


def pairs(base: Any, parts: Frozen) -> Callable[[Scenes, torch.Generator], Samples]:
    """Makes slices: `fine` and `enlarged` latents [clips, channels, time, high, wide], `object` [clips, 1, time, high,
    wide] (how much of a cell it covers), `text` of two captions each."""

    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        freeze(base, scenes.device)
        start = random_start(len(scenes), generator, scenes.device)
        fine, small = _rendered(scenes, start, ENHANCED_SIZE), _rendered(scenes, start, SIZE)
        text = two_captions(parts.tokenizer, parts.text_encoder, scenes, generator)
        empty = text_states(parts.tokenizer, parts.text_encoder, [""])
        made = []
        for some, said in zip(small.split(AT_ONCE), text[:, 0].split(AT_ONCE), strict=True):
            share = LEAST_REMADE + (MOST_REMADE - LEAST_REMADE) * float(torch.rand((), generator=generator))
            made.append(remade(base, parts.vae, some, said, empty, share, _on(scenes.device, generator)))
        return {
            "fine": encode(parts.vae, fine).half(),
            "enlarged": encode(parts.vae, enlarge(torch.cat(made))).half(),
            "object": object_shares(scenes, start, frames=ENHANCED_FRAMES, size=ENHANCED_SIZE).half(),
            "text": text.half(),
        }

    return make


def _rendered(scenes: Scenes, start: Float[Tensor, " clips"], size: int) -> Clips:
    return render(scenes, frames=ENHANCED_FRAMES, start=start, fps=FPS, size=size)


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the device, seeded by the next number of one on the CPU."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def enlarge(frames: Clips) -> UInt8[Tensor, "clips time 3 high wide"]:
    """Bicubic, to `ENHANCED_SIZE`: what the enhancement begins with."""
    flat = frames.flatten(0, 1)
    size = (ENHANCED_SIZE, ENHANCED_SIZE)
    parts = [F.interpolate(part.float() / 255, size, mode="bicubic", antialias=True) for part in flat.split(512)]
    large = torch.cat([part.clamp(0, 1).mul(255).round().to(torch.uint8) for part in parts])
    return large.unflatten(0, frames.shape[:2])


def shifted_batch(drawn: Mapping[str, Tensor], empty: Empty, diffusion: Diffusion, generator: torch.Generator) -> Batch:
    """A batch of `DiffusionObjective` from rows of a pool: starts, times before them, noise with the residual in it.

    A velocity that errs by e stands for a fine video that errs by noise(t) * e. Weighted by the square of noise(t) /
    noise(u), the loss asks for the fine video, at the beginning of every way alike; else most of it would be what
    nobody can know, the noise that is left close to the end.
    """
    fine, enlarged = drawn["fine"].float(), drawn["enlarged"].float()
    text = some_text(drawn["text"], empty, generator)
    # Squared: half of the ways are among the shortest quarter, which change least of what is right already.
    start = LEAST + (MOST - LEAST) * torch.rand(len(fine), generator=generator, device=fine.device).square()
    time = (diffusion.times(len(fine), generator) / diffusion.steps * start).floor()
    noise = torch.randn(fine.shape, generator=generator, device=fine.device)
    begin, now = diffusion.levels(start.floor()), diffusion.levels(time)
    noise = noise + begin[0] / begin[1] * (enlarged - fine)
    return {
        "noisy": diffusion.noised(fine, noise, time),
        "target": diffusion.target(fine, noise, time),
        "text": text,
        "time": time,
        "weight": (now[1] / begin[1]).square() * subject_weight(drawn["object"].float(), *now),
    }


@torch.no_grad()
def _reported(base: Any, options: TrainOptions, unet: Any, parts: Frozen) -> None:
    """Decibels against the true video at the larger size, of scenes that no training shows, for each strength with one
    step and with several, without guidance (1) and with it; and a picture of some, enhanced by the defaults."""
    device = next(unet.parameters()).device
    freeze(base, device)
    key, n = Key(0).fold("enhanced"), 1 if options.toy else 32
    scenes = sample_scenes(n, key.generator(), split="heldout").to(device)
    start = random_start(n, key.fold("start").generator(), device)
    lines = [*complete_captions(scenes.to("cpu")), ""]
    text, empty = text_states(parts.tokenizer, parts.text_encoder, lines).split((n, 1))
    fine, small = _rendered(scenes, start, ENHANCED_SIZE), _rendered(scenes, start, SIZE)
    generator, share = device_generator(key.fold("faults"), device), (LEAST_REMADE + MOST_REMADE) / 2
    enlarged = enlarge(remade(base, parts.vae, small, text, empty, share, generator))
    defaults, _ = build_defaults(ENHANCED_SIZE, ENHANCED_FRAMES)
    shipped = (defaults.guidance, defaults.steps, defaults.strength)
    ways = sorted({*product(GUIDANCES, STEPS, STRENGTHS), shipped})
    training = unet.training
    unet.eval()
    latents = encode(parts.vae, enlarged)
    made = {way: decode(parts.vae, enhanced(unet, latents, text, empty, *way, key.fold("noise"))) for way in ways}
    unet.train(training)
    rows = [row for k in range(min(n, 8)) for row in (enlarged[k, ::4], made[shipped][k, ::4], fine[k, ::4])]
    sheet(options.work / "logs" / "enhancer.png", torch.stack(rows))
    told = {"bicubic": enlarged}
    told |= {f"guidance {g:g} steps {n} strength {s:g}": clips for (g, n, s), clips in made.items()}
    told["autoencoder"] = decode(parts.vae, encode(parts.vae, fine))
    report(options.work, "enhancer", {f"{name} dB": decibels(clips, fine) for name, clips in told.items()})


def enhanced(
    unet: Any,
    clean: Float[Tensor, "clips channels time high wide"],
    text: Float[Tensor, "clips tokens depth"],
    empty: Empty,
    guidance: float,
    steps: int,
    strength: float,
    key: Key,
) -> Float[Tensor, "clips channels time high wide"]:
    """Latents of enlarged videos by the solver that ships, some at a time.

    guidance: scale of classifier-free guidance towards `text`, away from `empty`; 1: none.
    """
    defaults, _ = build_defaults(ENHANCED_SIZE, ENHANCED_FRAMES)
    settings = replace(defaults, guidance=guidance, steps=steps, strength=strength)
    generator, parts = device_generator(key, clean.device), zip(clean.split(AT_ONCE), text.split(AT_ONCE), strict=True)
    return torch.cat([edited(unet, some, said, empty, settings, generator) for some, said in parts])


def decibels(clips: Clips, truth: Clips) -> float:
    """Peak signal-to-noise ratio over all clips."""
    error = (clips.float() - truth.float()).div(255).square().mean()
    return float(-10 * error.log10())
