"""Training of the attribute judge on renders that are spoilt a little, as generated clips are."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from backends.embedded.config import FRAMES, SIZE
from backends.embedded.judge import Judge, JudgeConfig
from backends.embedded.pool import FPS, check_options, decode, encode, freeze, random_start, world_pool
from backends.embedded.report import report
from backends.world import render, sample_scenes
from backends.world.scene import ATTRIBUTES, Scenes
from streaming.datasets import Samples, device_generator, draw, half_precision
from streaming.folders import save_folder
from streaming.keys import Key, initial_weights
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=5000, batch=128, learning_rate=2e-3, warmup=200, weight_decay=0.03, ema=0.997)
TOY = Recipe(steps=60, batch=8, learning_rate=3e-3, warmup=10, ema=0.9, log_every=10)
SMOOTHING = 0.02
"""Label smoothing."""


@final
class JudgeObjective(nn.Module):
    """Mean cross-entropy over the attributes."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `frames` in [0, 1] [n, time, 3, rows, cols] and one index tensor [n] an attribute."""
        logits = self.judge(batch["frames"])
        losses = {
            name: F.cross_entropy(value, batch[name], label_smoothing=SMOOTHING) for name, value in logits.items()
        }
        return {"loss": torch.stack(tuple(losses.values())).mean(), **losses}


def train_judge(options: TrainOptions) -> None:
    """Train and write `work/judge`; prints the accuracy on held-out scenes, per attribute.

    If `work/vae` is there, half of the clips go through it.
    """
    check_options(options)
    recipe = TOY if options.toy else RECIPE
    with initial_weights(recipe.seed):
        objective = JudgeObjective(Judge(JudgeConfig(attributes=dict(ATTRIBUTES))))
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold("judge", rank)
        make = _slices(_vae(options, device))
        pool = world_pool(key, device, make, clips=count, slices=2 if options.toy else 48)
        while True:
            drawn = key.fold("step", step)
            batch = draw(pool.at(step), count, drawn)
            batch["frames"] = spoil(batch["frames"], device_generator(drawn.fold("spoil"), device))
            yield batch
            step += 1

    def export() -> None:
        report(options.work, "judge", accuracy(objective.judge, n=8 if options.toy else 1024))
        save_folder(options.work / "judge", objective.judge.save)

    fit("judge", objective, batches, recipe, options, export=export)


@torch.no_grad()
def spoil(
    frames: UInt8[Tensor, "n time 3 rows cols"], generator: torch.Generator
) -> Float[Tensor, "n time 3 rows cols"]:
    """RGB in [0, 1], each clip with its own amount of blur, noise and change of brightness and contrast."""
    n, device = len(frames), frames.device

    def amount(high: float) -> Float[Tensor, "n 1 1 1 1"]:
        return torch.rand((n, 1, 1, 1, 1), generator=generator, device=device) * high

    clean = frames.float() / 255
    blurred = F.avg_pool2d(clean.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False).view_as(clean)
    output = torch.lerp(clean, blurred, amount(0.9))
    output = (output - 0.5) * (0.9 + amount(0.2)) + 0.46 + amount(0.08)
    return output + torch.randn(output.shape, generator=generator, device=device) * amount(0.04)


def _vae(options: TrainOptions, device: torch.device) -> Any:
    if not (options.work / "vae").is_dir():
        return None
    from diffusers import AutoencoderKL

    return freeze(AutoencoderKL.from_pretrained(options.work / "vae", torch_dtype=torch.float32), device)


def _slices(vae: Any) -> Callable[[Scenes, torch.Generator], Samples]:
    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        start = random_start(len(scenes), generator, scenes.device)
        frames = render(scenes, frames=FRAMES, start=start, fps=FPS, size=SIZE)
        if vae is not None:
            half = len(frames) // 2
            frames[:half] = decode(vae, encode(vae, frames[:half]))
        return {"frames": frames, **{name: scenes.attribute(name) for name in ATTRIBUTES}}

    return make


@torch.no_grad()
def accuracy(judge: Judge, *, n: int) -> dict[str, float]:
    """Share of unspoilt held-out clips (unseen pairs of shape and colour) that are judged rightly, per attribute."""
    device = next(judge.parameters()).device
    generator = Key(0).fold("held out").generator()
    scenes = sample_scenes(n, generator, split="heldout").to(device)
    frames = render(scenes, frames=FRAMES, start=random_start(n, generator, device), fps=FPS, size=SIZE)
    judge.eval()
    with half_precision(device):
        told = [judge.classify(part.float() / 255) for part in frames.split(64)]
    judge.train()
    return {
        name: (torch.cat([t[name] for t in told]) == scenes.attribute(name)).float().mean().item()
        for name in judge.config.attributes
    }
