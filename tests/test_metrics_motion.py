"""Motion, its evenness, flicker, seams and drift beside plain loops; what each is blind and not blind to."""

import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.metrics import BordersAt, Drift, EveryChunk, Flicker, FlowSpread, Motion, SeamRatio, Stillness
from streaming.metrics import looks as look
from tests.test_metrics_contract import GivenFlow, ShiftFlow, measure, moving, noise

EVERY = EveryChunk(4, 3)


def example(seed, frames):
    video = noise(frames, 5, 6, seed)
    strength = torch.rand(frames - 1, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) * 4
    flows = torch.randn(frames - 1, 2, 5, 6, generator=torch.Generator().manual_seed(seed + 1)) * strength + 1
    return video, flows


examples = st.builds(example, st.integers(0, 999), st.integers(2, 20))


def pair_means(flows):
    return [float(flow.norm(dim=0).mean()) for flow in flows]


@given(examples)
def test_motion_equals_plain_loops(case):
    video, flows = case
    found = measure(video, Motion(), flow=GivenFlow(video, flows))
    means = pair_means(flows)
    some = min(max(1, round(0.15 * len(means))), len(means) // 2)
    drift = abs(fmean(means[:some]) - fmean(means[-some:])) if len(means) > 1 else None
    assert found["flow_score"] == pytest.approx(fmean(means), rel=1e-5) and found["stagnant"] == 0
    assert found["drift_motion"] == (None if drift is None else pytest.approx(drift, rel=1e-4, abs=1e-6))


@given(examples, st.integers(1, 3))
def test_the_flows_spread_equals_plain_loops(case, reach):
    video, flows = case
    found = measure(video, FlowSpread(borders=EVERY, reach=reach), flow=GivenFlow(video, flows))
    means = pair_means(flows)
    around = [
        pstdev(means[max(0, i - 1 - reach) : i + reach])
        for i in range(1, len(video))
        if EVERY.begins(i) and len(means) > 1
    ]
    within = [float(flow.norm(dim=0).std(correction=0)) for flow in flows]
    assert found["flow_std"] == (pytest.approx(pstdev(means), rel=1e-4) if len(means) > 1 else None)
    assert found["flow_std_pixels"] == pytest.approx(fmean(within), rel=1e-4)
    assert found["flow_std_joins"] == (pytest.approx(fmean(around), rel=1e-4, abs=1e-9) if around else None)


def test_a_steady_motion_has_no_spread():
    found = measure(moving(20), FlowSpread(borders=EVERY), Motion(), flow=ShiftFlow(x=3.0, y=4.0))
    assert found["flow_std"] == found["flow_std_joins"] == found["flow_std_pixels"] == found["drift_motion"] == 0
    assert found["flow_score"] == 5


def test_only_joins_count_at_joins():
    video = noise(12, 6, 6)
    flows = torch.ones(11, 2, 6, 6)
    flows[4] = 9  # the pair (4, 5)
    flow = GivenFlow(video, flows)
    at = measure(video, FlowSpread(borders=BordersAt((5,)), reach=1), flow=flow)["flow_std_joins"]
    away = measure(video, FlowSpread(borders=BordersAt((9,)), reach=1), flow=flow)["flow_std_joins"]
    assert at is not None and at > 1 and away == 0


def test_a_reach_of_nothing_is_refused():
    with pytest.raises(UserError, match="a reach of 0 pairs around a join: give 1 or more"):
        FlowSpread(reach=0)


def test_pairs_are_stagnant_if_nothing_moves():
    video = moving(17)
    stagnating = torch.cat([video, video[-1:].expand(17, -1, -1, -1)])
    found = measure(stagnating, Motion(), flow=ShiftFlow(x=1.0))  # a flow that sees motion where there is none
    assert found["stagnant"] == pytest.approx(17 / 33)
    assert measure(video, Motion(), flow=ShiftFlow(x=0.001))["stagnant"] == 1


def test_a_small_object_is_motion_enough():
    video, flows = noise(2, 20, 20), torch.zeros(1, 2, 20, 20)
    flows[:, 0, :4, :5] = 1  # 5 % of the pixels
    assert measure(video, Motion(), flow=GivenFlow(video, flows))["stagnant"] == 0
    assert measure(video, Motion(), flow=GivenFlow(video, flows / 100))["stagnant"] == 1


@given(st.integers(0, 99), st.floats(0.001, 0.5))
def test_stillness_scales_with_the_picture(seed, pixels):
    small, large = noise(2, 16, 16, seed), noise(2, 64, 64, seed)
    still = Stillness(pixels=pixels * 16)
    one = measure(small, Motion(), flow=ShiftFlow(x=0.25), stillness=still)
    four = measure(large, Motion(), flow=ShiftFlow(x=1.0), stillness=still)
    assert one["stagnant"] == four["stagnant"] == (1 if 0.25 < pixels else 0)


@given(st.integers(0, 99), st.integers(1, 12))
def test_flicker_equals_plain_loops(seed, frames):
    video = noise(frames, 5, 6, seed)
    found = measure(video, Flicker())
    values = video.double()
    if frames > 1:
        assert found["flicker_vbench"] == pytest.approx(1 - float(values.diff(dim=0).abs().mean()) / 255, rel=1e-6)
    bright = [0.299 * float(f[0].mean()) + 0.587 * float(f[1].mean()) + 0.114 * float(f[2].mean()) for f in values]
    bends = [abs(b - (a + c) / 2) for a, b, c in zip(bright, bright[1:], bright[2:], strict=False)]
    assert found["flicker_brightness"] == (pytest.approx(fmean(bends), rel=1e-3, abs=1e-3) if bends else None)


def test_a_steady_change_of_light_is_no_flicker():
    ramp = (torch.arange(20) * 5 + 10).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).to(torch.uint8)
    steps = ramp.clone()
    steps[::2] += 20
    assert measure(ramp, Flicker())["flicker_brightness"] == pytest.approx(0, abs=1e-4)
    assert measure(steps, Flicker())["flicker_brightness"] == pytest.approx(20, abs=1e-3)


