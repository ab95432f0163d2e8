"""One pass over a video: what it hands back, for odd videos too, in a memory that does not grow."""

import gc
import json
import math
import tracemalloc
from dataclasses import dataclass, replace
from typing import final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.metrics import (
    DIS,
    AnchorDistance,
    CLIPScore,
    EveryChunk,
    Flicker,
    How,
    Meter,
    Metric,
    Motion,
    Number,
    ObjectTrack,
    OpticalFlow,
    Results,
    Stillness,
    WarpError,
    badness,
    evaluate_stream,
    standard,
)
from streaming.metrics.evaluate import observe, resized
from streaming.read import read_video
from streaming.video import VideoWriter
from tests.test_metrics_contract import MeanColour, ShiftFlow, measure, moving, noise

BORDERS = EveryChunk(4, 3)
HOW = How(flow=DIS(preset="ultrafast"), clip=MeanColour())
ALL = [*standard(HOW, borders=BORDERS, prompt="a red thing"), ObjectTrack(borders=BORDERS)]
TOLD_OF_EVERY_FRAME = {"clip_score", "object_found"}
"""Numbers that speak for a video whether or not it moves."""


def evaluate(video, metrics=ALL, how=HOW):
    return evaluate_stream([video[None]], metrics, how)


def ordinary():
    return moving(14, 32, 40, step=2)


@pytest.mark.parametrize(
    "video",
    [
        noise(1, 32, 40).expand(12, -1, -1, -1),
        torch.full((12, 3, 32, 40), 77, dtype=torch.uint8),
        torch.zeros(12, 3, 32, 40, dtype=torch.uint8),
    ],
    ids=["frozen", "constant", "black"],
)
def test_a_video_without_motion_is_best_at_nothing(video):
    result, other = evaluate(video), evaluate(ordinary())
    assert result.frozen and not other.frozen
    assert not any(value is not None and math.isnan(value) for value in result.numbers.values())
    for name, number in result.meanings.items():
        if number.better and name not in TOLD_OF_EVERY_FRAME and not name.startswith("scuts"):
            ours, theirs = (badness(one.numbers[name], number.better) for one in (result, other))
            assert ours >= theirs, name
            if name.startswith("mawe"):
                assert result.numbers[name] == math.inf
    assert result.numbers["scuts"] == 0 and result.numbers["stagnant"] == 1


@pytest.mark.parametrize("size", [(32, 40), (12, 12), (13, 57)])
def test_a_single_frame_measures_what_a_frame_has(size):
    result = evaluate(noise(1, *size))
    assert not result.frozen and result.frames == 1
    told = {name for name, value in result.numbers.items() if value is not None}
    assert told - {"object_size", "fine_detail"} == TOLD_OF_EVERY_FRAME


def test_two_frames_are_a_video():
    result = evaluate(moving(2))
    assert result.frames == 2 and all(value is None or not math.isnan(value) for value in result.numbers.values())


def test_nearly_frozen_counts_as_frozen():
    video = noise(1, 32, 40).repeat(40, 1, 1, 1)
    video[20:] = noise(1, 32, 40, seed=1)  # one cut, else nothing
    result = evaluate(video)
    assert result.frozen and result.numbers["mawe_ratio_of_means"] == math.inf
    assert not evaluate(video, how=replace(HOW, stillness=Stillness(share=1.0))).frozen


@settings(max_examples=5)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.booleans())
def test_how_the_video_is_cut_into_pieces_does_not_matter(lengths, floats):
    video = moving(sum(lengths) or 1, 24, 24, step=2)
    pieces = list((video if sum(lengths) else video[:1])[None].split([*lengths] if sum(lengths) else [1], dim=1))
    if floats:
        pieces = [piece.float() / 255 for piece in pieces]
    metrics = [*standard(HOW, borders=BORDERS, prompt="blue")]
    once, parts = evaluate(video, metrics), evaluate_stream(pieces, metrics, HOW)
    assert parts.numbers == once.numbers and parts.series == once.series


def test_observations_are_what_they_say():
    video, how = noise(9, 20, 24), How(size=(12, 14), flow=ShiftFlow(x=2.0), clip=MeanColour())
    small = resized(video, (12, 14), True)
    seen = list(observe([video[None, :5], video[None, 5:]], how, frozenset({"flow", "backward", "embedding"})))
    assert [one.index for one in seen] == list(range(9))
    for i, one in enumerate(seen):
        assert torch.equal(one.shown, video[i]) and torch.equal(one.frame, small[i])
        assert one.embedding is not None and float(one.embedding.norm()) == pytest.approx(1)
        assert (one.previous is None) == (one.flow is None) == (one.backward is None) == (i == 0)
        assert one.previous is None or torch.equal(one.previous, small[i - 1])


