"""`generate --preset`: what it changes, what replaces it, and that it stays as a video was begun."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streaming.checkpoint import Checkpoint
from streaming.cli import rollout, stage3
from streaming.cli.options import Options
from streaming.guidance import ClassifierFree, Unguided
from streaming.keys import Key
from streaming.loop import stream
from streaming.noise import Keyed, OneGenerator
from streaming.openings import TextOpening
from streaming.presets import make_preset
from streaming.prompts import PromptSchedule
from streaming.registry import open_model
from streaming.rows import compiled
from streaming.sample import Sampler
from tests.cli_toys import frames_of, register, run, same
from tests.test_cli_resume import stop_after

COMMAND = ("generate", "a red ball", "--frames", 14, "--steps", 3, "--long-term", "loud")  # chunks of 8, 4, 2
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "whole.mp4"
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        assert run(*COMMAND, "--preset", "official", "--output", path) == 0
    return path


def built(**options: Any) -> Any:
    chosen = Options(prompt="a red ball", long_term="loud", **options)
    return rollout.build(chosen, open_model("tiny-modelscope", device=CPU, dtype=torch.float32))


def test_paper_is_the_default(whole: Path) -> None:
    assert run(*COMMAND, "--output", "default.mp4") == 0
    assert run(*COMMAND, "--preset", "paper", "--output", "paper.mp4") == 0
    assert Path("default.mp4").read_bytes() == Path("paper.mp4").read_bytes()
    assert not same(Path("paper.mp4"), whole)


def test_a_seed_decides_how_an_official_video_begins() -> None:
    assert built(preset="official").noise == OneGenerator(33) == built(preset="official", seed=7).noise
    assert run(*COMMAND, "--preset", "official", "--seed", 7, "--frames", 8, "--output", "seven.mp4") == 0
    assert run(*COMMAND, "--preset", "official", "--seed", 8, "--frames", 8, "--output", "eight.mp4") == 0
    assert not same(Path("seven.mp4"), Path("eight.mp4"))


def test_what_it_sets_and_what_replaces_it() -> None:
    official, changed = built(preset="official"), built(preset="official", steps=3, guidance=2.0, sampler="dpm++sde")
    assert (official.sampler, official.first.sampler) == (Sampler("ddim", 50), Sampler("dpm++", 50))
    assert (official.guidance.scale, official.first.guidance.scale) == (7.5, 9.0)
    assert changed.sampler == changed.first.sampler == Sampler("dpm++sde", 3)
    assert (changed.guidance.scale, changed.first.guidance.scale) == (2.0, 2.0)
    paper = built()
    assert paper.noise == Keyed() and paper.first is None and paper.sampler == Sampler("ddim", 4)
    assert built(guidance=1.0).settings["guidance"] == "Unguided()"


@pytest.mark.parametrize(
    ("preset", "dtype", "loaded"),
    [
        ("paper", "auto", "auto"),
        ("official", "auto", "float32"),
        ("official", "float16", "float16"),
        ("paper", "float32", "float32"),
    ],
)
def test_official_streams_in_float32(preset: str, dtype: str, loaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("streaming.cli.checks.dtype", lambda name, where: asked.append(name) or torch.float32)
    run("generate", "a ball", "--frames", 1, "--steps", 1, "--preset", preset, "--dtype", dtype, "--output", "made.mp4")
    assert asked == [loaded]


@pytest.mark.parametrize("mode", ["joint", "causal"])
def test_frames_before_enhancement_are_cut_to_bytes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in the lossless file, and those that the enhancer gets."""
    seen: list[torch.Tensor] = []
    real = stage3.enhanced

    def enhanced(enhancer: Any, mode: str, frames: Any, *rest: Any) -> Any:
        seen.extend(pieces := list(frames))
        return real(enhancer, mode, iter(pieces), *rest)

    monkeypatch.setattr(stage3, "enhanced", enhanced)
    options = ("--enhance", "--enhance-mode", mode, "--blender", "naive")
    monkeypatch.setattr(stage3, "load", quick(stage3.load))
    assert run(*COMMAND, *options, "--preset", "official", "--output", "made.mp4") == 0
    parts = built(preset="official", steps=3)
    prompts = PromptSchedule.fixed("a red ball")
    floats = torch.cat([c.frames for c in stream(parts, prompts, TextOpening(), key=Key(0), chunks=3)], 1)[:, :14]
    expected = (floats * 255).floor()
    assert (floats * 255).round().ne(expected).any()
    assert torch.equal((frames_of(Path("made.base.mp4")) * 255).round(), expected)
    assert torch.equal((torch.cat(seen, 1) * 255).round(), expected)


