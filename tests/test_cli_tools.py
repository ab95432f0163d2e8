"""The rest of the command line: help, progress, `models`, `doctor`, `train`, and what becomes of exceptions."""

import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from streaming.cli import doctor as doctor_module
from streaming.cli.doctor import clashes, doctor, encoders, machine, plugins, versions, weights
from streaming.cli.progress import Live, Log, Stage, clock, display
from streaming.errors import UserError
from tests.cli_toys import PLUGINS, register, run


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


# --- the command itself ----------------------------------------------------------------------------------------------


def test_help_is_quick() -> None:
    """It imports no torch."""
    code = """
import sys
from streaming.cli import main
for argv in ([], ["--help"], ["generate", "--help"], ["enhance", "--help"], ["train", "--help"]):
    try:
        main(argv)
    except SystemExit as stopped:
        assert stopped.code == 0
assert not {"torch", "diffusers", "transformers", "av", "numpy"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("generate", "enhance", "train", "models", "doctor"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "wording"),
    [
        (["generat"], "error: No such command 'generat'"),
        (["generate", "a", "--frame", "3"], "error: No such option: --frame"),
        (["generate", "a", "--frames", "many"], "error: Invalid value for '--frames': "),
        (["generate", "a", "--frames"], "error: Option '--frames' requires an argument."),
        (["enhance"], "error: Missing argument 'video'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], wording: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capfd.readouterr()
    help = f"streamingt2v {arguments[0]} --help" if arguments[0] in ("generate", "enhance") else "streamingt2v --help"
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(wording) and captured.err.endswith(f"(see {help})\n")


def failing(error: BaseException) -> Any:
    def check(*_: object) -> None:
        raise error

    return check


def test_what_the_user_can_fix(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("streaming.cli.generate.check", failing(UserError("two\nlines")))
    assert run("generate", "a ball") == 2
    assert capfd.readouterr().err == "error: two lines\n"


def test_what_we_must_fix(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("streaming.cli.generate.check", failing(KeyError("gone")))
    assert run("generate", "a ball") == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and "KeyError: 'gone'" in lines
    assert lines[-1] == "error: this is a bug in streamingt2v or in a plugin, please report it with the lines above"


def test_ctrl_c_anywhere(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("streaming.cli.generate.check", failing(KeyboardInterrupt()))
    assert run("generate", "a ball") == 130
    assert "Traceback" not in capfd.readouterr().err


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def warn(*_: object) -> None:
        warnings.simplefilter("always")
        warnings.warn("be\ncareful", stacklevel=1)

    before = warnings.showwarning
    monkeypatch.setattr("streaming.cli.generate.check", warn)
    assert run("generate", "a ball", "--output", "there/is/no/folder.mp4") == 2
    assert capfd.readouterr().err.splitlines()[0] == "warning: be careful"
    assert warnings.showwarning is before


def test_train_is_mounted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train", "nothing", "--work", tmp_path) == 2
    assert capfd.readouterr().err.startswith('error: no trainer is called "nothing"')


@pytest.mark.parametrize("name", ["file", "file/inside", "/proc/self/work"])
def test_train_in_what_is_no_folder(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("precious")
    assert run("train", "vae", "--toy", "--work", tmp_path / name) == 2
    line = capfd.readouterr().err
    assert line.startswith(f"error: --work {tmp_path / name} cannot be written (") and line.count("\n") == 1
    assert line.endswith("): choose another folder\n")


@pytest.mark.parametrize("part", ["cam", "apm", "memories", "cam+frame-mask", "conc-cond", "add-cond", "append"])
def test_train_a_memory_without_a_base(part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train", part, "--toy", "--work", tmp_path / "new") == 2
    wording = f"error: --work {tmp_path / 'new'} holds no base model yet: train vae, clip and base first\n"
    assert capfd.readouterr().err == wording
    assert not (tmp_path / "new").exists()


# --- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01"), (-3, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(float(seconds)) == text


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_log_lines(ticking: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    stage = Log(pause=2.0).stage("generating", 80, done=16)
    for seconds, frames in ((8.0, 24), (1.0, 32), (7.0, 40), (0.5, 80)):
        ticking[0] += seconds
        stage.reach(frames, f"chunk {frames // 8}")
    assert capfd.readouterr().err.splitlines() == [
        "generating: 16 of 80 frames",
        "generating: 24 of 80 frames, chunk 3, 1.00 frames/s, 0:56 left",
        "generating: 40 of 80 frames, chunk 5, 1.50 frames/s, 0:27 left",
        "generating: 80 of 80 frames, chunk 10, 3.88 frames/s, 0:00 left",
    ]


def test_log_of_an_unknown_length(ticking: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    stage = Log(pause=0.0).stage("enhancing", None)
    ticking[0] += 4.0
    stage.reach(2, "piece 1")
    assert capfd.readouterr().err.splitlines() == ["enhancing: 0 frames", "enhancing: 2 frames, piece 1, 0.50 frames/s"]


def test_a_log_gets_lines_and_a_terminal_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    with display() as shown:
        assert isinstance(shown, Log)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with display() as shown:
        assert isinstance(shown, Live)


def test_bars(ticking: list[float]) -> None:
    from io import StringIO

    from rich.console import Console

    from streaming.cli.progress import _bars

    bars = _bars()
    bars.live.console = Console(file=StringIO(), width=160, force_terminal=True)
    stages: list[Stage] = [Live(bars).stage("generating", 80)]
    ticking[0] += 8.0
    stages[0].reach(16, "chunk 1")
    screen = Console(file=StringIO(), width=160)
    screen.print(bars.get_renderable())
    text = screen.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "generating" in text and "16/80 frames  chunk 1, 2.00 frames/s, 0:32 left" in text


# --- models ----------------------------------------------------------------------------------------------------------


def test_models(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    out = capfd.readouterr().out
    assert "  tiny-modelscope: toy UNet with random weights" in out
    assert "32x32 at 8 frames/s, window 8 latent frames, overlap 4; 2 feature sites, 1 context sites" in out
    for group in PLUGINS.values():
        for name in group:
            assert re.search(rf"^  {name}(:|$)", out, re.MULTILINE), name


def test_models_sites(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("models", "toy-dit") == 0
    out = capfd.readouterr().out
    assert "  block2: 32 channels" in out and "  block0.text: 10 tokens of 16 channels" in out
    assert "short-term memory none, long-term memory none" in out


def test_models_lists_broken_plugins(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    broken = {group: dict(plugins) for group, plugins in PLUGINS.items()}
    broken["streaming.backbones"]["odd"] = "no_such_module:Odd"
    broken["streaming.blenders"]["ends"] = "streaming.blend:no_such_blender"
    register(monkeypatch, broken)
    assert run("models") == 1
    out = capfd.readouterr().out
    assert "  odd: broken, the plugin 'odd' (no_such_module:Odd of an unknown distribution) cannot be imported: " in out
    assert (
        "  ends: broken, the plugin 'ends' (streaming.blend:no_such_blender of an unknown distribution) cannot" in out
    )
    assert "  tiny-modelscope: toy UNet" in out


def test_models_words(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--words") == 2
    assert "error: tiny-modelscope reads any words: it has no list of them" in capfd.readouterr().err
    monkeypatch.setattr("backends.toy_unet.WordHashes.vocabulary", ("ball", "red"))
    assert run("models", "tiny-modelscope", "--words") == 0
    assert capfd.readouterr().out == "ball\nred\n"


def test_models_unknown(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("models", "toy-dat") == 2
    assert "error: no model, and no folder, 'toy-dat': did you mean 'toy-dit'?" in capfd.readouterr().err


# --- doctor ----------------------------------------------------------------------------------------------------------


def advice_of(check: Any) -> dict[str, str]:
    return {finding.text: finding.advice for finding in check()}


def fake_distribution(folder: Path, name: str, package: str) -> None:
    """What pip leaves of a distribution that installs a package."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text(f"{package}\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n")