def test_flow_and_backward_flow_are_of_the_right_pairs():
    @final
    class Levels(OpticalFlow):
        def settings(self):
            return {}

        def flows(self, before, after):
            first = (before[:, :2].float() - after[:, :2].float()).mean(dim=(2, 3))
            return first[:, :, None, None].expand(-1, -1, *before.shape[-2:])

    video = noise(7)
    for one in observe([video[None]], How(flow=Levels()), frozenset({"flow", "backward"})):
        if one.previous is not None:
            off = (video[one.index - 1, :2].float() - video[one.index, :2].float()).mean(dim=(1, 2))
            torch.testing.assert_close(one.flow[:, 0, 0], off)
            torch.testing.assert_close(one.backward[:, 0, 0], -off)


def test_what_nobody_needs_is_not_computed():
    class Never(OpticalFlow):
        def settings(self):
            return {}

        def flows(self, before, after):
            raise AssertionError("nobody asked for it")

    assert measure(noise(4), Flicker(), flow=Never())["flicker_vbench"] is not None


@pytest.mark.parametrize("antialias", [True, False])
def test_resizing_is_torchs(antialias):
    video = noise(2, 20, 30)
    expected = torch.nn.functional.interpolate(video.float(), (9, 11), mode="bilinear", antialias=antialias)
    assert torch.equal(resized(video, (9, 11), antialias), expected.round().clamp(0, 255).to(torch.uint8))
    assert resized(video, None, antialias) is video and resized(video, (20, 30), antialias) is video


def test_resolution_changes_numbers_and_stands_in_the_results():
    video = moving(6, 64, 64, step=2)
    one, half = evaluate(video, [Motion()]), evaluate(video, [Motion()], replace(HOW, size=(32, 32)))
    assert half.numbers["flow_score"] < 0.7 * one.numbers["flow_score"]
    assert one.settings["size"] is None and half.settings["size"] == [32, 32] and half.shown == (64, 64)


def test_results_are_plain_data_and_come_back():
    for video in (ordinary(), noise(1, 32, 40).expand(4, -1, -1, -1), noise(1)):
        result = evaluate(video)
        text = result.to_json()
        assert Results.from_json(text) == replace(result, settings=json.loads(text)["settings"])
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert json.loads(evaluate(noise(1, 32, 40).expand(4, -1, -1, -1)).to_json())["numbers"]["mawe_paper"] == "infinite"


def test_every_setting_stands_in_the_results():
    told = evaluate(ordinary()).settings
    assert told["flow"] == {"kind": "DIS", "preset": "ultrafast"} and told["clip"] == {"kind": "MeanColour"}
    assert told["stillness"]["pixels"] == 0.2 and told["antialias"] is True
    assert {"torch", "cv2", "scenedetect", "streamingt2v"} <= set(told["versions"])
    kinds = [metric["kind"] for metric in told["metrics"]]
    assert kinds[0] == "SceneCuts" and "MotionAwareWarpError" in kinds
    spread = next(metric for metric in told["metrics"] if metric["kind"] == "FlowSpread")
    assert spread["borders"] == {"kind": "EveryChunk", "window": 4, "new": 3}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"numbers": 3}', "null"])
def test_other_files_are_no_results(text):
    with pytest.raises(UserError, match=r"these are no results of an evaluation \(.*\): evaluate the video again"):
        Results.from_json(text)


def test_every_number_is_explained_and_explained_once():
    result = evaluate(ordinary())
    assert set(result.numbers) == set(result.meanings) and all(number.meaning for number in result.meanings.values())
    with pytest.raises(ValueError, match="two metrics give a number named flow_score: leave one of them out"):
        evaluate(ordinary(), [Motion(), Motion(share=0.3)])


def test_what_is_absent_or_infinite_sorts_last():
    assert sorted([3.0, None, 1.0, math.inf], key=lambda value: badness(value, "lower"))[:2] == [1.0, 3.0]
    assert sorted([3.0, None, 1.0, math.inf], key=lambda value: badness(value, "higher"))[:2] == [3.0, 1.0]


