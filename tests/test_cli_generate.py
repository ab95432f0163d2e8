"""`generate`: every option changes what it says it changes, and nothing else is needed for a video."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from streaming.checkpoint import Checkpoint
from streaming.cli import checks
from streaming.read import read_video
from streaming.video import VideoWriter
from tests.cli_toys import frames_of, register, run, same

FRAMES = 14  # chunks of 8, 4 and, cut, 2 frames


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `generate` makes without options."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        assert run("generate", "a red ball", "--frames", FRAMES, "--output", path) == 0
    return path


def made(*options: object, frames: int = FRAMES, prompt: str = "a red ball") -> Path:
    assert run("generate", prompt, "--frames", frames, "--output", "made.mp4", *options) == 0
    return Path("made.mp4")


def test_the_same_options_give_the_same_file(plain: Path) -> None:
    assert made().read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", "1"),
        ("--steps", "2"),
        ("--guidance", "1"),
        ("--guidance", "3"),
        ("--negative-prompt", "blue"),
        ("--sampler", "dpm++"),
        ("--short-term", "inject"),
        ("--long-term", "loud"),
        ("--dtype", "bfloat16"),
    ],
    ids=" ".join,
)
def test_changes_the_frames(plain: Path, options: tuple[str, ...]) -> None:
    assert not same(made(*options), plain)
    assert frames_of(Path("made.mp4")).shape == frames_of(plain).shape


@pytest.mark.parametrize(
    "options",
    [
        ("--steps", "4"),
        ("--guidance", "7.5"),
        ("--sampler", "ddim"),
        ("--short-term", "none"),
        ("--long-term", "none"),
        ("--model", "tiny-modelscope"),
        ("--device", "cpu"),
        ("--dtype", "float32"),
        ("--seed", "0"),
        ("--anchor-policy", "never"),
        ("--no-enhance",),
    ],
    ids=" ".join,
)
def test_defaults_are_what_the_help_and_the_model_say(plain: Path, options: tuple[str, ...]) -> None:
    assert same(made(*options), plain)


def test_prompt(plain: Path) -> None:
    assert not same(made(prompt="a blue cube"), plain)


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 12, 20])
def test_exactly_so_many_frames(plain: Path, frames: int) -> None:
    found = frames_of(made(frames=frames))
    assert found.shape[1] == frames
    shared = min(frames, 12)  # whole chunks: their pieces are encoded alike
    assert (found[:, :shared] - frames_of(plain)[:, :shared]).abs().mean() < 0.02


def test_prompt_at(plain: Path) -> None:
    first, second = frames_of(plain), frames_of(made("--prompt-at", "8:a blue cube"))
    assert torch.equal(first[:, :8], second[:, :8])
    assert (first[:, 8:] - second[:, 8:]).abs().mean() > 0.01


def test_several_prompts(plain: Path) -> None:
    one = frames_of(made("--prompt-at", "8:a blue cube"))
    two = frames_of(made("--prompt-at", "8:a blue cube", "--prompt-at", "12: a green cone", "--overwrite"))
    assert torch.equal(one[:, :12], two[:, :12]) and not torch.equal(one[:, 12:], two[:, 12:])


def test_model() -> None:
    assert frames_of(made("--model", "toy-dit")).shape[-2:] == (16, 16)


def test_image_is_the_first_frame() -> None:
    Image.new("RGB", (60, 40), (255, 0, 0)).save("red.png")
    frames = frames_of(made("--image", "red.png", "--long-term", "loud"))
    assert frames.shape[1] == FRAMES
    assert (frames[0, 0].mean((1, 2)) - torch.tensor([1.0, 0, 0])).abs().max() < 0.03
    assert Checkpoint.load("made.mp4.checkpoint").anchor.mean((0, 1, 3, 4)).tolist() == [1, 0, 0]


def test_video_is_continued_at_the_pace_of_the_model() -> None:
    ramp = torch.linspace(0, 1, 24).view(1, 24, 1, 1, 1).expand(1, 24, 3, 40, 60)
    with VideoWriter("given.mp4", fps=16.0, height=40, width=60) as video:
        video.write(ramp)
    frames = frames_of(made("--video", "given.mp4", frames=6))
    assert frames.shape[1] == 12 + 6, "24 frames at 16 a second are 12 at 8 a second"
    assert (frames[0, :12].mean((1, 2, 3)) - ramp[0, ::2].mean((1, 2, 3))).abs().max() < 0.03
    assert run("generate", "--resume", "made.mp4.checkpoint", "--frames", 8) == 0
    assert frames_of(Path("made.mp4")).shape[1] == 12 + 8, "--frames means the same when it goes on"


def test_a_slow_video_keeps_its_pace() -> None:
    with VideoWriter("given.mp4", fps=4.0, height=32, width=32) as video:
        video.write(torch.linspace(0, 1, 6).view(1, 6, 1, 1, 1).expand(1, 6, 3, 32, 32))
    assert run("generate", "a ball", "--video", "given.mp4", "--frames", 2, "--output", "made.mp4") == 0
    seen = frames_of(Path("made.mp4"))[0, :-2].mean((1, 2, 3))
    assert len(seen) in (11, 12) and bool((seen.diff() > -0.02).all())


def test_later_prompts_count_from_the_end_of_the_given_video() -> None:
    with VideoWriter("given.mp4", fps=8.0, height=32, width=32) as video:
        video.write(torch.rand(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    plain = frames_of(made("--video", "given.mp4", frames=8))
    other = frames_of(made("--video", "given.mp4", "--prompt-at", "4:a blue cube", "--overwrite", frames=8))
    assert torch.equal(plain[:, :10], other[:, :10]) and not torch.equal(plain[:, 10:], other[:, 10:])


@pytest.mark.parametrize("policy", ["prompt", "scene"])
def test_anchor_policy(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--long-term", "loud", "--prompt-at", "8:a blue cube")
    never = made(*options, frames=16)
    first = Checkpoint.load("made.mp4.checkpoint").anchor
    never.rename("never.mp4")
    if policy == "scene":
        monkeypatch.setattr("streaming.anchor.colour_distance", lambda *_: 1.0)
    renewed = made(*options, "--anchor-policy", policy, "--overwrite", frames=16)
    assert not torch.equal(Checkpoint.load("made.mp4.checkpoint").anchor, first)
    assert not same(renewed, Path("never.mp4"))


def test_output_is_named_after_the_prompt() -> None:
    assert run("generate", "A red ball, rolling!", "--frames", 2) == 0
    assert frames_of(Path("a-red-ball-rolling.mp4")).shape[1] == 2


def test_overwrite(plain: Path) -> None:
    Path("made.mp4").write_bytes(plain.read_bytes())
    assert run("generate", "a red ball", "--frames", 2, "--output", "made.mp4") == 2
    assert Path("made.mp4").read_bytes() == plain.read_bytes()
    assert frames_of(made("--overwrite", frames=2)).shape[1] == 2


def test_device_is_where_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert checks.device("auto") == torch.device("cuda")
    assert checks.device("cuda:1") == torch.device("cuda:1")
    assert checks.device("cpu") == torch.device("cpu")
    assert checks.dtype("auto", torch.device("cuda")) == torch.float16
    assert checks.dtype("auto", torch.device("cpu")) == torch.float32
    seen = []
    monkeypatch.setattr("streaming.cli.rollout.open_model", lambda name, device, dtype: seen.append((device, dtype)))
    assert run("generate", "a", "--device", "cuda:1", "--dtype", "bfloat16") == 1
    assert seen == [(torch.device("cuda:1"), torch.bfloat16)]


def test_half_precision_on_a_cpu_is_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    made("--dtype", "bfloat16", frames=1)
    wording = "warning: bfloat16 on a CPU is many times slower than float32: leave --dtype out"
    assert wording in capfd.readouterr().err


def test_what_it_says(capfd: pytest.CaptureFixture[str]) -> None:
    made()
    captured = capfd.readouterr()
    assert captured.out == "made.mp4: 14 frames of 32x32, 1.8 s at 8 frames/s\n"
    lines = captured.err.splitlines()
    assert lines[0] == "loading tiny-modelscope on cpu (float32)"
    assert lines[-1].startswith("generating: 14 of 14 frames, chunk 3, ")


def test_it_is_written_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(stage: object, done: int, detail: str) -> None:
        frames = sum(piece.shape[1] for piece in read_video("made.mp4").pieces)
        seen.append(frames)
        assert frames == done
        if done < FRAMES:
            assert Checkpoint.load("made.mp4.checkpoint").frames_done == done

    monkeypatch.setattr("streaming.cli.progress.Stage.reach", look)
    made()
    assert seen == [8, 12, 14]


def test_unknown_words_are_told_before_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def forward(self: object, prompts: list[str]) -> None:
        asked.extend(prompts)
        raise UserErrorOfTheModel(f"unknown word in {prompts[-2]}")

    from streaming.errors import UserError as UserErrorOfTheModel

    monkeypatch.setattr("backends.toy_unet.WordHashes.forward", forward)
    options = ("--prompt-at", "8:a xyzzy", "--negative-prompt", "blue", "--output", "made.mp4")
    assert run("generate", "a red ball", "--frames", 20, *options) == 2
    assert asked == ["a red ball", "a xyzzy", "blue"]
    assert list(Path().iterdir()) == []
