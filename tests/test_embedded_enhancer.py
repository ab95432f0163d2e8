"""Training of the enhancer: SDEdit's own way from an enlarged video to a fine one."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from torch.nn import functional as F

from backends.embedded import sdedit
from backends.embedded import train_base as base
from backends.embedded import train_clip as clip
from backends.embedded import train_enhancer as enhancer
from backends.embedded import train_vae as vae
from backends.embedded.config import LATENT_CHANNELS, build_defaults, build_scheduler, build_text_encoder, build_vae
from backends.embedded.pool import decode, encode, object_shares, random_start
from backends.embedded.tokenizer import build_tokenizer
from backends.embedded.train_unet import Frozen
from backends.world import VOCABULARY, render, sample_scenes
from streaming.datasets import device_generator
from streaming.enhancer import assemble_enhancer
from streaming.enhancer import encode as stage3_latents
from streaming.errors import UserError
from streaming.keys import Key
from streaming.noising import Diffusion
from streaming.registry import open_enhancer
from streaming.sample import Sampler, Step
from streaming.subject_weight import SEEN, SUBJECT
from streaming.training import TrainOptions

CPU = torch.device("cpu")


def toy(work: Path) -> TrainOptions:
    return TrainOptions(work=work, toy=True, device="cpu", batch=2, steps=2)


class Blocks(nn.Module):
    """An autoencoder whose latents are blocks of 8 x 8 pixels, in coarse steps if they are asked for."""

    def __init__(self, coarse: float = 0.0) -> None:
        super().__init__()
        self.coarse = coarse

    def encode(self, frames: torch.Tensor) -> SimpleNamespace:
        mean = F.pixel_unshuffle(frames, 8)
        mean = (mean / self.coarse).round() * self.coarse if self.coarse else mean
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=F.pixel_shuffle(latents, 8))


def frozen(coarse: float = 0.0) -> Frozen:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(VOCABULARY)
    text = build_text_encoder(len(tokenizer), toy=True).eval()
    return Frozen(vae=Blocks(coarse), tokenizer=tokenizer, text_encoder=text)


class Predicts(nn.Module):
    """A U-Net that gives the velocity from whatever is noisy to the latents of one of these groups of clips, of which
    it knows by their number which one it sees, each clip with its prompt and without."""

    def __init__(self, *groups: torch.Tensor) -> None:
        super().__init__()
        self.clean, self.seen = {2 * len(group): torch.cat((group, group)) for group in groups}, []

    def forward(
        self, latents: torch.Tensor, time: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> SimpleNamespace:
        self.seen.append((time, encoder_hidden_states, latents))
        signal, share = Diffusion(build_scheduler()).levels(time)
        return SimpleNamespace(sample=(signal * latents - self.clean[len(latents)]) / share)


def velocity(latents: torch.Tensor, time: torch.Tensor | float, text: torch.Tensor) -> torch.Tensor:
    """One that depends on all that it is told."""
    return 0.3 * latents * text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1) + time / 1000


def alike(noises: torch.Tensor) -> torch.Tensor:
    """Correlations of each noise with each; of independent ones, the identity but for chance."""
    flat = noises.flatten(1)
    return flat @ flat.mT / flat.shape[1]


def ratio(diffusion: Diffusion, time: torch.Tensor) -> torch.Tensor:
    signal, share = diffusion.levels(time)
    return (signal / share).flatten()


def drawn(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    key = Key(seed)
    fine, residual = (key.fold("latents", k).normal(n, LATENT_CHANNELS, 2, 2, 2) for k in range(2))
    text, nowhere = torch.zeros(n, 2, 3, 4), torch.zeros(n, 1, 2, 2, 2)
    return {"fine": fine, "enlarged": fine + 0.3 * residual, "object": nowhere, "text": text}


# --- what training noises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("kind, steps", [("ddim", 1), ("ddim", 7), ("dpm++", 6)])
def test_who_predicts_the_fine_video_follows_the_trained_way(strength: float, kind: str, steps: int) -> None:
    """From SDEdit's start on, a perfect network meets nothing but the latents that training shows."""
    scheduler, pool = build_scheduler(), drawn(3)
    diffusion, noise = Diffusion(scheduler), Key(1).normal(*pool["fine"].shape)
    start = torch.full((3,), round(1000 * strength) - 1.0)
    signal, share = diffusion.levels(start)
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
    signal, share = diffusion.levels(batch["time"])
    noise = (batch["noisy"] - signal * pool["fine"]) / share
    torch.testing.assert_close(batch["target"], signal * noise - share * pool["fine"], atol=1e-3, rtol=1e-3)
    residual = pool["enlarged"] - pool["fine"]
    held = (noise * residual).sum(dim=(1, 2, 3, 4)) / residual.square().sum(dim=(1, 2, 3, 4))
    least, most = (ratio(diffusion, torch.tensor([float(u)])).item() for u in (enhancer.MOST, enhancer.LEAST))
    spread = 4 / residual.square().sum(dim=(1, 2, 3, 4)).sqrt()
    assert (held > least - spread).all() and (held < most + spread).all()
    at_most = ratio(diffusion, batch["time"].clamp(min=enhancer.LEAST))
    assert (held < at_most + spread).all()
    own = noise - held.view(-1, 1, 1, 1, 1) * residual
    torch.testing.assert_close(own.std(), torch.tensor(1.0), atol=0.02, rtol=0)
    assert alike(own).triu(1).max() < 0.7, "two clips share their noise"


