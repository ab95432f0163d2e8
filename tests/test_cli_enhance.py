"""Stage 3 on the command line: `generate --enhance` and `enhance`, each with every option of its own."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streaming.read import read_video
from streaming.video import VideoWriter
from tests.cli_toys import frames_of, register, run, same
from tests.test_cli_resume import stop_after

FRAMES = 18  # generated in chunks of 8, 4, 4 and, cut, 2; enhanced in chunks of 8 that overlap by 4
COMMAND = ("generate", "a red ball", "--frames", FRAMES, "--enhance")


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """joint.mp4 and causal.mp4, unbroken."""
    folder = tmp_path_factory.mktemp("enhanced")
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        for mode in ("joint", "causal"):
            assert run(*COMMAND, "--enhance-mode", mode, "--output", folder / f"{mode}.mp4") == 0
        assert run("generate", "a red ball", "--frames", FRAMES, "--output", folder / "plain.mp4") == 0
    return folder


def test_the_output_is_larger_and_the_base_stays_beside_it(folder: Path) -> None:
    for mode in ("joint", "causal"):
        assert frames_of(folder / f"{mode}.mp4").shape == (1, FRAMES, 3, 64, 64)
        base = frames_of(folder / f"{mode}.base.mp4")
        assert base.shape == (1, FRAMES, 3, 32, 32)
        assert torch.equal((base * 255).round(), base * 255), "without loss"
        assert (base - frames_of(folder / "plain.mp4")).abs().mean() < 0.03
    assert same(folder / "joint.base.mp4", folder / "causal.base.mp4")


def test_modes_differ(folder: Path) -> None:
    assert not same(folder / "joint.mp4", folder / "causal.mp4")


@pytest.mark.parametrize(
    "options",
    [("--blender", "cross-fade"), ("--blender", "naive"), ("--strength", "0.3"), ("--negative-prompt", "blue")],
    ids=" ".join,
)
def test_changes_the_enhanced_frames(folder: Path, options: tuple[str, ...]) -> None:
    assert run(*COMMAND, *options, "--output", "made.mp4") == 0
    assert not same(Path("made.mp4"), folder / "joint.mp4")
    assert same(Path("made.base.mp4"), folder / "joint.base.mp4") == (options[0] != "--negative-prompt")


def test_default_strength_is_the_models(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("generate", "enhance"):
        assert run(command, "--help") == 0
        assert "at most 1. [default: the model's]" in " ".join(capfd.readouterr().out.split())
    assert run(*COMMAND, "--strength", "0.6", "--output", "made.mp4") == 0
    assert same(Path("made.mp4"), folder / "joint.mp4")


def test_shorter_than_a_chunk() -> None:
    for mode in ("joint", "causal"):
        assert (
            run("generate", "a ball", "--frames", 3, "--enhance", "--enhance-mode", mode, "--output", f"{mode}.mp4")
            == 0
        )
        assert frames_of(Path(f"{mode}.mp4")).shape == (1, 3, 3, 64, 64)


@pytest.mark.parametrize("mode", ["joint", "causal"])
@pytest.mark.parametrize("writes", [1, 4, 7])
def test_stopped_and_continued(folder: Path, mode: str, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether generating or enhancing is stopped."""
    command = (*COMMAND, "--enhance-mode", mode, "--output", "made.mp4")
    with monkeypatch.context() as patch:
        stop_after(patch, writes)
        assert run(*command) == 130
    kept = frames_of(Path("made.mp4")) if Path("made.mp4").exists() else None
    assert run("generate", "--resume", "made.mp4.checkpoint") == 0
    assert same(Path("made.mp4"), folder / f"{mode}.mp4")
    assert same(Path("made.base.mp4"), folder / f"{mode}.base.mp4")
    assert kept is None or torch.equal(kept, frames_of(Path("made.mp4"))[:, : kept.shape[1]])
    assert sorted(path.name for path in Path().iterdir()) == ["made.base.mp4", "made.mp4", "made.mp4.checkpoint"]


def test_no_enhanced_frame_is_lost_when_it_is_stopped_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for writes in (7, 2):  # far into the enhancement; then, again, not as far
        with monkeypatch.context() as patch:
            stop_after(patch, writes)
            again = ("--resume", "made.mp4.checkpoint") if writes == 2 else ()
            command = (*COMMAND, "--enhance-mode", "causal", "--output", "made.mp4", *again)
            assert run(*command) == 130
        assert frames_of(Path("made.mp4")).shape[1] == 12
    assert "made.again.mp4" not in [path.name for path in Path().iterdir()]


