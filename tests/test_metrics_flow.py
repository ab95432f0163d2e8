"""Optical flow: DIS and RAFT behind one contract, and the renderer's exact flow as the judge of them."""

import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from backends.world import object_flow, object_mask, object_track, render, specified_scenes
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import DIS, RAFT
from streaming.metrics.mawe import mawe
from streaming.metrics.warp import bring_back
from tests.test_metrics_contract import moving, noise


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_dis_finds_a_shift(preset):
    video = moving(2, 64, 64, step=2)
    flow = DIS(preset=preset).flows(video[:1], video[1:])[0]
    assert float((flow[0, 8:-8, 8:-8] - 2).abs().median()) < 0.3 and float(flow[1, 8:-8, 8:-8].abs().median()) < 0.3


def test_dis_takes_many_pairs_and_none():
    video = moving(4, 24, 36)
    together = DIS().flows(video[:-1], video[1:])
    alone = torch.cat([DIS().flows(video[i : i + 1], video[i + 1 : i + 2]) for i in range(3)])
    assert torch.equal(together, alone) and together.shape == (3, 2, 24, 36)
    assert DIS().flows(video[:0], video[:0]).shape == (0, 2, 24, 36)


def test_dis_sees_no_motion_between_equal_frames():
    frames = noise(1, 32, 32)
    assert not DIS().flows(frames, frames).any()


def test_dis_does_not_depend_on_threads():
    import cv2

    video, threads, found = noise(2, 48, 48), cv2.getNumThreads(), []
    try:
        for count in (1, 4):
            cv2.setNumThreads(count)
            found.append(DIS().flows(video[:1], video[1:]))
    finally:
        cv2.setNumThreads(threads)
    assert torch.equal(*found)


def test_frames_that_are_too_small_are_told():
    with pytest.raises(UserError, match="frames of 11x40 pixels are too small for optical flow: measure at 12"):
        DIS().flows(noise(1, 11, 40), noise(1, 11, 40))
    assert DIS().flows(noise(1, 12, 12), noise(1, 12, 12)).shape == (1, 2, 12, 12)


@pytest.fixture(scope="module")
def small_raft(tmp_path_factory):
    from torchvision.models.optical_flow import raft_small

    from streaming.keys import initial_weights

    with initial_weights(0):
        network = raft_small(weights=None).eval()
    file = tmp_path_factory.mktemp("raft") / "raft_small.safetensors"
    save_file(network.state_dict(), file)
    return network, file


def test_raft_is_torchvisions(small_raft):
    network, file = small_raft
    before, after = noise(2, 128, 130).split(1)
    ours = RAFT(weights=file, size="small", updates=2)
    padded = [torch.nn.functional.pad(2 * x.float() / 255 - 1, (0, 6, 0, 0), mode="replicate") for x in (before, after)]
    with torch.no_grad():
        theirs = network(*padded, num_flow_updates=2)[-1]
    assert torch.equal(ours.flows(before, after), theirs[..., :130])
    named = {"weights": "raft_small.safetensors", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert ours.settings() == {"kind": "RAFT", **named, "size": "small", "updates": 2}


def test_raft_refuses_other_weights_and_small_frames(small_raft):
    with pytest.raises(UserError, match="does not hold torchvision's raft_large: give its weights or the other size"):
        RAFT(weights=small_raft[1], size="large").flows(noise(1, 128, 128), noise(1, 128, 128))
    with pytest.raises(UserError, match="frames of 64x64 pixels are too small for RAFT: measure at 128 or more"):
        RAFT(weights=small_raft[1], size="small").flows(noise(1, 64, 64), noise(1, 64, 64))


def scenes(n=12, **attributes):
    return specified_scenes(Key(3).generator(), n=n, camera="static", **attributes)


@settings(max_examples=6)
@given(st.integers(0, 500), st.sampled_from(["rolls", "bounces", "spins", "flies in circles"]))
def test_the_exact_flow_carries_the_object_onto_itself(seed, action):
    some = specified_scenes(Key(seed).generator(), n=4, camera="static", action=action)
    flow, mask = object_flow(some, frames=3, start=1.0), object_mask(some, frames=3, start=1.0)
    for row in range(4):
        for before, after, way in zip(mask[row], mask[row, 1:], flow[row], strict=False):
            there, inside = bring_back(after[None], way)
            arrived = there[0][(before > 0.99) & inside] > 0.5
            assert float(arrived.float().mean()) > 0.93  # the sides of a cube do not turn with it


def test_the_exact_flow_is_the_way_of_the_centre():
    some = scenes(20, action="floats", shape="ball")
    flow, way = object_flow(some, frames=2), object_track(some, frames=2).diff(dim=1)[:, 0] * 32
    mask = object_mask(some, frames=2)[:, :1] >= 0.5
    mean = (flow[:, 0] * mask).sum((2, 3)) / mask.sum((2, 3))
    assert float((mean - way).abs().max()) < 0.3
    assert not (flow[:, 0] * ~mask).any()


def test_dis_agrees_with_the_exact_flow_on_the_object():
    some = scenes(10, action="floats", size="big", place="moon")
    video = render(some, frames=2, size=128, fps=8.0)
    exact, mask = object_flow(some, frames=2, size=128)[:, 0], object_mask(some, frames=2, size=128)[:, 0] > 0.99
    found = DIS().flows(video[:, 0], video[:, 1])
    off = (found - exact).norm(dim=1)[mask]
    assert float(exact.norm(dim=1)[mask].median()) > 1 and float(off.median()) < 0.5


def test_the_exact_flow_explains_the_video_better_than_a_wrong_one():
    one = scenes(1, action="zigzags", place="moon", size="big")
    video, flow = render(one, frames=6)[0], object_flow(one, frames=6)[0]
    right, wrong = mawe(video, flow), mawe(video, -flow)
    assert right.errors.mean() < 0.5 * wrong.errors.mean()
    assert right.ratio_of_means < 0.5 * wrong.ratio_of_means


def test_the_exact_flow_scales_with_the_picture():
    one = replace(scenes(1, action="spins"))
    small, large = object_flow(one, frames=2, size=32), object_flow(one, frames=2, size=64)
    both = torch.nn.functional.avg_pool2d(large[:, 0], 2) / 2
    inside = (small[:, 0].abs().sum(1) > 0) & (object_mask(one, frames=2, size=32)[:, 0] > 0.99)
    assert float((small[:, 0] - both).abs().amax(1)[inside].max()) < 0.5