@given(st.integers(0, 99), st.integers(2, 15))
def test_seams_equal_plain_loops(seed, frames):
    video = noise(frames, 5, 6, seed)
    found = measure(video, SeamRatio(borders=EVERY))
    steps = video.double().diff(dim=0).abs().mean(dim=(1, 2, 3)).tolist()
    border = [step for i, step in enumerate(steps, 1) if EVERY.begins(i)]
    inside = [step for i, step in enumerate(steps, 1) if not EVERY.begins(i)]
    assert found["seam_inside"] == pytest.approx(fmean(inside), rel=1e-5)
    assert found["seam_border"] == (pytest.approx(fmean(border), rel=1e-5) if border else None)
    ratio = fmean(border) / fmean(inside) if border else None
    assert found["seam_ratio"] == (None if ratio is None else pytest.approx(ratio, rel=1e-5))


def test_chunks_that_stand_still_between_jumps_have_infinite_seams():
    video = noise(5).repeat_interleave(8, dim=0)
    found = measure(video, SeamRatio(borders=EveryChunk(8, 8)))
    assert found["seam_ratio"] == math.inf and found["seam_inside"] == 0


def test_looks_equal_plain_loops():
    frame = noise(1, 6, 7)[0]
    grey = [
        [
            0.299 * float(frame[0, y, x]) + 0.587 * float(frame[1, y, x]) + 0.114 * float(frame[2, y, x])
            for x in range(7)
        ]
        for y in range(6)
    ]
    flat = [value for row in grey for value in row]
    bend = [
        grey[y - 1][x] + grey[y + 1][x] + grey[y][x - 1] + grey[y][x + 1] - 4 * grey[y][x]
        for y in range(1, 5) for x in range(1, 6)
    ]  # fmt: skip
    spread = [int(frame[:, y, x].max()) - int(frame[:, y, x].min()) for y in range(6) for x in range(7)]
    assert look.brightness(frame) == pytest.approx(fmean(flat), rel=1e-5)
    assert look.contrast(frame) == pytest.approx(pstdev(flat), rel=1e-5)
    assert look.saturation(frame) == pytest.approx(fmean(spread), rel=1e-5)
    assert look.sharpness(frame) == pytest.approx(pstdev(bend) ** 2, rel=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2)])
def test_tiny_and_plain_frames_have_no_sharpness(size):
    assert look.sharpness(noise(1, *size)[0]) == 0
    assert look.sharpness(torch.full((3, 8, 8), 77, dtype=torch.uint8)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("saturation", lambda f: (f + f.mean(dim=0, keepdim=True)) / 2),
        ("contrast", lambda f: f / 2 + 60),
        ("brightness", lambda f: f * 0.5),
        ("sharpness", lambda f: torch.nn.functional.avg_pool2d(f[None], 3, 1, 1, count_include_pad=False)[0]),
    ],
)
def test_drift_finds_what_changes(name, change):
    video = moving(40).float()
    changed = torch.cat([video[:20], torch.stack([change(frame) for frame in video[20:]])])
    before, after = (measure(some.round().to(torch.uint8), Drift()) for some in (video, changed))
    assert after[f"drift_{name}"] > 4 * before[f"drift_{name}"] + 0.5
    ends = after[f"{name}_start"], after[f"{name}_end"]
    assert after[f"drift_{name}"] == pytest.approx(abs(ends[1] - ends[0]))