@pytest.mark.parametrize(("name", "package"), [("mosaicml-streaming", "streaming"), ("adapters", "adapters")])
def test_doctor_sees_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    fake_distribution(tmp_path, name, package)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = advice_of(clashes)
    assert found[f"{package}: {name} installs a package of this name, too"] == (
        f"the two overwrite each other: pip uninstall {name}, then reinstall streamingt2v, "
        "or keep streamingt2v in a virtual environment of its own (python -m venv)"
    )
    assert sum(map(bool, found.values())) == 1


def test_doctor_sees_a_folder_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor_module._place
    monkeypatch.setattr(doctor_module, "_place", lambda name: tmp_path / name if name == "adapters" else real(name))
    found = advice_of(clashes)
    ours = Path(doctor_module.__file__).parents[2] / "adapters"
    assert found[f"adapters: Python finds it in {tmp_path / 'adapters'}, not in {ours}"] == (
        "rename that folder, or take its parent off PYTHONPATH, or start from another folder"
    )


def test_doctor_is_content_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in (clashes, machine, encoders, plugins, weights):
        assert not any(advice_of(check).values()), check


def requirements(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.0" if name == "streamingt2v" else real(name))
    monkeypatch.setattr(metadata, "requires", lambda name: [*lines, "nonsense>=1; extra == 'test'"])


def test_doctor_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(monkeypatch, "torch>=2.0", "einops>=99", "no-such-package>=1.5")
    found = advice_of(versions)
    assert found[f"torch {metadata.version('torch')}"] == ""
    assert found[f"einops {metadata.version('einops')}"] == ">=99 is needed: pip install 'einops>=99'"
    assert found["no-such-package is missing"] == "pip install 'no-such-package>=1.5'"
    assert not any("nonsense" in text for text in found)


def test_doctor_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "DISTRIBUTION", "no-such-distribution")
    assert advice_of(versions)["no-such-distribution is not installed"] == "run 'pip install .' in the project's folder"


def test_doctor_missing_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.codecs_available", {"libx264"})
    assert advice_of(encoders) == {
        "video encoder libx264: there": "",
        "video encoder libx264rgb: missing": "this PyAV is built without x264: pip install --force-reinstall av",
    }


def test_doctor_broken_plugins_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, {"streaming.backbones": {"tiny-modelscope": "no_such_module:Tiny"}})
    found = advice_of(plugins)
    assert "cannot be imported: ModuleNotFoundError" in found["tiny-modelscope is broken"]
    assert found["streaming.blenders: none"] == "run 'pip install .' in the project's folder"
    assert "cannot be imported" in advice_of(weights)["tiny-modelscope cannot be loaded"]


def test_doctor_names_claimed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [metadata.EntryPoint("cam", value, "streaming.blenders") for value in ("a:b", "c:d")]
    monkeypatch.setattr("streaming.registry.entry_points", lambda group: twice)
    assert "two plugins of streaming.blenders are named 'cam'" in advice_of(plugins)["streaming.blenders"]


def test_doctor_report(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    requirements(monkeypatch, "torch>=2.0")
    assert run("doctor") == 0
    assert capfd.readouterr().out.splitlines()[-1] == "no problem found"
    requirements(monkeypatch, "einops>=99", "no-such-package")
    assert doctor() == 1
    out = capfd.readouterr().out
    assert "    PROBLEM: pip install 'no-such-package'" in out and out.splitlines()[-1] == "2 problems found"
