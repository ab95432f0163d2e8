"""The bias by which mergers know how far back a remembered frame lies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapters.train
from adapters.cam import cam, new_cam
from adapters.distance_bias import DistanceBias
from adapters.merger import Merger
from adapters.recipe import cam_recipe
from adapters.train import MemoryObjective
from streaming.cli.train import train as command_line
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.short_attention import attention
from tests.adapter_toys import ToyClips, toy_model

sizes = st.integers(1, 9)


@given(heads=st.integers(1, 5), frames=sizes, span=sizes)
def test_scores_fall_with_the_distance_on_both_sides(heads, frames, span):
    bias = DistanceBias(heads)
    with torch.no_grad():
        bias.behind.copy_(Key(0).normal(heads))
        bias.ahead.copy_(Key(1).normal(heads))
    table = bias(frames, span)
    assert table.shape == (heads, frames, span)
    for frame in range(frames):
        for remembered in range(span):
            slope = bias.behind if frame >= remembered else bias.ahead
            expected = -slope.exp() * abs(frame - remembered)
            torch.testing.assert_close(table[:, frame, remembered], expected)


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_untrained_every_head_looks_at_the_nearest_frame(heads):
    shares = DistanceBias(heads)(16, 8).softmax(dim=-1)
    assert (shares.argmax(dim=-1) == torch.arange(16).clamp(max=7)).all()
    if heads > 1:
        sharp = shares[:, 12, 7]
        assert (sharp.diff() < 0).all()  # some heads more sharply than others


@given(heads=st.integers(1, 3), frames=sizes, span=sizes, depth=st.integers(1, 8))
def test_a_bias_is_added_to_the_scores(heads, frames, span, depth):
    q, k, v = (Key(n).normal(2, heads, tokens, depth) for n, tokens in enumerate((frames, span, span)))
    bias = 3 * Key(3).normal(heads, frames, span)
    wanted = ((q @ k.transpose(-1, -2)) / depth**0.5 + bias).softmax(dim=-1) @ v
    torch.testing.assert_close(attention(q, k, v, bias), wanted, rtol=1e-5, atol=1e-5)


def test_a_merger_tells_frames_of_equal_content_apart():
    """Equal queries, keys that are all alike: only the distance can choose."""
    with initial_weights(0):
        blind, knowing = Merger(16, 8), Merger(16, 8, distances=True)
    for merger in (blind, knowing):
        with torch.no_grad():
            merger.to_k.weight.zero_()
            merger.proj_out.weight.copy_(torch.eye(16))
    memory = torch.arange(4.0)[None, :, None, None].expand(1, 4, 1, 16)
    features = torch.ones(1, 6, 1, 16)
    with torch.no_grad():
        assert torch.allclose(blind(features, memory), torch.tensor(1.5))
        read = knowing(features, memory)[0, :, 0]
    sharp, soft = read[:, 0], read[:, -1]  # of the first head, of the last
    assert (sharp.diff()[:3] > 0.6).all() and sharp[3:].allclose(torch.tensor(3.0), atol=0.2)
    assert sharp[0] < 0.2 and 0.5 < soft[0] < soft[3] < 2.5


def test_a_cam_has_distances_if_it_was_asked_for(tmp_path: Path):
    model = toy_model()
    plain, made = new_cam(model), new_cam(model, distances=True)
    assert not plain.config.distances and all(merger.distance is None for merger in plain.mergers)
    extra = {f"mergers.{i}.distance.{side}" for i in range(len(made.mergers)) for side in ("behind", "ahead")}
    assert made.state_dict().keys() - plain.state_dict().keys() == extra
    with torch.no_grad():
        made.mergers[0].distance.behind.fill_(0.5)
    made.save(tmp_path / "cam")
    loaded = cam(model, tmp_path / "cam")
    assert loaded.config == made.config
    assert loaded.mergers[0].distance.behind.tolist() == [0.5] * len(made.mergers[0].distance.behind)


def test_a_cam_of_before_has_none(tmp_path: Path):
    model = toy_model()
    new_cam(model).save(tmp_path / "cam")
    told = json.loads((tmp_path / "cam" / "config.json").read_text())
    assert told.pop("distances") is False
    (tmp_path / "cam" / "config.json").write_text(json.dumps(told))
    assert not cam(model, tmp_path / "cam").config.distances


def test_slopes_learn_at_a_rate_of_their_own():
    model = toy_model()
    objective = MemoryObjective(model.backbone, new_cam(model, distances=True), None)
    recipe = replace(cam_recipe(toy=True), slope_rate=7.0)
    rates = {id(value): factor for values, factor in objective.groups(recipe) for value in values}
    for name, value in objective.named_parameters():
        if value.requires_grad:
            assert (rates[id(value)] == 7.0) == (".distance." in name)


@pytest.mark.parametrize("part", ["cam", "cam+frame-mask", "memories"])
def test_the_command_trains_with_distances_and_goes_on_with_them(tmp_path: Path, monkeypatch, part):
    monkeypatch.setattr(adapters.train, "open_model", lambda work: toy_model(tmp_path))
    monkeypatch.setattr(adapters.train, "load", lambda group, name: ToyClips)
    monkeypatch.setattr(adapters.train, "check_takes_given_frames", lambda model, instead: None)
    (tmp_path / "streamingt2v.json").write_text("{}")
    command_line(part, tmp_path, toy=True, steps=2, device="cpu", distances=True)
    command_line(part, tmp_path, toy=True, steps=4, device="cpu")
    folder = "cam" if part == "memories" else part
    assert json.loads((tmp_path / folder / "config.json").read_text())["distances"] is True
    (tmp_path / folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read .*: train or download the adapter again"):
        command_line(part, tmp_path, toy=True, steps=6, device="cpu")


@pytest.mark.parametrize("part", ["apm", "append", "add-cond", "conc-cond", "base", "text", "image", "transformer"])
def test_parts_that_do_not_attend_to_frames(tmp_path: Path, part):
    with pytest.raises(UserError) as error:
        command_line(part, tmp_path / "work", distances=True)
    expected = f"{part} does not attend to frames: leave --distances out, it is for cam, cam+frame-mask and memories"
    assert str(error.value) == expected
