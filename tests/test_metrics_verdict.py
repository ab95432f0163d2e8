"""The verdict's own metrics beside naive references, and what it says of results of all kinds."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from backends.world import render, specified_scenes
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import (
    DIS,
    AnchorDistance,
    CameraShake,
    CLIPScore,
    Disorder,
    EveryChunk,
    FineDetail,
    Flicker,
    Grain,
    How,
    Jumps,
    Motion,
    ObjectTrack,
    Results,
    SceneCuts,
    TintDrift,
    TransNetV2,
    evaluate_stream,
    standard,
)
from streaming.metrics.carry import bring_back
from streaming.metrics.contract import Observation
from streaming.metrics.detail import Octaves, sharpness
from streaming.metrics.grain import deviations
from streaming.metrics.jumps import LEVELS, PERCENT, strength
from streaming.metrics.narrative import NUMBERS
from streaming.metrics.verdict import ASPECTS, ENOUGH, UNWATCHABLE, WORST, Aspect, verdict
from streaming.read import read_video
from streaming.video import VideoWriter
from tests.test_metrics_contract import GivenFlow, ShiftFlow, moving, noise


def numbers(video, *metrics, flow=None, size=None):
    return evaluate_stream([video[None]], list(metrics), How(flow=flow, size=size)).numbers


def flows(pairs, rows=16, cols=20, seed=1):
    return 3 * Key(seed).normal(pairs, 2, rows, cols)


@pytest.mark.parametrize(("frames", "rows", "cols"), [(3, 16, 20), (14, 33, 47), (5, 8, 8)])
def test_disorder_is_the_ratio_of_mean_differences(frames, rows, cols):
    video = noise(frames, rows, cols)
    cells = [functional.adaptive_avg_pool2d(frame.float(), (min(16, rows), min(16, cols))) for frame in video]
    apart = []
    for lag in range(1, min(8, frames - 1) + 1):
        apart.append(torch.stack([(cells[t] - cells[t - lag]).abs().mean() for t in range(lag, frames)]).mean())
    assert numbers(video, Disorder())["disorder"] == pytest.approx(float(apart[0] / max(apart[1:])), rel=1e-5)


def test_disorder_tells_order_from_none():
    video = moving(30, 32, 40, step=1)
    shuffled = video[torch.randperm(30, generator=Key(0).generator())]
    assert numbers(video, Disorder())["disorder"] < 0.65 < 0.85 < numbers(shuffled, Disorder())["disorder"]
    assert numbers(video[:2], Disorder())["disorder"] is None


@pytest.mark.parametrize("settings", [{"reach": 1}, {"cells": 0}])
def test_disorder_needs_distances_to_compare(settings):
    with pytest.raises(UserError, match=r"frames up to \d apart in \d+ cells: give 2 or more and 1 or more"):
        Disorder(**settings)


def naive_unevenness(grey):
    rows, cols = grey.shape
    values = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
        for y in range(1, rows - 1)
        for x in range(1, cols - 1)
    ]
    return torch.stack(values).double().var(correction=0)


def naive_sharpness(octaves):
    """The definition, octave by octave, with nothing shared."""
    shares = []
    for k in range(len(octaves) - 1):
        floor = 8.0 * 0.5**k
        expected = max(octaves[i] / 2 ** (i - k - 1) for i in range(k + 1, len(octaves)))
        shares.append(max(0.0, octaves[k] - floor) / expected if expected >= 10 * floor else None)
    for k in reversed(range(len(shares))):  # an octave that tells nothing is taken for the next coarser one
        if shares[k] is None:
            shares[k] = shares[k + 1] if k + 1 < len(shares) else 0.5
    coarser = [min(0.5, share) for share in shares[1:3]]
    return (1 - 0.1 * len(coarser)) * shares[0] + 0.1 * sum(coarser)


def naive_half(grey):
    rows, cols = (side // 2 for side in grey.shape)
    means = [[grey[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(cols)] for y in range(rows)]
    return torch.stack([torch.stack(row) for row in means])


@pytest.mark.parametrize(("rows", "cols", "octaves"), [(12, 14, 2), (13, 9, 2), (11, 30, 2), (25, 31, 3), (48, 48, 4)])
def test_fine_detail_is_what_coarser_octaves_let_expect(rows, cols, octaves):
    video = noise(3, rows, cols)
    levels = [[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in video.double()]]
    while len(levels) < octaves:
        levels.append([naive_half(each) for each in levels[-1]])
    wanted = naive_sharpness([float(sum(map(naive_unevenness, each))) / 3 for each in levels])
    assert numbers(video, FineDetail())["fine_detail"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("octaves", "told"),
    [
        ((0.0, 0.0), None),
        ((300.0, 0.0), math.inf),  # detail of which half the size has nothing
        ((9.0, 3.0, 2.0, 1.0), 1.0),  # a clear sky
        ((400.0, 800.0), 392 / 800),
        ((8.0, 60.0, 120.0, 240.0), 0.8 * 56 / 120 + 0.1 * (56 / 120 + 118 / 240)),  # mist: the next octave is judged
        ((12.0, 20.0, 300.0, 3000.0), 0.8 * 4 / 750 + 0.1 * (16 / 1500 + 298 / 3000)),
    ],
)
def test_sharpness_of_given_octaves(octaves, told):
    assert sharpness(octaves) == (told if told is None else pytest.approx(told))
    if told not in (None, math.inf):
        floor = sharpness(octaves, noise=1e6)
        assert floor == (1.0 if told == 1.0 else 0.0)  # all that is there may be noise


def blurred(video, share):
    """Through a Gaussian whose deviation is that share of the side."""
    deviation = share * min(video.shape[-2:])
    reach = math.ceil(3 * deviation)
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * deviation**2))
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(video.float(), (reach,) * 4, mode="replicate")
    smooth = functional.conv2d(functional.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3)
    return smooth.round().clamp(0, 255).to(torch.uint8)


SHARES = (1 / 75, 1 / 40, 1 / 25, 1 / 16, 1 / 10, 1 / 8)
"""Of the side; deviations of ever stronger blurs."""


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_stronger_blur_is_never_sharper(through_a_file, tmp_path):
    """What rounding and compression leave in the finest octave must not pass for detail of what is gone."""
    scene = specified_scenes(Key(3).generator(), n=1, place="meadow", action="zigzags", camera="pans left")
    video = render(scene, frames=8, size=96)[0]
    videos = [video, *(blurred(video, share) for share in SHARES)]
    if through_a_file:
        videos = [written(each, tmp_path / "video.mp4") for each in videos]
    found = [numbers(each, FineDetail(), Grain(), flow=DIS()) for each in videos]
    for name in ("fine_detail", "clean_detail"):
        told = [each[name] for each in found]
        assert told[0] > 0.42 and told[1] < 0.3 and max(told[3:]) < 0.06
        assert all(after <= before + 0.005 for before, after in zip(told, told[1:], strict=False)), name
    grades = [ASPECTS["sharpness"].grade(each["clean_detail"]) for each in found]
    assert grades[0] < 0.3 and grades[1] > 0.6 and min(grades[3:]) > 1.45


def written(video, path):
    with VideoWriter(path, fps=8.0, height=video.shape[-2], width=video.shape[-1]) as writer:
        writer.write(video[None])
    return torch.cat([(piece[0] * 255).round().to(torch.uint8) for piece in read_video(path).pieces])


@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize(("top", "bottom", "bend"), [(120, 180, 0), (60, 250, 0), (60, 200, 100)])
def test_a_clear_sky_is_not_blurred(top, bottom, bend, through_a_file, tmp_path):
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 96), indexing="ij")
    frames = [top + (bottom - top) * y + bend * ((x - t / 20) ** 2) for t in range(6)]
    video = torch.stack([torch.stack((each * 0.6, each * 0.8, each)) for each in frames]).clamp(0, 255).to(torch.uint8)
    video = written(video, tmp_path / "video.mp4") if through_a_file else video
    detail = Octaves()
    for index, frame in enumerate(video):
        detail.add(Observation(index=index, shown=frame, frame=frame).detail)
    assert detail.sharpness() == 1.0


def test_mist_is_not_blurred():
    scene = specified_scenes(Key(3).generator(), n=1, place="meadow", action="zigzags", camera="pans left")
    video = render(scene, frames=6, size=96)[0].float()
    for contrast in (1.0, 0.3, 0.2, 0.1, 0.05):
        misty = (128 + contrast * (video - 128)).round().to(torch.uint8)
        assert ASPECTS["sharpness"].grade(numbers(misty, FineDetail())["fine_detail"]) < 0.5, contrast


def test_fine_detail_is_measured_where_the_pixels_are():
    video = moving(4, 24, 32)
    as_it_is = numbers(video, FineDetail())["fine_detail"]
    assert numbers(video, FineDetail(), size=(96, 128))["fine_detail"] == as_it_is
    assert numbers(video, FineDetail(), size=(12, 16))["fine_detail"] != as_it_is
    assert numbers(noise(4, 5, 40), FineDetail())["fine_detail"] is None
    assert numbers(torch.full((1, 3, 12, 12), 7, dtype=torch.uint8), FineDetail())["fine_detail"] is None


def grainy(video, most, seed=3):
    return (video.int() + Key(seed).integers(-most, most + 1, *video.shape)).clamp(0, 255).to(torch.uint8)


def naive_deviations(residual, quantile):
    """Every other bend of each channel and of the grey levels, sorted."""
    grey = 0.299 * residual[0] + 0.587 * residual[1] + 0.114 * residual[2]
    found = []
    for plane in (*residual, grey):
        rows, cols = plane.shape
        bends = sorted(
            abs(float(plane[y - 1, x] + plane[y + 1, x] + plane[y, x - 1] + plane[y, x + 1] - 4 * plane[y, x]))
            for y in range(1, rows - 1, 2)
            for x in range(1, cols - 1, 2)
        )
        gaussian = {0.25: 0.31864, 0.5: 0.67449}[quantile]
        found.append(bends[max(1, round(quantile * len(bends))) - 1] / gaussian / math.sqrt(40))
    return math.sqrt(sum(each**2 for each in found[:3]) / 3), found[3]


@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (9, 14), (12, 7)])
@pytest.mark.parametrize("quantile", [0.25, 0.5])
def test_deviations_are_those_of_every_other_bend(rows, cols, quantile):
    residual = 9 * Key(rows).normal(3, rows, cols)
    assert deviations(residual, quantile) == pytest.approx(naive_deviations(residual, quantile), rel=1e-4)


@pytest.mark.parametrize("deviation", [2.0, 20.0])
def test_deviations_of_white_noise_are_told(deviation):
    colours, grey = deviations(math.sqrt(2) * deviation * Key(0).normal(3, 200, 300), 0.25)
    assert colours == pytest.approx(deviation, rel=0.05)
    assert grey == pytest.approx(deviation * math.sqrt(0.299**2 + 0.587**2 + 0.114**2), rel=0.05)


def test_grain_is_what_does_not_move_along():
    video = moving(12, 48, 64, step=2).clamp(40, 215)
    clean = numbers(video, Grain(), FineDetail(), flow=ShiftFlow(x=2.0))
    noisy = numbers(grainy(video, 25), Grain(), FineDetail(), flow=ShiftFlow(x=2.0))
    assert clean["grain"] == 0 and clean["clean_detail"] == pytest.approx(clean["fine_detail"])
    assert noisy["grain"] == pytest.approx(math.sqrt(25 * 26 / 3), rel=0.1)  # of whole numbers from -25 to 25
    assert noisy["clean_detail"] < clean["fine_detail"] < noisy["fine_detail"]
    moved = grainy(video[:1], 25).expand(12, -1, -1, -1)
    along = torch.stack([frame.roll(2 * t, dims=2) for t, frame in enumerate(moved)])
    assert numbers(along, Grain(), flow=ShiftFlow(x=2.0))["grain"] == 0  # noise that moves along is texture


def test_grain_is_the_geometric_mean_over_pairs_and_cuts_hardly_count():
    video, flow = noise(6, 20, 26), torch.full((2, 20, 26), 0.5)
    pairs = zip(video[:-1].float(), video[1:].float(), strict=True)
    told = [math.log1p(naive_deviations(bring_back(after, flow)[0] - before, 0.25)[0]) for before, after in pairs]
    found = numbers(video, Grain(), flow=ShiftFlow(x=0.5, y=0.5))
    assert found["grain"] == pytest.approx(math.expm1(sum(told) / len(told)), rel=1e-4)
    cut = torch.cat([moving(16, 32, 40, seed=seed) for seed in range(3)])
    assert numbers(cut, Grain(), flow=ShiftFlow(x=1.0))["grain"] < 0.2


def test_grain_is_measured_where_the_pixels_are():
    """Enlarging makes noise smooth: it is looked for in the video's own pixels, with the flow made as small."""
    video = grainy(moving(8, 24, 32, step=1).clamp(40, 215), 25)
    small = numbers(video, Grain(), flow=ShiftFlow(x=1.0))
    large = numbers(video, Grain(), flow=ShiftFlow(x=3.0), size=(48, 96))
    assert large == pytest.approx(small, rel=1e-5)
    assert set(numbers(video[:1], Grain(), flow=ShiftFlow()).values()) == {None}
    assert set(numbers(noise(4, 5, 40), Grain(), flow=ShiftFlow()).values()) == {None}


