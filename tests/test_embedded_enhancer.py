"""Training of the enhancer: SDEdit's own way from an enlarged video to a fine one."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from backends.embedded import train_clip as clip
from backends.embedded import train_enhancer as enhancer
from backends.embedded import train_vae as vae
from backends.embedded.config import LATENT_CHANNELS, build_defaults, build_scheduler, build_vae
from backends.embedded.pool import decode, encode
from backends.world import render, sample_scenes
from streaming.enhancer import assemble_enhancer
from streaming.enhancer import encode as stage3_latents
from streaming.errors import UserError
from streaming.keys import Key
from streaming.noising import Diffusion
from streaming.registry import open_enhancer
from streaming.sample import Sampler, Step
from streaming.training import TrainOptions

CPU = torch.device("cpu")


def toy(work: Path) -> TrainOptions:
    return TrainOptions(work=work, toy=True, device="cpu", batch=2, steps=2)


def ratio(diffusion: Diffusion, time: torch.Tensor) -> torch.Tensor:
    signal, share = enhancer.levels(diffusion, time)
    return (signal / share).flatten()


def drawn(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    key = Key(seed)
    fine, residual = (key.fold("latents", k).normal(n, LATENT_CHANNELS, 2, 2, 2) for k in range(2))
    return {"fine": fine, "enlarged": fine + 0.3 * residual, "text": torch.zeros(n, 2, 3, 4)}


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("kind, steps", [("ddim", 1), ("ddim", 7), ("dpm++", 6)])
def test_who_predicts_the_fine_video_follows_the_trained_way(strength: float, kind: str, steps: int) -> None:
    """From SDEdit's start on, a perfect network meets nothing but the latents that training shows."""
    scheduler, pool = build_scheduler(), drawn(3)
    diffusion, noise = Diffusion(scheduler), Key(1).normal(*pool["fine"].shape)
    start = torch.full((3,), round(1000 * strength) - 1.0)
    signal, share = enhancer.levels(diffusion, start)
    shifted = noise + signal / share * (pool["enlarged"] - pool["fine"])

    def perfect(latents: torch.Tensor, step: Step) -> torch.Tensor:
        time = torch.full((3,), step.time)
        torch.testing.assert_close(latents, diffusion.noised(pool["fine"], shifted, time), atol=2e-4, rtol=1e-3)
        return diffusion.target(pool["fine"], shifted, time)

    sampler = Sampler(kind, steps, 0.0)
    made = sampler(perfect, noise, torch.zeros_like, scheduler, strength=strength, clean=pool["enlarged"])
    torch.testing.assert_close(made, pool["fine"], atol=2e-3, rtol=1e-3)


def test_batches_lie_on_such_ways() -> None:
    """Each clip's noise is normal but for a share of its residual that some start at or behind its time explains."""
    diffusion, pool = Diffusion(build_scheduler()), drawn(400)
    generator = torch.Generator().manual_seed(0)
    batch = enhancer.shifted_batch(pool, torch.zeros(1, 3, 4), diffusion, generator)
    assert batch["time"].min() >= 0 and batch["time"].max() < enhancer.MOST
    signal, share = enhancer.levels(diffusion, batch["time"])
    noise = (batch["noisy"] - signal * pool["fine"]) / share
    torch.testing.assert_close(batch["target"], signal * noise - share * pool["fine"], atol=1e-3, rtol=1e-3)
    residual = pool["enlarged"] - pool["fine"]
    held = (noise * residual).sum(dim=(1, 2, 3, 4)) / residual.square().sum(dim=(1, 2, 3, 4))
    least, most = (ratio(diffusion, torch.tensor([float(u)])).item() for u in (enhancer.MOST, enhancer.LEAST))
    spread = 4 / residual.square().sum(dim=(1, 2, 3, 4)).sqrt()
    assert (held > least - spread).all() and (held < most + spread).all()
    at_most = ratio(diffusion, batch["time"].clamp(min=enhancer.LEAST))
    assert (held < at_most + spread).all()
    torch.testing.assert_close(
        (noise - held.view(-1, 1, 1, 1, 1) * residual).std(), torch.tensor(1.0), atol=0.02, rtol=0
    )


def test_without_faults_the_small_video_is_what_the_autoencoder_makes_of_it() -> None:
    torch.manual_seed(0)
    net, scenes = build_vae(toy=True).eval(), sample_scenes(2, Key(0).generator())
    frames, generator = render(scenes, frames=3), torch.Generator().manual_seed(0)
    plain = enhancer.faulty(net, frames, torch.tensor([0.0, 0.0]), generator)
    assert torch.equal(plain, decode(net, encode(net, frames)))
    one = enhancer.faulty(net, frames, torch.tensor([0.0, 0.3]), generator)
    assert torch.equal(one[0], plain[0]) and not torch.equal(one[1], plain[1])


def test_enlarged_as_the_enhancement_enlarges() -> None:
    model = open_enhancer("toy-unet", device=CPU, dtype=torch.float32)
    stage3 = assemble_enhancer(model, height=128, width=128)
    frames = render(sample_scenes(1, Key(0).generator()), frames=2)
    expected = model.codec.encode(enhancer.enlarge(frames).float() / 255)
    torch.testing.assert_close(stage3_latents(stage3, frames.float() / 255, range(2)), expected, atol=0.01, rtol=0)


def test_trains_and_enhances(tmp_path: Path) -> None:
    vae.train_vae(toy(tmp_path))
    with pytest.raises(UserError, match="text_encoder is missing; train it first: streamingt2v train clip --work"):
        enhancer.train_enhancer(toy(tmp_path))
    clip.train_clip(toy(tmp_path))
    enhancer.train_enhancer(toy(tmp_path))
    told = json.loads((tmp_path / "logs" / "enhancer.report.json").read_text())
    assert {"bicubic dB", "strength 0.3 dB", "autoencoder dB"} < set(told)
    defaults, _ = build_defaults(enhancer.ENHANCED_SIZE, enhancer.ENHANCED_FRAMES)
    assert defaults.strength in enhancer.STRENGTHS
    assert enhancer.LEAST / 1000 <= min(enhancer.STRENGTHS) and max(enhancer.STRENGTHS) <= enhancer.MOST / 1000
    assert (tmp_path / "logs" / "enhancer.png").stat().st_size
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.latent_channels == LATENT_CHANNELS


def test_decibels() -> None:
    black, grey = torch.zeros(1, 1, 3, 2, 2, dtype=torch.uint8), torch.full((1, 1, 3, 2, 2), 51, dtype=torch.uint8)
    assert enhancer.decibels(black, grey) == pytest.approx(13.979, abs=1e-3)
