"""Trainings that begin from trained weights in place of random ones, and the scale by which APM's gates learn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import adapters.train
import backends.embedded_opensora.train as opensora
from adapters.apm import new_apm
from adapters.cam import new_cam
from adapters.gate_scale import context_spread
from adapters.recipe import memories_recipe
from adapters.train import train, train_apm, train_cam, train_memories
from backends.embedded import train_base as base
from backends.embedded import train_judge as judging
from backends.embedded.config import build_base, build_enhancer
from backends.embedded.judge import Judge, JudgeConfig
from backends.embedded.train_unet import begin
from backends.embedded_opensora.config import build_transformer, save_transformer
from backends.opensora_parts import read_transformer
from backends.opensora_stdit3 import STDiT3
from streaming.cli.train import train as command_line
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.training import BEGUN_RATE, Recipe, TrainOptions, fit
from tests.adapter_toys import ToyClips, toy_model, unzero


def options(work: Path, **changes) -> TrainOptions:
    return TrainOptions(work=work, device="cpu", toy=True, **changes)


def a_line() -> torch.nn.Linear:
    """An objective for `fit`: its loss is the square of its two numbers, which begin as 1 and 1."""
    line = torch.nn.Linear(1, 1)
    for value in line.parameters():
        torch.nn.init.ones_(value)
    line.forward = lambda x: {"loss": line.weight.square().sum() + line.bias.square().sum()}
    return line


def rates(work: Path, *, begin: Path | None = None, begun: bool = False, **changes) -> list[float]:
    """Learning rates that a training of four steps logs, from where it was."""
    recipe = Recipe(steps=4, batch=1, learning_rate=1e-2, warmup=1, log_every=1)
    log = work / "logs" / "line.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    told = options(work, begin=begin, **changes)
    fit("line", a_line(), lambda *_: iter([0] * 9), recipe, told, export=lambda: None, begun=begun)
    return [json.loads(text)["learning_rate"] for text in log.read_text().splitlines()[before:]]


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("then", [False, True])
def test_a_begun_training_keeps_its_smaller_rate(tmp_path: Path, first: bool, then: bool) -> None:
    """Also when it is gone on with, with or without `--begin`."""
    whole = rates(tmp_path / "whole")
    start = rates(tmp_path / "parts", begin=tmp_path if first else None, begun=first, minutes=1e-9)
    rest = rates(tmp_path / "parts", begin=tmp_path if then else None)
    factor = BEGUN_RATE if first else 1.0
    assert start + rest == pytest.approx([factor * rate for rate in whole]) and len(start) == 1


def test_a_begun_training_takes_smaller_steps(tmp_path: Path) -> None:
    """Adam's first step is as long as the learning rate."""
    moved = []
    for begun in (False, True):
        line, told = a_line(), options(tmp_path / str(begun), begin=tmp_path if begun else None)
        recipe = Recipe(steps=1, batch=1, learning_rate=1e-2, warmup=1)
        fit("line", line, lambda *_: iter([0] * 9), recipe, told, export=lambda: None, begun=begun)
        moved.append(1 - line.bias.item())
    assert moved == pytest.approx([1e-2, BEGUN_RATE * 1e-2], rel=1e-3)


def test_a_training_that_took_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line begins from random weights: leave --begin out"):
        rates(tmp_path, begin=tmp_path)


def test_a_folder_without_the_part(tmp_path: Path) -> None:
    asked = options(tmp_path, begin=tmp_path)
    with pytest.raises(UserError, match="--begin .* has no unet: name a model directory that has, or leave it out"):
        asked.begun("unet", "base")
    assert options(tmp_path).begun("unet", "base") is None
    asked.state("base").parent.mkdir()
    asked.state("base").touch()
    assert asked.begun("unet", "base") is None  # it goes on from its state


@pytest.mark.parametrize("part", ["vae", "clip", "text", "image", "append", "conc-cond"])
def test_parts_that_begin_from_random_weights(tmp_path: Path, part: str) -> None:
    with pytest.raises(UserError, match=f"{part} begins from random weights: leave --begin out, it is for base, "):
        command_line(part, tmp_path / "work", begin=tmp_path)
    assert not (tmp_path / "work").exists()


def test_what_is_done_in_the_warm_up_is_done_behind_its_steps_only(tmp_path: Path) -> None:
    line, seen = a_line(), []
    recipe = Recipe(steps=5, batch=1, learning_rate=1e-2, warmup=2)
    fit(
        "line", line, lambda *_: iter([0] * 9), recipe, options(tmp_path), export=lambda: None,
        in_warmup=lambda: seen.append(line.bias.item()),
    )  # fmt: skip
    assert len(seen) == 2 and 1 > seen[0] > seen[1] > line.bias.item()


