"""The blind comparison of enhanced with merely enlarged videos."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typer import BadParameter

from backends.embedded import train_judge as judging
from backends.embedded.judge import Judge, JudgeConfig
from backends.embedded.train_enhancer import enlarge
from benchmarks import preference
from benchmarks.judged import Referee
from benchmarks.long_videos import keep
from streaming.registry import open_model

ROWS = (
    {"prompt": "scene 0", "asked": {"shape": "cube", "colour": "red"}},
    {"prompt": "scene 1", "asked": {"shape": "ring", "colour": "green"}},
    {"prompt": "scene 2", "asked": {"shape": "star", "colour": "blue"}},
)


def write(folder: Path, count: int = 3, frames: int = 20, cells: int = 8) -> tuple[Path, Path]:
    """Videos of so many cells a side that differ in colour; with one, pictures of them are drawn fast."""
    torch.manual_seed(frames)
    colours = torch.randint(0, 256, (count, frames, 3, cells, cells), dtype=torch.uint8)
    small = {f"{k:02d}": video.expand(frames, 3, 8, 8).contiguous() for k, video in enumerate(colours)}
    large = {name: 255 - enlarge(video[None])[0] for name, video in small.items()}
    keep(folder / "small.safetensors", list(small.values()), [ROWS[k % 3] for k in range(count)])
    save_file(large, folder / "large.safetensors")
    return folder / "small.safetensors", folder / "large.safetensors"


def referee(**shares: float) -> Referee:
    """An untrained judge of everything that is said to be perfect but for `shares`."""
    known = dict.fromkeys(judging.JUDGED, 1.0) | shares
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(attributes=judging.JUDGED, widths=(8, 8, 16), hidden=16)).eval()
    return Referee(judge=judge, renders=known, coded=known)


def ask(small: Path, large: Path, folder: Path, **given: Any) -> None:
    """The command with its defaults, but for a short examination of the judge."""
    preference.main(small, large, folder, **{"model": None, "judge": None, "judge_clips": 8, "answers": None,
                                             "seed": None, **given})  # fmt: skip


# -- what was asked for ----------------------------------------------------------------------------------------------


def test_each_video_is_kept_with_its_own_words(tmp_path: Path) -> None:
    videos = [torch.full((2, 3, 8, 8), k, dtype=torch.uint8) for k in range(2)]
    keep(tmp_path / "kept.safetensors", videos, ROWS)  # more rows than videos
    with safe_open(tmp_path / "kept.safetensors", "pt") as archive:
        about = archive.metadata()
        assert [int(archive.get_tensor(name)[0, 0, 0, 0]) for name in ("00", "01")] == [0, 1]
    assert json.loads(about["prompts"]) == ["scene 0", "scene 1"]
    assert json.loads(about["asked"]) == [row["asked"] for row in ROWS[:2]]


def test_each_pair_has_its_own_words(tmp_path: Path) -> None:
    small, large = write(tmp_path)
    pairs = preference.read_pairs(small, large)
    assert [(pair.name, pair.prompt, pair.asked) for pair in pairs] == [
        (f"{k:02d}", row["prompt"], row["asked"]) for k, row in enumerate(ROWS)
    ]
    with safe_open(small, "pt") as first, safe_open(large, "pt") as second:
        for pair in pairs:
            assert torch.equal(pair.enlarged, enlarge(first.get_tensor(pair.name)[None])[0]) and pair.size == 8
            assert torch.equal(pair.enhanced, second.get_tensor(pair.name))


# -- the judge -------------------------------------------------------------------------------------------------------


def believed(judge: Judge, video: Tensor, asked: Mapping[str, str]) -> float:
    """Mean logarithm of what the judge makes of the words, over clips of 16 frames and attributes, one by one."""
    found = []
    for begin in range(0, len(video) - 15, 16):
        logits = judge(video[None, begin : begin + 16].float() / 255)
        for name, word in asked.items():
            found.append(float(logits[name][0].softmax(dim=-1)[judging.JUDGED[name].index(word)].log()))
    return sum(found) / len(found)


@torch.no_grad()
def test_the_judge_is_asked_of_the_whole_video_what_its_prompt_says(tmp_path: Path) -> None:
    told = referee()
    gains = []
    for pair in preference.read_pairs(*write(tmp_path, count=2, frames=40)):
        gains.append(preference.gain(told, pair.asked, pair.enhanced, pair.enlarged))
        expected = (believed(told.judge, video, pair.asked) for video in (pair.enhanced, pair.enlarged))
        assert gains[-1] == pytest.approx(next(expected) - next(expected), abs=1e-5)
        assert gains[-1] == pytest.approx(-preference.gain(told, pair.asked, pair.enlarged, pair.enhanced)) != 0
        assert preference.gain(told, pair.asked, pair.enhanced, pair.enhanced) == 0
        first = preference.gain(told, pair.asked, pair.enhanced[:16], pair.enlarged[:16])
        assert abs(gains[-1] - first) > 1e-4  # the video's later clips count
    assert abs(gains[0] - gains[1]) > 1e-4


def test_only_what_the_judge_may_be_asked_about_counts(tmp_path: Path) -> None:
    [pair] = preference.read_pairs(*write(tmp_path, count=1))
    clips, colour = (pair.enhanced, pair.enlarged), {"colour": pair.asked["colour"]}
    half = preference.gain(referee(shape=0.94), pair.asked, *clips)
    assert half == preference.gain(referee(), colour, *clips) != preference.gain(referee(), pair.asked, *clips)
    attributes = {name: words for name, words in judging.JUDGED.items() if name != "shape"}
    other = Judge(JudgeConfig(attributes=attributes, widths=(8, 8, 16), hidden=16)).eval()  # knows no shapes at all
    known = dict.fromkeys(attributes, 1.0)
    assert preference.gain(Referee(judge=other, renders=known, coded=known), pair.asked, *clips) != 0
    with pytest.raises(BadParameter, match="knows none of shape, colour well enough: name another by --judge"):
        preference.gain(referee(shape=0.94, colour=0.5), pair.asked, *clips)
    with pytest.raises(BadParameter, match="looks at 16 frames: a video has 15 only"):
        preference.gain(referee(), pair.asked, pair.enhanced[:15], pair.enlarged[:15])


def test_sharpness_alone_is_nothing_to_the_packaged_judge(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows renders, and is asked what they show: neither blur nor the autoencoder's faults make that less sure."""
    monkeypatch.setattr(preference, "RENDERS", 8)
    opened = open_model("tiny-modelscope")
    assert opened.directory is not None
    judge = Judge.load(opened.directory / "judge")
    known = dict.fromkeys(judge.config.attributes, 1.0)
    sharp, mended = preference.control(Referee(judge=judge, renders=known, coded=known), opened.codec, 64)
    assert sharp.count == mended.count == 8 and sharp.chance > 0.1 and mended.chance > 0.1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 renders; the judge prefers the true 128x128 frames to the enlarged ones"
    assert lines[1].startswith(f"  of 64x64: in {sharp}, mean -0.0")
    assert lines[2].startswith(f"  of 64x64 after the autoencoder: in {mended}, mean +0.0")


