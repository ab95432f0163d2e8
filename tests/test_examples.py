"""The example script and its page: it is as short as promised, runs, and the page tells the truth about both models."""

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters.apm import APM
from adapters.cam import CAM
from streaming.injection import Injection
from streaming.keys import Key
from streaming.loop import stream
from streaming.memory import NoLongTerm
from streaming.model import Model
from streaming.openings import TextOpening
from streaming.parts import assemble
from streaming.prompts import PromptSchedule
from streaming.registry import BACKBONES, discover, make_long_term, make_short_term, open_model
from tests.test_docs import blocks

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "swap_base_model.py"
PAGE = ROOT / "docs" / "swap-the-base-model.md"
TEXT = PAGE.read_text(encoding="utf-8")
SHIPPED = ("tiny-modelscope", "tiny-opensora")


def lines() -> list[list[str]]:
    """The arguments of each `python examples/...` of the page."""
    found = [shlex.split(line) for block in blocks(PAGE, "sh") for line in block.splitlines()]
    return [words[2:] for words in found if words[:2] == ["python", SCRIPT.relative_to(ROOT).as_posix()]]


def rows_of_page() -> dict[str, list[str]]:
    """The page's table of differences, by its first column."""
    table = TEXT.split("## What differs")[1]
    cells = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", table, re.MULTILINE)
    ]
    return {row[0]: row[1:] for row in cells[2:]}


def test_the_script_is_short() -> None:
    source = SCRIPT.read_text(encoding="utf-8").splitlines()
    assert len(source) <= 25
    assert max(map(len, source)) <= 120


def test_the_script_needs_nothing_but_the_package_and_names_no_model() -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    modules = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert modules == {"typer", "PIL", "streaming"}
    assert not any(name in source for name in discover(BACKBONES))


def test_the_page_quotes_the_script() -> None:
    assert blocks(PAGE, "python") == [SCRIPT.read_text(encoding="utf-8")]


def test_every_block_of_the_page_is_looked_at() -> None:
    fences = re.findall(r"^```(\w*)$", TEXT, re.MULTILINE)
    assert sorted(fences) == sorted(["python", "sh", "sh", "sh", *[""] * 4])
    others = [line for block in blocks(PAGE, "sh") for line in block.splitlines() if not line.startswith("python ")]
    assert len(others) == 2 and all(line.startswith("streamingt2v generate ") for line in others)
    assert lines()[0] == [*SHIPPED]


def test_the_script_runs_as_the_page_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the toys: both models, side by side, and the pictures are the first new frames of the chunks."""
    monkeypatch.chdir(tmp_path)
    (toys,) = [words for words in lines() if "toy-unet" in words]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *toys, "--chunks", "2"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not stopped.value.code

    with Image.open("swap.png") as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (3 * 144, 2 * 2 * 130, 3)
    for column, name in enumerate(("toy-unet", "toy-dit")):
        for row, prompt in enumerate(runpy.run_path(str(SCRIPT))["PROMPTS"]):
            for index, frame in enumerate(first_frames(open_model(name), prompt)):
                left, top = 130 * (2 * column + index), 144 * row + 14
                tile = Image.fromarray(frame).resize((128, 128))
                assert np.array_equal(sheet[top : top + 128, left : left + 128], np.asarray(tile)), (name, prompt)
                assert np.asarray(tile).std() > 1
            left = 130 * 2 * column
            assert sheet[144 * row : 144 * row + 14, left : left + 100].min() < 128  # its label


def first_frames(model: Model, prompt: str) -> list[np.ndarray]:
    """Of two chunks, in 8 bits."""
    parts = assemble(model, short=make_short_term("inject", model), long=NoLongTerm())
    chunks = stream(parts, PromptSchedule.fixed(prompt), TextOpening(), key=Key(0), chunks=2)
    return [(255 * chunk.frames[0, 0]).byte().permute(1, 2, 0).contiguous().numpy() for chunk in chunks]


def test_what_the_page_says_of_the_shipped_models() -> None:
    models = [open_model(name) for name in SHIPPED]
    assert rows_of_page() == differences(models)
    assert all(len(set(row)) == 2 for row in rows_of_page().values())
    for model in models:
        short = make_short_term("cam+inject", model)
        assert type(short) is Injection and type(short.inner) is CAM
        assert type(make_long_term("apm", model)) is APM
        assert (model.defaults.short_term, model.defaults.long_term) == ("cam+inject", "apm")
        assert (model.codec.pixel_frames(16), model.backbone.window.overlap) == (16, 8)  # frames 0, 16, 24, 32, 40
        side = model.defaults.height // model.codec.factor
        assert (model.codec.channels, side, model.defaults.width // model.codec.factor) == (16, 8, 8)
        assert model.text(runpy.run_path(str(SCRIPT))["PROMPTS"]).mask is None  # and every word is known


def differences(models: list[Model]) -> dict[str, list[str]]:
    def told(model: Model) -> dict[str, str]:
        backbone, defaults = model.backbone, model.defaults
        sites = ", ".join(str(site.width) for site in backbone.feature_sites)
        ((tokens, depth),) = {(site.tokens, site.depth) for site in backbone.context_sites}
        kind = {"v_prediction": "v"}.get(model.scheduler.config.get("prediction_type", ""), "flow")
        return {
            "denoiser": f"`{type(backbone).__name__}`",
            "feature sites": f"{len(backbone.feature_sites)}, of widths {sites}",
            "context sites": f"{len(backbone.context_sites)}, each {tokens} tokens of {depth}",
            "prediction": kind,
            "sampler": f"`{defaults.sampler}`, {defaults.steps} steps",
            "can be given frames": "yes" if backbone.takes_given_frames else "no",
        }

    columns = [told(model) for model in models]
    return {name: [column[name] for column in columns] for name in columns[0]}


def test_the_files_that_stay_the_same_know_no_model() -> None:
    table = TEXT.split("## What stays the same")[1].split("## What differs")[0]
    files = [PAGE.parent / target for target in re.findall(r"\]\(([^)]+)\)", table)]
    assert len(files) == 12
    named = re.compile(r"model ?scope|open-?sora|unet|dit\b|tiny", re.IGNORECASE)
    assert [path.name for path in files if named.search(path.read_text(encoding="utf-8"))] == []


def test_the_picture_is_of_the_scripts_layout() -> None:
    picture = ROOT / "docs" / "images" / "swap.png"
    with Image.open(picture) as opened:
        assert opened.size == (2 * 5 * 130, 3 * 144)
    assert picture.stat().st_size < 700_000