# --- base models and the judge ---------------------------------------------------------------------------------------


def test_a_unet_begins_where_another_ended(tmp_path: Path) -> None:
    with initial_weights(1):
        first = build_base(32, toy=True)
    first.save_pretrained(tmp_path / "unet")
    with initial_weights(2):
        second = build_base(32, toy=True)
    begin(second, None)
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)
    begin(second, tmp_path / "unet")
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(UserError, match="has other sizes than the one to be trained: leave --begin out"):
        begin(build_enhancer(48, toy=True), tmp_path / "unet")


def test_base_and_judge_begin_from_a_folder(tmp_path: Path) -> None:
    from backends.embedded.train_clip import train_clip
    from backends.embedded.train_vae import train_vae

    small = {"batch": 2, "steps": 2}
    for each in (train_vae, train_clip):
        each(options(tmp_path / "a", **small))
    with initial_weights(7):  # others than trainings draw by themselves
        build_base(32, toy=True).save_pretrained(tmp_path / "a" / "unet")
        Judge(JudgeConfig(attributes=dict(judging.JUDGED))).save(tmp_path / "a" / "judge")
    before = load_file(tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors")
    judged = load_file(tmp_path / "a" / "judge" / "model.safetensors")
    for path in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / path).symlink_to(tmp_path / "a" / path)
    for each in (judging.train_judge, base.train_base):
        each(options(tmp_path / "b", begin=tmp_path / "a", **small))
    after = load_file(tmp_path / "b" / "unet" / "diffusion_pytorch_model.safetensors")
    moved = [(before[name].float() - after[name].float()).abs().max() for name in before]
    assert 0 < max(moved) < 0.02  # far less than two draws of random weights differ by
    moved = load_file(tmp_path / "b" / "judge" / "model.safetensors")
    assert 0 < max((judged[name].float() - moved[name].float()).abs().max() for name in judged) < 0.05
    Judge(JudgeConfig(attributes={"place": ("meadow", "moon")})).save(tmp_path / "c" / "judge")
    with pytest.raises(UserError, match="is asked for other attributes, or of other sizes: leave --begin out"):
        judging.train_judge(options(tmp_path / "d", begin=tmp_path / "c", **small))


def test_a_transformer_begins_where_another_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with initial_weights(7):
        save_transformer(STDiT3(build_transformer(192, 16, toy=True)), tmp_path / "from" / "transformer")
    begun, _ = read_transformer(tmp_path / "from" / "transformer")
    seen = []

    def caught(name, objective, *rest, export, begun) -> None:
        seen.append((objective.backbone.net.state_dict(), begun))

    monkeypatch.setattr(opensora, "fit", caught)
    for source in (tmp_path / "from", None):
        opensora.train_transformer(options(tmp_path / "work", begin=source))
    (first, told), (random, untold) = seen
    begun.pop("y_embedder.y_embedding")  # which the text encoder gives
    assert told and not untold
    assert all(torch.equal(value, first[name]) for name, value in begun.items())
    assert any(not torch.equal(value, random[name]) for name, value in begun.items())


def test_a_transformer_of_other_sizes_is_refused(tmp_path: Path) -> None:
    from backends.embedded_opensora import packaged_weights

    with pytest.raises(UserError, match="the transformer in .* has other sizes than the one to be trained"):
        opensora.train_transformer(options(tmp_path / "work", begin=packaged_weights(), steps=1, batch=2))


# --- memories --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with memories of the toy model, which is what trainings open."""
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path))
    monkeypatch.setattr(adapters.train, "load", lambda group, name: ToyClips)
    with initial_weights(5):
        new_cam(toy_model(), condition="latents", distances=True).save(tmp_path / "from" / "cam")
    with initial_weights(6):
        unzero(new_apm(toy_model())).save(tmp_path / "from" / "apm")
    return tmp_path / "from"


def assert_went_on(folder: Path, begun: Path) -> None:
    """Weights of a training that has hardly begun: other ones, but far less than two draws of random ones differ by."""
    after, before = (load_file(each / "model.safetensors") for each in (folder, begun))
    assert 0 < max((after[key].float() - before[key].float()).abs().max() for key in before) < 0.05


@pytest.mark.parametrize("command", [train_cam, train_memories])
def test_cam_begins_from_a_folder_with_its_settings(tmp_path: Path, trained: Path, command) -> None:
    assert command(options(tmp_path / "work", begin=trained, steps=2)).finished
    config = json.loads((tmp_path / "work" / "cam" / "config.json").read_text())
    assert config["condition"] == "latents" and config["distances"]
    assert_went_on(tmp_path / "work" / "cam", trained / "cam")