def quick(load: Any) -> Any:
    """The preset's enhancer with a single step, whatever the preset says."""
    return lambda *args, **more: load(*args, **{**more, "steps": 1, "preset": "paper", "strength": 0.5})


def test_the_preset_reaches_stage_3(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def load(*args: Any, **more: Any) -> Any:
        asked.append((more["preset"], more["blender"]))
        raise KeyError("far enough")

    monkeypatch.setattr(stage3, "load", load)
    for options in ((), ("--preset", "official"), ("--preset", "official", "--blender", "naive")):
        run(*COMMAND, "--enhance", *options, "--output", f"{len(options)}.mp4")
    assert asked == [("paper", None), ("official", None), ("official", "naive")]


def test_it_is_continued_as_it_was_begun(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run(*COMMAND, "--preset", "official", "--output", "made.mp4") == 130
    saved = Checkpoint.load("made.mp4.checkpoint")
    assert '"preset": "official"' in saved.settings["command"]
    assert saved.settings["noise"] == "OneGenerator(seed=33)"
    capfd.readouterr()
    assert run("generate", "--resume", "made.mp4.checkpoint", "--preset", "paper") == 2
    told = capfd.readouterr().err
    assert "--preset cannot change when a video is continued: it was 'official', now it is 'paper'" in told
    assert run("generate", "--resume", "made.mp4.checkpoint", "--preset", "official") == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        (("--preset", "oficial"), "--preset 'oficial': did you mean official? choose one of paper, official"),
        (("--preset", "official", "--model", "toy-dit"), "the preset 'official' is for diffusions and toy-dit is none"),
    ],
)
def test_refused(options: tuple[str, ...], wording: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a red ball", "--frames", 9, *options, "--output", "made.mp4") == 2
    assert wording in capfd.readouterr().err
    assert list(Path().iterdir()) == []


def test_the_help_says_what_it_sets(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--help") == 0
    told = " ".join(capfd.readouterr().out.split())
    assert "paper, or official: what the published code computes (noise from one generator, seed 33; ddim, 50" in told


def test_compile_reaches_the_loop_and_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is compiled is a setting like the others; what compiling does is tested in test_compile.py."""
    made: list[str] = []

    def recorded(function: Any, **options: Any) -> Any:
        made.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", recorded)
    compiled.cache_clear()
    assert run(*COMMAND, "--compile", "--output", "fast.mp4") == 0
    compiled.cache_clear()
    assert made == ["evaluate"]
    assert run(*COMMAND, "--output", "slow.mp4") == 0 and made == ["evaluate"]
    capsys.readouterr()
    assert run("generate", "--resume", "slow.mp4.checkpoint", "--compile", "--frames", 20) == 2
    assert "--compile cannot change when a video is continued" in capsys.readouterr().err


def test_a_base_model_may_rescale_its_guidance() -> None:
    model = open_model("tiny-modelscope", device=CPU, dtype=torch.float32)
    rescaled = replace(model, defaults=replace(model.defaults, rescale=0.2))
    given = make_preset("paper", rescaled)
    assert given.guidance == ClassifierFree(model.defaults.guidance, 0.2)
    assert given.but(scale=5.0).guidance == ClassifierFree(5.0, 0.2) and given.but(scale=1.0).guidance == Unguided()