def test_a_verdict_says_what_it_is_worth() -> None:
    told, nothing, sure = preference.Tally(12, 16), preference.Tally(8, 16), preference.Tally(16, 16)
    begin = "at 64x64, where it looks, the judge prefers the enhanced video in 12 of 16 (p = 0.038); it "
    mended, sharper = "whether faults that show at 64x64 were mended", "whether the video is sharper"
    cases = {
        (nothing, sure): f"can tell {mended}, it cannot tell {sharper}",
        (sure, nothing): f"can tell {sharper}, it cannot tell {mended}",
        (sure, sure): f"can tell {mended} and {sharper}",
        (nothing, nothing): f"cannot tell {mended} or {sharper}",
    }
    for (sharp, faults), end in cases.items():
        assert preference.verdict(told, sharp, faults, 64) == begin + end


def test_chance_of_a_tally() -> None:
    assert str(preference.tally([True] * 12 + [False] * 4)) == "12 of 16 (p = 0.038)"
    assert preference.Tally(0, 16).chance == 1


# -- the onlooker ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos and the pictures of them, drawn with another seed than the default."""
    folder = tmp_path_factory.mktemp("drawn")
    preference.draw(folder / "look", preference.read_pairs(*write(folder, count=12, frames=5, cells=1)), seed=5)
    return folder


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "small.safetensors", folder / "large.safetensors"


