"""Training of the embedded autoencoder on single frames of both sizes."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from backends.embedded.config import ENHANCED_SIZE, SIZE, build_vae, save_half
from backends.embedded.pool import check_options, random_start, signed, world_pool
from backends.embedded.report import report, sheet
from backends.world import object_mask, render, sample_scenes
from backends.world.scene import Scenes
from streaming.datasets import Samples, device_generator, draw, half_precision
from streaming.keys import Key, initial_weights
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=6000, batch=256, learning_rate=1.5e-3, warmup=200, weight_decay=1e-3, ema=0.998)
TOY = Recipe(steps=60, batch=8, learning_rate=3e-3, warmup=10, ema=0.9, log_every=10)
GRADIENT, SQUARE, KL, OBJECT = 0.4, 2.0, 2e-4, 4.0
"""Weights of the loss's terms beside the absolute difference, and of pixels that the object covers."""
SECONDS_APART = 7.0
"""Two frames are taken of every scene, this far apart: neighbours would be near-duplicates."""
SHARE = 8
"""One 128 × 128 frame on so many of 64 × 64: 30 % of all pixels."""


@final
class VaeObjective(nn.Module):
    """Reconstruction of frames of two sizes, with a light pull of the latents towards a standard normal."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `frames`, `mask`, `noise` of the small size and the same with `large_` before the name."""
        small = self._loss(batch["frames"], batch["mask"], batch["noise"])
        large = self._loss(batch["large_frames"], batch["large_mask"], batch["large_noise"])
        return {name: 0.7 * small[name] + 0.3 * large[name] for name in small}

    def _loss(
        self,
        frames: UInt8[Tensor, "batch 3 rows cols"],
        mask: Float[Tensor, "batch rows cols"],
        noise: Float[Tensor, "batch channels high wide"],
    ) -> dict[str, Tensor]:
        target = signed(frames)
        posterior = self.vae.encode(target).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        output = self.vae.decode(mean + (0.5 * logvar).exp() * noise).sample.float()
        weight = (1 + (OBJECT - 1) * mask.float())[:, None]
        weight = weight / weight.mean()
        error = output - target
        absolute = (weight * error.abs()).mean()
        square = (weight * error.square()).mean()
        across = (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
        down = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = absolute + GRADIENT * (across + down) + SQUARE * square + KL * kl
        return {"loss": loss, "absolute": absolute, "square": square, "kl": kl}


def train_vae(options: TrainOptions) -> None:
    """Train and write `work/vae`; prints the signal-to-noise ratio on held-out scenes."""
    check_options(options)
    recipe = TOY if options.toy else RECIPE
    with initial_weights(recipe.seed):
        objective = VaeObjective(build_vae(toy=options.toy))
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold("vae", rank)
        slices = 2 if options.toy else 24
        small = world_pool(key.fold("small"), device, _frames(SIZE), clips=max(1, count // 2), slices=slices)
        few = max(1, count // SHARE)
        large = world_pool(key.fold("large"), device, _frames(ENHANCED_SIZE), clips=(few + 1) // 2, slices=slices)
        while True:
            drawn = key.fold("step", step)
            generator = device_generator(drawn.fold("noise"), device)
            batch = draw(small.at(step), count, drawn)
            batch |= {f"large_{name}": v for name, v in draw(large.at(step), few, drawn.fold("large")).items()}
            for name in ("", "large_"):
                n, _, rows, cols = batch[f"{name}frames"].shape
                shape = (n, objective.vae.config.latent_channels, rows // 8, cols // 8)
                batch[f"{name}noise"] = torch.randn(shape, generator=generator, device=device)
            yield batch
            step += 1

    def export() -> None:
        vae = standardised(objective.vae, toy=options.toy)
        figures = held_out_psnr(vae, n=4 if options.toy else 256)
        save_half(vae, options.work / "vae")
        sheet(options.work / "logs" / "vae.png", reconstructions(vae, n=12))
        report(options.work, "vae", figures)

    fit("vae", objective, batches, recipe, options, export=export)


def _frames(size: int) -> Callable[[Scenes, torch.Generator], Samples]:
    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        start = random_start(len(scenes), generator, scenes.device)
        view = {"frames": 2, "start": start, "fps": 1 / SECONDS_APART, "size": size}
        return {
            "frames": render(scenes, **view).flatten(0, 1),
            "mask": object_mask(scenes, **view).flatten(0, 1).half(),
        }

    return make


@torch.no_grad()
def standardised(vae: Any, *, toy: bool = False) -> Any:
    """A copy whose latents have mean 0 and deviation 1 per channel, so that no scaling factor is needed.

    The deviation is divided out in `quant_conv` and multiplied in again in `post_quant_conv`; pictures stay the same.
    """
    vae = copy.deepcopy(vae).eval()
    device = next(vae.parameters()).device
    latents = [
        vae.encode(part).latent_dist.mean.float() for part in _held_out(SIZE, 16 if toy else 512, device)[0].split(64)
    ]
    mean = torch.cat(latents).mean(dim=(0, 2, 3))
    deviation = torch.cat(latents).std(dim=(0, 2, 3))
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    after.bias += (after.weight * mean[None, :, None, None]).sum(dim=(1, 2, 3))
    after.weight *= deviation[None, :, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[channels:] -= 2 * deviation.log()
    return vae


@torch.no_grad()
def held_out_psnr(vae: Any, *, n: int) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB of held-out frames through the autoencoder, whole and on the object."""
    device, figures = next(vae.parameters()).device, {}
    for size in (SIZE, ENHANCED_SIZE):
        frames, mask = _held_out(size, n, device)
        with half_precision(device):
            output = torch.cat([vae.decode(vae.encode(f).latent_dist.mean).sample.float() for f in frames.split(64)])
        square = ((output.clamp(-1, 1) - frames) / 2).square().mean(dim=1)
        figures[f"psnr_{size}"] = -10 * math.log10(square.mean().item())
        figures[f"object_psnr_{size}"] = -10 * math.log10(((square * mask).sum() / mask.sum()).item())
    return figures


@torch.no_grad()
def reconstructions(vae: Any, *, n: int) -> UInt8[Tensor, "2 {n} 3 rows cols"]:
    """Held-out frames above, what the autoencoder makes of them below."""
    frames = _held_out(SIZE, n, next(vae.parameters()).device)[0]
    both = torch.stack((frames, vae.decode(vae.encode(frames).latent_dist.mean).sample))
    return ((both + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _held_out(size: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = Key(0).fold("held out", size).generator()
    scenes = sample_scenes(n, generator, split="heldout").to(device)
    start = random_start(n, generator, device)
    frames = render(scenes, frames=1, start=start, size=size)[:, 0]
    return signed(frames), object_mask(scenes, frames=1, start=start, size=size)[:, 0]
