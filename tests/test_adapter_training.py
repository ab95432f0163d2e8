"""Training of the memories: targets, batches, the objective, an overfit, resuming, and the command's errors."""

import json
from dataclasses import replace
from importlib import import_module
from itertools import islice, product

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

import adapters.train
from adapters.apm import apm, new_apm
from adapters.cam import cam, new_cam
from adapters.clips import ClipBatches, drops
from adapters.recipe import MemoryRecipe, apm_recipe, cam_recipe, memories_recipe
from adapters.train import MemoryObjective, train, train_apm, train_cam, train_memories
from streaming.cli.train import train as command_line
from streaming.datasets import CaptionedClips, ClipDataset
from streaming.errors import UserError
from streaming.frame_mask import FrameMask
from streaming.keys import Key, initial_weights
from streaming.memory import NoShortTerm, Tail
from streaming.noising import Diffusion
from streaming.subject_weight import SEEN
from streaming.train_state import read_state
from streaming.training import Recipe, Result, TrainOptions
from tests.adapter_toys import CHANNELS, DEPTH, SIZE, TOKENS, WINDOW, ToyClips, toy_model, unzero

CPU = torch.device("cpu")
LOOP = Recipe(steps=60, batch=8, learning_rate=1e-2, warmup=5, log_every=20, ema=0.9)
RECIPE = MemoryRecipe(loop=LOOP, slices=2, period=2)


def batches(recipe=RECIPE, **changes):
    return ClipBatches(replace(toy_model(), **changes), ToyClips(), recipe, batch=recipe.loop.batch, name="t")


# --- noise and times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_targets_lead_back_to_the_clean_latents(kind):
    flow = kind == "flow"
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDIMScheduler(prediction_type=kind)
    diffusion, generator = Diffusion(scheduler), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 6, 4, 3, 2, 2, generator=generator)
    time = diffusion.times(6, generator)
    noisy, target = diffusion.noised(clean, noise, time), diffusion.target(clean, noise, time)
    for row in range(6):
        x, out, t = noisy[row : row + 1], target[row : row + 1], float(time[row])
        if flow:  # dx/dt = out, from t down to 0
            back = x - t / 1000 * out
        else:
            assert t == int(t) and 0 <= t < 1000
            a = float(scheduler.alphas_cumprod[int(t)])
            torch.testing.assert_close(x, scheduler.add_noise(clean[row], noise[row], torch.tensor([int(t)]))[None])
            back = {
                "epsilon": (x - (1 - a) ** 0.5 * out) / a**0.5,
                "v_prediction": a**0.5 * x - (1 - a) ** 0.5 * out,
                "sample": out,
            }[kind]
        torch.testing.assert_close(back, clean[row : row + 1], rtol=1e-3, atol=2e-3)


