"""Conc-Cond, Add-Cond and appended image tokens: what they compute, their files, and training as fair as promised."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import adapters.train
from adapters.add_cond import add_cond, new_add_cond
from adapters.append import append, new_append
from adapters.cam import new_cam
from adapters.clips import ClipBatches
from adapters.conc_cond import ConcCond, ConcCondConfig, conc_cond, new_conc_cond
from adapters.recipe import MemoryRecipe, cam_recipe
from adapters.train import MemoryObjective, train, train_add_cond, train_append, train_cam, train_conc_cond
from backends.toy_dit import ToyDiTBackend
from backends.toy_unet import ToyUNet, ToyUNetBackend
from streaming.backbone import Guided
from streaming.errors import UserError
from streaming.frame_mask import FrameMask
from streaming.keys import Key
from streaming.memory import NoShortTerm, Tail
from streaming.registry import make_long_term, make_short_term
from streaming.training import Result, TrainOptions
from tests.adapter_toys import (
    CHANNELS,
    DEPTH,
    SIZE,
    TOKENS,
    WINDOW,
    ToyClips,
    ToyImage,
    seeded,
    toy_call,
    toy_model,
    toy_tail,
    unzero,
)

CPU = torch.device("cpu")
WITH, WITHOUT = Guided(text=True, anchor=True), Guided(text=True, anchor=False)


def loaded(backend):
    return backend.load(None, device=CPU, dtype=torch.float32)


# --- Conc-Cond -------------------------------------------------------------------------------------------------------


def test_conc_cond_is_a_wider_first_convolution():
    """The same as a convolution of [z_t, E(frames) * mask, mask] whose first channels are the base model's own."""
    model = loaded(ToyUNetBackend())
    memory = unzero(new_conc_cond(model))
    first = model.backbone.encoder.conv_in
    frames, high = model.backbone.window.frames, model.defaults.height // model.codec.factor
    overlap = model.backbone.window.overlap
    key = Key(1)
    noisy = key.fold("noisy").normal(2, 3, frames, high, high)
    known = key.fold("known").normal(2, 3, overlap, high, high)
    whole = torch.zeros(2, 4, frames, high, high)
    whole[:, :3, :overlap], whole[:, 3, :overlap] = known, 1.0
    weight = torch.cat((first.weight, memory.conv.weight), dim=1)
    images = torch.cat((noisy, whole), dim=1).transpose(1, 2).flatten(0, 1)
    expected = F.conv2d(images, weight, first.bias, padding=1)
    value = first(noisy.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (2, frames))
    call = replace(toy_call(), latents=noisy)
    with torch.no_grad():
        delta = memory.deltas(memory.remember(Tail(torch.zeros(2, 0, 3, 1, 1), known)), call)["input"]
        found = value + delta(value)
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2).unflatten(0, (2, frames)))
    assert not delta(value)[:, overlap:].any() and delta(value)[:, :overlap].all(dim=-1).any()


