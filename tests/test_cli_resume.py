"""Stopped, killed, out of room: no finished frame is lost, and what is continued equals the unbroken video."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import streaming.video
from streaming.checkpoint import Checkpoint
from streaming.prompts import PromptSchedule
from streaming.video import VideoWriter, piece_ends
from tests.cli_toys import frames_of, register, run, same
from tests.test_video import small_disk

FRAMES = 22  # chunks of 8, 4, 4, 4 and, cut, 2 frames
COMMAND = ("generate", "a red ball", "--frames", FRAMES, "--long-term", "loud", "--prompt-at", "12:a blue cube")


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.mp4"
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        assert run(*COMMAND, "--output", path) == 0
    return path


def stop_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Ctrl-C while the next chunk is made."""
    real, count = VideoWriter.write, iter(range(1, 1000))

    def write(self: VideoWriter, frames: torch.Tensor) -> None:
        if next(count) > writes:
            signal.raise_signal(signal.SIGINT)
        real(self, frames)

    monkeypatch.setattr(VideoWriter, "write", write)


@pytest.mark.parametrize("writes", [1, 2, 4])
def test_ctrl_c_keeps_what_exists_and_says_how_to_go_on(
    whole: Path, writes: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, writes)
        assert run(*COMMAND, "--output", "it's.mp4") == 130
    done = 4 + 4 * writes
    assert frames_of(Path("it's.mp4")).shape[1] == done
    last = capfd.readouterr().err.splitlines()[-1]
    command = "streamingt2v generate --resume 'it'\"'\"'s.mp4.checkpoint'"
    assert last == f"stopped: it's.mp4 holds {done} of 22 frames, go on with: {command}"
    assert run(*shlex.split(command)[1:]) == 0
    assert Path("it's.mp4").read_bytes() == whole.read_bytes()


def test_ctrl_c_before_the_first_chunk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stop_after(monkeypatch, 0)
    assert run(*COMMAND, "--output", "made.mp4") == 130
    assert capfd.readouterr().err.splitlines()[-1] == "stopped: no chunk was finished yet, nothing is kept"
    assert list(Path().iterdir()) == []


def test_what_is_overwritten_stays_until_the_first_chunk(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*COMMAND, "--frames", 14, "--output", "made.mp4") == 0
    with monkeypatch.context() as patch:
        patch.setattr("streaming.cli.rollout.stream", interrupted)
        assert run(*COMMAND, "--seed", 1, "--output", "made.mp4", "--overwrite") == 130
    told = capfd.readouterr().err.splitlines()[-1]
    assert told == "stopped: no chunk was finished yet, made.mp4 is the old one still"
    assert run("generate", "--resume", "made.mp4.checkpoint", "--frames", FRAMES) == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


KILLED = """
import os, signal
import pytest
import streaming.video
from tests.cli_toys import register, run
from tests.test_cli_resume import COMMAND

real, pieces = streaming.video._append, []
def torn(path, data):
    pieces.append(data)
    if len(pieces) == 3:
        real(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data)

streaming.video._append = torn
register(pytest.MonkeyPatch())
run(*COMMAND, "--output", os.environ["MADE"])
"""