def test_times_cover_the_schedule_evenly():
    times = Diffusion(DDIMScheduler()).times(100, torch.Generator().manual_seed(0))
    assert times.dtype == torch.float32 and ((times // 10).long() == torch.arange(100)).all()


@given(st.floats(0.25, 8), st.integers(1, 200), st.integers(0, 9))
def test_shifted_times(shift: float, n: int, seed: int):
    """Shifting keeps order and ends, and one of `shift` and its inverse undoes the other."""
    flow, generator = Diffusion(FlowMatchEulerDiscreteScheduler()), torch.Generator()
    plain, moved = (flow.times(n, generator.manual_seed(seed), shift=each) / 1000 for each in (1.0, shift))
    assert ((moved >= plain - 1e-6) if shift >= 1 else (moved <= plain + 1e-6)).all() and moved.max() <= 1
    assert moved.diff().min() > 0 if n > 1 else True
    torch.testing.assert_close(moved / (shift + (1 - shift) * moved), plain, atol=1e-4, rtol=1e-3)
    whole = Diffusion(DDIMScheduler()).times(n, generator.manual_seed(seed), shift=shift)
    assert torch.equal(whole, whole.floor()) and 0 <= whole.min() and whole.max() <= 999


def test_times_of_a_flow_are_not_rounded():
    flow = Diffusion(FlowMatchEulerDiscreteScheduler()).times(100, torch.Generator().manual_seed(0))
    assert ((flow // 10).long() == torch.arange(100)).all() and (flow != flow.floor()).any()


def test_unknown_prediction_types_are_told():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="magic")
    with pytest.raises(UserError, match='a scheduler with prediction type "magic" cannot be trained with'):
        Diffusion(scheduler)


# --- batches ---------------------------------------------------------------------------------------------------------


@given(text=st.floats(0, 1), anchor=st.floats(0, 1))
@example(text=1.0, anchor=0.5)
@example(text=0.9, anchor=0.9)
def test_drops_have_their_shares_and_half_of_the_rarer_coincide(text, anchor):
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    no_text, no_anchor = drops(uniform, text, anchor)
    both = max(min(text, anchor) / 2, text + anchor - 1)  # large shares cannot but coincide
    for dropped, share in ((no_text, text), (no_anchor, anchor), (no_text & no_anchor, both)):
        assert abs(dropped.float().mean().item() - share) < 5e-4


def first(recipe=RECIPE, step=0, rank=0):
    return next(batches(recipe)(step, rank, 1, CPU))


def test_batches_are_a_function_of_step_and_rank():
    source = batches()(0, 0, 1, CPU)
    run = [next(source) for _ in range(5)]
    again = next(batches()(4, 0, 1, CPU))
    assert torch.equal(run[4].noisy, again.noisy) and torch.equal(run[4].tail.frames, again.tail.frames)
    assert not torch.equal(run[4].noisy, run[3].noisy)
    assert not torch.equal(again.noisy, first(step=4, rank=1).noisy)


def test_without_imperfections_the_memory_is_the_clip_s_own_beginning():
    plain = replace(RECIPE, condition_noise=0.0, condition_drift=0.0, injected=1.0, text_dropout=0.0)
    batch = first(plain)
    model = toy_model()
    clips = batches(plain).slice_of(Key(0).fold("t").fold("slice", 0, 0), CPU)
    assert clips["latents"].shape == (8, 4, WINDOW.frames, 4, 4) and clips["tail"].dtype == torch.uint8
    # As latents ...
    diffusion = Diffusion(model.scheduler)
    signal = diffusion.kept[batch.time.long()].sqrt().view(-1, 1, 1, 1, 1)
    share = (1 - signal.square()).sqrt()
    clean = signal * batch.noisy - share * batch.target
    torch.testing.assert_close(batch.tail.latents, clean[:, :, : WINDOW.overlap], rtol=1e-3, atol=1e-3)
    # ... and as pixels, decoded from them.
    decoded = model.codec.decode(batch.tail.latents)
    torch.testing.assert_close(batch.tail.frames, decoded, rtol=0, atol=0.6 / 255)
    assert (batch.weight[:, : WINDOW.overlap] == 0).all() and (batch.weight[:, WINDOW.overlap :] == 1).all()


# --- weights of cells and forgotten clips ----------------------------------------------------------------------------


class SomeSubject(ClipDataset):
    """`ToyClips` with a subject that covers a fifth of the upper left quarter in the second half of the frames."""

    def clips(self, n, generator, *, frames, size, device, context_seconds=30.0) -> CaptionedClips:
        subject = torch.zeros(n, frames, size, size)
        subject[:, frames // 2 :, : size // 2, : size // 2 : 2] = 0.4  # every other column: means, not peaks, count
        made = ToyClips().clips(n, generator, frames=frames, size=size, device=device)
        return replace(made, subject=subject)


def test_the_subject_s_cells_count_more():
    """As far as no noise hides them; all alike where the dataset names no subject, or the recipe says 1."""
    recipe = replace(RECIPE, subject=5.0)
    made = [
        next(ClipBatches(toy_model(), clips, told, batch=8, name="t")(0, 0, 1, CPU))
        for clips, told in (
            (SomeSubject(), recipe),
            (SomeSubject(), replace(RECIPE, subject=1.0)),
            (ToyClips(), recipe),
        )
    ]
    signal, noise = (v.view(-1, 1, 1) for v in Diffusion(toy_model().scheduler).levels(made[0].time))
    seen = signal**2 / (signal**2 + SEEN * noise**2)
    half, expected = WINDOW.frames // 2, torch.ones(8, WINDOW.frames, 4, 4)
    expected[:, half:, :2, :2] = (1 + 4 * 0.2 * 4 * seen).unsqueeze(1)
    torch.testing.assert_close(made[0].focus, expected, rtol=1e-3, atol=1e-3)
    assert (made[1].focus == 1).all() and (made[2].focus == 1).all()
    assert torch.equal(made[0].noisy, made[1].noisy)


@torch.no_grad()
def test_the_loss_is_weighted_by_cells_and_frames():
    batch, model = first(), toy_model()
    focus = torch.rand(batch.focus.shape, generator=torch.Generator().manual_seed(0)) + 1
    told = MemoryObjective(model.backbone, new_cam(model), None)
    plain, weighted = told(batch), told(replace(batch, focus=focus))
    call, deltas = told.conditioned(batch)
    error = (model.backbone(call, deltas) - batch.target).square()
    total = sum(
        float(error[i, :, t, y, x].mean() * focus[i, t, y, x] * batch.weight[i, t])
        for i, t, y, x in product(*map(range, focus.shape))
    )
    torch.testing.assert_close(float(weighted["loss"]), total / 16 / float(batch.weight.sum()), rtol=1e-4, atol=0)
    assert float(weighted["new_frames"]) == float(plain["new_frames"]) and plain["loss"] != weighted["loss"]


@pytest.mark.parametrize("given", [False, True])
@torch.no_grad()
def test_forgotten_clips_know_the_anchor_alone(given):
    """Row by row they are what they are without a short-term memory, the others what they are with it."""
    model = toy_model()
    short, long = unzero(new_cam(model)), unzero(new_apm(model))
    batch = replace(first(), forgotten=torch.tensor([True, False] * 4))

    def output(memory, forgotten):
        told = MemoryObjective(model.backbone, memory, long)
        call, deltas = told.conditioned(replace(batch, forgotten=forgotten))
        return model.backbone(call, deltas), call.mask

    memory = FrameMask(short) if given else short
    (mixed, mask), (never, _), (always, _) = (
        output(memory, batch.forgotten), output(NoShortTerm(), None), output(memory, None)
    )  # fmt: skip
    torch.testing.assert_close(mixed[::2], never[::2])
    torch.testing.assert_close(mixed[1::2], always[1::2])
    assert not torch.equal(mixed[::2], always[::2])
    if given:
        assert mask[::2].all() and not mask[1::2, : WINDOW.overlap].any() and mask[1::2, WINDOW.overlap :].all()


def test_what_is_forgotten_is_not_injected_either():
    """Its overlap counts, then; as many are forgotten as asked for, none by default."""
    assert first().forgotten is None and first(replace(RECIPE, forgetting=1e-9)).forgotten.sum() == 0
    never, all_of_them = (first(replace(RECIPE, injected=1.0, forgetting=share)) for share in (0.0, 1.0))
    assert (
        all_of_them.forgotten.all()
        and (all_of_them.weight == 1).all()
        and (never.weight[:, : WINDOW.overlap] == 0).all()
    )
    assert not torch.equal(all_of_them.noisy[:, :, : WINDOW.overlap], never.noisy[:, :, : WINDOW.overlap])
    assert torch.equal(all_of_them.noisy[:, :, WINDOW.overlap :], never.noisy[:, :, WINDOW.overlap :])
    third = replace(RECIPE, forgetting=apm_recipe().forgetting)
    counts = [batch.forgotten.sum() for batch in islice(batches(third)(0, 0, 1, CPU), 60)]
    assert 0.28 < sum(counts) / (60 * 8) < 0.39
    assert cam_recipe().forgetting == 0 and memories_recipe().forgetting == apm_recipe().forgetting


# --- imperfect and dropped conditions --------------------------------------------------------------------------------


def test_imperfections_are_as_large_as_told():
    quiet = replace(RECIPE, condition_noise=0.0, condition_drift=0.0)
    still = first(quiet).tail
    noisy = first(replace(quiet, condition_noise=0.4)).tail
    drifted = first(replace(quiet, condition_drift=0.1)).tail
    noise = (noisy.latents - still.latents).flatten(1).std(dim=1)
    assert (noise < 0.45).all() and 0.05 < noise.mean() < 0.35
    difference = drifted.latents - still.latents
    assert 0.02 < difference.std() < 0.4
    # A gain and an offset: where two frames' latents are equal, they drift alike.
    gains = (drifted.latents[:, :, 1] - drifted.latents[:, :, 0]) / (still.latents[:, :, 1] - still.latents[:, :, 0])
    torch.testing.assert_close(gains, gains.mean(dim=(2, 3), keepdim=True).expand_as(gains), rtol=0.02, atol=0.02)
    assert noisy.frames.min() >= 0 and noisy.frames.max() <= 1


def test_dropped_rows_read_the_empty_prompt_and_the_grey_image():
    everything = first(replace(RECIPE, text_dropout=1.0, anchor_dropout=0.5))
    model = toy_model()
    empty, grey = model.text([""]).tokens.half().float(), model.image(torch.full((1, 3, SIZE, SIZE), 0.5))
    assert (everything.context == empty).all()
    is_grey = (everything.anchor == grey).all(dim=1)
    assert 0 < is_grey.sum() < 8
    kept = first(replace(RECIPE, text_dropout=0.0, anchor_dropout=0.0))
    assert not (kept.context == empty).any() and not (kept.anchor == grey).all(dim=1).any()


def test_memories_on_latents_are_spared_the_pixels():
    batch = first(replace(RECIPE, condition="latents"))
    assert batch.tail.frames.shape[1] == 0 and batch.tail.latents.shape[2] == WINDOW.overlap


def test_oblong_models_are_told():
    model = toy_model()
    with pytest.raises(UserError, match="clips are square, toy makes 16x32 pixels"):
        batches(defaults=replace(model.defaults, width=32))


# --- objective -------------------------------------------------------------------------------------------------------


def objective(model=None):
    model = model or toy_model()
    return MemoryObjective(model.backbone, new_cam(model), new_apm(model))


def test_untrained_memories_give_the_base_s_own_loss():
    model, batch = toy_model(), first(replace(RECIPE, injected=0.0))
    losses = objective(model)(batch)
    from streaming.backbone import Call

    call = Call(latents=batch.noisy, time=batch.time, context=batch.context, guided=())
    error = (model.backbone(call, {}) - batch.target).square()
    torch.testing.assert_close(losses["loss"], error.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["new_frames"], error[:, :, WINDOW.overlap :].mean(), rtol=1e-5, atol=1e-6)


def test_given_frames_do_not_count():
    batch = first()
    target = batch.target.clone()
    given_rows = batch.weight[:, 0] == 0
    assert 0 < given_rows.sum() < 8
    target[given_rows, :, : WINDOW.overlap] += 100
    module = objective()
    torch.testing.assert_close(module(batch)["loss"], module(replace(batch, target=target))["loss"])


def test_only_the_memories_learn_each_at_its_rate():
    module = unzero(objective())
    groups = module.groups(replace(RECIPE, gate_rate=10.0))
    names = {id(value): name for name, value in module.named_parameters()}
    by_factor = {factor: {names[id(value)] for value in values} for values, factor in groups}
    assert by_factor[10.0] == {"long.mixers.0.alpha", "long.mixers.1.alpha"}
    assert all(name.startswith("short.encoder.") for name in by_factor[0.5]) and by_factor[0.5]
    grouped = {name for names in by_factor.values() for name in names}
    assert grouped == {name for name in names.values() if not name.startswith("backbone.")}
    module(first())["loss"].backward()
    assert all((value.grad is not None) == (name in grouped) for name, value in module.named_parameters())
    assert not any(part.training for part in module.modules())


# --- training --------------------------------------------------------------------------------------------------------


def options(tmp_path, **changes):
    return TrainOptions(work=tmp_path, device="cpu", **changes)


def run(tmp_path, name="memories", steps=None, **changes):
    """Both memories on clips whose future follows from their beginning."""
    model = toy_model()
    with initial_weights(0):
        short, long = new_cam(model), new_apm(model)

    def export():
        short.save(tmp_path / "cam")
        long.save(tmp_path / "apm")

    recipe = replace(RECIPE, **changes)
    return train(name, model, short, long, recipe, options(tmp_path, steps=steps), export, dataset=ToyClips())


def test_training_lowers_the_loss_and_ships_what_it_learnt(tmp_path):
    result = run(tmp_path)
    log = [json.loads(line) for line in (tmp_path / "logs" / "memories.jsonl").read_text().splitlines()]
    assert result.finished and log[-1]["new_frames"] < 0.8 * log[0]["new_frames"]
    model = toy_model(tmp_path)
    short, long = cam(model, None), apm(model, None)
    assert short.mergers[0].proj_out.weight.any() and all(mixer.alpha != 0 for mixer in long.mixers)
    module, batch = MemoryObjective(model.backbone, short, long), first(step=999)
    others = Tail(batch.tail.frames.roll(1, 0), batch.tail.latents.roll(1, 0))
    with torch.no_grad():
        right, wrong = module(batch)["new_frames"], module(replace(batch, tail=others))["new_frames"]
    assert right < 0.9 * wrong


def test_a_resumed_training_ends_like_an_unbroken_one(tmp_path):
    loop = replace(LOOP, steps=8, log_every=2)
    whole = run(tmp_path / "whole", loop=loop)

    class Cut(Exception):
        pass

    original = ClipBatches.__call__

    def broken(self, *args):
        yield from islice(original(self, *args), 4)
        raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipBatches, "__call__", broken)
        with pytest.raises(Cut):
            run(tmp_path / "parts", loop=replace(loop, save_minutes=0.0))
    resumed = run(tmp_path / "parts", loop=loop)
    assert whole.step == resumed.step == 8
    for part in ("cam", "apm"):
        expected = load_file(tmp_path / "whole" / part / "model.safetensors")
        for name, value in load_file(tmp_path / "parts" / part / "model.safetensors").items():
            torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["toy_unet:ToyUNetBackend", "toy_dit:ToyDiTBackend"])
@pytest.mark.parametrize("condition", ["pixels", "latents"])
def test_any_backbone_can_be_trained(tmp_path, backend, condition):
    module, name = backend.split(":")
    model = getattr(import_module(f"backends.{module}"), name)().load(None, device=CPU, dtype=torch.float32)
    short, long = new_cam(model, condition=condition), new_apm(model)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    recipe = replace(memories_recipe(toy=True), condition=condition)

    def export():
        short.save(tmp_path / "cam")

    assert train("any", model, short, long, recipe, options(tmp_path), export, dataset=ToyClips()).finished
    assert all(mixer.alpha != 0 for mixer in long.mixers)
    assert all(merger.proj_out.weight.any() for merger in short.mergers)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


# --- what is seen of the last frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [train_cam, train_memories])
def test_codecs_that_pack_time_are_served_by_latents(tmp_path, monkeypatch, command):
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path, packs=2))
    monkeypatch.setattr(adapters.train, "load", lambda group, name: ToyClips)
    assert command(options(tmp_path, toy=True)).finished
    short = cam(toy_model(tmp_path, packs=2), None)
    assert short.config.condition == "latents" and all(merger.proj_out.weight.any() for merger in short.mergers)
    told = ClipBatches(toy_model(packs=2), ToyClips(), cam_recipe(toy=True), batch=2, name="t")
    assert told.condition == "latents" and "tail" not in told.slice_of(Key(0), CPU)