@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2), (2, 4)]),
    high=st.integers(1, 6),
    wide=st.integers(1, 6),
)
def test_conc_cond_has_as_many_positions_as_any_first_layer(kernel, high, wide):
    stride = (1, 1) if kernel[0] % 2 else kernel
    config = ConcCondConfig(channels=2, site="first", width=3, kernel=kernel, stride=stride)
    memory = unzero(ConcCond(config))
    known = torch.randn(1, 2, 2, high, wide, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        added = memory.remember(Tail(torch.zeros(1, 0, 3, 1, 1), known)).added
    assert added.shape == (1, 2, -(-high // stride[0]) * -(-wide // stride[1]), 3)


def test_backbones_without_an_input_site_are_told():
    model = toy_model()
    model.backbone.input_site = None
    with pytest.raises(UserError, match="base model of toy publishes no input site, which conc-cond needs: choose ano"):
        new_conc_cond(model)


def test_only_the_new_channels_of_conc_cond_are_trained():
    memory = new_conc_cond(loaded(ToyUNetBackend()))
    assert {name: tuple(value.shape) for name, value in memory.named_parameters()} == {"conv.weight": (16, 4, 3, 3)}


# --- Add-Cond --------------------------------------------------------------------------------------------------------


def test_add_cond_sees_all_frames_filled_up_with_zeros():
    model = toy_model()
    memory, tail = unzero(seeded(lambda: new_add_cond(model))), toy_tail()
    whole = torch.zeros(2, 4, WINDOW.frames, SIZE, SIZE)
    whole[:, :3, : WINDOW.overlap] = 2 * tail.frames.transpose(1, 2) - 1
    whole[:, 3, : WINDOW.overlap] = 1
    with torch.no_grad():
        features = memory.encoder(toy_call(), memory.condition(whole))
        deltas = memory.deltas(memory.remember(tail), toy_call())
        for site, zero in zip(memory.config.sites, memory.zeros, strict=True):
            value = torch.zeros_like(features[site.name])
            torch.testing.assert_close(deltas[site.name](value), zero(features[site.name]), rtol=1e-5, atol=1e-6)
    assert memory.config.condition == memory.reads == "pixels" and memory.condition.conv_in.in_channels == 4


def test_add_cond_trains_everything_it_adds():
    model = toy_model()
    memory = unzero(seeded(lambda: new_add_cond(model)))
    model.backbone(toy_call(), memory.deltas(memory.remember(toy_tail()), toy_call())).square().mean().backward()
    assert all(value.grad is not None and value.grad.any() for value in memory.zeros.parameters())
    assert all(value.grad is not None for value in memory.parameters())


# --- appended tokens -------------------------------------------------------------------------------------------------


def anchors(seed=4):
    return torch.rand(2, 1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_image_tokens_stand_behind_the_text():
    model, call = toy_model(), toy_call(guided=(WITHOUT, WITH))
    memory = seeded(lambda: new_append(model))
    with torch.no_grad():
        state = memory.remember(anchors())
        seen = memory.rewrite(state, call)
        grey = memory.tokens(model.image(torch.full((1, 3, SIZE, SIZE), 0.5)))
    assert seen.context.shape == (2, TOKENS + 16, DEPTH) and seen.context_mask is None
    assert torch.equal(seen.context[:, :TOKENS], call.context) and not memory.deltas(state, seen)
    torch.testing.assert_close(seen.context[0, TOKENS:], grey[0])
    torch.testing.assert_close(seen.context[1, TOKENS:], state.tokens[1])


def test_appended_tokens_are_read_whatever_the_text_s_mask():
    model = loaded(ToyDiTBackend())
    memory = seeded(lambda: new_append(model))
    text = model.text(["a red ball", "a ball"])
    call = replace(toy_call(), context=text.tokens, context_mask=text.mask)
    with torch.no_grad():
        seen = memory.rewrite(memory.remember(torch.rand(2, 1, 3, 16, 16)), call)
    assert torch.equal(seen.context_mask[:, : text.mask.shape[1]], text.mask) and seen.context_mask[:, -16:].all()


def test_even_untrained_appended_tokens_share_the_softmax():
    model = loaded(ToyUNetBackend())
    memory = seeded(lambda: new_append(model))
    text = model.text(["a red ball", "a ball"]).tokens
    shape = (2, 3, model.backbone.window.frames, 8, 8)
    call = replace(toy_call(), latents=Key(0).normal(*shape), context=text)
    with torch.no_grad():
        memory.proj_out.weight.zero_(), memory.proj_out.bias.zero_()
        seen = memory.rewrite(memory.remember(torch.rand(2, 1, 3, 32, 32)), call)
        assert not torch.allclose(model.backbone(seen, {}), model.backbone(call, {}))


# --- files -----------------------------------------------------------------------------------------------------------

RIVALS = {
    "conc-cond": (new_conc_cond, conc_cond, make_short_term),
    "add-cond": (new_add_cond, add_cond, make_short_term),
    "append": (new_append, append, make_long_term),
}


@pytest.mark.parametrize("name", RIVALS)
def test_what_is_saved_is_loaded_by_name(tmp_path, name):
    make, load, registered = RIVALS[name]
    memory = unzero(seeded(lambda: make(toy_model())))
    memory.save(tmp_path / name)
    for again in (load(toy_model(tmp_path), None), registered(name, toy_model(), tmp_path / name)):
        assert type(again) is type(memory) and not any(value.requires_grad for value in again.parameters())
        for key, value in memory.state_dict().items():
            assert torch.equal(again.state_dict()[key], value.half().float()), key


@pytest.mark.parametrize("name", RIVALS)
def test_no_trained_rival_names_its_training(tmp_path, name):
    with pytest.raises(UserError, match=f"no trained {name}: .* train it with `streamingt2v train {name} --work DIR`"):
        RIVALS[name][1](toy_model(tmp_path), None)


def test_another_first_layer_is_told(tmp_path):
    new_conc_cond(toy_model()).save(tmp_path / "conc-cond")
    about = json.loads((tmp_path / "conc-cond" / "config.json").read_text())
    (tmp_path / "conc-cond" / "config.json").write_text(json.dumps(about | {"kernel": [3, 3]}))
    told = r"another base model \(first: 16 wide, kernel 3x3, stride 1x1 there, 16 wide, kernel 1x1, stride 1x1 here\)"
    with pytest.raises(UserError, match=told):
        conc_cond(toy_model(tmp_path), None)


def test_another_image_encoder_is_told(tmp_path):
    new_append(toy_model()).save(tmp_path / "append")
    told = "text tokens of 12 numbers from image embeddings of 6, this model's encoders give 12 and 5"
    with pytest.raises(UserError, match=told):
        append(toy_model(tmp_path, image=ToyImage(5)), None)


# --- training --------------------------------------------------------------------------------------------------------


def options(tmp_path, **changes):
    return TrainOptions(work=tmp_path, device="cpu", toy=True, dataset="toy", **changes)


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path))
    monkeypatch.setattr(adapters.train, "load", lambda group, name: ToyClips)
    return tmp_path


def test_commands_train_the_rivals(workshop):
    with pytest.raises(UserError, match="no trained cam"):
        train_append(options(workshop))
    for command in (train_cam, train_conc_cond, train_add_cond, train_append):
        assert command(options(workshop)).finished
    model = toy_model(workshop)
    assert conc_cond(model, None).conv.weight.any() and append(model, None).proj_out.weight.any()
    assert all(zero.weight.any() for zero in add_cond(model, None).zeros)


def test_rivals_meet_the_clips_and_the_noise_of_what_they_are_compared_with(workshop, monkeypatch):
    seen = {}

    def caught(name, objective, batches, *rest, **more):
        source = batches(0, 0, 1, CPU)
        seen[name] = [next(source) for _ in range(3)]
        return Result(step=0, steps=0, losses={})

    train_cam(options(workshop))
    monkeypatch.setattr(adapters.train, "fit", caught)
    for command in (train_cam, train_conc_cond, train_add_cond, adapters.train.train_apm, train_append):
        command(options(workshop))
    for name, other in (("conc-cond", "cam"), ("add-cond", "cam"), ("append", "apm")):
        for mine, theirs in zip(seen[name], seen[other], strict=True):
            assert torch.equal(mine.noisy, theirs.noisy) and torch.equal(mine.target, theirs.target)
            assert torch.equal(mine.time, theirs.time) and torch.equal(mine.tail.latents, theirs.tail.latents)
    assert not torch.equal(seen["append"][0].noisy, seen["cam"][0].noisy)


def first_batch(model, condition="latents"):
    recipe = MemoryRecipe(loop=replace(cam_recipe(toy=True).loop, batch=8), slices=2, period=2, condition=condition)
    return next(ClipBatches(model, ToyClips(), recipe, batch=8, name="t")(0, 0, 1, CPU))


def test_a_frame_mask_is_applied_in_training_and_given_frames_do_not_count():
    model = loaded(ToyDiTBackend())
    batch = first_batch(model)
    module = MemoryObjective(model.backbone, FrameMask(seeded(lambda: new_cam(model, condition="latents"))), None)
    overlap = model.backbone.window.overlap
    call, _ = module.conditioned(batch)
    assert torch.equal(call.latents[:, :, :overlap], batch.tail.latents)
    assert not call.mask[:, :overlap].any() and call.mask[:, overlap:].all()
    elsewhere = batch.target.clone()
    elsewhere[:, :, :overlap] += 100
    with torch.no_grad():
        torch.testing.assert_close(module(replace(batch, target=elsewhere))["loss"], module(batch)["loss"])
    rates = {name: factor for values, factor in module.groups(cam_recipe()) for name in named(module, values)}
    assert {factor for name, factor in rates.items() if ".encoder." in name} == {0.5}


def named(module, values):
    ids = {id(value) for value in values}
    return [name for name, value in module.named_parameters() if id(value) in ids]


def test_memories_of_one_s_own_can_be_trained(tmp_path):
    """A short-term memory that says nothing of what it reads gets latents; none at all is one, too."""
    model = toy_model()
    long = seeded(lambda: new_append(model))
    recipe = cam_recipe(toy=True)
    told = options(tmp_path)
    assert train("x", model, NoShortTerm(), long, recipe, told, lambda: None, dataset=ToyClips()).finished
    assert adapters.train.reads(NoShortTerm()) == "latents"
    assert adapters.train.reads(FrameMask(new_cam(model))) == "pixels"


def test_the_toy_unet_s_input_site_is_its_first_convolution():
    site, first = ToyUNet.input_site, loaded(ToyUNetBackend()).backbone.encoder.conv_in
    assert (site.width, site.kernel, site.stride) == (first.out_channels, first.kernel_size, first.stride)
    assert CHANNELS == toy_model().codec.channels
