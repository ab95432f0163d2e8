"""Figures and pictures of trained parts: printed, and kept beside the logs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from backends.embedded.config import FRAMES, LATENT_CHANNELS, SIZE
from backends.embedded.judge import Judge
from backends.embedded.pool import decode, text_states
from backends.world import canonical_captions, sample_scenes
from streaming.datasets import device_generator, half_precision
from streaming.keys import Key


def report(work: Path, part: str, figures: Mapping[str, float]) -> None:
    """Print figures of a trained part and keep them in `work/logs/<part>.report.json`."""
    path = work / "logs" / f"{part}.report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(figures), indent=2) + "\n")
    print(f"{part} held out: " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)


def sheet(path: Path, pictures: UInt8[Tensor, "down across 3 rows cols"]) -> None:
    """Write a picture of pictures (PNG)."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    down, across, _, rows, cols = pictures.shape
    joined = pictures.permute(0, 3, 1, 4, 2).reshape(down * rows, across * cols, 3)
    Image.fromarray(joined.cpu().numpy()).save(path)


@torch.no_grad()
def sample_clips(
    unet: Any,
    scheduler: Any,
    text: Float[Tensor, "clips tokens depth"],
    empty: Float[Tensor, "1 tokens depth"],
    *,
    steps: int = 20,
    guidance: float = 3.0,
    key: Key,
) -> Float[Tensor, "clips channels time high wide"]:
    """Latents of first chunks by DDIM with classifier-free guidance: a look at a base model while it trains."""
    n, device = len(text), text.device
    shape = (n, LATENT_CHANNELS, FRAMES, SIZE // 8, SIZE // 8)
    latents = torch.randn(shape, generator=device_generator(key, device), device=device)
    context = torch.cat((empty.expand_as(text), text))
    scheduler.set_timesteps(steps, device=device)
    for time in scheduler.timesteps:
        with half_precision(device):
            both = unet(torch.cat((latents, latents)), time, encoder_hidden_states=context).sample.float()
        without, given = both.chunk(2)
        latents = scheduler.step(without + guidance * (given - without), time, latents).prev_sample
    return latents


@torch.no_grad()
def judged_samples(
    work: Path,
    unet: Any,
    scheduler: Any,
    vae: Any,
    tokenizer: Any,
    text_encoder: Any,
    *,
    n: int,
    steps: int = 20,
) -> dict[str, float]:
    """Sample n captions of training scenes, write a sheet of them, and ask `work/judge` (if it is there) about them.

    Returns the share of clips that show what the caption says, per attribute.
    """
    device = next(unet.parameters()).device
    scenes = sample_scenes(n, Key(0).fold("samples").generator(), split="train")
    text = text_states(tokenizer, text_encoder, canonical_captions(scenes))
    empty = text_states(tokenizer, text_encoder, [""])
    training, tuned = unet.training, torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # shapes that come once are not worth it
    unet.eval()
    frames = decode(vae, sample_clips(unet, scheduler, text, empty, steps=steps, key=Key(0).fold("noise")))
    unet.train(training)
    sheet(work / "logs" / "base.png", frames[:12, :: FRAMES // 8])
    figures = {}
    if (work / "judge").is_dir():
        judge = Judge.load(work / "judge").to(device)
        with half_precision(device):
            told = judge.classify(frames.float() / 255)
        figures = {name: (told[name].cpu() == scenes.attribute(name)).float().mean().item() for name in told}
    torch.backends.cudnn.benchmark = tuned
    return figures