@pytest.mark.parametrize("condition", ["pixels", "latents"])
@pytest.mark.parametrize("part", ["cam", "cam+frame-mask", "add-cond", "memories"])
def test_what_is_seen_of_the_last_frames_can_be_chosen(tmp_path, monkeypatch, part, condition):
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path))
    monkeypatch.setattr(adapters.train, "load", lambda group, name: ToyClips)
    monkeypatch.setattr(adapters.train, "check_takes_given_frames", lambda model, instead: None)
    (tmp_path / "streamingt2v.json").write_text("{}")
    command_line(part, tmp_path, toy=True, steps=2, device="cpu", condition=condition)
    folder = "cam" if part == "memories" else part
    assert json.loads((tmp_path / folder / "config.json").read_text())["condition"] == condition
    command_line(part, tmp_path, toy=True, steps=4, device="cpu")  # goes on with what it began with
    assert json.loads((tmp_path / folder / "config.json").read_text())["condition"] == condition
    assert read_state(tmp_path / "state" / f"{part}.safetensors")[1].step == 4


def test_pixels_cannot_be_asked_of_codecs_that_pack_time(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path, packs=2))
    with pytest.raises(UserError, match="packs frames in time, so CAM cannot be conditioned on pixels: choose latents"):
        train_cam(options(tmp_path, toy=True, condition="pixels"))


