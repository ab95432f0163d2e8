"""Motion, its evenness, flicker, seams and drift beside plain loops; what each is blind and not blind to."""

import math
from statistics import fmean, median_low, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import DIS, BordersAt, Drift, EveryChunk, Flicker, FlowSpread, Motion, SeamRatio, Stillness
from streaming.metrics import looks as look
from streaming.metrics.results import badness
from streaming.metrics.running import departure
from streaming.metrics.still import beyond_light
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


@pytest.mark.parametrize("side", [6, 12])
def test_a_small_object_before_a_still_picture_is_motion(side):
    """It covers less of the frame than the flow's fastest share, so that these are slow on average."""
    video = noise(1, 128, 128).div(4, rounding_mode="floor").expand(24, -1, -1, -1).clone()
    for t, frame in enumerate(video):
        frame[:, 60 : 60 + side, 10 + 2 * t : 10 + 2 * t + side] = 250
    found = measure(video, Motion(), flow=ShiftFlow(x=0.001))
    assert found["stagnant"] == 0
    assert measure(video[:1].expand(24, -1, -1, -1), Motion(), flow=ShiftFlow(x=0.001))["stagnant"] == 1


LIGHTS = {
    "a slow fade": lambda video: video.float() + 0.7 * frames_of(video),
    "a fade to black": lambda video: video * (1 - frames_of(video) / len(video)),
    "flicker": lambda video: video + Key(2).integers(-20, 21, len(video), 1, 1, 1),
    "exposure": lambda video: video * Key(4).integers(80, 121, len(video), 1, 1, 1) / 100,
}


def frames_of(video):
    return torch.arange(len(video)).view(-1, 1, 1, 1)