def known_starts(n: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """A pool with residuals so large that a batch's noise tells where each way began; the batch; those starts."""
    diffusion, pool = Diffusion(build_scheduler()), drawn(n)
    residual = 1e4 * (pool["enlarged"] - pool["fine"])
    pool["enlarged"] = pool["fine"] + residual
    batch = enhancer.shifted_batch(pool, torch.zeros(1, 3, 4), diffusion, torch.Generator().manual_seed(0))
    signal, share = diffusion.levels(batch["time"])
    noise = (batch["noisy"] - signal * pool["fine"]) / share
    held = (noise * residual).sum(dim=(1, 2, 3, 4)) / residual.square().sum(dim=(1, 2, 3, 4))
    shares = ratio(diffusion, torch.arange(1000.0))
    return pool, batch, (held[:, None] - shares[None, :]).abs().argmin(dim=1)


def test_training_begins_where_the_sampler_does() -> None:
    """From the least strength that is promised to the largest, those of the report among them."""
    _, batch, starts = known_starts(6000)
    assert (batch["time"] <= starts).all() and (batch["time"] == starts).any()
    assert (starts >= enhancer.LEAST).all() and (starts < enhancer.MOST).all()
    shortest = starts < enhancer.LEAST + (enhancer.MOST - enhancer.LEAST) / 4
    assert 0.47 < shortest.float().mean() < 0.53, "half of the ways are among the shortest quarter"
    assert 0.47 < ((batch["time"] + 0.5) / starts).mean() < 0.53, "every part of a way counts alike"
    defaults, _ = build_defaults(enhancer.ENHANCED_SIZE, enhancer.ENHANCED_FRAMES)
    sampler = Sampler(defaults.sampler, defaults.steps, defaults.eta)
    first = {s: sampler.plan(build_scheduler(), s)[1][0].time for s in (0.1, *enhancer.STRENGTHS, 0.7)}
    assert (starts.min(), starts.max()) == (first[0.1], first[0.7])
    assert set(first.values()) <= set(starts.tolist()) and defaults.strength in first


def test_a_weighted_error_is_the_fine_videos_in_units_of_the_starts_noise() -> None:
    """A velocity that errs by e gives a clean video that errs by less the less noise is left; the weight knows."""
    diffusion, e = Diffusion(build_scheduler()), 100.0
    pool, batch, starts = known_starts(200)
    signal, share = diffusion.levels(batch["time"])
    clean = signal * batch["noisy"] - share * (batch["target"] + e)
    missed = (clean - pool["fine"]).square().mean(dim=(1, 2, 3, 4))
    begin = diffusion.levels(starts.float())[1].flatten()
    weight = batch["weight"][:, 0, 0, 0, 0]
    torch.testing.assert_close(weight * e**2, missed / begin**2, rtol=5e-3, atol=0)
    assert weight.min() < 0.1 and weight.max() <= 1


def test_the_objects_cells_count_more() -> None:
    diffusion, pool = Diffusion(build_scheduler()), drawn(50)
    pool["object"][:, :, 1] = 1.0
    batch = enhancer.shifted_batch(pool, torch.zeros(1, 3, 4), diffusion, torch.Generator().manual_seed(0))
    signal, noise = (level.flatten() for level in diffusion.levels(batch["time"]))
    ratios = (batch["weight"][:, :, 1] / batch["weight"][:, :, 0]).mean(dim=(1, 2, 3))
    torch.testing.assert_close(ratios, 1 + (SUBJECT - 1) * signal**2 / (signal**2 + SEEN * noise**2))


# --- pairs of a fine video and a small one ---------------------------------------------------------------------------


def test_a_pair_is_a_fine_video_and_a_small_one_that_the_base_model_remade_enlarged() -> None:
    """Here by a base model that makes the negative of every clip, of ten in groups of eight and two."""
    parts, scenes, n = frozen(), sample_scenes(10, Key(0).generator()), 10
    start = random_start(n, torch.Generator().manual_seed(0), CPU)
    frames = enhancer.ENHANCED_FRAMES
    fine, small = (render(scenes, frames=frames, start=start, fps=8.0, size=size) for size in (128, 64))
    latents = encode(parts.vae, small)
    net = Predicts(-latents[:8], -latents[8:])
    made = enhancer.pairs(net, parts)(scenes, torch.Generator().manual_seed(0))
    decoded = {name: decode(parts.vae, made[name].float()).float() for name in ("fine", "enlarged")}
    assert (decoded["fine"] - fine.float()).abs().max() <= 1
    negative = 255 - decoded["enlarged"]
    assert (negative - enhancer.enlarge(small).float()).abs().max() <= 2
    apart = torch.stack([(clip - decoded["fine"]).square().flatten(1).mean(dim=1) for clip in negative])
    assert apart.argmin(dim=1).tolist() == list(range(n)), "an enlarged video lies beside another one's fine video"
    assert torch.equal(made["object"], object_shares(scenes, start, frames=frames, size=128).half())
    assert made["text"].shape[:2] == (n, 2)
    assert [len(text) for _, text, _ in net.seen] == [16] * 4 + [4] * 4  # eight clips and two, with and without prompt
    first = net.seen[:: sdedit.REMAKING_STEPS]
    begun = [float(time[0]) for time, _, _ in first]
    least, most = (1000 * share - 2 for share in (enhancer.LEAST_REMADE, enhancer.MOST_REMADE))
    assert len(begun) == 2 and all(least <= time <= most for time in begun) and len(set(begun)) == 2
    none, told = (torch.cat([text.chunk(2)[k] for _, text, _ in first]) for k in range(2))
    torch.testing.assert_close(told, made["text"][:, 0].float(), atol=1e-2, rtol=0)
    assert torch.equal(none, none[:1].expand_as(none)) and not torch.equal(none, told)
    noisy = torch.cat([seen.chunk(2)[0] for _, _, seen in first])
    signal, share = Diffusion(build_scheduler()).levels(torch.cat([time.chunk(2)[0] for time, _, _ in first]))
    noise = (noisy - signal * latents) / share
    torch.testing.assert_close(alike(noise), torch.eye(n), atol=0.05, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6])
