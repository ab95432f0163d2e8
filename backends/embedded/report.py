"""Figures and pictures of trained parts: printed, and kept beside the logs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from backends.embedded.config import FRAMES, LATENT_CHANNELS, SIZE
from backends.embedded.judge import Judge
from backends.embedded.pool import decode, text_states
from backends.world import ATTRIBUTES, complete_captions, sample_scenes
from streaming.datasets import device_generator, half_precision
from streaming.keys import Key

Sample = Callable[[Float[Tensor, "clips tokens depth"], Float[Tensor, "1 tokens depth"]], Tensor]
"""Text of clips, and that of the empty prompt -> latents [clips, channels, time, high, wide] of first chunks."""


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
    network: nn.Module,
    sample: Sample,
    vae: Any,
    tokenizer: Any,
    text_encoder: Any,
    *,
    n: int,
) -> dict[str, float]:
    """Sample n captions of training scenes, write a sheet of them, and ask `work/judge` (if it is there) about them.

    network: what `sample` computes with; in eval mode meanwhile. Returns the share of clips that show what the caption
    says, per attribute.
    """
    device = next(network.parameters()).device
    scenes = sample_scenes(n, Key(0).fold("samples").generator(), split="train")
    text = text_states(tokenizer, text_encoder, complete_captions(scenes))
    empty = text_states(tokenizer, text_encoder, [""])
    training, tuned = network.training, torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # shapes that come once are not worth it
    network.eval()
    frames = decode(vae, sample(text, empty))
    network.train(training)
    sheet(work / "logs" / "base.png", frames[:12, :: FRAMES // 8])
    figures = {}
    if (work / "judge").is_dir():
        judge = Judge.load(work / "judge").to(device)
        with half_precision(device):
            told = judge.classify(frames.float() / 255)
        named = [name for name in told if name in ATTRIBUTES]  # a caption asks for nothing else
        figures = {name: (told[name].cpu() == scenes.attribute(name)).float().mean().item() for name in named}
    torch.backends.cudnn.benchmark = tuned
    return figures