@pytest.mark.parametrize("settings", [{"quantile": 0.0}, {"quantile": 1.0}, {"doubt": -1.0}])
def test_grain_needs_a_quantile(settings):
    with pytest.raises(UserError, match=r"a quantile of .* and a doubt of .*: give one between 0 and 1, and 0 or more"):
        Grain(**settings)


def test_camera_shake_is_the_change_of_the_median_flow():
    video, given_flows = noise(7), flows(6)
    medians = [flow.flatten(1).sort(dim=1).values[:, (16 * 20 - 1) // 2] for flow in given_flows]
    changes = [math.dist(a.tolist(), b.tolist()) for a, b in zip(medians, medians[1:], strict=False)]
    told = numbers(video, CameraShake(), flow=GivenFlow(video, given_flows))["camera_shake"]
    assert told == pytest.approx(100 * sum(changes) / len(changes) / 16, rel=1e-5)
    assert numbers(video[:2], CameraShake(), flow=GivenFlow(video[:2], given_flows[:1]))["camera_shake"] is None


def test_tint_drift_adds_up_what_creeps():
    video = noise(9)
    total, farthest = torch.zeros(3), 0.0
    for before, after in zip(video.float(), video[1:].float(), strict=False):
        total += (after - before).clamp(-3, 3).mean(dim=(1, 2))
        own = (after - video[0].float()).mean(dim=(1, 2))
        farthest = max(farthest, min(float((one - one.mean()).norm()) for one in (total, own)))
    assert numbers(video, TintDrift())["tint_drift"] == pytest.approx(farthest, rel=1e-4)


def test_tint_drift_of_a_known_drift():
    base = noise(1, seed=4).clamp(60, 190).expand(21, -1, -1, -1)
    drift = torch.zeros(21, 3, 1, 1)
    drift[:, 0, 0, 0], drift[:, 2, 0, 0] = torch.arange(21), -torch.arange(21)
    assert numbers((base + drift).to(torch.uint8), TintDrift())["tint_drift"] == pytest.approx(20 * math.sqrt(2))
    grey = drift[:, :1].expand(-1, 3, -1, -1)  # brightness alone is no tint
    assert numbers((base + grey).to(torch.uint8), TintDrift())["tint_drift"] == pytest.approx(0, abs=1e-4)
    with pytest.raises(UserError, match=r"changes of up to 0.0 levels: give more than 0"):
        TintDrift(most=0.0)


def naive_strengths(video, given_flows):
    """Strength of every pair, from all pairs at once."""
    differences = [float((b.float() - a.float()).abs().mean()) for a, b in zip(video, video[1:], strict=False)]
    side = min(video.shape[-2:])
    change = {
        i: 100 * float((given_flows[i] - given_flows[i - 1]).norm(dim=0).mean()) / side
        for i in range(1, len(given_flows))
    }
    found = {}
    for i in range(1, len(differences) - 1):
        around = sorted([differences[k] for k in (i - 2, i - 1, i + 1, i + 2) if 0 <= k < len(differences)])
        away = sorted(change[k] for k in (i - 2, i - 1, i + 2, i + 3) if k in change)
        if away:
            under = max(differences[i - 1], differences[i + 1], around[-2])
            difference = differences[i] / (under + LEVELS)
            flow = max(change.get(i, 0.0), change[i + 1]) / (sum(away[:2]) / len(away[:2]) + PERCENT)
            found[i + 1] = math.sqrt(difference * flow) if difference >= 1 else difference
    return found


@pytest.mark.parametrize("frames", [4, 5, 7, 8, 12, 30])
def test_jumps_are_found_one_pass_as_from_all_pairs(frames):
    video, given_flows = noise(frames, seed=frames), flows(frames - 1, seed=frames)
    video[frames // 2 :] //= 3
    given_flows[frames // 2 - 1] *= 9
    wanted = naive_strengths(video, given_flows)
    least = sorted(wanted.values())[len(wanted) // 2] + 1e-6 if wanted else 2.0
    result = evaluate_stream([video[None]], [Jumps(least=max(1.01, least))], How(flow=GivenFlow(video, given_flows)))
    if not wanted:
        assert result.numbers == {"jumps": None, "jump_strongest": None}
        return
    assert result.numbers["jump_strongest"] == pytest.approx(max(wanted.values()), rel=1e-4)
    jumps = sorted(frame for frame, value in wanted.items() if value >= max(1.01, least))
    assert result.events["jumps"] == tuple(jumps) and result.numbers["jumps"] == len(jumps)


@pytest.mark.parametrize("apart", [2, 3, 9])
def test_cuts_close_to_each_other_are_all_found(apart):
    left, right = moving(40, 32, 40, step=1), moving(40, 32, 40, step=1).flip(-1).roll(7, dims=1)
    video = torch.cat((left[:15], right[15 : 15 + apart], left[15 + apart :]))
    result = evaluate_stream([video[None]], [Jumps()], How(flow=DIS()))
    assert result.events["jumps"] == (15, 15 + apart)


def test_a_steady_motion_has_no_jumps_and_one_is_no_default():
    result = numbers(moving(30, 32, 40, step=2), Jumps(), flow=DIS())
    assert result["jumps"] == 0 and result["jump_strongest"] < Jumps.least
    assert strength([(1.0, 0.0)] * 2, 1) is None and strength([(1.0, 0.0)] * 3, 0) is None
    with pytest.raises(UserError, match="jumps from a strength of 1.0 on: give more than 1, which is ordinary"):
        Jumps(least=1.0)


GOOD = {
    "stagnant": 0.0,
    "disorder": 0.3,
    "camera_shake": 0.1,
    "flicker_brightness": 0.2,
    "clean_detail": 0.6,
    "grain": 0.5,
    "tint_drift": 1.0,
    "jumps": 0.0,
    "jump_strongest": 1.0,
}
BAD = {
    "stagnation": ("stagnant", 0.5, "it stagnates: nothing moves in 50% of the pairs of frames"),
    "order": (
        "disorder", 0.9, "its frames have no order: neighbours differ 0.90 times as much as frames further apart"
    ),
    "camera": (
        "camera_shake", 3.0, "it jitters: from frame to frame the picture's motion changes by 3.0 % of its side"
    ),
    "brightness": (
        "flicker_brightness", 6.0, "it flickers: frames are 6.0 grey levels brighter or darker than their neighbours"
    ),
    "sharpness": (
        "clean_detail",
        0.2,
        "it is blurred: without grain it has 0.20 of the detail that coarser scales let expect",
    ),
    "noise": ("grain", 6.0, "it is noisy: 6.0 grey levels come and go with every frame"),
    "colour": ("tint_drift", 12.0, "its colours drift by 12 levels"),
    "cuts": ("jumps", 3.0, "it is cut: jumps between frames, 3 in all"),
}  # fmt: skip


def results(**told):
    made = evaluate_stream([moving(3, 16, 16)[None]], [], How())
    return replace(made, numbers=GOOD | told)


LIMITS = {
    "stagnation": ("stagnant", 0.15, 0.5, 2),
    "order": ("disorder", 0.65, 0.85, 2),
    "camera": ("camera_shake", 0.8, 3, 2),
    "brightness": ("flicker_brightness", 2, 6, 2),
    "sharpness": ("clean_detail", 0.5, 0.2, 2),
    "noise": ("grain", 1.5, 6, 2),
    "colour": ("tint_drift", 6, 12, 1),
    "cuts": ("jumps", 0, 2, 1),
}
"""Number, value with nothing to object, clear defect, weight, as tried on the panel: run it again for others."""
BETTER = {
    "lower": (
        "scuts", "scuts_min1", "mawe_official", "mawe_paper", "mawe_ratio_of_means", "warp_error", "stagnant",
        "drift_motion", "flow_std", "flow_std_joins", "jumps", "jump_strongest", "camera_shake", "grain",
        "flicker_brightness", "seam_departure", "disorder", "drift_sharpness", "drift_saturation", "drift_contrast",
        "drift_brightness", "tint_drift", "anchor_distance", "anchor_distance_end", "object_jump_departure",
        "scuts_transnetv2", "object_size_drift", "object_colour_drift",
    ),
    "higher": (
        "flicker_vbench", "fine_detail", "clean_detail", "clip_score", "narrative_fit", "narrative_margin",
        "narrative_accuracy", "narrative_order", "object_found",
    ),
}  # fmt: skip
"""All others describe."""
INFINITE = ("mawe_official", "mawe_paper", "mawe_ratio_of_means")
AS_IS = (
    "scuts", "scuts_min1", "scuts_transnetv2", "stagnant", "flow_score", "occluded", "clip_score",
    "mawe_error", "mawe_reached", "mawe_unreached",
)  # fmt: skip
"""What is reported of a frozen video; of the numbers that rank, all others are absent."""


def all_numbers():
    metrics = standard(How(flow=DIS()), borders=EveryChunk(16, 8))
    metrics += [AnchorDistance(), CLIPScore(prompt="a red ball"), SceneCuts(detector=TransNetV2())]
    metrics += [ObjectTrack(borders=EveryChunk(16, 8))]
    return {name: number for metric in metrics for name, number in metric.numbers.items()} | dict(NUMBERS)


def test_limits_of_the_verdict_are_those_that_were_tried():
    told = {name: (each.number, each.fine, each.bad, each.weight) for name, each in ASPECTS.items()}
    assert told == LIMITS and WORST == 3


def test_directions_of_all_numbers():
    found = {name: number.better for name, number in all_numbers().items()}
    wanted = {name: way for way, names in BETTER.items() for name in names}
    assert {name: way for name, way in found.items() if way is not None} == wanted


def test_calm_is_no_merit_of_a_frozen_video():
    for name, number in all_numbers().items():
        if number.better and not name.startswith(("narrative_", "object_", "anchor_")):
            wanted = "infinite" if name in INFINITE else "as is" if name in AS_IS else "absent"
            assert number.frozen == wanted, name


def test_nothing_to_object():
    assert verdict(results()).badness == 0 and verdict(results()).reasons == ()
    assert verdict(results()).judged == tuple(ASPECTS)
    assert verdict(results()).grades == dict.fromkeys(ASPECTS, 0.0)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_each_defect_is_named(aspect):
    name, value, reason = BAD[aspect]
    found = verdict(results(**{name: value}))
    assert found.reasons == (reason,) and found.grades[aspect] >= 1
    assert found.badness == pytest.approx(ASPECTS[aspect].weight * found.grades[aspect])
    assert {other for other, grade in found.grades.items() if grade} == {aspect}


def test_the_worst_reason_comes_first():
    found = verdict(results(tint_drift=12.0, camera_shake=9.0, jumps=1.0))
    assert [reason.split(":")[0].split(" by")[0] for reason in found.reasons] == [
        "it jitters", "its colours drift", "it is cut"
    ]  # fmt: skip
    assert found.badness == pytest.approx(2 * WORST + 1 + 0.5)


def test_cuts_grow_slowly_and_near_ones_count_a_little():
    grades = [verdict(results(jumps=float(count))).grades["cuts"] for count in (0, 1, 3, 15)]
    assert grades == [0.0, 0.5, 1.0, 2.0]
    near = verdict(results(jump_strongest=2.0))
    assert 0 < near.badness < 0.25 and near.reasons == ()
    assert verdict(results(jump_strongest=None)).badness == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_an_infinite_number_is_never_best(aspect, value):
    if aspect != "cuts" or value > 0:
        found = verdict(results(**{ASPECTS[aspect].number: value}))
        assert found.grades[aspect] == WORST and found.badness == WORST * ASPECTS[aspect].weight
        assert found.reasons == (f"its {ASPECTS[aspect].number} is infinite",)


def test_a_board_of_single_pixels_has_no_best_detail():
    """Half its size is flat, so the ratio is infinite."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(40), indexing="ij")
    board = torch.stack([(255 * ((x + y + t) % 2)).to(torch.uint8).expand(3, -1, -1) for t in range(6)])
    found = numbers(board, FineDetail())
    assert found["fine_detail"] == math.inf and ASPECTS["sharpness"].grade(math.inf) == WORST


@pytest.mark.parametrize("aspect", ASPECTS)
def test_without_one_aspect_there_is_no_verdict(aspect):
    found = verdict(results(**{ASPECTS[aspect].number: None}))
    assert found.badness is None and found.judged == tuple(name for name in ASPECTS if name != aspect)
    assert found.grades[aspect] is None and len(found.reasons) == 1
    assert found.reasons[0].startswith(f"no verdict, as these were not judged: {aspect} (")


@pytest.mark.parametrize("frames", range(2, 8))
def test_a_video_of_few_frames_is_never_best(frames):
    how = How(flow=DIS())
    found = verdict(evaluate_stream([moving(frames, 32, 40, step=2)[None]], standard(how), how))
    assert (found.badness is None) == (frames < ENOUGH)
    told = f"(it has {frames} frames: give 5 or more)"
    assert found.badness is not None or found.reasons[-1].endswith(told)


@given(
    aspect=st.sampled_from(list(ASPECTS.values())),
    values=st.tuples(st.floats(-1, 50), st.floats(-1, 50)),
)
def test_a_worse_value_is_never_graded_better(aspect: Aspect, values):
    worse, better = sorted(values, reverse=aspect.bad > aspect.fine)
    assert 0 <= aspect.grade(better) <= aspect.grade(worse) <= WORST
    assert aspect.grade(aspect.fine) == 0 and aspect.grade(aspect.bad) == pytest.approx(1)


def test_a_frozen_video_is_as_bad_as_can_be():
    video = noise(1, 32, 40).expand(12, -1, -1, -1)
    how = How(flow=DIS())
    frozen = verdict(evaluate_stream([video[None]], standard(how), how))
    assert frozen.badness == UNWATCHABLE and frozen.reasons == ("it is frozen: nothing moves",)
    assert frozen.judged == tuple(ASPECTS)  # so it can be compared
    assert verdict(results(**dict.fromkeys(GOOD, math.inf))).badness == UNWATCHABLE


def test_a_single_frame_is_no_video():
    found = verdict(evaluate_stream([noise(1, 32, 40)[None]], standard(How()), How()))
    assert found.badness == UNWATCHABLE and found.reasons == ("it has a single frame: give a video",)


def test_what_was_not_measured_is_named():
    video = moving(12, 32, 40)
    found = verdict(evaluate_stream([video[None]], standard(How()), How()))
    assert found.badness is None and found.judged == ("order", "brightness", "colour")
    assert found.reasons[-1] == (
        "no verdict, as these were not judged: stagnation (stagnant is missing), camera (camera_shake is missing), "
        "sharpness (clean_detail is missing), noise (grain is missing), cuts (jumps is missing) "
        "(measure with optical flow)"
    )


def test_the_standard_metrics_give_all_that_is_judged():
    named = {name for metric in standard(How(flow=DIS())) for name in metric.numbers}
    assert {aspect.number for aspect in ASPECTS.values()} | {"jump_strongest"} <= named


def test_results_that_were_saved_get_the_same_verdict():
    how = How(flow=DIS())
    found = evaluate_stream([moving(14, 32, 40, step=2)[None]], standard(how), how)
    assert verdict(Results.from_json(found.to_json())) == verdict(found)
    metrics = [Disorder(), Grain(), TintDrift(), Jumps(), CameraShake(), Motion(), Flicker()]
    assert verdict(evaluate_stream([moving(14, 32, 40, step=2)[None]], metrics, how)) == verdict(found)


def test_the_page_tells_of_every_number_and_limit():
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(\w+\*?)`", page))
    how = How(flow=DIS())
    families = tuple(name[:-1] for name in told if name.endswith("*"))
    for metric in standard(how, borders=EveryChunk(16, 8)):
        for name in metric.numbers:
            assert name in told or name.startswith(families) or name.endswith(("_start", "_end")), name
    rows = dict(re.findall(r"^\| (\w+) \| `(\w+)` \|", page, re.MULTILINE))
    assert rows == {name: aspect.number for name, aspect in ASPECTS.items()}
    cells = r"^\| (\w+) \| `\w+` \| ([\d.]+)(?: %)? \| ([\d.]+)(?: %)? \| ([\d.]+) \|$"
    limits = {name: tuple(map(float, values)) for name, *values in re.findall(cells, page, re.MULTILINE)}
    # Cuts count by their logarithm: 3 are a clear defect.
    assert limits == {
        name: (each.fine, 3 if name == "cuts" else each.bad, each.weight) for name, each in ASPECTS.items()
    }


def test_the_page_tells_directions():
    """A number's paragraph begins with its name in bold and says, before the first colon, which way is better."""
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = {}
    for paragraph in re.split(r"\n\n", page):
        if paragraph.startswith("**`"):
            head = paragraph.split(":")[0]
            for name in re.findall(r"\*\*`(\w+\*?)`\*\*", head):
                told[name] = next((way for way in ("lower", "higher") if way in head), None)
    directions = {name: number.better for name, number in all_numbers().items()}
    assert len(told) > 25
    for name, way in told.items():
        if not name.endswith("*"):
            assert directions[name] == way, name
    missing = set(BETTER["lower"] + BETTER["higher"]) - set(told)
    assert {name for name in missing if not name.startswith("narrative_")} == set()  # those are on a page of their own
