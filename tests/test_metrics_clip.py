"""Scores from embeddings: any encoder by one contract, the embedded world's CLIP among them; perceptual distances."""

import hashlib
import math
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from backends.embedded import packaged_weights
from backends.world import canonical_captions, render, sample_scenes
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import LPIPS, AnchorDistance, CLIPScore, How, evaluate_stream
from streaming.metrics.clip import ClipEncoder, unit
from streaming.metrics.clip_registry import CLIP_ENCODERS, make_clip
from streaming.metrics.perceptual import AnchorPerceptual, PerceptualDistance
from tests.test_metrics_contract import MeanColour, measure, noise


def plain(colour, frames=3):
    return torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(frames, 3, 8, 8)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).mean())


@given(st.integers(0, 99), st.integers(1, 11))
def test_the_score_equals_the_textbook(seed, frames):
    video, encoder = noise(frames, seed=seed), MeanColour()
    found = measure(video, CLIPScore(prompt="a red thing"), AnchorDistance(), clip=encoder)
    images = encoder.images(video)
    assert found["clip_score"] == pytest.approx(100 * cosine(images, encoder.texts(["a red thing"])), abs=1e-3)
    if frames == 1:
        assert found["anchor_distance"] is None and found["anchor_distance_end"] is None
    else:
        away = 1 - torch.nn.functional.cosine_similarity(images[1:].double(), images[:1].double(), dim=-1)
        some = min(max(1, round(0.15 * (frames - 1))), max(1, (frames - 1) // 2))
        assert found["anchor_distance"] == pytest.approx(float(away.mean()), abs=1e-6)
        assert found["anchor_distance_end"] == pytest.approx(float(away[-some:].mean()), abs=1e-6)


@given(st.floats(0.01, 100))
def test_the_length_of_embeddings_does_not_matter(scale):
    @final
    @dataclass(frozen=True, kw_only=True)
    class Scaled(ClipEncoder):
        def images(self, frames):
            return scale * MeanColour().images(frames)

        def texts(self, prompts):
            return scale * MeanColour().texts(prompts)

    one, other = (measure(noise(3), CLIPScore(prompt="blue"), clip=encoder) for encoder in (MeanColour(), Scaled()))
    assert one["clip_score"] == pytest.approx(other["clip_score"], rel=1e-5)


def test_a_change_of_scene_is_far_from_the_anchor():
    video = torch.cat([plain((200, 0, 0), 5), plain((0, 0, 200), 5)])
    found = measure(video, AnchorDistance(), CLIPScore(prompt="red"), clip=MeanColour())
    assert found["anchor_distance"] == pytest.approx(5 / 9, abs=1e-3)
    assert found["anchor_distance_end"] == pytest.approx(1, abs=1e-3)
    assert found["clip_score"] == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_embeddings_that_are_none_are_told(bad):
    embedding = torch.full((2, 3), bad)
    with pytest.raises(UserError, match="the CLIP model gives no usable embedding of frames 0..1: are its weights"):
        unit(embedding, "frames 0..1")


def test_a_prompt_that_says_nothing_is_refused():
    with pytest.raises(UserError, match="the CLIP score needs a prompt that says something"):
        CLIPScore(prompt="  ")


def test_the_embedded_worlds_clip_tells_captions_apart():
    """The shipped weights through the contract, without a download."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    folder = packaged_weights()

    @final
    class Embedded(ClipEncoder):
        def __init__(self):
            kinds = (CLIPVisionModelWithProjection, "image_encoder"), (CLIPTextModelWithProjection, "text_encoder")
            self.vision, self.text = (
                kind.from_pretrained(folder / name, dtype=torch.float32, local_files_only=True) for kind, name in kinds
            )
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)

        def settings(self):
            return {"kind": "Embedded"}

        def images(self, frames):
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
            with torch.no_grad():
                return self.vision(pixel_values=(frames / 255 - mean) / std).image_embeds

        def texts(self, prompts):
            ids = self.tokenizer(prompts, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                return self.text(input_ids=ids).text_embeds

    from backends.embedded.config import MEAN, STD

    scenes = sample_scenes(6, Key(0).generator())
    videos, captions, encoder = render(scenes, frames=4), canonical_captions(scenes), Embedded()
    scores = torch.tensor(
        [[measure(video, CLIPScore(prompt=text), clip=encoder)["clip_score"] for text in captions] for video in videos]
    )
    assert scores.argmax(dim=1).tolist() == list(range(6))
    same = measure(videos[0], AnchorDistance(), clip=encoder)["anchor_distance"]
    other = measure(torch.cat([videos[0], videos[1]]), AnchorDistance(), clip=encoder)["anchor_distance"]
    assert other > 3 * same


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with two encoders, one of them broken."""
    info = tmp_path / "some_clips-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-clips\nVersion: 1.0\n")
    entries = "mean = some_clips:make\nbroken = some_clips:fail\n"
    (info / "entry_points.txt").write_text(f"[{CLIP_ENCODERS}]\n{entries}")
    (tmp_path / "some_clips.py").write_text(
        "from tests.test_metrics_contract import MeanColour\n"
        "from streaming.errors import UserError\n"
        "def make(rest):\n"
        "    if rest:\n"
        "        raise UserError(f'there is no model {rest}')\n"
        "    return MeanColour()\n"
        "def fail(rest):\n"
        "    raise RuntimeError('no such\\nluck')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_encoders_are_found_by_name(installed):
    assert make_clip("mean") == MeanColour()
    with pytest.raises(UserError, match="there is no model big"):
        make_clip("mean:big")
    with pytest.raises(
        UserError, match=r"the plugin 'broken' \(some_clips:fail\) does not work: RuntimeError: no such l"
    ):
        make_clip("broken")
    with pytest.raises(UserError, match="no CLIP model 'median': name one as NAME or NAME:WHICH, .* one of .*mean"):
        make_clip("median")


def test_the_encoder_stands_in_the_results():
    result = evaluate_stream([noise(2)[None]], [CLIPScore(prompt="red")], How(clip=MeanColour()))
    assert result.settings["clip"] == {"kind": "MeanColour"}
    assert result.settings["metrics"] == [{"kind": "CLIPScore", "prompt": "red"}]


@final
@dataclass(frozen=True, kw_only=True)
class MeanDistance(PerceptualDistance):
    @property
    def name(self):
        return "mean"

    def distance(self, one, other):
        return abs(float(one.float().mean() - other.float().mean()))


@given(st.integers(0, 99), st.integers(1, 7))
def test_perceptual_distances_are_from_the_first_frame(seed, frames):
    video = noise(frames, seed=seed)
    found = measure(video, AnchorPerceptual(perceptual=MeanDistance()))
    means = video.float().mean(dim=(1, 2, 3))
    expected = float((means[1:] - means[0]).abs().mean()) if frames > 1 else None
    assert found == {"anchor_mean": None if expected is None else pytest.approx(expected, abs=1e-4)}


@final
class FakeTrunk(torch.nn.Module):
    """Laid out as lpips lays out torchvision's AlexNet: slices that keep the layers' numbers."""

    def __init__(self):
        super().__init__()
        self.slice1, self.slice2 = torch.nn.Sequential(), torch.nn.Sequential()
        self.slice1.add_module("0", torch.nn.Conv2d(3, 2, 1))
        self.slice2.add_module("3", torch.nn.Conv2d(2, 2, 1))


@pytest.fixture
def fake_lpips(monkeypatch):
    class Fake(torch.nn.Module):
        def __init__(self, net, pnet_rand, verbose):
            super().__init__()
            assert net == "alex" and pnet_rand and not verbose
            self.net = FakeTrunk()

        def forward(self, one, other):
            a, b = (self.net.slice2(self.net.slice1(each)) for each in (one, other))
            return (a - b).square().mean()

    module = ModuleType("lpips")
    module.LPIPS = Fake  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "lpips", module)


def test_lpips_takes_its_trunk_from_torchvisions_file(fake_lpips, tmp_path):
    weights = {"features.0.weight": torch.ones(2, 3, 1, 1), "features.0.bias": torch.zeros(2)}
    weights |= {"features.3.weight": torch.ones(2, 2, 1, 1), "features.3.bias": torch.zeros(2)}
    save_file(weights | {"classifier.1.weight": torch.zeros(1)}, tmp_path / "alexnet.safetensors")
    lpips = LPIPS(trunk=tmp_path / "alexnet.safetensors")
    black, white = plain((0, 0, 0), 1)[0], plain((255, 255, 255), 1)[0]
    assert lpips.distance(black, black) == 0 and lpips.distance(black, white) == pytest.approx((2 * 2 * 3) ** 2)
    sha256 = hashlib.sha256((tmp_path / "alexnet.safetensors").read_bytes()).hexdigest()
    assert lpips.settings() == {"kind": "LPIPS", "trunk": "alexnet.safetensors", "sha256": sha256, "net": "alex"}


def test_lpips_refuses_other_weights(fake_lpips, tmp_path):
    black = plain((0, 0, 0), 1)[0]
    save_file({"layer": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds no features.0.bias: give torchvision's weights of alex"):
        LPIPS(trunk=tmp_path / "a.safetensors").distance(black, black)
    wrong = {f"features.{i}.{name}": torch.zeros(1) for i in (0, 3) for name in ("weight", "bias")}
    save_file(wrong, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="does not fit: give torchvision's weights of alex"):
        LPIPS(trunk=tmp_path / "b.safetensors").distance(black, black)


def test_without_lpips_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(
        UserError, match=r"the perceptual distance LPIPS needs the package lpips \(.*\): pip install lpi"
    ):
        LPIPS(trunk=tmp_path / "x").distance(*noise(2))
