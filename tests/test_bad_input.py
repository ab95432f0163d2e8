"""Bad input: one clear line that says what to change, exit code 2, before any model is loaded, and nothing is lost."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from streaming.cli import checks
from streaming.errors import UserError
from streaming.prompts import LONGEST
from streaming.video import VideoWriter
from tests.cli_toys import register, run


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("streaming.cli.rollout.open_model", load)
    monkeypatch.setattr("streaming.cli.stage3.open_enhancer", load)
    Path("folder.mp4").mkdir()
    Path("old.mp4").write_bytes(b"precious")
    Path("text.txt").write_text("words")
    Image.new("RGB", (8, 8)).save("image.png")
    with VideoWriter("video.mp4", fps=8.0, height=16, width=16) as video:
        video.write(torch.zeros(1, 4, 3, 16, 16))


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command is refused with."""
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert run(*arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    return captured.err.removeprefix("error: ").rstrip("\n")


EMPTY = 'the prompt is empty: say what is to be seen, for example "a red ball rolls over a green meadow"'
NUMBERS = "choose a number from"

GENERATE = [
    ((), EMPTY),
    (("",), EMPTY),
    (("  \n ",), EMPTY),
    (("x" * 10_000,), f"the prompt at frame 0 has 10000 characters: at most {LONGEST} are read"),
    (("a", "--frames", "0"), f"--frames 0: {NUMBERS} 1 to 1000000"),
    (("a", "--frames", "-5"), f"--frames -5: {NUMBERS} 1 to 1000000"),
    (("a", "--frames", "1000001"), f"--frames 1000001: {NUMBERS} 1 to 1000000"),
    (("a", "--steps", "0"), f"--steps 0: {NUMBERS} 1 to 1000"),
    (("a", "--steps", "1001"), f"--steps 1001: {NUMBERS} 1 to 1000"),
    (("a", "--guidance", "nan"), f"--guidance nan: {NUMBERS} 0 to 100"),
    (("a", "--guidance", "-1"), f"--guidance -1: {NUMBERS} 0 to 100"),
    (("a", "--guidance", "inf"), f"--guidance inf: {NUMBERS} 0 to 100"),
    (("a", "--strength", "0"), "--strength 0: choose a number above 0, at most 1"),
    (("a", "--strength", "1.5"), "--strength 1.5: choose a number above 0, at most 1"),
    (("a", "--strength", "nan"), "--strength nan: choose a number above 0, at most 1"),
    (("a", "--seed", "-1"), f"--seed -1: {NUMBERS} 0 to 9223372036854775807"),
    (("a", "--seed", str(2**63)), f"--seed {2**63}: {NUMBERS} 0 to 9223372036854775807"),
    (
        ("a", "--prompt-at", "b"),
        "--prompt-at 'b' is not FRAME:TEXT: write for example --prompt-at '80:the ball rolls back'",
    ),
    (
        ("a", "--prompt-at", "-4:b"),
        "--prompt-at '-4:b' is not FRAME:TEXT: write for example --prompt-at '80:the ball rolls",
    ),
    (
        ("a", "--prompt-at", "4.5:b"),
        "--prompt-at '4.5:b' is not FRAME:TEXT: write for example --prompt-at '80:the ball",
    ),
    (("a", "--prompt-at", "8: "), "--prompt-at 8 has no text: write --prompt-at '8:TEXT'"),
    (
        ("a", "--prompt-at", "80:b"),
        "--prompt-at 80: the video has 80 frames, so choose an earlier one or more --frames",
    ),
    (("a", "--prompt-at", "0:b"), "two prompts at frame 0: keep one of them"),
    (("a", "--prompt-at", "8:b", "--prompt-at", "8:c"), "two prompts at frame 8: keep one of them"),
    (("a", "--prompt-at", "8:" + "x" * 9999), f"the prompt at frame 8 has 9999 characters: at most {LONGEST} are read"),
    (
        ("a", "--image", "image.png", "--video", "video.mp4"),
        "--image and --video both say how the video begins: keep one",
    ),
    (("a", "--image", "none.png"), "none.png is not a file: give the path of an image"),
    (("a", "--image", "text.txt"), "text.txt cannot be read as an image (cannot identify image file"),
    (("a", "--video", "none.mp4"), "none.mp4 is not a file: give the path of a video"),
    (("a", "--video", "folder.mp4"), "folder.mp4 is not a file: give the path of a video"),
    (("a", "--video", "text.txt"), "text.txt cannot be read as a video ("),
    (("a", "--video", ""), "--video is empty: name a file or leave --video out"),
    (("a", "--output", ""), "--output is empty: name a file or leave --output out"),
    (("--resume", "none.checkpoint", "--output", ""), "--output is empty: name a file or leave --output out"),
    (("a", "--model", "tiny-modelscop"), "no model, and no folder, 'tiny-modelscop': did you mean 'tiny-modelscope'?"),
    (("a", "--model", "text.txt"), "no model, and no folder, 'text.txt': there are tiny-modelscope, toy-dit"),
    (("a", "--short-term", "injct"), "no short term memory 'injct': did you mean 'inject'? there are inject, none"),
    (("a", "--long-term", "lod"), "no long term memory 'lod': did you mean 'loud'? there are loud, none"),
    (("a", "--blender", "random"), "no blender 'random': did you mean 'randomized'? there are cross-fade, naive,"),
    (("a", "--sampler", "dimm"), "--sampler 'dimm': did you mean ddim? choose one of ddim, dpm++, dpm++sde, euler"),
    (("a", "--anchor-policy", "always"), "--anchor-policy 'always': choose one of never, prompt, scene"),
    (("a", "--enhance-mode", "casual"), "--enhance-mode 'casual': did you mean causal? choose one of joint, causal"),
    (("a", "--device", "gpu"), "--device 'gpu': choose auto, cpu, cuda or cuda:NUMBER"),
    (("a", "--device", "cuda:99"), "--device cuda:99 is not there ("),
    (
        ("a", "--dtype", "float8"),
        "--dtype 'float8': did you mean float32? choose one of auto, float32, bfloat16, float16",
    ),
    (
        ("a", "--output", "folder.mp4"),
        "--output folder.mp4 is a folder: name a file in it, for example folder.mp4/video.mp4",
    ),
    (("a", "--output", "a.avi"), "--output a.avi: only mp4 is written, so let the name end in .mp4"),
    (("a", "--output", "old.mp4"), "old.mp4 exists already: choose another --output, or replace it with --overwrite"),
    (("a", "--output", "no/a.mp4"), "--output no/a.mp4: there is no folder no, make it first or choose another place"),
    (("a", "--output", "text.txt/a.mp4"), "--output text.txt/a.mp4: there is no folder text.txt, make it first or"),
    (("--resume", "none.checkpoint"), "there is no checkpoint none.checkpoint: give a file that an earlier run wrote"),
    (("--resume", "text.txt"), "text.txt is truncated or not a checkpoint: start again without --resume"),
    (("--resume", "folder.mp4"), "cannot read the checkpoint folder.mp4: "),
]


@pytest.mark.parametrize(("arguments", "wording"), GENERATE)
def test_generate(arguments: tuple[str, ...], wording: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(capfd, "generate", *arguments).startswith(wording)


ENHANCE = [
    (("none.mp4", "a"), "none.mp4 is not a file: give the path of a video"),
    (("text.txt", "a"), "text.txt cannot be read as a video ("),
    (("video.mp4",), "what does video.mp4 show? Say it in words behind the file name"),
    (("video.mp4", ""), EMPTY),
    (("video.mp4", "a", "--mode", "both"), "--mode 'both': choose one of joint, causal"),
    (("video.mp4", "a", "--steps", "0"), f"--steps 0: {NUMBERS} 1 to 1000"),
    (("video.mp4", "a", "--strength", "0"), "--strength 0: choose a number above 0, at most 1"),
    (("video.mp4", "a", "--guidance", "nan"), f"--guidance nan: {NUMBERS} 0 to 100"),
    (("video.mp4", "a", "--seed", "-1"), f"--seed -1: {NUMBERS} 0 to "),
    (("video.mp4", "a", "--blender", "random"), "no blender 'random': did you mean 'randomized'?"),
    (("video.mp4", "a", "--model", "toydit"), "no model, and no folder, 'toydit': did you mean 'toy-dit'?"),
    (("video.mp4", "a", "--device", "gpu"), "--device 'gpu': choose auto, cpu, cuda or cuda:NUMBER"),
    (("video.mp4", "a", "--dtype", "half"), "--dtype 'half': choose one of auto, float32, bfloat16, float16"),
    (("video.mp4", "a", "--output", "old.mp4"), "old.mp4 exists already: choose another --output, or replace it"),
    (
        ("video.mp4", "a", "--output", "video.mp4", "--overwrite"),
        "--output video.mp4 is the video itself: choose another",
    ),
]


@pytest.mark.parametrize(("arguments", "wording"), ENHANCE)
def test_enhance(arguments: tuple[str, ...], wording: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(capfd, "enhance", *arguments).startswith(wording)


def test_an_output_that_can_be_continued_is_told_how(capfd: pytest.CaptureFixture[str]) -> None:
    Path("old.mp4.checkpoint").write_bytes(b"state")
    assert refused(capfd, "generate", "a", "--output", "old.mp4") == (
        "old.mp4 exists already: choose another --output, replace it with --overwrite, "
        "or go on with it by --resume old.mp4.checkpoint"
    )


def test_a_text_is_no_video(capfd: pytest.CaptureFixture[str]) -> None:
    Path("long.txt").write_text("words and words\n" * 200)
    for name in ("text.txt", "long.txt"):
        line = refused(capfd, "generate", "a", "--video", name)
        assert line.startswith(name) and line.endswith("): give an mp4, mov or webm"), line


def test_an_unfinished_video_is_not_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    Path("new.base.mp4").write_bytes(b"frames")
    assert refused(capfd, "generate", "a", "--enhance", "--output", "new.mp4") == (
        "new.base.mp4 exists already: choose another --output, or replace it with --overwrite"
    )
    Path("new.mp4.checkpoint").write_bytes(b"state")
    assert refused(capfd, "generate", "a", "--enhance", "--output", "new.mp4") == (
        "new.mp4.checkpoint exists already: choose another --output, replace it with --overwrite, "
        "or go on with it by --resume new.mp4.checkpoint"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which not even root may write")
def test_unwritable_folder(capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(capfd, "generate", "a", "--output", "/proc/self/a.mp4")
    assert line.startswith("--output /proc/self/a.mp4: the folder /proc/self cannot be written (")
    assert line.endswith("), choose another place")


def test_read_only_output(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    line = refused(capfd, "generate", "a", "--output", "old.mp4", "--overwrite")
    assert line == "--output old.mp4 cannot be written: it is read-only, choose another place"


@pytest.mark.parametrize(
    ("built", "count", "why"),
    [
        (False, 0, "this torch is built without CUDA"),
        (True, 0, "torch sees no CUDA device"),
        (True, 1, "torch sees 1 CUDA device"),
        (True, 2, "torch sees 2 CUDA devices"),
    ],
)
def test_device_that_is_not_there(built: bool, count: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: built)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    with pytest.raises(UserError) as refusal:
        checks.device(f"cuda:{count}")
    assert str(refusal.value) == (
        f"--device cuda:{count} is not there ({why}): choose auto or cpu; see streamingt2v doctor"
    )


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red ball!", "a-red-ball.mp4"),
        ("../../etc/passwd", "etc-passwd.mp4"),
        ("???", "video.mp4"),
        ("ein Mädchen läuft", "ein-mädchen-läuft.mp4"),
        ("word " * 40, ("word-" * 12).rstrip("-") + ".mp4"),
    ],
)
def test_names_made_of_prompts(prompt: str, name: str) -> None:
    assert checks.slug(prompt) == name


def test_a_video_that_is_too_long_to_be_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    from streaming.cli import rollout
    from streaming.read import read_video
    from tests.toys import toy

    monkeypatch.setattr(rollout, "LONGEST_OPENING", 3)
    with pytest.raises(UserError, match="--video has more than 3 frames: cut off its end and continue that"):
        rollout._at_rate(read_video("video.mp4"), toy().parts)