def test_apm_begins_from_a_folder(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained / "cam", tmp_path / "cam")
    assert train_apm(options(tmp_path, begin=trained, steps=2)).finished
    assert_went_on(tmp_path / "apm", trained / "apm")


def test_memories_begin_with_the_folder_s_apm(tmp_path: Path, trained: Path) -> None:
    assert train_memories(options(tmp_path / "work", begin=trained, steps=2)).finished
    assert_went_on(tmp_path / "work" / "apm", trained / "apm")


def test_memories_begin_with_a_new_apm_where_the_folder_has_none(tmp_path: Path, trained: Path) -> None:
    shutil.rmtree(trained / "apm")
    assert train_memories(options(tmp_path / "work", begin=trained, steps=2)).finished
    assert_went_on(tmp_path / "work" / "cam", trained / "cam")
    with initial_weights(memories_recipe(toy=True).loop.seed):
        new_cam(toy_model(), condition="latents", distances=True)  # which is drawn first
        new = new_apm(toy_model()).proj_in.weight
    made = load_file(tmp_path / "work" / "apm" / "model.safetensors")
    assert 0 < (made["proj_in.weight"].float() - new).abs().max() < 0.05


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"condition": "pixels"}, "is shown latents: leave --condition pixels out, or --begin"),
        ({"distances": True}, "knows no distances: leave --distances out, or --begin"),
    ],
)
def test_a_cam_of_other_settings_is_refused(tmp_path: Path, trained: Path, changes: dict, line: str) -> None:
    new_cam(toy_model(), condition="latents").save(trained / "cam")
    with pytest.raises(UserError, match=line):
        train_cam(options(tmp_path / "other", begin=trained, **changes))


def test_memories_of_another_base_model_are_told(tmp_path: Path) -> None:
    model = toy_model()
    short, long = new_cam(model), new_apm(model)
    foreign = new_cam(model)
    foreign.config = replace(foreign.config, sites=foreign.config.sites[:1])
    foreign.save(tmp_path / "foreign")
    long.save(tmp_path / "long")
    with pytest.raises(UserError, match="foreign was trained for another base model"):
        adapters.train._begin(short, tmp_path / "foreign")
    with pytest.raises(UserError, match="long holds a APM, not a CAM: give another folder"):
        adapters.train._begin(short, tmp_path / "long")


# --- the gates of APM ------------------------------------------------------------------------------------------------


def test_apm_s_training_scales_and_turns_its_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    with initial_weights(0):
        short, long = new_cam(model), unzero(new_apm(model))
    with torch.no_grad():
        for mixer in long.mixers:
            mixer.alpha.fill_(-1.0)
    given = {}

    def spy(*args, **more):
        given.update(more)
        return fit(*args, **more)

    monkeypatch.setattr(adapters.train, "fit", spy)
    recipe = replace(memories_recipe(toy=True), gate_rate=7.0)
    train("t", model, short.requires_grad_(False), long, recipe, options(tmp_path), lambda: None, dataset=ToyClips())
    caption = ToyClips().prompts(adapters.train.CAPTIONS, Key(recipe.loop.seed).fold("spread").generator())
    gate = long.mixers[0].alpha
    factors = [factor for values, factor in given["groups"] if any(value is gate for value in values)]
    assert factors == [pytest.approx(7.0 * context_spread(model, caption))]
    assert all(mixer.alpha > 0.2 for mixer in long.mixers)
    frozen = unzero(new_apm(model)).requires_grad_(False)
    frozen.mixers[0].alpha.fill_(-1.0)
    frozen.open_upwards()
    assert frozen.mixers[0].alpha == -1


def test_gates_learn_in_proportion_to_the_text() -> None:
    model = toy_model()
    texts = ["one", "another caption"]
    spread = context_spread(model, texts)
    assert spread == pytest.approx(model.text(texts).tokens.std().item(), rel=1e-5)

    quiet = model.text.forward
    model.text.forward = lambda prompts: replace(quiet(prompts), tokens=3 * quiet(prompts).tokens)
    assert context_spread(model, texts) == pytest.approx(3 * spread, rel=1e-5)


def test_the_spread_is_the_mean_over_the_sites() -> None:
    model = toy_model()

    def forward(call, deltas) -> None:
        for factor, name in ((1, "down.text"), (3, "up.text")):
            deltas[name](factor * call.context)

    model.backbone.forward = forward
    assert context_spread(model, ["one"]) == pytest.approx(2 * model.text(["one"]).tokens.std().item(), rel=1e-5)