@pytest.mark.parametrize("part", ["apm", "append", "conc-cond", "base", "judge", "transformer"])
def test_parts_that_are_not_shown_the_last_frames_in_two_ways(tmp_path, part):
    with pytest.raises(UserError) as error:
        command_line(part, tmp_path / "work", condition="latents")
    assert str(error.value) == (
        f"{part} has no choice of what it sees: leave --condition out, it is for cam, cam+frame-mask, add-cond and "
        "memories"
    )
    assert not (tmp_path / "work").exists()


# --- gradient checkpointing ------------------------------------------------------------------------------------------


def unet_model():
    """A small UNet of diffusers' own as backbone; everything else is the toy's."""
    from diffusers import UNet3DConditionModel

    from backends.modelscope_unet import UNet3DBackbone

    with initial_weights(0):
        unet = UNet3DConditionModel(
            in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(32,), layers_per_block=1,
            norm_num_groups=8, cross_attention_dim=DEPTH, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock3D",), up_block_types=("CrossAttnUpBlock3D",),
        )  # fmt: skip
    return replace(toy_model(), backbone=UNet3DBackbone(unet, tokens=TOKENS, window=WINDOW))


def test_checkpointed_gradients_train_alike_and_spare_memory(tmp_path):
    kept, seen = {}, {}
    for spare in (False, True):
        model, bytes_kept = unet_model(), []
        with initial_weights(0):
            short = new_cam(model)
        told = options(tmp_path / str(spare), toy=True, steps=2, checkpoint_gradients=spare)

        def pack(value, bytes_kept=bytes_kept):
            bytes_kept.append(value.nbytes)
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            recipe = cam_recipe(toy=True)
            train("cam", model, short, None, recipe, told, lambda: None, dataset=ToyClips())
        kept[spare], seen[spare] = sum(bytes_kept), short.state_dict()
    for name, value in seen[True].items():
        torch.testing.assert_close(value, seen[False][name], rtol=1e-3, atol=1e-5)
    assert kept[True] < 0.7 * kept[False]


