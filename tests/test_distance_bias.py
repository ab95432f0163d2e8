"""The bias by which mergers know how far back a remembered frame lies."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.cam import CAM, CAMConfig, cam, new_cam
from adapters.distance_bias import DistanceBias
from adapters.merger import Merger
from streaming.keys import Key, initial_weights
from streaming.short_attention import attention
from tests.adapter_toys import ToyBackbone, toy_model

sizes = st.integers(1, 9)


def drawn(heads, reach):
    bias = DistanceBias(heads, reach)
    with torch.no_grad():
        bias.table.copy_(Key(heads).fold("reach", reach).normal(heads, 2 * reach + 1))
    return bias


@given(frames=sizes, span=sizes, reach=st.integers(1, 6))
def test_only_the_distance_counts_and_beyond_the_reach_not_even_that(frames, span, reach):
    bias, table = drawn(2, reach), drawn(2, reach)(frames, span)
    assert table.shape == (2, frames, span)
    for frame in range(frames):
        for remembered in range(span):
            distance = max(-reach, min(reach, frame - remembered))
            assert torch.equal(table[:, frame, remembered], bias.table[:, reach + distance])


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_untrained_every_head_looks_at_the_nearest_frame(heads):
    shares = DistanceBias(heads, 16)(16, 8).softmax(dim=-1)
    assert (shares.argmax(dim=-1) == torch.arange(16).clamp(max=7)).all()
    assert torch.isfinite(shares).all()
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
        blind, knowing = Merger(16, 8), Merger(16, 8, reach=8)
    for merger in (blind, knowing):
        with torch.no_grad():
            merger.to_k.weight.zero_()
            for part in (merger.to_v, merger.to_out, merger.proj_out):
                part.weight.copy_(torch.eye(16))
            merger.to_out.bias.zero_()
    memory = torch.arange(4.0)[None, :, None, None].expand(1, 4, 1, 16)
    features = torch.ones(1, 6, 1, 16)
    with torch.no_grad():
        assert torch.allclose(blind(features, memory), torch.tensor(1.5))
        read = knowing(features, memory)[0, :, 0]
    sharp, soft = read[:, 0], read[:, -1]  # of the first head, of the last
    assert (sharp.diff()[:3] > 0.8).all() and sharp[3:].allclose(torch.tensor(3.0), atol=0.05)
    assert sharp[0] < 0.1 and 0.5 < soft[0] < soft[3] < 2.5


def test_new_cams_know_distances_and_published_ones_do_not(tmp_path: Path):
    model = toy_model()
    made = new_cam(model)
    assert made.config.reach == model.backbone.window.frames
    assert all(merger.distance is not None for merger in made.mergers)
    assert CAMConfig.fitting(ToyBackbone(), model.codec).reach is None
    plain = CAM(CAMConfig.fitting(model.backbone, model.codec), model.backbone.feature_encoder())
    assert {name for name in made.state_dict() if name not in plain.state_dict()} == {
        f"mergers.{i}.distance.table" for i in range(len(made.mergers))
    }
    made.save(tmp_path / "cam")
    loaded = cam(model, tmp_path / "cam")
    assert asdict(loaded.config) == asdict(made.config)
    assert torch.equal(loaded.mergers[0].distance.table.half(), made.mergers[0].distance.table.half())


def test_a_cam_of_before_has_none(tmp_path: Path):
    import json

    model = toy_model()
    CAM(replace(new_cam(model).config, reach=None), model.backbone.feature_encoder()).save(tmp_path / "cam")
    told = json.loads((tmp_path / "cam" / "config.json").read_text())
    told.pop("reach")
    (tmp_path / "cam" / "config.json").write_text(json.dumps(told))
    assert cam(model, tmp_path / "cam").config.reach is None
