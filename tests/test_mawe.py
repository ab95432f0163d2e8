"""MAWE beside a plain loop; the published code's numbers are among the fixtures of tests/parity."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.metrics.mawe import COEFFICIENT, mawe, warp_forward


def naive_warp(frame, flow):
    """Pixel by pixel, row by row: later ones overwrite."""
    _, rows, cols = frame.shape
    warped, known = torch.zeros(3, rows, cols), torch.zeros(rows, cols, dtype=torch.bool)
    for y in range(rows):
        for x in range(cols):
            there = [float(torch.tensor(float(at)) + value) for at, value in zip((x, y), flow[:, y, x], strict=True)]
            if not all(math.isfinite(value) for value in there):
                continue
            to_x, to_y = (round(value) for value in there)  # Python rounds halves to even, too
            if 0 <= to_x < cols and 0 <= to_y < rows:
                warped[:, to_y, to_x], known[to_y, to_x] = frame[:, y, x], True
    return warped, known


def naive_error(warped, known, after):
    found = [
        (float(warped[c, y, x]) - float(after[c, y, x])) ** 2
        for c in range(3) for y in range(known.shape[0]) for x in range(known.shape[1]) if known[y, x]
    ]  # fmt: skip
    return sum(found) / len(found) if found else 0.0


def example(seed, frames, rows, cols, spread):
    """Flows in halves and quarters, so that ties and collisions are common."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (frames, 3, rows, cols), generator=generator, dtype=torch.uint8)
    flows = torch.randint(-4 * spread, 4 * spread + 1, (frames - 1, 2, rows, cols), generator=generator) / 4
    return video, flows


examples = st.builds(
    example, st.integers(0, 999), st.integers(2, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 4)
)


@given(examples)
def test_the_warp_equals_plain_loops(case):
    video, flows = case
    warped = warp_forward(video[:-1], flows)
    for index, flow in enumerate(flows):
        frames, known = naive_warp(video[index].float(), flow)
        assert torch.equal(warped.frames[index], frames) and torch.equal(warped.known[index], known)


@given(examples)
def test_the_measure_equals_plain_loops(case):
    video, flows = case
    found = mawe(video, flows)
    errors, motions = [], []
    for before, after, flow in zip(video[:-1].float(), video[1:], flows, strict=True):
        errors.append(naive_error(*naive_warp(before, flow), after))
        lengths = [math.hypot(*flow[:, y, x].tolist()) for y in range(flow.shape[1]) for x in range(flow.shape[2])]
        motions.append(sum(lengths) / len(lengths))
    torch.testing.assert_close(found.errors, torch.tensor(errors), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.motions, torch.tensor(motions), rtol=1e-6, atol=1e-9)
    if all(motions):
        ratios = [error / (COEFFICIENT * motion) for error, motion in zip(errors, motions, strict=True)]
        assert found.mean_of_ratios == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    if any(motions):
        assert found.ratio_of_means == pytest.approx(sum(errors) / (COEFFICIENT * sum(motions)), rel=1e-5)


def test_a_video_that_follows_its_flow_has_no_error():
    frame = torch.rand(3, 5, 8) * 255
    video = torch.stack([frame.roll(2 * t, dims=2) for t in range(3)])
    flows = torch.zeros(2, 2, 5, 8)
    flows[:, 0] = 2
    found = mawe(video, flows)
    assert found.errors.tolist() == [0, 0] and found.motions.tolist() == [2, 2]
    assert found.known.tolist() == [5 * 6, 5 * 6]  # two columns have left, two are holes
    assert found.mean_of_ratios == found.ratio_of_means == 0


def test_halves_go_to_the_even_place_and_the_last_comer_stays():
    frame = torch.arange(4.0).expand(1, 3, 1, 4)
    flows = torch.zeros(1, 2, 1, 4)
    flows[0, 0, 0] = torch.tensor([0.5, 0.5, -0.5, -2.5])  # to 0, 2 (from 1.5), 2 (from 1.5), 0 (from 0.5)
    warped = warp_forward(frame, flows)
    assert warped.frames[0, 0, 0].tolist() == [3, 0, 2, 0] and warped.known[0, 0].tolist() == [True, False, True, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_flows_that_lead_nowhere_are_lost(value):
    flows = torch.zeros(1, 2, 2, 3)
    flows[0, 1, 0, 1] = value
    known = warp_forward(torch.ones(1, 3, 2, 3), flows).known
    assert known.tolist() == [[[True, False, True], [True, True, True]]]


def test_a_static_pair_makes_only_the_mean_of_ratios_infinite():
    video = torch.zeros(3, 3, 2, 2)
    video[1] = 10
    flows = torch.zeros(2, 2, 2, 2)
    flows[1, 0] = 1
    found = mawe(video, flows)
    assert found.mean_of_ratios == math.inf
    assert found.ratio_of_means == pytest.approx(100 / (COEFFICIENT * 0.5))


def test_a_frozen_video_has_no_measure():
    found = mawe(torch.full((3, 3, 2, 2), 7.0), torch.zeros(2, 2, 2, 2))
    assert math.isnan(found.mean_of_ratios) and math.isnan(found.ratio_of_means)


def test_a_pair_without_known_pixels_counts_as_no_error():
    video, flows = torch.zeros(3, 3, 2, 2), torch.full((2, 2, 2, 2), 50.0)
    video[1], flows[0] = 10, 0.25
    found = mawe(video, flows)
    assert found.known.tolist() == [4, 0] and found.errors.tolist() == [100, 0]


@pytest.mark.parametrize(("frames", "flows"), [(1, 1), (3, 1), (3, 3)])
def test_a_wrong_number_of_flows_is_refused(frames, flows):
    with pytest.raises(UserError, match=f"{frames} frames and {flows} flows: give two frames or more, a flow a pair"):
        mawe(torch.zeros(frames, 3, 2, 2), torch.zeros(flows, 2, 2, 2))