def test_backbones_without_checkpointing_are_told(tmp_path, monkeypatch):
    (tmp_path / "streamingt2v.json").write_text("{}")  # a folder that holds something
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path))
    with pytest.raises(UserError, match="ToyBackbone of toy has no gradient checkpointing: leave --checkpoint-gradien"):
        command_line("cam", tmp_path, toy=True, checkpoint_gradients=True)


# --- commands --------------------------------------------------------------------------------------------------------


def test_commands_train_what_they_say(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path))
    monkeypatch.setattr(
        adapters.train, "load", lambda group, name: {("streaming.datasets", "toy"): ToyClips}[group, name]
    )
    toy = options(tmp_path, toy=True, dataset="toy")
    with pytest.raises(UserError, match="no trained cam: there is none in"):
        train_apm(toy)
    assert train_cam(toy).finished and (tmp_path / "cam" / "config.json").exists()
    before = load_file(tmp_path / "cam" / "model.safetensors")
    assert not (tmp_path / "apm").exists()
    assert train_apm(toy).finished and (tmp_path / "apm" / "config.json").exists()
    after = load_file(tmp_path / "cam" / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    kept = load_file(tmp_path / "apm" / "model.safetensors")
    assert train_memories(toy).finished
    anew = load_file(tmp_path / "cam" / "model.safetensors"), load_file(tmp_path / "apm" / "model.safetensors")
    assert not torch.equal(anew[0]["mergers.0.proj_out.weight"], before["mergers.0.proj_out.weight"])
    assert not torch.equal(anew[1]["mixers.0.alpha"], kept["mixers.0.alpha"])
    assert {path.stem for path in (tmp_path / "state").iterdir()} == {"cam", "apm", "memories"}


def test_initial_weights_come_from_the_seed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path))
    seen = []

    def caught(name, model, short, long, recipe, told, export, *, begun):
        seen.append(short.state_dict())
        return Result(step=0, steps=0, losses={})

    monkeypatch.setattr(adapters.train, "train", caught)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(1)
        torch.manual_seed(seed)
        train_cam(options(tmp_path))
        assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())


@pytest.mark.parametrize("recipe", [cam_recipe, apm_recipe, memories_recipe])
def test_toy_recipes_are_short(recipe):
    assert recipe(toy=True).loop.steps < 10 < recipe().loop.steps
