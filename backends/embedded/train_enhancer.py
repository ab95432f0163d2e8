"""Training of the embedded enhancer: from videos of 64x64 pixels, enlarged, to what they would be at 128x128.

SDEdit starts from signal(u) * enlarged + noise(u) * eps, where the level u is the strength, and goes on as if
`enlarged` were a clean video; a model that has only seen fine videos was never told what an enlargement lacks. (One
that was trained so repainted the object in every frame, judged by eye; that this is why is a guess, not measured.) So
here the way from one to the other is trained: where clean = fine and noise = eps + signal(u) / noise(u) * (enlarged -
fine), the noised video at u is SDEdit's start, and a deterministic solver that predicts `fine` rightly keeps this noise
down to 0. (Shifting a diffusion by the residual is the idea of ResShift, arXiv 2307.12348; here schedule, prediction
type and samplers stay what they are.)
"""

from collections.abc import Callable, Mapping
from functools import partial
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
    build_scheduler,
)
from backends.embedded.pool import FPS, decode, encode, random_start, text_states
from backends.embedded.report import report, sheet
from backends.embedded.train_unet import Batch, Empty, Frozen, UNetTraining, some_text, train_unet
from backends.world import captions, complete_captions, render, sample_scenes
from backends.world.scene import Scenes
from streaming.datasets import Samples, device_generator, half_precision
from streaming.guidance import Guidance, scaled
from streaming.keys import Key
from streaming.noising import Diffusion
from streaming.sample import Sampler, Step
from streaming.training import Recipe, TrainOptions
from streaming.types import Latents

RECIPE = Recipe(steps=4000, batch=48, learning_rate=8e-4, warmup=200, weight_decay=0.01, ema=0.998, log_every=25)
TOY = Recipe(steps=60, batch=4, learning_rate=2e-3, warmup=10, ema=0.9, log_every=10)
PERIOD = 16
"""How often a pair is used on average: on one CPU core (2 pairs, full width) making a batch of them takes 1.2 times as
long as a training step, which a period of 16 turns into 7 % on top; on a GPU this is not measured."""
LEAST, MOST = 99, 700
"""Timesteps at which SDEdit may start, from the first to before the second: `Sampler.plan` begins a strength of 0.1 at
99, one of 0.7 at 699."""
FAULTS = 0.3
"""Largest standard deviation of what is added to the small videos' latents (whose own is 1), as a base model errs."""
AVERAGE_FAULTS = FAULTS / 2
"""That of the videos that are reported on."""
AT_ONCE = 8
"""Clips that are enhanced together for the report."""
STRENGTHS = (0.1, 0.2, 0.3, 0.5)
"""Reported on."""

Clips = UInt8[Tensor, "clips time 3 rows cols"]


def train_enhancer(options: TrainOptions) -> None:
    """Train and write `work/enhancer/unet` and its `scheduler`; needs the autoencoder and the text encoder."""
    training = UNetTraining(
        name="enhancer",
        folder="enhancer/unet",
        build=build_enhancer,
        frames=ENHANCED_FRAMES,
        size=ENHANCED_SIZE,
        slices=pairs,
        period=PERIOD,
        noised=shifted_batch,
        finished=_reported,
    )
    train_unet(training, options, TOY if options.toy else RECIPE)


def pairs(parts: Frozen) -> Callable[[Scenes, torch.Generator], Samples]:
    """Makes slices: `fine` and `enlarged` latents [clips, channels, time, high, wide], `text` of two captions each."""

    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        start = random_start(len(scenes), generator, scenes.device)
        amount = torch.rand(len(scenes), generator=generator).to(scenes.device) * FAULTS
        fine, small = _rendered(scenes, start, ENHANCED_SIZE), _rendered(scenes, start, SIZE)
        enlarged = enlarge(faulty(parts.vae, small, amount, _on(scenes.device, generator)))
        on_cpu = scenes.to("cpu")
        lines = captions(on_cpu, generator) + captions(on_cpu, generator)
        states = text_states(parts.tokenizer, parts.text_encoder, lines).unflatten(0, (2, len(scenes)))
        return {
            "fine": encode(parts.vae, fine).half(),
            "enlarged": encode(parts.vae, enlarged).half(),
            "text": states.transpose(0, 1).half(),
        }

    return make


def _rendered(scenes: Scenes, start: Float[Tensor, " clips"], size: int) -> Clips:
    return render(scenes, frames=ENHANCED_FRAMES, start=start, fps=FPS, size=size)


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the device, seeded by the next number of one on the CPU."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def faulty(vae: Any, frames: Clips, amount: Float[Tensor, " clips"], generator: torch.Generator) -> Clips:
    """Clips as a base model might have made them: through the autoencoder, with errors in the latents, some of which
    stay from frame to frame and some of which don't."""
    latents = encode(vae, frames)
    n, channels, _, high, wide = latents.shape
    share = torch.rand((n, 1, 1, 1, 1), generator=generator, device=latents.device)
    lasting = torch.randn((n, channels, 1, high, wide), generator=generator, device=latents.device)
    passing = torch.randn(latents.shape, generator=generator, device=latents.device)
    errors = share.sqrt() * lasting + (1 - share).sqrt() * passing
    return decode(vae, latents + amount.view(-1, 1, 1, 1, 1) * errors)


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
    start = LEAST + (MOST - LEAST) * torch.rand(len(fine), generator=generator, device=fine.device)
    time = (diffusion.times(len(fine), generator) / diffusion.steps * start).floor()
    noise = torch.randn(fine.shape, generator=generator, device=fine.device)
    begin, now = levels(diffusion, start.floor()), levels(diffusion, time)
    noise = noise + begin[0] / begin[1] * (enlarged - fine)
    return {
        "noisy": diffusion.noised(fine, noise, time),
        "target": diffusion.target(fine, noise, time),
        "text": text,
        "time": time,
        "weight": (now[1] / begin[1]).square().flatten(),
    }