def test_answers_go_by_what_was_drawn(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = json.loads((drawn / "look" / "key.json").read_text())["enhanced"]
    preference.draw(tmp_path / "default", preference.read_pairs(*files(drawn)), seed=0)
    assert order != json.loads((tmp_path / "default" / "key.json").read_text())["enhanced"]
    assert set(order.values()) == {"A", "B"} and len(list((drawn / "look").glob("pair-*.png"))) == 12
    answers, other = tmp_path / "answers.txt", {"A": "B", "B": "A"}
    lines = [f"{name} {letter if name != '07' else other[letter]}" for name, letter in order.items()]
    answers.write_text("\n".join(lines) + "\n\n")
    ask(*files(drawn), drawn / "look", answers=answers)
    assert capsys.readouterr().out == "the onlooker prefers the enhanced video in 11 of 12 (p = 0.0032)\n"
    for given in ({"seed": 5}, {"judge": "."}, {"model": "tiny-modelscope"}):
        with pytest.raises(BadParameter, match="goes by what was drawn: leave --model, --judge and --seed out"):
            ask(*files(drawn), drawn / "look", answers=answers, **given)


def test_answers_to_other_pictures_are_refused(drawn: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.txt"
    answers.write_text("")
    message = "has no key.json of pictures: draw them first, without --answers"
    with pytest.raises(BadParameter, match=message):
        ask(*files(drawn), tmp_path, answers=answers)
    for text in ("{", "[]", '{"enhanced": {}}'):
        (tmp_path / "key.json").write_text(text)
        with pytest.raises(BadParameter, match=message):
            ask(*files(drawn), tmp_path, answers=answers)
    fewer, more = tmp_path / "fewer", tmp_path / "more"
    for folder, count in ((fewer, 11), (more, 12)):
        folder.mkdir()
        write(folder, count=count, frames=4, cells=1)  # `more`: the same names, but not the same frames
        with pytest.raises(BadParameter, match="look show other videos: name those that they were drawn of"):
            ask(*files(folder), drawn / "look", answers=answers)


@pytest.mark.parametrize("letter", ["A", "B"])
def test_the_letter_names_the_enhanced_row(tmp_path: Path, letter: str) -> None:
    [pair] = preference.read_pairs(*write(tmp_path, count=1))
    picture = preference.sheet(pair, letter)
    side, row = 128 * preference.SCALE, preference.LETTERS.index(letter)
    corner = (preference.MARGIN, preference.MARGIN + row * (side + preference.GAP))
    shown = picture.crop((*corner, corner[0] + side, corner[1] + side)).resize((128, 128), Image.Resampling.NEAREST)
    assert shown.tobytes() == Image.fromarray(pair.enhanced[0].permute(1, 2, 0).numpy()).tobytes()


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
    save_file({"00": torch.zeros(20, 3, 128, 64, dtype=torch.uint8)}, other)
    with pytest.raises(BadParameter, match="video 00 has 128x64 pixels: only 128x128 is compared"):
        preference.read_pairs(small, other)
    answers = tmp_path / "answers.txt"
    answers.write_text("00 A\n01 C\n")
    with pytest.raises(BadParameter, match='"01 C" is no answer; write a name and a letter: "07 B"'):
        preference.read_answers(answers, {"00": "A", "01": "B"})
    answers.write_text("00 A\n")
    with pytest.raises(BadParameter, match="says nothing of 01"):
        preference.read_answers(answers, {"00": "A", "01": "B"})


# -- all of it -------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_the_judge_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = referee(shape=0.5)
    monkeypatch.setattr(preference, "appoint", lambda folder, codec, device, clips: told)
    found = preference.Tally(8, 16), preference.Tally(16, 16)  # of sharpness, of faults
    monkeypatch.setattr(preference, "control", lambda given, codec, size: found if (given, size) == (told, 8) else None)
    small, large = write(tmp_path, cells=1)
    ask(small, large, tmp_path / "look", seed=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the judge is asked about place, colour, size, action, camera"
    pairs = preference.read_pairs(small, large)
    gains = [preference.gain(told, pair.asked, pair.enhanced, pair.enlarged) for pair in pairs]
    assert lines[1:4] == [f"{k:02d} {value:+.4f}  scene {k}" for k, value in enumerate(gains)]
    won = sum(value > 0 for value in gains)
    assert lines[4:] == [preference.verdict(preference.Tally(won, 3), *found, 64)]
    keys = []
    for seed in (1, 0):
        preference.draw(tmp_path / "again", pairs, seed=seed)
        keys.append((tmp_path / "again" / "key.json").read_text())
    assert (tmp_path / "look" / "key.json").read_text() == keys[0] != keys[1]