def with_square(side, across, *, size=128, step=2, frames=24):
    """A still picture, partly white and partly black, and a square that moves over it."""
    video = (noise(1, size, size) // 4 * 2 + 60).expand(frames, -1, -1, -1).clone()
    video[..., :16, :], video[..., -16:, :] = 255, 0
    still = video.clone()
    for t, frame in enumerate(video):
        frame[:, 60 : 60 + side, 10 + step * t : 10 + step * t + side] = across
    return video, still


@pytest.mark.parametrize("light", LIGHTS)
def test_a_small_object_is_motion_whatever_the_light_does(light):
    """And light alone is none, where what is white or black does not change with it either."""
    found = [
        measure(LIGHTS[light](each).round().clamp(0, 255).to(torch.uint8), Motion(), flow=ShiftFlow(x=0.001))
        for each in with_square(12, 240)
    ]
    assert found[0]["stagnant"] <= (0.3 if light == "a fade to black" else 0) and found[1]["stagnant"] == 1


def test_a_small_object_that_changes_hardly_any_pixel_is_motion():
    """Frames differ by less than 0.1 levels on average."""
    video, _ = with_square(11, 200, size=160, step=1, frames=40)
    assert float(video[1:].int().sub(video[:-1].int()).abs().float().mean(dim=(1, 2, 3)).max()) < 0.1
    nothing = ShiftFlow(x=0.0)
    assert measure(video, Motion(), flow=nothing)["stagnant"] <= 3 / 39  # too few frames to look back at
    stopped = torch.cat([video, video[-1:].expand(20, -1, -1, -1)])
    assert 20 / 59 <= measure(stopped, Motion(), flow=nothing)["stagnant"] <= 23 / 59
    often = video.repeat_interleave(3, dim=0)  # each frame three times
    assert measure(often, Motion(), flow=nothing)["stagnant"] >= 2 / 3


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_what_is_beyond_light_equals_plain_loops(seed, frames, high, wide):
    cells = Key(seed).integers(0, 256, frames + 1, 3, high, wide).float()
    small, last = cells[0], cells[1:]
    found = beyond_light(small, last)
    for k in range(frames):
        for channel in range(3):
            new, old = small[channel].flatten().tolist(), last[k, channel].flatten().tolist()
            offset = median_low([a - b for a, b in zip(new, old, strict=True)])
            factor = median_low([(a + 1) / (b + 1) for a, b in zip(new, old, strict=True)])
            for cell, (a, b) in enumerate(zip(new, old, strict=True)):
                all_of_light = (0, offset, (factor - 1) * (b + 1))
                beyond = max(0, a - b - max(all_of_light), min(all_of_light) - (a - b))
                assert float(found[k, channel].flatten()[cell]) == pytest.approx(beyond, abs=1e-3)


@given(st.integers(0, 999), st.floats(-60, 60), st.floats(0.5, 1.5))
def test_light_is_not_beyond_light(seed, offset, gain):
    """Not even where it meets white or black."""
    last = Key(seed).integers(0, 256, 1, 3, 8, 8).float()
    assert float(beyond_light((last[0] + offset).clamp(0, 255), last).max()) < 1e-3
    assert float(beyond_light(last[0] * gain, last).max()) < 1


@given(st.integers(0, 99), st.floats(0.001, 0.5))
def test_stillness_scales_with_the_picture(seed, pixels):
    small, large = noise(2, 16, 16, seed), noise(2, 64, 64, seed)
    still = Stillness(pixels=pixels * 16)
    one = measure(small, Motion(), flow=ShiftFlow(x=0.25), stillness=still)
    four = measure(large, Motion(), flow=ShiftFlow(x=1.0), stillness=still)
    assert one["stagnant"] == four["stagnant"] == (1 if 0.25 < pixels else 0)


def grainy(video, most, seed=3):
    return (video.int() + Key(seed).integers(-most, most + 1, *video.shape)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_faint_noise_is_no_motion(most):
    """DIS sees motion in it: noise comes and goes where it is, what moves adds up."""
    video = moving(30, 64, 64, step=1)
    stagnating = torch.cat([video[:15], video[14:15].expand(15, -1, -1, -1)])
    still, noisy = (measure(each, Motion(), flow=DIS())["stagnant"] for each in (stagnating, grainy(stagnating, most)))
    assert still == 15 / 29 and still - 4 / 29 <= noisy <= still  # up to as many frames later as are looked back at
    assert measure(grainy(video, most), Motion(), flow=DIS())["stagnant"] == 0


def naive_still(video, change, reach, cells, most, faint):
    """Whether each pair is, by what its cells changed against the frames before; the flow says that all moves."""
    small = torch.nn.functional.adaptive_avg_pool2d(video.double(), cells)
    found = []
    for t in range(1, len(video)):
        before = range(max(0, t - reach), t)
        apart = [sorted((small[t] - small[k]).abs().mean(dim=0).flatten().tolist(), reverse=True) for k in before]
        largest = max(fmean(each[: max(1, round(most * cells * cells))]) for each in apart)
        difference = float((video[t].double() - video[t - 1].double()).abs().mean())
        found.append(difference <= 0.1 or (difference <= faint and largest < change * len(before) / reach))
    return fmean(found)


@given(st.integers(0, 99), st.sampled_from([(2.0, 4, 4.0), (1.0, 2, 2.0), (3.0, 1, 9.0)]))
def test_stillness_equals_plain_loops(seed, limits):
    change, reach, faint = limits
    strength = torch.rand(14, 1, 1, 1, generator=Key(seed).generator()) * 8
    video = (128 + strength * Key(seed).normal(14, 3, 24, 20)).to(torch.uint8)
    still = Stillness(change=change, reach=reach, cells=8, most=0.1, faint=faint)
    told = measure(video, Motion(), flow=ShiftFlow(x=2.0), stillness=still)["stagnant"]
    assert told == pytest.approx(naive_still(video, change, reach, 8, 0.1, faint))


def test_a_fine_pattern_that_moves_is_motion():
    """The means of its cells stay as they are."""
    stripes = (torch.arange(64) // 2 % 2 * 40 + 100).expand(3, 64, -1).to(torch.uint8)
    video = torch.stack([stripes.roll(t, dims=2) for t in range(12)])
    assert measure(video, Motion(), flow=ShiftFlow(x=1.0))["stagnant"] == 0


@pytest.mark.parametrize("settings", [{"reach": 0}, {"cells": 0}])
def test_stillness_needs_frames_and_cells(settings):
    with pytest.raises(UserError, match=r"stillness over \d+ frames in \d+ cells: give 1 or more of each"):
        Stillness(**settings)


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
    assert found["seam_departure"] == (None if ratio is None else pytest.approx(abs(math.log(ratio)), abs=1e-5))


def test_chunks_that_stand_still_between_jumps_have_infinite_seams():
    video = noise(5).repeat_interleave(8, dim=0)
    found = measure(video, SeamRatio(borders=EveryChunk(8, 8)))
    assert found["seam_ratio"] == math.inf and found["seam_inside"] == 0
    assert found["seam_departure"] == math.inf


def test_a_departure_is_the_same_in_both_directions():
    assert departure(1.0) == 0 and departure(2.0) == departure(0.5) == pytest.approx(math.log(2))
    assert departure(0.0) == departure(math.inf) == math.inf and departure(None) is None


def seams_rank():
    """Numbers of a steady pan, of a stutter and of a jump at every join; and what of them ranks videos."""
    pan = moving(29, 32, 40, step=2)
    stutter, jump = pan.clone(), pan.clone()
    for first in range(4, 29, 3):
        stutter[first] = stutter[first - 1]
        jump[first:] = jump[first:].roll(3, dims=-1)
    return [measure(each, SeamRatio(borders=EVERY)) for each in (pan, stutter, jump)]


def test_a_stutter_at_every_join_is_no_better_than_none():
    directions = {name: number.better for name, number in SeamRatio(borders=EVERY).numbers.items()}
    pan, stutter, jump = seams_rank()
    assert stutter["seam_ratio"] == 0 < 0.9 < pan["seam_ratio"] < 1.1 < jump["seam_ratio"]
    ranking = {name: way for name, way in directions.items() if way is not None}
    assert set(ranking) == {"seam_departure"}
    for name, way in ranking.items():
        best, other, another = (badness(each[name], way) for each in (pan, stutter, jump))
        assert best < another < other


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