@final
@dataclass(frozen=True, kw_only=True)
class Wrong(Metric):
    value: float
    name: str = "wrong"

    @property
    def numbers(self):
        return {"wrong": Number(meaning="a defect")}

    def start(self, tools):
        return WrongMeter(self)


@final
class WrongMeter(Meter):
    def __init__(self, metric):
        self.metric = metric

    def add(self, seen):
        pass

    def result(self):
        return {self.metric.name: self.metric.value}


def test_defects_of_metrics_are_not_passed_on():
    with pytest.raises(ValueError, match="the metric's wrong is NaN: a metric gives None for what is not defined"):
        evaluate(noise(2), [Wrong(value=math.nan)])
    with pytest.raises(ValueError, match="a metric gives other but names wrong"):
        evaluate(noise(2), [Wrong(value=1.0, name="other")])


def test_bad_videos_are_told_in_one_line():
    for none in ([], [torch.zeros(1, 0, 3, 8, 8)]):
        with pytest.raises(UserError, match="the video has no frame: give one with two frames or more"):
            evaluate_stream(none, [Flicker()], HOW)
    broken = torch.rand(1, 6, 3, 8, 8)
    broken[0, 5, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="frames 4..5 hold NaN or infinity: give values in"):
        evaluate_stream([broken], [Flicker()], HOW)
    with pytest.raises(UserError, match="frame 3 has 9x8 pixels, those before 8x8: give frames of one size"):
        evaluate_stream([noise(3, 8, 8)[None], noise(3, 9, 8)[None]], [Flicker()], HOW)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (Motion(), "Motion needs optical flow: choose one, or leave Motion out"),
        (WarpError(), "WarpError needs optical flow"),
        (AnchorDistance(), "AnchorDistance needs a CLIP model: choose one, or leave AnchorDistance out"),
        (CLIPScore(prompt="x"), "CLIPScore needs a CLIP model"),
    ],
)
def test_what_a_metric_needs_must_be_there(metric, words):
    with pytest.raises(UserError, match=words):
        evaluate(noise(2), [metric], How())


def test_a_flow_that_is_not_finite_is_told():
    with pytest.raises(UserError, match="the optical flow by ShiftFlow has NaN or infinity: use another one"):
        measure(noise(3), Motion(), flow=ShiftFlow(x=math.nan))


def test_the_standard_suite_fits_what_is_known():
    kinds = lambda *args, **more: [type(metric).__name__ for metric in standard(*args, **more)]  # noqa: E731
    assert kinds(How()) == ["SceneCuts", "SceneCuts", "Flicker", "Drift", "Disorder", "FineDetail", "TintDrift"]
    assert "FlowSpread" in kinds(How(flow=DIS())) and "SeamRatio" not in kinds(How(flow=DIS()))
    assert "CLIPScore" not in kinds(HOW) and "AnchorDistance" in kinds(HOW)
    assert kinds(HOW, borders=BORDERS, prompt="x")[-3:] == ["SeamRatio", "AnchorDistance", "CLIPScore"]


def test_a_file_gives_the_same_numbers_as_its_frames(tmp_path):
    video, path = moving(20, 32, 40), tmp_path / "video.mp4"
    with VideoWriter(path, fps=8.0, height=32, width=40, lossless=True) as writer:
        writer.write(video[None])
    from_file = evaluate_stream(read_video(path).pieces, ALL, HOW, fps=8.0)
    assert from_file == evaluate(video)


def test_memory_does_not_grow_with_the_video():
    """Python's memory for 40 and for 160 frames, and the tensors alive early and late."""
    how = replace(HOW, flow=ShiftFlow(x=1.0))
    metrics = [*standard(how, borders=BORDERS, prompt="red"), ObjectTrack(colour="red", borders=BORDERS)]
    alive: list[int] = []

    def pieces(count):
        for index in range(count):
            yield noise(1, 12, 12, index)[None]
            if index in (25, count - 1):
                gc.collect()
                alive.append(sum(type(each) is torch.Tensor for each in gc.get_objects()))

    peaks = []
    evaluate_stream(pieces(20), metrics, how)  # what is loaded or kept once
    for count in (40, 160):
        tracemalloc.start()
        evaluate_stream(pieces(count), metrics, how)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(alive) <= min(alive) + 8
    assert peaks[1] < peaks[0] + 120 * 16 * 40  # 16 curves, of 4096 points at most
