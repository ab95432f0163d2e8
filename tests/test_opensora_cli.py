"""Open-Sora's folders on the command line: a few frames of each version, and a broken run that goes on."""

import shutil
import signal
from pathlib import Path

import pytest

from streaming.read import read_video
from tests.cli_toys import PLUGINS, frames_of, register, run, same
from tests.opensora_folders import build
from tests.test_cli_resume import stop_after

SHAPES = {"1.0": (4, 2, 12, 16, 8), "1.1": (4, 2, 12, 14, 8), "1.2": (34, 17, 12, 14, 24)}
"""New frames of the first and of later chunks, rows, columns, frames a second."""


@pytest.fixture(autouse=True)
def plugins(monkeypatch, tmp_path):
    own = {"opensora": "backends.opensora:OpenSora", "modelscope": "backends.modelscope:ModelScope"}
    register(monkeypatch, PLUGINS | {"streaming.backbones": own})
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("opensora")
    return {version: build(root / version, version) for version in SHAPES}


def command(folders, version, *options, frames=None):
    first, later, *_ = SHAPES[version]
    plain = ("--long-term", "none", *(() if "--short-term" in options else ("--short-term", "none")))
    named = ("--model", folders[version], "--frames", frames or first + later + 1)
    return ("generate", "a red ball", *named, *plain, *options)


@pytest.mark.parametrize("version", SHAPES)
def test_a_video_and_what_changes_it(folders, version):
    first, later, rows, cols, fps = SHAPES[version]
    assert run(*command(folders, version, "--output", "plain.mp4")) == 0
    assert frames_of(Path("plain.mp4")).shape == (1, first + later + 1, 3, rows, cols)
    assert read_video(Path("plain.mp4")).fps == fps
    for options in (("--short-term", "inject"), ("--guidance", 1), ("--negative-prompt", "blue"), ("--steps", 3)):
        assert run(*command(folders, version, *options, "--output", "made.mp4", "--overwrite")) == 0
        assert not same(Path("made.mp4"), Path("plain.mp4")), options


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_a_broken_run_goes_on_as_if_unbroken(folders, version, monkeypatch):
    long = command(folders, version, "--short-term", "inject", frames=sum(SHAPES[version][:2]) + 2 * SHAPES[version][1])
    assert run(*long, "--output", "whole.mp4") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run(*long, "--output", "made.mp4") == 128 + signal.SIGINT
    assert frames_of(Path("made.mp4")).shape[1] == sum(SHAPES[version][:2])
    assert run("generate", "--resume", "made.mp4.checkpoint") == 0
    assert Path("made.mp4").read_bytes() == Path("whole.mp4").read_bytes()


def test_what_cannot_be_is_one_line(folders, tmp_path, capfd):
    shutil.copytree(folders["1.1"], tmp_path / "odd")
    (tmp_path / "odd" / "streamingt2v.json").write_text('{"frames": 8, "overlap": 8}')
    assert run(*command({"1.1": "odd"}, "1.1")) == 2
    assert "the nearest is 9 with 8" in capfd.readouterr().err.splitlines()[-1]
    assert run(*command(folders, "1.2", "--sampler", "ddim")) == 2
    told = "the sampler 'ddim' does not suit a rectified flow, which this model is: choose euler"
    assert told in capfd.readouterr().err
    assert run("generate", "a dragon", "--model", folders["1.2"], "--short-term", "none", "--long-term", "none") == 2
    assert "the text encoder cannot read 'dragon': say it in other words" in capfd.readouterr().err
    assert run("generate", "a ball", "--model", "opensora") == 2
    assert "no published Open-Sora weights ship with this package" in capfd.readouterr().err