def test_joint_stop_is_told_with_the_base(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stop_after(monkeypatch, 4)
    assert run(*COMMAND, "--output", "made.mp4") == 130
    assert capfd.readouterr().err.splitlines()[-1] == (
        "stopped: made.base.mp4 holds 18 of 18 frames (before enhancement), "
        "go on with: streamingt2v generate --resume made.mp4.checkpoint"
    )


@pytest.mark.parametrize("mode", ["joint", "causal"])
def test_longer(folder: Path, mode: str) -> None:
    assert run(*COMMAND, "--frames", 14, "--enhance-mode", mode, "--output", "made.mp4") == 0
    assert run("generate", "--resume", "made.mp4.checkpoint", "--frames", FRAMES) == 0
    assert same(Path("made.mp4"), folder / f"{mode}.mp4")


def test_overwriting_with_a_shorter_one(folder: Path) -> None:
    Path("made.mp4").write_bytes((folder / "joint.mp4").read_bytes())
    assert run("generate", "a ball", "--frames", 3, "--enhance", "--overwrite", "--output", "made.mp4") == 0
    assert frames_of(Path("made.mp4")).shape[1] == 3


@pytest.mark.parametrize("mode", ["joint", "causal"])
def test_what_is_overwritten_stays_until_the_new_one_is_complete(
    folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    old = (folder / "joint.mp4").read_bytes()
    Path("made.mp4").write_bytes(old)
    with monkeypatch.context() as patch:
        stop_after(patch, 4 if mode == "joint" else 6)
        assert run(*COMMAND, "--seed", 1, "--enhance-mode", mode, "--overwrite", "--output", "made.mp4") == 130
    assert Path("made.mp4").read_bytes() == old
    assert "go on with: streamingt2v generate --resume" in capfd.readouterr().err.splitlines()[-1]
    assert run("generate", "--resume", "made.mp4.checkpoint") == 0
    assert Path("made.mp4").read_bytes() != old
    assert not Path("made.again.mp4").exists()


def test_progress_of_both_stages(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*COMMAND, "--output", "made.mp4") == 0
    captured = capfd.readouterr()
    assert captured.out == "made.mp4: 18 frames of 64x64, 2.2 s at 8 frames/s\n"
    assert "generating: 18 of 18 frames, chunk 4, " in captured.err
    assert "enhancing: 18 of 18 frames, step 4 of 4, chunk 4 of 4, " in captured.err


# --- enhance ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def video(folder: Path) -> Path:
    Path("ball.mp4").write_bytes((folder / "plain.mp4").read_bytes())
    return Path("ball.mp4")


@pytest.fixture(scope="session")
def enhanced(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        assert run("enhance", folder / "plain.mp4", "a red ball", "--output", folder / "enhanced.mp4") == 0
    return folder / "enhanced.mp4"


def test_enhance(video: Path, enhanced: Path) -> None:
    assert run("enhance", video, "a red ball") == 0
    assert same(Path("ball.enhanced.mp4"), enhanced)
    assert frames_of(enhanced).shape == (1, FRAMES, 3, 64, 64)
    assert read_video(enhanced).fps == 8


@pytest.mark.parametrize(
    "options",
    [
        ("--mode", "causal"),
        ("--blender", "naive"),
        ("--steps", "2"),
        ("--strength", "0.3"),
        ("--guidance", "2"),
        ("--negative-prompt", "blue"),
        ("--seed", "1"),
    ],
    ids=" ".join,
)
def test_enhance_options_change_the_frames(video: Path, enhanced: Path, options: tuple[str, ...]) -> None:
    assert run("enhance", video, "a red ball", *options) == 0
    assert not same(Path("ball.enhanced.mp4"), enhanced)


@pytest.mark.parametrize(
    "options",
    [
        ("--mode", "joint"),
        ("--blender", "randomized"),
        ("--steps", "4"),
        ("--guidance", "7.5"),
        ("--seed", "0"),
        ("--device", "cpu"),
        ("--dtype", "float32"),
        ("--model", "tiny-modelscope"),
    ],
    ids=" ".join,
)
def test_enhance_defaults(video: Path, enhanced: Path, options: tuple[str, ...]) -> None:
    assert run("enhance", video, "a red ball", *options, "--output", "made.mp4") == 0
    assert same(Path("made.mp4"), enhanced)


def test_enhance_presets(video: Path, enhanced: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("enhance", video, "a red ball", "--preset", "official", "--output", "official.mp4") == 0
    assert not same(Path("official.mp4"), enhanced)
    assert run("enhance", video, "a red ball", "--preset", "fast", "--output", "fast.mp4") == 2
    assert "error: --preset 'fast': choose one of paper, official" in capfd.readouterr().err


@pytest.mark.parametrize(("preset", "shape"), [("paper", (48, 96)), ("official", (64, 96))])
def test_enhance_on_a_canvas(preset: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A video of another shape is as large as fits the canvas; only the published code keeps black bars."""
    from streaming.cli import stage3

    real = stage3.open_enhancer

    def opened(*args: object, **more: object) -> object:
        model = real(*args, **more)  # pyright: ignore
        return replace(model, defaults=replace(model.defaults, canvas_height=64, canvas_width=96))

    monkeypatch.setattr(stage3, "open_enhancer", opened)
    with VideoWriter("given.mp4", fps=12.0, height=20, width=40) as given:
        given.write(torch.rand(1, 3, 3, 20, 40, generator=torch.Generator().manual_seed(0)))
    assert run("enhance", "given.mp4", "noise", "--preset", preset, "--output", "made.mp4") == 0
    assert frames_of(Path("made.mp4")).shape == (1, 3, 3, *shape)


def test_enhance_model_device_and_type(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "streaming.cli.stage3.open_enhancer", lambda *args, **more: seen.append((*args, *more.values()))
    )
    assert run("enhance", video, "a ball", "--model", "toy-dit", "--device", "cpu", "--dtype", "bfloat16") == 1
    assert seen == [("toy-dit", torch.device("cpu"), torch.bfloat16)]


def test_enhance_prompt_is_read_and_known_from_the_checkpoint(video: Path, enhanced: Path, folder: Path) -> None:
    assert run("enhance", video, "a blue cube", "--output", "blue.mp4") == 0
    assert not same(Path("blue.mp4"), enhanced)
    Path("ball.mp4.checkpoint").write_bytes((folder / "plain.mp4.checkpoint").read_bytes())
    assert run("enhance", video) == 0
    assert same(Path("ball.enhanced.mp4"), enhanced)


def test_enhance_overwrites_only_if_told(video: Path) -> None:
    Path("ball.enhanced.mp4").write_bytes(b"something")
    assert run("enhance", video, "a ball") == 2
    assert Path("ball.enhanced.mp4").read_bytes() == b"something"
    assert run("enhance", video, "a ball", "--overwrite") == 0
    assert frames_of(Path("ball.enhanced.mp4")).shape[1] == FRAMES


@pytest.mark.parametrize(("rows", "cols", "shape"), [(30, 60, (64, 128)), (200, 100, (128, 64)), (33, 31, (68, 64))])
def test_enhance_keeps_the_aspect_ratio(rows: int, cols: int, shape: tuple[int, int]) -> None:
    with VideoWriter("given.mp4", fps=12.0, height=rows, width=cols) as video:
        video.write(torch.rand(1, 9, 3, rows, cols, generator=torch.Generator().manual_seed(0)))
    for mode in ("joint", "causal"):
        assert run("enhance", "given.mp4", "noise", "--mode", mode, "--output", f"{mode}.mp4") == 0
        assert frames_of(Path(f"{mode}.mp4")).shape == (1, 9, 3, *shape)
        assert read_video(f"{mode}.mp4").fps == 12


def test_enhance_stopped_keeps_what_exists(
    video: Path, enhanced: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_after(monkeypatch, 2)
    assert run("enhance", video, "a red ball") == 130
    kept = frames_of(Path("ball.enhanced.mp4"))
    assert torch.equal(kept, frames_of(enhanced)[:, : kept.shape[1]])
    assert capfd.readouterr().err.splitlines()[-1] == f"stopped: ball.enhanced.mp4 holds {kept.shape[1]} frames"


def test_enhance_stopped_before_the_first_frame(
    video: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streaming.joint.predict", lambda *_: signal.raise_signal(signal.SIGINT))
    assert run("enhance", video, "a red ball") == 130
    assert capfd.readouterr().err.splitlines()[-1] == "stopped: nothing was finished yet, nothing is kept"
    assert not Path("ball.enhanced.mp4").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_enhance_keeps_the_old_one_until_the_new_one_is_complete(
    video: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with VideoWriter("ball.enhanced.mp4", fps=8.0, height=16, width=16) as old:
        old.write(torch.zeros(1, 4, 3, 16, 16))
    before, real, count = Path("ball.enhanced.mp4").read_bytes(), VideoWriter.write, iter(range(9))

    def write(self: VideoWriter, frames: torch.Tensor) -> None:
        if next(count) == 2:  # more frames were written than the old one has
            raise error
        real(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", write)
        code = run("enhance", video, "a ball", "--mode", "causal", "--overwrite")
    assert code == (130 if error is KeyboardInterrupt else 1)
    assert Path("ball.enhanced.mp4").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["ball.enhanced.mp4", "ball.mp4"]
    if error is KeyboardInterrupt:
        assert capfd.readouterr().err.splitlines()[-1] == (
            "stopped: ball.enhanced.mp4 is the old one still, nothing of the new one is kept"
        )


def test_enhance_replaces_by_a_shorter_one(folder: Path, video: Path) -> None:
    Path("ball.enhanced.mp4").write_bytes((folder / "joint.mp4").read_bytes())
    with VideoWriter("ball.mp4", fps=8.0, height=32, width=32) as short:
        short.write(torch.zeros(1, 3, 3, 32, 32))
    assert run("enhance", video, "a ball", "--overwrite") == 0
    assert frames_of(Path("ball.enhanced.mp4")).shape[1] == 3


def test_enhance_too_long_for_joint(
    video: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streaming.cli.stage3.MOST_JOINT", 10)
    assert run("enhance", video, "a red ball") == 2
    assert (
        "error: more than 10 frames are too many for joint enhancement: use the causal mode" in capfd.readouterr().err
    )
    assert run("enhance", video, "a red ball", "--mode", "causal") == 0