def test_a_perfect_base_model_leaves_the_small_video_as_the_autoencoder_makes_it(share: float) -> None:
    torch.manual_seed(0)
    net, scenes = build_vae(toy=True).eval(), sample_scenes(2, Key(0).generator())
    frames, text = render(scenes, frames=3), torch.zeros(2, 3, 4)
    latents = encode(net, frames)
    made = sdedit.remade(Predicts(latents), net, frames, text, text[:1], share, torch.Generator().manual_seed(0))
    assert (made.int() - decode(net, latents).int()).abs().max() <= 1


def test_remade_by_the_base_models_own_solver_and_guidance() -> None:
    """Not by the enhancer's, which guides less, nor by another solver: against one trajectory worked out here."""
    net, frames = Blocks(), render(sample_scenes(2, Key(0).generator()), frames=3)
    said, none = Key(1).normal(2, 2, 4), Key(2).normal(1, 2, 4)
    clean, (defaults, _) = encode(net, frames), build_defaults(sdedit.SIZE, sdedit.FRAMES)

    def unet(latents: torch.Tensor, time: torch.Tensor, encoder_hidden_states: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=velocity(latents, time.view(-1, 1, 1, 1, 1), encoder_hidden_states))

    def predict(latents: torch.Tensor, step: Step) -> torch.Tensor:
        free, bound = velocity(latents, step.time, none), velocity(latents, step.time, said)
        return free + defaults.guidance * (bound - free)

    made = sdedit.remade(unet, net, frames, said, none, 0.35, torch.Generator().manual_seed(0))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(defaults.sampler, sdedit.REMAKING_STEPS, defaults.eta)
    expected = sampler(predict, noise, torch.zeros_like, build_scheduler(), strength=0.35, clean=clean)
    assert (made.int() - decode(net, expected).int()).abs().max() <= 1