def test_killed_in_the_middle_of_a_chunk(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADE", str(tmp_path / "made.mp4"))
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[1], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert piece_ends(tmp_path / "made.mp4") == [0, 8, 12]
    assert run("generate", "--resume", "made.mp4.checkpoint") == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


def test_killed_between_frames_and_checkpoint(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is a chunk behind the video: its frames are made again."""
    real, saved = Checkpoint.save, []

    def save(self: Checkpoint, path: Path) -> None:
        saved.append(self.index)
        if self.index == 2:
            raise KeyboardInterrupt
        real(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        assert run(*COMMAND, "--output", "made.mp4") == 130
    assert piece_ends(Path("made.mp4"))[-1] == 16 and Checkpoint.load("made.mp4.checkpoint").frames_done == 12
    assert run("generate", "--resume", "made.mp4.checkpoint") == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


def test_full_disk_at_the_first_checkpoint(capfd: pytest.CaptureFixture[str]) -> None:
    with small_disk(20_000):
        assert run(*COMMAND, "--output", "made.mp4") == 2
    wording = "error: cannot write the checkpoint made.mp4.checkpoint: file too large; make room or write elsewhere; "
    wording += "made.mp4 holds 8 frames, start again with --overwrite"
    assert capfd.readouterr().err.splitlines()[-1].lower() == wording
    assert frames_of(Path("made.mp4")).shape[1] == 8


def test_full_disk_after_some_chunks(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real, pieces = streaming.video._append, []

    def append(path: Path, data: bytes) -> None:
        pieces.append(data)
        if len(pieces) < 4:
            return real(path, data)
        with small_disk(path.stat().st_size + len(data) // 2):
            real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("streaming.video._append", append)
        assert run(*COMMAND, "--output", "made.mp4") == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        "error: made.mp4 cannot be written: file too large; its first 16 frames are kept, "
        "make room or write elsewhere; made.mp4 holds 16 of 22 frames, "
        "go on with: streamingt2v generate --resume made.mp4.checkpoint"
    )
    assert frames_of(Path("made.mp4")).shape[1] == 16
    assert run("generate", "--resume", "made.mp4.checkpoint") == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


def test_more_frames_make_a_finished_video_longer(whole: Path) -> None:
    assert run(*COMMAND, "--frames", 14, "--output", "made.mp4") == 0
    assert frames_of(Path("made.mp4")).shape[1] == 14
    assert run("generate", "--resume", "made.mp4.checkpoint", "--frames", FRAMES) == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


def test_later_prompts_may_be_added(whole: Path) -> None:
    assert run(*COMMAND[:4][:2], "--frames", 12, "--long-term", "loud", "--output", "made.mp4") == 0
    assert run("generate", "--resume", "made.mp4.checkpoint", "--frames", FRAMES, *COMMAND[-2:]) == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()
    assert Checkpoint.load("made.mp4.checkpoint").prompts == (PromptSchedule.of({0: "a red ball", 12: "a blue cube"}),)


def test_a_later_prompt_changes_the_chunk_that_was_cut() -> None:
    assert run("generate", "a red ball", "--frames", 14, "--output", "made.mp4") == 0
    first = frames_of(Path("made.mp4"))
    assert run("generate", "--resume", "made.mp4.checkpoint", "--prompt-at", "12:a blue cube") == 0
    second = frames_of(Path("made.mp4"))
    assert torch.equal(first[:, :12], second[:, :12]) and not torch.equal(first[:, 12:], second[:, 12:])


def test_the_whole_command_may_be_repeated(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run(*COMMAND, "--output", "made.mp4") == 130
    assert run(*COMMAND, "--output", "made.mp4", "--resume", "made.mp4.checkpoint") == 0
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


def test_a_video_may_be_moved(whole: Path) -> None:
    assert run(*COMMAND, "--frames", 14, "--output", "made.mp4") == 0
    Path("there").mkdir()
    for name in ("made.mp4", "made.mp4.checkpoint"):
        Path(name).rename(Path("there") / name)
    assert run("generate", "--resume", "there/made.mp4.checkpoint", "--frames", FRAMES) == 0
    assert Path("there/made.mp4").read_bytes() == whole.read_bytes()
    Path("there/made.mp4").rename("other.mp4")
    assert run("generate", "--resume", "there/made.mp4.checkpoint", "--frames", 24, "--output", "other.mp4") == 0
    assert frames_of(Path("other.mp4")).shape[1] == 24


def test_resuming_what_is_complete_changes_nothing(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*COMMAND, "--output", "made.mp4") == 0
    capfd.readouterr()
    assert run("generate", "--resume", "made.mp4.checkpoint") == 0
    assert capfd.readouterr().out.startswith("made.mp4: 22 frames")
    assert Path("made.mp4").read_bytes() == whole.read_bytes()


def test_what_an_image_began_is_continued_without_the_image() -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), (0, 255, 0)).save("green.png")
    options = ("--image", "green.png", "--long-term", "loud")
    assert run("generate", "a ball", *options, "--frames", 17, "--output", "whole.mp4") == 0
    assert run("generate", "a ball", *options, "--frames", 9, "--output", "made.mp4") == 0
    Path("green.png").unlink()
    assert run("generate", "--resume", "made.mp4.checkpoint", "--frames", 17) == 0
    assert same(Path("made.mp4"), Path("whole.mp4"))


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        (("--seed", "4"), "--seed cannot change when a video is continued: it was '0', now it is '4'; leave it out or"),
        (("--steps", "3"), "--steps cannot change when a video is continued: it was left out, now it is '3'; leave it"),
        (
            ("a blue cube",),
            "PROMPT cannot change when a video is continued: it was 'a red ball', now it is 'a blue cube'",
        ),
        (("--enhance",), "--enhance cannot change when a video is continued: it was 'False', now it is 'True'"),
        (("--frames", "9"), "made.mp4 has 12 frames already: choose more --frames than 9"),
        (("--prompt-at", "9:a cone"), "cannot resume with another prompt at frame 9: it was 'a red ball', now it is"),
        (("--prompt-at", "13:"), "--prompt-at 13 has no text: write --prompt-at '13:TEXT'"),
        (("--output", "none.mp4"), "none.mp4 does not begin with the 12 frames that were written to it and cannot be"),
    ],
)
def test_what_cannot_change(options: tuple[str, ...], wording: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a red ball", "--frames", 14, "--output", "made.mp4") == 0
    before = Path("made.mp4").read_bytes()
    capfd.readouterr()
    assert run("generate", *options, "--resume", "made.mp4.checkpoint") == 2
    assert "error: " + wording in capfd.readouterr().err.splitlines()[-1]
    assert Path("made.mp4").read_bytes() == before


def test_too_few_frames_are_told_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "a red ball", "--frames", 14, "--output", "made.mp4") == 0
    monkeypatch.setattr("streaming.cli.rollout.open_model", interrupted)
    assert run("generate", "--frames", 9, "--resume", "made.mp4.checkpoint") == 2
    assert "has 12 frames already: choose more --frames than 9" in capfd.readouterr().err


def test_a_checkpoint_of_another_program(capfd: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    assert run("generate", "a red ball", "--frames", 8, "--output", "made.mp4") == 0
    last = Checkpoint.load("made.mp4.checkpoint")
    settings = {name: value for name, value in last.settings.items() if name != "command"}
    replace(last, settings=settings).save("made.mp4.checkpoint")
    assert run("generate", "--resume", "made.mp4.checkpoint") == 2
    assert "made.mp4.checkpoint was not written by this version of 'streamingt2v generate'" in capfd.readouterr().err
    last.save("made.state")
    assert run("generate", "--resume", "made.state") == 2
    assert "--resume made.state does not end in .checkpoint: say with --output which video" in capfd.readouterr().err
