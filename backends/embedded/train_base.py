"""Training of the embedded video U-Nets: the base model and the enhancer."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from backends.diffusers_attention import shorten_attention
from backends.embedded.config import (
    ENHANCED_FRAMES,
    ENHANCED_SIZE,
    ENHANCER_STEPS,
    FRAMES,
    SIZE,
    build_base,
    build_defaults,
    build_enhancer,
    build_scheduler,
    save_half,
    trained,
    without_dropout,
)
from backends.embedded.pool import check_options, freeze, latent_slices, text_states, world_pool
from backends.embedded.report import judged_samples, report, sample_clips
from backends.modelscope_settings import save_defaults
from streaming.datasets import device_generator, draw
from streaming.folders import save_folder
from streaming.keys import Key, initial_weights
from streaming.noising import Diffusion
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=6250, batch=256, learning_rate=8e-4, warmup=200, weight_decay=0.01, ema=0.999, log_every=25)
ENHANCER = Recipe(steps=4000, batch=48, learning_rate=8e-4, warmup=200, weight_decay=0.01, ema=0.998, log_every=25)
TOY = Recipe(steps=60, batch=4, learning_rate=2e-3, warmup=10, ema=0.9, log_every=10)
TEXT_DROPOUT = 0.1
"""Share of clips that are trained with the empty prompt, for guidance."""


@final
class DiffusionObjective(nn.Module):
    """Squared error of what the U-Net predicts, the velocity of Salimans & Ho; all noise levels alike."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        shorten_attention(unet)
        self.unet = unet

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `noisy`, `target` [n, channels, time, high, wide], `text` [n, tokens, depth], `time` [n]."""
        output = self.unet(batch["noisy"], batch["time"], encoder_hidden_states=batch["text"]).sample
        return {"loss": F.mse_loss(output.float(), batch["target"])}


def train_base(options: TrainOptions) -> None:
    """Train and write `work/unet` and `work/scheduler`; needs the autoencoder and the text encoder."""
    _train("base", options, RECIPE, build_base, frames=FRAMES, size=SIZE, levels=1000, slices=24, folder="unet")


def train_enhancer(options: TrainOptions) -> None:
    """Train and write `work/enhancer/unet` and its `scheduler`; needs the autoencoder and the text encoder."""
    _train(
        "enhancer", options, ENHANCER, build_enhancer,
        frames=ENHANCED_FRAMES, size=ENHANCED_SIZE, levels=ENHANCER_STEPS, slices=24, folder="enhancer/unet",
    )  # fmt: skip


def _train(
    name: str,
    options: TrainOptions,
    recipe: Recipe,
    build: Any,
    *,
    frames: int,
    size: int,
    levels: int,
    slices: int,
    folder: str,
) -> None:
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    check_options(options)
    recipe = TOY if options.toy else recipe
    vae = AutoencoderKL.from_pretrained(trained(options.work, "vae", "vae"), torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained(options.work, "tokenizer", "clip"))
    text_encoder = CLIPTextModelWithProjection.from_pretrained(
        trained(options.work, "text_encoder", "clip"), dtype=torch.float32
    )
    scheduler = build_scheduler()
    diffusion = Diffusion(scheduler)
    with initial_weights(recipe.seed):
        unet = without_dropout(build(text_encoder.config.hidden_size, toy=options.toy))
    objective = DiffusionObjective(unet)
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold(name, rank)
        make = latent_slices(freeze(vae, device), tokenizer, freeze(text_encoder, device), frames=frames, size=size)
        empty = text_states(tokenizer, text_encoder, [""])
        pool = world_pool(key, device, make, clips=count, slices=2 if options.toy else slices)
        while True:
            drawn = key.fold("step", step)
            generator = device_generator(drawn.fold("noise"), device)
            yield noised_batch(draw(pool.at(step), count, drawn), empty, diffusion, levels, generator)
            step += 1

    settings = build_defaults(size, frames)

    def export() -> None:
        save_half(unet, options.work / folder)
        save_defaults((options.work / folder).parent, *settings)
        save_folder((options.work / folder).with_name("scheduler"), lambda path: scheduler.save_pretrained(path))
        if name == "base":
            parts = [freeze(part, next(unet.parameters()).device) for part in (vae, text_encoder)]
            steps, n = (2, 2) if options.toy else (20, 96)
            sample = partial(sample_clips, unet, build_scheduler(), steps=steps, key=Key(0).fold("noise"))
            made = judged_samples(options.work, unet, sample, parts[0], tokenizer, parts[1], n=n)
            report(options.work, name, made)

    fit(name, objective, batches, recipe, options, export=export)


def noised_batch(
    drawn: Mapping[str, Tensor],
    empty: Float[Tensor, "1 tokens depth"],
    diffusion: Diffusion,
    levels: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """A batch of `DiffusionObjective` from rows of a pool: noise, timesteps, one of two captions or none.

    levels: the timesteps are below this one.
    """
    clean, device = drawn["latents"].float(), drawn["latents"].device
    n = len(clean)
    chance = torch.rand(n, generator=generator, device=device)[:, None, None]
    text = torch.where(chance < 0.5 * (1 + TEXT_DROPOUT), drawn["text"][:, 0], drawn["text"][:, 1]).float()
    noise = torch.randn(clean.shape, generator=generator, device=device)
    time = diffusion.times(n, generator, below=levels)
    return {
        "noisy": diffusion.noised(clean, noise, time),
        "target": diffusion.target(clean, noise, time),
        "text": torch.where(chance < TEXT_DROPOUT, empty, text),
        "time": time,
    }