def test_the_more_of_the_schedule_the_less_is_left() -> None:
    class Fades(nn.Module):
        """Knows nothing, so takes for clean what is noisy."""

        def forward(self, latents: torch.Tensor, *_: object, encoder_hidden_states: object) -> SimpleNamespace:
            return SimpleNamespace(sample=torch.zeros_like(latents))

    net, frames, text = Blocks(), render(sample_scenes(4, Key(0).generator()), frames=3), torch.zeros(4, 3, 4)
    errors = []
    for share in (0.1, 0.3, 0.6):
        made = sdedit.remade(Fades(), net, frames, text, text[:1], share, torch.Generator().manual_seed(0))
        errors.append(-enhancer.decibels(made, frames))
    assert errors[0] + 2 < errors[1] < errors[2] - 2


def test_enlarged_as_the_enhancement_enlarges() -> None:
    model = open_enhancer("toy-unet", device=CPU, dtype=torch.float32)
    stage3 = assemble_enhancer(model, height=128, width=128)
    frames = render(sample_scenes(1, Key(0).generator()), frames=2)
    expected = model.codec.encode(enhancer.enlarge(frames).float() / 255)
    torch.testing.assert_close(stage3_latents(stage3, frames.float() / 255, range(2)), expected, atol=0.01, rtol=0)


# --- the command and its report --------------------------------------------------------------------------------------


def test_trains_and_enhances(tmp_path: Path) -> None:
    vae.train_vae(toy(tmp_path))
    clip.train_clip(toy(tmp_path))
    with pytest.raises(UserError, match="unet is missing; train it first: streamingt2v train base --work"):
        enhancer.train_enhancer(toy(tmp_path))
    base.train_base(toy(tmp_path))
    enhancer.train_enhancer(toy(tmp_path))
    told = json.loads((tmp_path / "logs" / "enhancer.report.json").read_text())
    ways = {f"guidance {g} steps {n} strength {s} dB" for g in (1, 1.5) for n in (1, 6) for s in (0.1, 0.2, 0.3, 0.5)}
    assert set(told) == {"bicubic dB", "autoencoder dB"} | ways
    assert (tmp_path / "logs" / "enhancer.png").stat().st_size
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.latent_channels == LATENT_CHANNELS


def test_decibels() -> None:
    black, grey = torch.zeros(1, 1, 3, 2, 2, dtype=torch.uint8), torch.full((1, 1, 3, 2, 2), 51, dtype=torch.uint8)
    assert enhancer.decibels(black, grey) == pytest.approx(13.979, abs=1e-3)


