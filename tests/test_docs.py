"""What the pages say works: Python is run, commands and options exist, links lead somewhere."""

import inspect
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer

import streaming
from tests.cli_toys import frames_of, register

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / name
        for name in (
            "command-line.md",
            "published-weights.md",
            "presets.md",
            "add-a-memory.md",
            "add-a-backbone.md",
            "swap-the-base-model.md",
            "open-sora.md",
            "model-card-opensora.md",
            "evaluation.md",
            "compare.md",
            "metrics.md",
            "narrative.md",
            "ablations.md",
        )
    ),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)
    monkeypatch.chdir(tmp_path)


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All Python of a page, one block after the other."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), module.__dict__)
    return module.__dict__


def test_readme_example_is_ten_lines_and_runs(toys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(PAGES[0], "python")
    assert len([line for line in example.splitlines() if line]) <= 10
    run_page(PAGES[0], monkeypatch)
    assert frames_of(Path("ball.mp4")).shape[1] == 8 + 8 * 4
    assert torch.isfinite(frames_of(Path("ball.mp4"))).all()


def test_memory_of_ones_own(toys: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = run_page(ROOT / "docs" / "add-a-memory.md", monkeypatch)
    assert capsys.readouterr().out == "0 (1, 8, 3, 32, 32)\n1 (1, 4, 3, 32, 32)\n"
    run_suite(page["TestMeanColour"])


def run_suite(suite: type) -> None:
    """The tests of a conformance suite that need no fixtures."""
    ran = 0
    for name, test in inspect.getmembers(suite(), inspect.ismethod):
        if name.startswith("test_") and not inspect.signature(test).parameters:
            try:
                test()
                ran += 1
            except pytest.skip.Exception:
                pass
    assert ran >= 3


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    found = [re.sub(r"^.*&& ", "", line) for line in lines]
    return [line for line in found if line.startswith("streamingt2v ")]


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line: str) -> None:
    from streaming.cli.app import command

    _, name, *arguments = shlex.split(line)
    parser = command().commands[name]
    parser.make_context(name, arguments, resilient_parsing=False)


def test_there_are_commands_to_test() -> None:
    assert {shlex.split(line)[1] for line in commands()} == {
        "ablate",
        "generate",
        "enhance",
        "evaluate",
        "compare",
        "train",
        "convert",
        "models",
        "doctor",
    }


def programs(page: Path) -> list[list[str]]:
    """Names and arguments of the measuring programs that a page runs."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m benchmarks.")]
    return [words[2:] for words in found]


def program(name: str) -> Any:
    """The command of such a program."""
    app = typer.Typer()
    app.command()(import_module(name).main)
    return typer.main.get_command(app)


@pytest.mark.parametrize("words", [pytest.param(each, id=" ".join(each)) for page in PAGES for each in programs(page)])
def test_programs_are_understood(words: list[str]) -> None:
    program(words[0]).make_context(words[0], words[1:], resilient_parsing=False)


def test_options_that_pages_name_exist() -> None:
    from streaming.cli.app import command

    known = {option for part in command().commands.values() for param in part.params for option in param.opts}
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
        params = [param for name in {words[0] for words in programs(page)} for param in program(name).params]
        own = {option for param in params for option in (*param.opts, *param.secondary_opts)}
        assert named <= known | own | {"--help", "--no-deps"}, page.name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("docs/images/"):  # pictures are made with the trained model
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_the_package_exports() -> None:
    assert all(getattr(streaming, name) is not None for name in streaming.__all__)
    assert set(streaming.__all__) == set(re.findall(r" as (\w+)$", inspect.getsource(streaming), re.MULTILINE))
    with pytest.raises(AttributeError, match="module 'streaming' has no attribute 'nothing'"):
        streaming.nothing  # noqa: B018


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
