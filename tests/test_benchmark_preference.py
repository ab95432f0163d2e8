"""The blind comparison of enhanced with merely enlarged videos."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer import BadParameter

from backends.embedded import train_judge as judging
from backends.embedded.judge import Judge, JudgeConfig
from benchmarks import preference
from benchmarks.long_videos import keep


def write(folder: Path, count: int = 3, frames: int = 20) -> tuple[Path, Path]:
    torch.manual_seed(0)
    small = {f"{k:02d}": torch.randint(0, 256, (frames, 3, 8, 8), dtype=torch.uint8) for k in range(count)}
    large = {name: 255 - preference.enlarge(video, 16) for name, video in small.items()}
    rows = [{"prompt": f"scene {k}", "asked": {"shape": "cube", "colour": "red"}} for k in range(count)]
    keep(folder / "small.safetensors", list(small.values()), rows)
    save_file(large, folder / "large.safetensors")
    return folder / "small.safetensors", folder / "large.safetensors"


def test_pictures_tell_nothing_and_answers_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = write(tmp_path, count=12)
    preference.main(small, large, tmp_path / "look", judge=None, answers=None, seed=0)
    told = capsys.readouterr().out
    assert "the judge prefers the enhanced video in" in told and "of 12" in told
    order = json.loads((tmp_path / "look" / "key.json").read_text())["enhanced"]
    assert set(order.values()) == {"A", "B"}
    answers = tmp_path / "answers.txt"
    other = {"A": "B", "B": "A"}
    lines = [f"{name} {letter if name != '07' else other[letter]}" for name, letter in order.items()]
    answers.write_text("\n".join(lines) + "\n\n")
    preference.main(small, large, tmp_path / "look", judge=None, answers=answers, seed=0)
    assert capsys.readouterr().out == "the onlooker prefers the enhanced video in 11 of 12 (p = 0.0032)\n"


@pytest.mark.parametrize("letter", ["A", "B"])
def test_the_letter_names_the_enhanced_row(tmp_path: Path, letter: str) -> None:
    [pair] = preference.read_pairs(*write(tmp_path, count=1))
    picture = preference.sheet(pair, letter)
    side, row = 16 * preference.SCALE, preference.LETTERS.index(letter)
    corner = (preference.MARGIN, preference.MARGIN + row * (side + preference.GAP))
    shown = picture.crop((*corner, corner[0] + side, corner[1] + side)).resize((16, 16), Image.Resampling.NEAREST)
    assert shown.tobytes() == Image.fromarray(pair.enhanced[0].permute(1, 2, 0).numpy()).tobytes()


@torch.no_grad()
def test_the_judge_is_asked_what_the_prompt_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(attributes=judging.JUDGED, widths=(8, 8, 16), hidden=16)).eval()
    [pair] = preference.read_pairs(*write(tmp_path, count=1))
    other = replace(pair, enlarged=pair.enhanced, enhanced=pair.enlarged)
    same = replace(pair, enlarged=pair.enhanced)
    assert preference.gain(judge, pair) == pytest.approx(-preference.gain(judge, other)) != 0
    assert preference.gain(judge, same) == 0
    asked = {"shape": judging.JUDGED["shape"].index("cube"), "colour": judging.JUDGED["colour"].index("red")}
    logits = judge(pair.enhanced[None, :16].float() / 255)
    sure = sum(float(logits[name].log_softmax(dim=-1)[0, word]) for name, word in asked.items()) / 2
    logits = judge(pair.enlarged[None, :16].float() / 255)
    before = sum(float(logits[name].log_softmax(dim=-1)[0, word]) for name, word in asked.items()) / 2
    assert preference.gain(judge, pair) == pytest.approx(sure - before, abs=1e-5)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    small, large = write(tmp_path, count=2)
    other, rows = tmp_path / "other.safetensors", [{"prompt": "", "asked": {}}] * 2
    save_file({"00": torch.zeros(20, 3, 8, 8, dtype=torch.uint8)}, other)
    with pytest.raises(BadParameter, match="does not say what was asked for: make it by benchmarks.long_videos"):
        preference.read_pairs(other, large)
    keep(other, [torch.zeros(20, 3, 8, 8, dtype=torch.uint8)], rows)
    with pytest.raises(BadParameter, match="has no video 01: name the file that was enhanced"):
        preference.read_pairs(other, large)
    keep(other, [torch.zeros(19, 3, 8, 8, dtype=torch.uint8) for _ in rows], rows)
    with pytest.raises(BadParameter, match="video 00 has 19 and 20 frames: not the same video"):
        preference.read_pairs(other, large)
    answers = tmp_path / "answers.txt"
    answers.write_text("00 A\n01 C\n")
    with pytest.raises(BadParameter, match='"01 C" is no answer; write a name and a letter: "07 B"'):
        preference.read_answers(answers, {"00": "A", "01": "B"})
    answers.write_text("00 A\n")
    with pytest.raises(BadParameter, match="says nothing of 01"):
        preference.read_answers(answers, {"00": "A", "01": "B"})


def test_chance_of_a_verdict() -> None:
    assert preference.verdict("x", 12, 16).endswith("12 of 16 (p = 0.038)")
    assert preference.verdict("x", 0, 16).endswith("(p = 1)")
