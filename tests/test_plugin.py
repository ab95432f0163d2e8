"""A third party's base model: docs/add-a-backbone.md, and the package that it walks through, installed by pip."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.cli_toys import frames_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "add-a-backbone.md"
PACKAGE = ROOT / "tests" / "plugins" / "latte"
FILES = {file.name: file.read_text(encoding="utf-8") for file in PACKAGE.iterdir() if file.suffix in (".py", ".toml")}
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def is_quoted(block: str) -> bool:
    """Whether it is whole lines of one of the package's files; of methods perhaps without indent, blank lines apart."""
    parts = (_written(block), _written(textwrap.indent(block, "    ")))
    return any(part in _written(text) for text in FILES.values() for part in parts)


def _written(text: str) -> str:
    return "".join(f"\n{line}" for line in text.splitlines() if line.strip()) + "\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed the package; nothing is downloaded."""
    there = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, there / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", there / "site", there / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return there / "site"


@pytest.fixture(scope="module")
def told(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What came of the page in a process that knows the plugin by its entry point alone."""
    quoted = [place for place, block in enumerate(blocks("python")) if is_quoted(block)]
    command = [sys.executable, ROOT / "tests" / "plugin_page.py", PAGE, json.dumps(quoted)]
    paths = {"PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    there = tmp_path_factory.mktemp("run")
    done = subprocess.run(command, capture_output=True, text=True, cwd=there, env={**os.environ, **paths})
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "folder": there}


def test_one_module_and_one_line_are_installed(site: Path) -> None:
    info = site / "streamingt2v_latte-0.1.0.dist-info"
    assert (info / "entry_points.txt").read_text().split() == [
        "[streaming.backbones]", "latte", "=", "streamingt2v_latte:LatteBackend",
    ]  # fmt: skip
    installed = {path.name for path in site.iterdir()} - {info.name, "__pycache__"}
    assert installed == {"streamingt2v_latte.py"}


def test_it_works_by_its_entry_point(site: Path, told: dict) -> None:
    """One test, as one process: listed, asked for its sites, made to generate; CAM and APM run on it unchanged."""
    assert Path(told["from"]) == site / "streamingt2v_latte.py"
    described = "Latte (LatteTransformer3DModel): any folder in diffusers format; by name, a tiny one of random weights"
    assert f"  latte: {described}\n      32x32 at 8 frames/s" in told["commands"]["streamingt2v models"]
    assert told["commands"]["streamingt2v models latte"] == blocks("text")[0]

    (line,) = [line for line in told["commands"] if line.startswith("streamingt2v generate")]
    assert "--short-term inject" in line and "--model latte" in line and "--frames 16" in line
    frames = frames_of(told["folder"] / "latte.mp4")
    assert frames.shape == (1, 16, 3, 32, 32)
    assert float(frames.std()) > 0.01

    assert told["python"] == ["0 (1, 8, 3, 32, 32)\n1 (1, 4, 3, 32, 32)\n2 (1, 4, 3, 32, 32)\n"]
    assert told["untrained memories change nothing"]
    assert told["trained ones do"]


def test_the_page_quotes_the_package() -> None:
    quoted = [block for block in blocks("python") if is_quoted(block)]
    assert len(quoted) >= 6
    for name in ("class HookedLatte", "def forward(self, call: Call, deltas", "class LatteFeatures", "class TestLatte"):
        assert any(name in block for block in quoted), name
    assert all(f"\n{block}" in f"\n{FILES['pyproject.toml']}" for block in blocks("toml"))
    assert blocks("toml")


def test_every_block_of_the_page_is_looked_at() -> None:
    """A language that no test reads would be a part that may rot."""
    fences = re.findall(r"^```(\w*)$", TEXT, re.MULTILINE)
    assert set(fences) == {"", "python", "toml", "sh", "text"}
    assert fences.count("") == len(fences) // 2
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert [line for line in lines if not line.startswith("streamingt2v ")] == [
        f"pip install {PACKAGE.relative_to(ROOT).as_posix()}"
    ]


def test_the_package_stands_on_the_contracts_alone() -> None:
    module = FILES["streamingt2v_latte.py"]
    imported = re.findall(r"^\s*(?:from|import) (\w+)", module, re.MULTILINE)
    assert set(imported) <= {*sys.stdlib_module_names, "torch", "diffusers", "transformers", "jaxtyping", "streaming"}
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    assert project["dependencies"] == ["streamingt2v"]
    assert project["entry-points"] == {"streaming.backbones": {"latte": "streamingt2v_latte:LatteBackend"}}


def test_ours_do_not_know_of_it() -> None:
    sources = [path for name in ("streaming", "backends", "adapters") for path in (ROOT / name).rglob("*.py")]
    assert len(sources) > 20
    assert not any(re.search(r"\blatte\b", path.read_text(encoding="utf-8"), re.IGNORECASE) for path in sources)
