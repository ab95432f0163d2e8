"""Warp errors of a stream beside plain loops, and what they say where there is nothing to divide by."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.metrics import MotionAwareWarpError, WarpError
from streaming.metrics.mawe import COEFFICIENT, mawe
from streaming.metrics.warp import bring_back, consistent
from tests.test_metrics_contract import GivenFlow, ShiftFlow, measure, moving, noise

MAWE = ("mawe_official", "mawe_paper", "mawe_ratio_of_means")


def example(seed, frames, rows, cols, spread):
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (frames, 3, rows, cols), generator=generator, dtype=torch.uint8)
    flows = torch.randint(-4 * spread, 4 * spread + 1, (frames - 1, 2, rows, cols), generator=generator) / 4
    flows[..., 0, 0] += 0.125  # no pair is without motion
    return video, flows


examples = st.builds(
    example, st.integers(0, 999), st.integers(2, 9), st.integers(2, 7), st.integers(2, 7), st.integers(0, 2)
)


@given(examples)
def test_the_variants_equal_the_measure_of_the_whole_video(case):
    video, flows = case
    whole, found = mawe(video, flows), measure(video, MotionAwareWarpError(), flow=GivenFlow(video, flows))
    if not whole.known.sum():
        return
    reached = whole.known > 0
    error = float(whole.errors[reached].double().mean())
    squares = float(flows[reached].square().sum(dim=1).mean())
    assert found["mawe_unreached"] == int((~reached).sum())
    assert found["mawe_error"] == pytest.approx(error, rel=1e-6)
    assert found["mawe_official"] == pytest.approx(whole.mean_of_ratios, rel=1e-5)
    under = COEFFICIENT * float(whole.motions[reached].double().mean())
    assert found["mawe_ratio_of_means"] == pytest.approx(error / under, rel=1e-5)
    if reached.all():
        assert found["mawe_ratio_of_means"] == pytest.approx(whole.ratio_of_means, rel=1e-5)
    assert found["mawe_paper"] == pytest.approx(error / squares, rel=1e-5)
    assert found["mawe_reached"] == pytest.approx(float(whole.known.float().mean()) / flows[0, 0].numel(), rel=1e-6)


def test_a_video_that_follows_its_flow_has_no_error():
    found = measure(moving(5, step=2), MotionAwareWarpError(), WarpError(), flow=ShiftFlow(x=2.0))
    assert found["mawe_error"] == found["mawe_official"] == found["mawe_paper"] == 0
    assert found["mawe_reached"] == pytest.approx(38 / 40)


@pytest.mark.parametrize("flow", [ShiftFlow(x=0.0), ShiftFlow(x=0.01), ShiftFlow(x=3.0)])
def test_a_frozen_video_never_wins_whatever_the_flow_says(flow):
    found = measure(noise(1).expand(6, -1, -1, -1), MotionAwareWarpError(), WarpError(), flow=flow)
    assert [found[name] for name in MAWE] == [math.inf] * 3 and found["warp_error"] is None


def test_one_equal_pair_makes_only_the_official_variant_infinite():
    video = moving(8)
    video[4] = video[3]
    found = measure(video, MotionAwareWarpError(), flow=ShiftFlow(x=1.0))
    assert found["mawe_official"] == math.inf
    assert found["mawe_paper"] is not None and math.isfinite(found["mawe_paper"])
    assert found["mawe_ratio_of_means"] is not None and math.isfinite(found["mawe_ratio_of_means"])


def test_pairs_that_the_warp_does_not_reach_are_left_out_and_told():
    video = moving(5)
    flows = torch.full((4, 2, *video.shape[-2:]), 0.75)
    lost = flows.clone()
    lost[2] = 1000.0
    found = measure(video, MotionAwareWarpError(), flow=GivenFlow(video, lost))
    errors = mawe(video, flows).errors.double()[[0, 1, 3]]
    length = 0.75 * math.sqrt(2)
    assert found["mawe_unreached"] == 1 and found["mawe_error"] == pytest.approx(float(errors.mean()))
    assert found["mawe_paper"] == pytest.approx(float(errors.mean()) / length**2)
    assert found["mawe_ratio_of_means"] == pytest.approx(float(errors.mean()) / (9.5 * length))
    assert found["mawe_official"] == pytest.approx(float(errors.sum()) / (9.5 * length) / 4)  # as the code has it


def test_a_flow_that_leads_everything_away_measures_nothing():
    found = measure(moving(4), MotionAwareWarpError(), WarpError(), flow=ShiftFlow(x=1000.0))
    assert [found[name] for name in MAWE] == [None] * 3 and found["mawe_reached"] == 0
    assert found["mawe_unreached"] == 3
    assert found["warp_error"] is None and found["occluded"] == 1


def test_a_single_frame_has_no_pair():
    found = measure(noise(1), MotionAwareWarpError(), WarpError(), flow=ShiftFlow())
    assert set(found.values()) == {None}


def naive_bring_back(values, flow):
    """Bilinear by hand, clamped at the border."""
    channels, rows, cols = values.shape
    found = torch.zeros(channels, rows, cols)
    for y in range(rows):
        for x in range(cols):
            u = min(max(x + float(flow[0, y, x]), 0), cols - 1)
            v = min(max(y + float(flow[1, y, x]), 0), rows - 1)
            left, top = min(int(u), cols - 2), min(int(v), rows - 2)
            a, b = u - left, v - top
            found[:, y, x] = (
                (1 - a) * (1 - b) * values[:, top, left] + a * (1 - b) * values[:, top, left + 1]
                + (1 - a) * b * values[:, top + 1, left] + a * b * values[:, top + 1, left + 1]
            )  # fmt: skip
    return found


@given(examples)
def test_the_warp_error_equals_plain_loops(case):
    video, flows = case
    errors, hidden = [], []
    for before, after, flow in zip(video[:-1].float() / 255, video[1:].float() / 255, flows, strict=True):
        back, backward = naive_bring_back(after, flow), naive_bring_back(-flow, flow)
        _, rows, cols = flow.shape
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        there = flow + torch.stack((x, y))
        inside = (there >= 0).all(0) & (there[0] <= cols - 1) & (there[1] <= rows - 1)
        off = (flow + backward).square().sum(0)
        seen = inside & (off <= 0.01 * (flow.square().sum(0) + backward.square().sum(0)) + 0.5)
        hidden.append(1 - float(seen.float().mean()))
        if seen.any():
            errors.append(float((back - before).square()[:, seen].mean()))
    found = measure(video, WarpError(), flow=GivenFlow(video, flows))
    assert found["occluded"] == pytest.approx(sum(hidden) / len(hidden), abs=1e-6)
    assert found["warp_error"] == (pytest.approx(sum(errors) / len(errors), rel=1e-4) if errors else None)


@given(st.integers(-3, 3), st.integers(-3, 3))
def test_whole_shifts_are_brought_back_exactly(x, y):
    values = noise(1, 9, 11)[0].float()
    flow = torch.zeros(2, 9, 11)
    flow[0], flow[1] = x, y
    back, inside = bring_back(values.roll((y, x), dims=(1, 2)), flow)
    torch.testing.assert_close(back[:, inside], values[:, inside], rtol=0, atol=1e-3)
    assert int(inside.sum()) == (9 - abs(y)) * (11 - abs(x))
    assert torch.equal(consistent(flow, -flow, 0.01, 0.5), inside)


def test_flows_that_do_not_lead_back_are_occlusions():
    flow = torch.zeros(2, 4, 6)
    backward = torch.zeros(2, 4, 6)
    backward[0, :, 3:] = 2
    assert consistent(flow, backward, 0.01, 0.5).int().tolist() == [[1, 1, 1, 0, 0, 0]] * 4


def test_cuts_cost_more_than_motion():
    video = torch.cat([moving(6, seed=1), moving(6, seed=2)])
    whole = measure(moving(12, seed=1), MotionAwareWarpError(), flow=ShiftFlow(x=1.0))
    cut = measure(video, MotionAwareWarpError(), flow=ShiftFlow(x=1.0))
    assert all(cut[name] > whole[name] for name in MAWE)