def test_the_report_is_of_enlarged_videos_and_of_the_defaults_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an enhancement that does nothing, no figure is better than what it began with; the picture shows the one
    with the settings that ship, here a black one."""
    defaults, _ = build_defaults(enhancer.ENHANCED_SIZE, enhancer.ENHANCED_FRAMES)

    def nothing(unet, clean, text, empty, guidance: float, steps: int, strength: float, key: Key) -> torch.Tensor:
        assert len(text) == len(clean) and len(empty) == 1 and not unet.training
        ships = (guidance, steps, strength) == (defaults.guidance, defaults.steps, defaults.strength)
        return torch.full_like(clean, -1) if ships else clean

    def coded(base, vae, frames, text, empty, share: float, generator) -> torch.Tensor:
        assert share == pytest.approx((enhancer.LEAST_REMADE + enhancer.MOST_REMADE) / 2), "the middle one"
        return decode(vae, encode(vae, frames))

    monkeypatch.setattr(enhancer, "enhanced", nothing)
    unet, parts = nn.Linear(1, 1), frozen(coarse=0.1)
    monkeypatch.setattr(enhancer, "remade", coded)
    enhancer._reported(nn.Linear(1, 1), toy(tmp_path), unet, parts)
    told = json.loads((tmp_path / "logs" / "enhancer.report.json").read_text())
    ways = [(g, n, s) for g in (1.0, 1.5) for n in (1, 6) for s in enhancer.STRENGTHS]
    names = [f"guidance {g:g} steps {n} strength {s:g} dB" for g, n, s in ways]
    assert list(told) == ["bicubic dB", *names, "autoencoder dB"] and unet.training
    for name, way in zip(names, ways, strict=True):
        if way == (defaults.guidance, defaults.steps, defaults.strength):
            assert told[name] < told["bicubic dB"] - 3
        else:
            assert told[name] == pytest.approx(told["bicubic dB"], abs=0.5)
    assert told["bicubic dB"] < told["autoencoder dB"] - 5
    rows = np.asarray(Image.open(tmp_path / "logs" / "enhancer.png")).reshape(3, 128, -1)
    assert [bool(row.any()) for row in rows] == [True, False, True]


@pytest.mark.parametrize("guidance, steps, strength", [(1.0, 6, 0.3), (1.5, 1, 0.1), (2.0, 3, 0.5)])
def test_enhanced_by_the_solver_that_ships_as_it_is_asked_to(guidance: float, steps: int, strength: float) -> None:
    """Nine clips, in parts of eight, against one trajectory whose velocity is worked out here."""
    n, key, said, none = 9, Key(5), Key(1).normal(9, 2, 4), Key(2).normal(1, 2, 4)
    clean, seen = Key(0).normal(n, LATENT_CHANNELS, 2, 2, 2), []

    def unet(latents: torch.Tensor, time: torch.Tensor, encoder_hidden_states: torch.Tensor) -> SimpleNamespace:
        seen.append(len(latents))
        return SimpleNamespace(sample=velocity(latents, time.view(-1, 1, 1, 1, 1), encoder_hidden_states))

    def predict(latents: torch.Tensor, step: Step) -> torch.Tensor:
        free, bound = velocity(latents, step.time, none), velocity(latents, step.time, said)
        return free + guidance * (bound - free)

    made = enhancer.enhanced(unet, clean, said, none, guidance, steps, strength, key)
    defaults, _ = build_defaults(enhancer.ENHANCED_SIZE, enhancer.ENHANCED_FRAMES)
    generator = device_generator(key, CPU)
    noise = torch.cat([torch.randn(part.shape, generator=generator) for part in clean.split(enhancer.AT_ONCE)])
    sampler = Sampler(defaults.sampler, steps, defaults.eta)
    expected = sampler(predict, noise, torch.zeros_like, build_scheduler(), strength=strength, clean=clean)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    rows = 1 if guidance == 1 else 2
    assert seen == [8 * rows] * steps + [rows] * steps