def levels(
    diffusion: Diffusion, time: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n 1 1 1 1"], Float[Tensor, "n 1 1 1 1"]]:
    """Signal and noise at these timesteps."""
    one = torch.ones(len(time), 1, 1, 1, 1, device=time.device)
    nothing = torch.zeros_like(one)
    return diffusion.noised(one, nothing, time), diffusion.noised(nothing, one, time)


@torch.no_grad()
def _reported(options: TrainOptions, unet: Any, parts: Frozen) -> None:
    """Decibels against the true video at the larger size, of scenes that no training shows, for each strength without
    guidance (1) and with the one that ships; and a picture of some, enhanced by the defaults that ship."""
    device = next(unet.parameters()).device
    key, n = Key(0).fold("enhanced"), 1 if options.toy else 32
    scenes = sample_scenes(n, key.generator(), split="heldout").to(device)
    start = random_start(n, key.fold("start").generator(), device)
    fine, small = _rendered(scenes, start, ENHANCED_SIZE), _rendered(scenes, start, SIZE)
    faults = torch.full((n,), AVERAGE_FAULTS, device=device)
    enlarged = enlarge(faulty(parts.vae, small, faults, device_generator(key.fold("faults"), device)))
    lines = [*complete_captions(scenes.to("cpu")), ""]
    text, empty = text_states(parts.tokenizer, parts.text_encoder, lines).split((n, 1))
    defaults, _ = build_defaults(ENHANCED_SIZE, ENHANCED_FRAMES)
    ways = [(strength, guidance) for guidance in sorted({1.0, defaults.guidance}) for strength in STRENGTHS]
    training = unet.training
    unet.eval()
    latents = encode(parts.vae, enlarged)
    made = {way: decode(parts.vae, enhanced(unet, latents, text, empty, *way, key.fold("noise"))) for way in ways}
    unet.train(training)
    shipped = made[defaults.strength, defaults.guidance]
    rows = [row for k in range(min(n, 8)) for row in (enlarged[k, ::4], shipped[k, ::4], fine[k, ::4])]
    sheet(options.work / "logs" / "enhancer.png", torch.stack(rows))
    told = {"bicubic": enlarged} | {f"strength {s:g} guidance {g:g}": clips for (s, g), clips in made.items()}
    told["autoencoder"] = decode(parts.vae, encode(parts.vae, fine))
    report(options.work, "enhancer", {f"{name} dB": decibels(clips, fine) for name, clips in told.items()})


def enhanced(
    unet: Any,
    clean: Float[Tensor, "clips channels time high wide"],
    text: Float[Tensor, "clips tokens depth"],
    empty: Empty,
    strength: float,
    guidance: float,
    key: Key,
) -> Float[Tensor, "clips channels time high wide"]:
    """SDEdit by the sampler that ships, from latents of enlarged videos, some at a time.

    guidance: scale of classifier-free guidance towards `text`, away from `empty`; 1: none.
    """
    defaults, _ = build_defaults(ENHANCED_SIZE, ENHANCED_FRAMES)
    sampler, generator = Sampler(defaults.sampler, defaults.steps, defaults.eta), device_generator(key, clean.device)
    guide, parts = scaled(guidance, defaults.rescale), []
    for some, said in zip(clean.split(AT_ONCE), text.split(AT_ONCE), strict=True):
        noise = torch.randn(some.shape, generator=generator, device=some.device)
        predict = partial(_velocity, unet, guide, said, empty)
        parts.append(sampler(predict, noise, torch.zeros_like, build_scheduler(), strength=strength, clean=some))
    return torch.cat(parts)


def _velocity(
    unet: Any,
    guidance: Guidance,
    text: Float[Tensor, "clips tokens depth"],
    empty: Empty,
    latents: Latents,
    step: Step,
) -> Latents:
    said = torch.cat([text if row.text else empty.expand_as(text) for row in guidance.rows])
    rows = latents.repeat(len(guidance.rows), 1, 1, 1, 1)
    time = torch.full((len(rows),), step.time, device=latents.device)
    with half_precision(latents.device):
        velocity = unet(rows, time, encoder_hidden_states=said).sample.float()
    return guidance.combine(velocity.unflatten(0, (-1, len(latents))))


def decibels(clips: Clips, truth: Clips) -> float:
    """Peak signal-to-noise ratio over all clips."""
    error = (clips.float() - truth.float()).div(255).square().mean()
    return float(-10 * error.log10())
