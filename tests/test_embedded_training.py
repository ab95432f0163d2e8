"""The trainers of the embedded model at toy size, and the parts that they make."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from backends.embedded import train_base as base
from backends.embedded import train_clip as clip
from backends.embedded import train_enhancer as enhancer
from backends.embedded import train_image, train_text
from backends.embedded import train_judge as judging
from backends.embedded import train_unet as unets
from backends.embedded import train_vae as vae
from backends.embedded.config import (
    LATENT_CHANNELS,
    build_base,
    build_scheduler,
    build_text_encoder,
    build_vae,
    without_dropout,
)
from backends.embedded.judge import Judge, JudgeConfig
from backends.embedded.pool import PERIOD, random_start, two_captions
from backends.embedded.tokenizer import BOS, EOS, PAD, UNKNOWN, build_tokenizer, token_numbers
from backends.world import VOCABULARY, captions, object_mask, render, sample_scenes
from backends.world.dataset import LATEST_START, ProceduralWorld
from streaming.errors import UserError
from streaming.keys import Key
from streaming.noising import Diffusion
from streaming.subject_weight import SEEN, SUBJECT
from streaming.training import TrainOptions

CPU = torch.device("cpu")


def toy(work: Path, **options) -> TrainOptions:
    return TrainOptions(work=work, toy=True, device="cpu", batch=2, steps=2, **options)


# --- all trainers ----------------------------------------------------------------------------------------------------


def test_every_part_trains_and_loads_again(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection,
    )

    with pytest.raises(UserError, match="vae is missing; train it first: streamingt2v train vae --work"):
        base.train_base(toy(tmp_path))
    for train in (vae.train_vae, clip.train_clip, judging.train_judge, base.train_base):
        train(toy(tmp_path))
    weights = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.scaling_factor == 1
    assert UNet3DConditionModel.from_pretrained(tmp_path / "unet").config.sample_size == 8
    assert DDIMScheduler.from_pretrained(tmp_path / "scheduler").config.rescale_betas_zero_snr
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert text(token_numbers(tokenizer, ["a ball"])).text_embeds.shape == (1, text.config.projection_dim)
    assert CLIPVisionModelWithProjection.from_pretrained(tmp_path / "image_encoder").config.image_size == 64
    assert CLIPImageProcessor.from_pretrained(tmp_path / "image_encoder").image_mean[0] == 0.5
    assert (tmp_path / "logs" / "base.png").stat().st_size and (tmp_path / "logs" / "vae.png").stat().st_size
    assert set(json.loads((tmp_path / "logs" / "base.report.json").read_text())) >= {"place", "shape", "colour"}
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_another_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='trains on "procedural-world" only, not on --dataset films'):
        vae.train_vae(toy(tmp_path, dataset="films"))


def test_gradient_checkpointing_is_refused(tmp_path: Path) -> None:
    for train in (vae.train_vae, clip.train_clip, judging.train_judge, base.train_base, enhancer.train_enhancer):
        with pytest.raises(UserError, match="no gradient checkpointing: leave --checkpoint-gradients out"):
            train(toy(tmp_path, checkpoint_gradients=True))


def test_initial_weights_move_no_global_generator(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    judging.train_judge(toy(tmp_path))
    assert torch.equal(torch.rand(2), expected)


# --- autoencoder -----------------------------------------------------------------------------------------------------


def test_standardised_latents_are_normal_and_pictures_stay() -> None:
    torch.manual_seed(0)
    model = build_vae(toy=True).eval()
    folded = vae.standardised(model, toy=True)
    frames = vae._held_out(64, 16, CPU)[0]
    with torch.no_grad():
        old, new = model.encode(frames).latent_dist, folded.encode(frames).latent_dist
        assert new.mean.mean(dim=(0, 2, 3)).abs().max() < 1e-4
        assert (new.mean.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
        torch.testing.assert_close(folded.decode(new.mean).sample, model.decode(old.mean).sample, atol=1e-4, rtol=1e-3)
        scale = old.mean.std(dim=(0, 2, 3))[None, :, None, None]
        torch.testing.assert_close(new.std * scale, old.std, atol=1e-4, rtol=1e-3)


# --- denoisers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, name, period", [(base, "train_base", PERIOD), (enhancer, "train_enhancer", enhancer.PERIOD)]
)
def test_a_slice_of_clips_is_made_once_in_a_period(
    module, name: str, period: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = []

    def counted(scenes, generator: torch.Generator) -> dict[str, torch.Tensor]:
        slices.append(len(scenes))
        return {"latents": torch.zeros(len(scenes), 1)}

    def run(training: unets.UNetTraining, *rest) -> None:
        simple = replace(training, slices=lambda parts: counted, noised=lambda drawn, *rest: drawn)
        unets.train_unet(simple, *rest)

    def fit(name: str, objective, batches, *rest, export, begun) -> None:
        drawn = batches(0, 0, 1, CPU)
        for step in range(2 * period + 1):
            next(drawn)
            assert slices == [2] * (2 + step // period)

    parts = unets.Frozen(vae=torch.nn.Identity(), tokenizer=build_tokenizer(VOCABULARY), text_encoder=None)
    parts = replace(parts, text_encoder=build_text_encoder(len(parts.tokenizer), toy=True))
    monkeypatch.setattr(module, "train_unet", run)
    monkeypatch.setattr(unets, "fit", fit)
    monkeypatch.setattr(unets, "_frozen", lambda options: parts)
    build_base(32, toy=True).save_pretrained(tmp_path / "unet")  # which the enhancer's clips are remade by
    getattr(module, name)(toy(tmp_path))
    assert len(slices) == 4


@pytest.mark.parametrize("weight", [(1.0, 0.0), (0.0, 3.0), (0.5, 2.0)])
def test_the_objective_weighs_each_clips_error(weight: tuple[float, float]) -> None:
    class Silent(torch.nn.Module):
        def forward(self, noisy, time, encoder_hidden_states):
            return SimpleNamespace(sample=torch.zeros_like(noisy))

    target = Key(0).normal(2, 3, 2, 4, 4)
    batch = {"noisy": target, "target": target, "time": torch.zeros(2), "text": torch.zeros(2, 3, 4)}
    cells = torch.tensor(weight).view(2, 1, 1, 1, 1) * torch.tensor([1.0, 3.0]).view(2, 1, 1)  # frames differ, too
    loss = unets.DiffusionObjective(Silent())(batch | {"weight": cells})["loss"]
    expected = (
        sum(
            w * (clip[:, 0].square().mean() + 3 * clip[:, 1].square().mean()) / 2
            for w, clip in zip(weight, target, strict=True)
        )
        / 2
    )
    torch.testing.assert_close(loss, expected)


def test_velocity_of_a_scheduler_step_gives_the_clean_latents_back() -> None:
    scheduler = build_scheduler()
    clean, noise = Key(0).normal(3, 8, 2, 4, 4), Key(1).normal(3, 8, 2, 4, 4)
    time = torch.tensor([0, 500, 999])
    diffusion = Diffusion(scheduler)
    noised, target = diffusion.noised(clean, noise, time.float()), diffusion.target(clean, noise, time.float())
    torch.testing.assert_close(noised, scheduler.add_noise(clean, noise, time))
    torch.testing.assert_close(target, scheduler.get_velocity(clean, noise, time))
    assert torch.equal(noised[2], noise[2])  # zero terminal signal-to-noise ratio


def test_times_are_spread_evenly_and_below_the_limit() -> None:
    generator, diffusion = torch.Generator().manual_seed(0), Diffusion(build_scheduler())
    pool = {name: torch.zeros(7, 1, 1, 1, 1) for name in ("latents", "object")} | {"text": torch.zeros(7, 2, 2, 3)}
    empty = torch.zeros(1, 2, 3)
    times = torch.cat([base.noised_batch(pool, empty, diffusion, generator)["time"] for _ in range(300)])
    assert times.min() >= 0 and times.max() <= 999
    middle = times + 0.5  # whole times are floored
    unshifted = 1000 * middle / (base.SHIFT * 1000 - (base.SHIFT - 1) * middle)
    assert torch.histc(unshifted, 7, 0, 1000).tolist() == pytest.approx([300] * 7, abs=3)
    assert (middle > 600).float().mean().item() == pytest.approx(4 / 7, abs=0.005)  # 2 u / (1 + u) > .6 from 3 / 7 on


def test_a_tenth_of_the_clips_has_no_text() -> None:
    text = torch.stack((torch.full((4000, 2, 3), 1.0), torch.full((4000, 2, 3), 2.0)), dim=1)
    pool = {name: torch.zeros(4000, 1, 1, 1, 1) for name in ("latents", "object")} | {"text": text}
    diffusion, generator = Diffusion(build_scheduler()), torch.Generator().manual_seed(0)
    batch = base.noised_batch(pool, torch.zeros(1, 2, 3), diffusion, generator)
    shares = torch.bincount(batch["text"][:, 0, 0].long()) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0.45, 0.45], abs=0.03)


def test_the_base_model_is_told_where_the_object_is() -> None:
    """Its share of every cell, and a weight that fades with the signal."""
    parts = unets.Frozen(vae=build_vae(toy=True).eval(), tokenizer=build_tokenizer(VOCABULARY), text_encoder=None)
    parts = replace(parts, text_encoder=build_text_encoder(len(parts.tokenizer), toy=True).eval())
    scenes, generator = sample_scenes(3, Key(0).generator()), torch.Generator().manual_seed(0)
    made = base.clips(parts)(scenes, generator)
    start = random_start(3, torch.Generator().manual_seed(0), CPU)
    mask = object_mask(scenes, frames=16, start=start, fps=8.0, size=64)
    share = mask.unflatten(2, (8, 8)).unflatten(4, (8, 8)).mean(dim=(3, 5))
    torch.testing.assert_close(made["object"][:, 0].float(), share, atol=1e-3, rtol=0)
    assert made["latents"].shape == (3, LATENT_CHANNELS, 16, 8, 8) and made["text"].shape[:2] == (3, 2)
    assert 0.01 < share.mean() < 0.3 and share.min() == 0 and share.max() > 0.9
    diffusion = Diffusion(build_scheduler())
    batch = base.noised_batch(made, torch.zeros(1, *made["text"].shape[2:]), diffusion, generator)
    signal, noise = diffusion.levels(batch["time"])
    seen = signal**2 / (signal**2 + SEEN * noise**2)
    expected = torch.where(share[:, None] >= 0.25, 1 + (SUBJECT - 1) * seen, 1 + 4 * share[:, None] * 2 * seen)
    torch.testing.assert_close(batch["weight"], expected, atol=1e-2, rtol=0)


def test_no_dropout_is_left_in_training() -> None:
    unet = without_dropout(build_base(32, toy=True)).train()
    x, text = Key(0).normal(1, LATENT_CHANNELS, 2, 8, 8), Key(1).normal(1, 4, 32)
    # The last temporal convolutions begin at zero and would hide the dropout before them.
    for name, value in unet.named_parameters():
        if name.endswith("conv4.3.weight"):
            torch.nn.init.constant_(value, 0.01)
    with torch.no_grad():
        assert torch.equal(*(unet(x, 5, encoder_hidden_states=text).sample for _ in range(2)))


# --- text and its contrast with frames -------------------------------------------------------------------------------


def test_contrast_against_a_plain_loop() -> None:
    a, b = (F.normalize(Key(i).normal(5, 4), dim=-1) for i in (0, 1))
    code = torch.tensor([0, 1, 0, 2, 1])
    same = code[:, None] == code[None, :]
    total = 0.0
    for one, other in ((a, b), (b, a)):
        for i in range(5):
            rivals = [j for j in range(5) if j == i or code[j] != code[i]]
            logits = torch.stack([7 * one[i] @ other[j] for j in rivals])
            total += (logits.logsumexp(0) - 7 * one[i] @ other[i]).item() / 10
    assert clip.contrast(a, b, torch.tensor(7.0), same).item() == pytest.approx(total, rel=1e-5)


def test_paired_rows_hold_close_neighbours_and_their_own_fields() -> None:
    whole = Key(0).integers(0, 50, 400)
    tokens = torch.arange(400)[:, None, None].expand(400, 2, 3)
    batch = clip.paired({"whole": whole, "row": torch.arange(400), "tokens": tokens}, 64, Key(3))
    assert torch.equal(batch["whole"], whole[batch["row"]])
    assert torch.equal(batch["tokens"][:, 0], batch["row"])
    assert (batch["whole"][:32] == batch["whole"][32:]).float().mean() > 0.7


def test_the_tokenizer_knows_every_word_of_every_caption() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    numbers = token_numbers(tokenizer, captions(sample_scenes(200, generator), generator))
    assert numbers.shape == (200, 24) and not (numbers == UNKNOWN).any()
    assert (numbers[:, 0] == BOS).all() and ((numbers == EOS).sum(dim=1) == 1).all()
    first, second, empty = token_numbers(tokenizer, ["A BIG, red-ball!", "a big red  ball", ""])
    assert torch.equal(first, second) and first.tolist()[5:] == [EOS] + [PAD] * 18
    assert empty.tolist() == [BOS, EOS] + [PAD] * 22
    assert token_numbers(tokenizer, ["an unheard ball"])[0, 2] == UNKNOWN
    assert token_numbers(tokenizer, ["ball " * 10_000]).shape == (1, 24)


def test_the_text_encoder_pools_at_the_end_whatever_follows() -> None:
    torch.manual_seed(0)
    encoder = build_text_encoder(20, toy=True).eval()
    short = torch.tensor([[BOS, 7, 8, EOS] + [PAD] * 4])
    with torch.no_grad():
        torch.testing.assert_close(encoder(short).text_embeds, encoder(short[:, :4]).text_embeds)


# --- judge -----------------------------------------------------------------------------------------------------------


def test_a_judge_survives_its_file_and_rejects_others(tmp_path: Path) -> None:
    config = JudgeConfig(attributes={"place": ("moon", "snow"), "shape": ("ball", "cube", "star")})
    torch.manual_seed(0)
    judge = Judge(config).eval()
    judge.save(tmp_path / "judge")
    loaded = Judge.load(tmp_path / "judge")
    frames = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = judge(frames), loaded(frames)
    assert loaded.config == config
    assert {name: value.shape[1] for name, value in after.items()} == {"place": 2, "shape": 3}
    torch.testing.assert_close(before["shape"], after["shape"], atol=5e-3, rtol=5e-2)
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="holds no attribute judge"):
        Judge.load(tmp_path / "judge")


def test_a_judge_learns_what_moves() -> None:
    """Two clips that differ only in the direction of time."""
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(attributes={"way": ("left", "right")}, widths=(8, 8, 16), hidden=16))
    clip_ = torch.zeros(1, 8, 3, 64, 64)
    for t in range(8):
        clip_[:, t, :, 20:36, 6 * t : 6 * t + 12] = 1
    clips, labels = torch.cat((clip_, clip_.flip(1))), torch.tensor([1, 0])
    optimizer = torch.optim.Adam(judge.parameters(), 5e-3)
    for _ in range(25):
        loss = F.cross_entropy(judge(clips)["way"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert judge.eval().classify(clips)["way"].tolist() == [1, 0]


def test_spoilt_clips_stay_close_and_differ_by_generator() -> None:
    frames = (torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    one, same, other = (judging.spoil(frames, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert (one.mean() - frames.float().mean() / 255).abs() < 0.06


# --- clips for memories ----------------------------------------------------------------------------------------------


def test_world_clips_come_from_their_generator_and_anchors_from_their_video() -> None:
    def draw(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return ProceduralWorld().clips(6, generator, frames=2, size=32, device=CPU, context_seconds=5.0)

    one, same, other = draw(1), draw(1), draw(2)
    assert one.frames.shape == (6, 2, 3, 32, 32) and one.anchors.shape == (6, 3, 32, 32) and len(one.captions) == 6
    assert torch.equal(one.frames, same.frames) and one.captions == same.captions
    assert not torch.equal(one.frames, other.frames)
    # What the object looks like is left to memories.
    lines = ProceduralWorld().clips(64, Key(3).generator(), frames=1, size=8, device=CPU).captions
    assert not any(" with " in line for line in lines)
    # Its subject is the object, at the clip's own start.
    generator = torch.Generator().manual_seed(1)
    scenes = sample_scenes(6, generator, split="train")
    captions(scenes, generator)
    start = torch.rand(6, generator=generator) * LATEST_START
    assert torch.equal(one.frames, render(scenes, frames=2, start=start, fps=8.0, size=32))
    assert torch.equal(one.subject, object_mask(scenes, frames=2, start=start, fps=8.0, size=32))
    # An anchor is likelier to look like its own video's clip than like another's.
    distance = (one.anchors[:, None].float() - one.frames[None, :, 0].float()).abs().mean(dim=(2, 3, 4))
    assert (distance.argmin(dim=1) == torch.arange(6)).sum() >= 4


def test_captions_of_another_world_are_told() -> None:
    """Wherever captions are read: by the base model, by the text encoder's and by the image encoder's training."""
    tokenizer = build_tokenizer([word for word in VOCABULARY if word not in ("core", "with")])
    line = r"does not know words of today's captions \(core, with\): begin in a new --work"
    scenes, generator = sample_scenes(64, Key(0).generator()), torch.Generator().manual_seed(0)
    encoder = build_text_encoder(len(tokenizer), toy=True).eval()
    for read in (
        lambda: two_captions(tokenizer, encoder, scenes, generator),
        lambda: train_text.drawn(tokenizer, 64, Key(0), CPU),
        lambda: train_image._slices(tokenizer)(scenes, generator),
    ):
        with pytest.raises(UserError, match=line):
            read()
