"""What the benchmarks of the embedded models count: intervals, the judge's limits, what is kept, what is collapse."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backends.embedded import train_judge as judging
from backends.embedded.judge import Judge, JudgeConfig
from backends.world import (
    ATTRIBUTES,
    COLOURS,
    HELD_OUT,
    HIDDEN_ATTRIBUTES,
    PLAIN,
    SHAPES,
    complete_captions,
    render,
    sample_scenes,
    specified_scenes,
)
from benchmarks import clips, long_videos
from benchmarks.clips import draw_prompts
from benchmarks.first_chunks import PAIR, Answers
from benchmarks.hidden import kept, with_another_pattern
from benchmarks.intervals import mean, ratio, share
from benchmarks.judged import Referee
from benchmarks.long_videos import describe, summary
from benchmarks.looks import right, same_in_halves
from benchmarks.measures import Job, jumps, look, measured
from benchmarks.over_time import BOUNDS, collapse, draw, draw_sheet
from streaming.keys import Key


def referee(**shares: float) -> Referee:
    """An untrained judge of everything that is said to be perfect but for `shares`."""
    known = dict.fromkeys(judging.JUDGED, 1.0) | shares
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(attributes=judging.JUDGED, widths=(8, 8, 16), hidden=16)).eval()
    return Referee(judge=judge, renders=known, coded=known)


# -- intervals -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_a_share_lies_in_its_interval(prompts: int, seeds: int, chance: float, seed: int) -> None:
    hits = torch.rand(prompts, seeds, generator=Key(seed).generator()) < chance
    told = share(hits)
    assert told.value == pytest.approx(float(hits.double().mean())) and told.count == prompts * seeds
    assert 0 <= told.low <= told.value <= told.high <= 1 and told.low < told.high


def test_clips_of_one_prompt_are_not_independent() -> None:
    alike = (torch.arange(200) % 2 == 0)[:, None].expand(200, 4)  # a prompt is right for all seeds or for none
    mixed = (torch.arange(800) % 2 == 0).view(200, 4)
    assert share(alike).value == share(mixed).value == 0.5
    wide, narrow = (told.high - told.low for told in (share(alike), share(mixed)))
    assert wide == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200), rel=0.02)
    assert narrow == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 800), rel=0.02)
    sure = share(torch.ones(200, 4, dtype=torch.bool))
    assert sure.low == pytest.approx(200 / (200 + 1.96**2), abs=1e-4)  # of 200 prompts, not of 800 clips


def test_wilson_covers_the_truth() -> None:
    hits = torch.rand(500, 60, 2, generator=Key(1).generator()) < 0.9
    told = [share(each) for each in hits]
    assert 0.92 < sum(each.low <= 0.9 <= each.high for each in told) / 500 <= 0.99


def test_only_some_clips_may_count() -> None:
    hits, counted = torch.tensor([[True, False], [True, True]]), torch.tensor([[True, True], [False, False]])
    told = share(hits, counted)
    assert told.value == 0.5 and told.count == 2
    nothing = share(hits, torch.zeros_like(hits))
    assert math.isnan(nothing.value) and (nothing.low, nothing.high, nothing.count) == (0, 1, 0)


def test_a_ratio_is_of_sums_and_skips_what_is_missing() -> None:
    told = ratio([[1.0, None], [3.0, 5.0]], [[1.0, 9.0], [1.0, 1.0]], Key(0))
    assert told.value == 3.0 and told.count == 3 and told.low == 1.0 and told.high == 4.0
    assert mean([[2.0, 4.0], [None, None]], Key(0)).value == 3.0
    assert math.isnan(mean([[None]], Key(0)).value)
    spread = ratio([[float(i)] for i in range(200)], [[100.0]] * 200, Key(0))
    reach = 1.96 * (200 / math.sqrt(12)) / math.sqrt(200) / 100
    assert spread.high - spread.value == pytest.approx(reach, rel=0.1)


# -- looks ---------------------------------------------------------------------------------------------------------


def by_brightness() -> Referee:
    """A judge whose answer to everything is whether a clip's first frame is brighter than its mean."""
    seen = referee(outline=0.5)

    def classify(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = (frames[:, 0].mean((1, 2, 3)) > frames.mean((1, 2, 3, 4)) + 1e-4).long()
        return dict.fromkeys(seen.judge.config.attributes, answer)

    seen.judge.classify = classify
    return seen


def test_halves_are_played_back_and_forth() -> None:
    """The first from its end, the last from its beginning: what they share is what meets in the middle."""
    ramp = torch.linspace(0, 255, 16).to(torch.uint8)[:, None, None, None].expand(16, 3, 64, 64)
    there_and_back = torch.cat((ramp[:8], ramp[:8].flip(0)))
    shares = same_in_halves(torch.stack((ramp, there_and_back)), by_brightness())
    assert {name: told.value for name, told in shares.items()} == {"pattern": 0.5, "second_colour": 0.5}
    shares = same_in_halves(torch.stack((there_and_back,) * 3), referee())
    assert set(shares) == set(HIDDEN_ATTRIBUTES) and all(told.value == 1 for told in shares.values())


def test_right_looks() -> None:
    fading = torch.linspace(255, 0, 16).to(torch.uint8)[:, None, None, None].expand(16, 3, 64, 64)
    scenes = sample_scenes(3, Key(0).generator())
    scenes = replace(scenes, pattern=torch.tensor([1, 1, 0]), second_colour=torch.tensor([1, 0, 0]))
    shares = right(fading.expand(3, -1, -1, -1, -1), scenes, by_brightness(), ("pattern", "second_colour", "outline"))
    told = {name: (told.value, told.count) for name, told in shares.items()}
    assert told == {"pattern": (pytest.approx(2 / 3), 3), "second_colour": (pytest.approx(1 / 3), 3)}


# -- prompts and the judge -----------------------------------------------------------------------------------------


def test_complete_captions_leave_nothing_unsaid() -> None:
    fixed = {"place": "meadow", "shape": "ball", "colour": "red", "action": "rolls"}
    still = specified_scenes(Key(0).generator(), n=1, size="medium", camera="static", **fixed)
    assert complete_captions(still) == ["a medium red ball rolls over a green meadow, the camera is static"]
    moving = specified_scenes(Key(0).generator(), n=1, size="big", camera="pans left", **fixed)
    assert complete_captions(moving) == ["a big red ball rolls over a green meadow, the camera pans left"]


def test_prompts_of_held_out_pairs() -> None:
    asked = draw_prompts(60, 0, split="heldout", complete=True)
    pairs = zip(asked.scenes.shape.tolist(), asked.scenes.colour.tolist(), strict=True)
    assert {(SHAPES[shape], COLOURS[colour]) for shape, colour in pairs} == set(HELD_OUT)
    assert all("camera" in text for text in asked.texts)
    assert draw_prompts(3, 0).texts != draw_prompts(3, 0, complete=True).texts


def test_looks_that_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = draw_prompts(12, 0, told=True)
    assert asked.texts == draw_prompts(12, 0, complete=True).texts and draw_prompts(12, 0).openings is None
    patterns = HIDDEN_ATTRIBUTES["pattern"]
    for i, (opening, text) in enumerate(zip(asked.openings, asked.texts, strict=True)):
        begin, look = opening.split(" with ")
        assert patterns[int(asked.scenes.pattern[i])] in look and text.startswith(begin) and " with " not in text
    seen = []

    def record(parts, schedules, *_, **__):
        seen.extend(schedules)
        yield SimpleNamespace(frames=torch.zeros(len(schedules), 16, 3, 8, 8))

    monkeypatch.setattr(clips, "stream", record)
    monkeypatch.setattr(clips, "chunk_lengths", lambda parts, opening: (16, 8))
    list(clips.make_videos(None, asked.texts, 16, seed=0, batch=5, openings=asked.openings))
    assert [each.at(15) for each in seen] == asked.openings and [each.at(16) for each in seen] == asked.texts
    seen.clear()
    list(clips.make_videos(None, asked.texts, 16, seed=0, batch=5))
    assert [each.at(0) for each in seen] == [each.at(16) for each in seen] == asked.texts


def test_who_judges_sees_all_pairs_and_plain_objects() -> None:
    scenes = judging.some_plain(sample_scenes(2000, Key(0).generator(), split="all"), Key(1).generator())
    assert len(set(zip(scenes.shape.tolist(), scenes.colour.tolist(), strict=True))) == len(SHAPES) * len(COLOURS)
    assert (scenes.pattern == PLAIN).float().mean() == pytest.approx(judging.PLAIN_SHARE, abs=0.03)
    told = judging.labels(scenes)
    plain = scenes.pattern == PLAIN
    assert set(told) == set(judging.JUDGED)
    assert (told["pattern"] == 4).equal(plain) and (told["second_colour"] == judging.UNKNOWN).equal(plain)
    assert told["shape"].equal(scenes.shape)


def test_a_plain_object_has_one_colour() -> None:
    scenes = specified_scenes(Key(0).generator(), n=4, second_colour="cyan", colour="red", place="moon")
    kinds = [render(replace(scenes, pattern=torch.full((4,), kind)), frames=2).int() for kind in (PLAIN, 0, 1, 2, 3)]
    assert all(((kind - kinds[0]).abs().sum(dim=2) > 60).flatten(1).sum(dim=1).min() > 10 for kind in kinds[1:])
    other = replace(scenes, second_colour=torch.full((4,), 3), pattern=torch.full((4,), PLAIN))
    assert torch.equal(render(other, frames=2).int(), kinds[0])


def test_what_is_unknown_costs_nothing() -> None:
    logits = Key(0).normal(3, 4)
    known = torch.tensor([1, judging.UNKNOWN, 2])
    alone = judging._cross_entropy(logits[[0, 2]], known[[0, 2]])
    torch.testing.assert_close(judging._cross_entropy(logits, known), alone)
    assert judging._cross_entropy(logits, torch.full((3,), judging.UNKNOWN)) == 0


def test_the_judge_is_marked_where_it_knows_only_known_labels() -> None:
    judge, frames = referee().judge, torch.zeros(4, 16, 3, 64, 64, dtype=torch.uint8)
    answers = judge.classify(frames.float() / 255)
    known = {name: value.clone() for name, value in answers.items()}
    known["second_colour"] = torch.tensor([judging.UNKNOWN, judging.UNKNOWN, 99, known["second_colour"][3]])
    right = judging.share_right(judge, frames, known)
    assert right["second_colour"] == 0.5 and right["shape"] == 1


def test_an_attribute_that_the_judge_misreads_is_not_judged() -> None:
    asked = draw_prompts(5, 0)
    found = {name: asked.scenes.attribute(name)[:, None].repeat(1, 2) for name in ATTRIBUTES}
    found["shape"][0, 0] += 1
    answers = Answers(asked=asked, found=found)
    shares = answers.shares(referee(camera=0.949))
    assert set(shares) == {*ATTRIBUTES, PAIR} - {"camera"}
    assert shares["shape"].value == shares[PAIR].value == 0.9 and shares["colour"].value == 1
    assert PAIR not in answers.shares(referee(shape=0.5))
    words = answers.by_word("shape")
    first = SHAPES[int(asked.scenes.shape[0])]
    assert words.pop(first) < 1 and set(words.values()) <= {1.0}


# -- long videos ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [False, True])
def test_first_chunks_are_asked_for_looks_if_they_are_told(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def make_videos(parts, texts, frames, *, seed, batch, openings) -> list[torch.Tensor]:
        raise Asked(openings)

    monkeypatch.setattr(long_videos, "make_videos", make_videos)
    monkeypatch.setattr(long_videos, "appoint", lambda *_, **__: referee())
    with pytest.raises(Asked) as found:
        long_videos.main(model="toy-unet", prompts=3, short_term="none", long_term="none", told=told)
    assert found.value.args == (draw_prompts(3, 0, told=told).openings,)


def test_a_hidden_pattern_is_kept_or_not() -> None:
    names = ("pattern", "second_colour", "outline")
    first = {name: torch.tensor([[0, 1], [2, 4], [3, 3]]) for name in names}  # one video's object is plain
    last = {name: torch.tensor([[0, 2], [2, 4], [3, 3]]) for name in names}
    told = kept(first, last, referee(outline=0.9))
    assert set(told) == {"pattern", "second_colour"}
    assert told["pattern"].shown.value == pytest.approx(5 / 6)
    assert told["pattern"].kept.value == pytest.approx(4 / 5) and told["pattern"].kept.count == 5
    # First 0 1 2 3 3 against last 0 2 2 3 3 of other videos: the 1 and 2 agree once, both 3 once each.
    assert told["pattern"].chance == pytest.approx(3 / 20)
    assert kept(first, last, referee(pattern=0.9)) == {}


def test_another_pattern_is_another() -> None:
    scenes = sample_scenes(20, Key(0).generator())
    other = with_another_pattern(scenes)
    assert (other.pattern != scenes.pattern).all() and other.pattern.max() <= 3 and other.shape.equal(scenes.shape)


def test_jumps_at_borders_are_found_and_renders_have_none() -> None:
    scenes = specified_scenes(Key(2).generator(), n=4, action="floats", colour="red", camera="static", place="moon")
    calm = render(scenes, frames=48)
    torn = torch.cat(
        [calm[:, :16], *(part.roll(6 * (i % 2), dims=-1) for i, part in enumerate(calm[:, 16:].split(8, 1), 1))], 1
    )

    def figure(videos: torch.Tensor) -> float:
        rows = [jumps(video, 16, 8, "red") for video in videos]
        assert all(row["object_found"] == 1 for row in rows)
        return ratio([[r["object_jump_border"]] for r in rows], [[r["object_jump_inside"]] for r in rows], Key(0)).value

    assert 0.85 < figure(calm) < 1.15 and figure(torn) > 3


def test_rows_and_figures_of_videos() -> None:
    asked = draw_prompts(2, 0)
    videos = list(render(asked.scenes, frames=56)) * 2
    told = describe(asked, videos, referee(), seeds=2, first=16, stride=8, workers=1)
    assert [(row["prompt"], row["seed"]) for row in told] == [(t, s) for s in (0, 1) for t in asked.texts]
    assert all(row["asked"]["shape"] in row["prompt"] and row["cuts"] == 0 for row in told)
    for row in told:
        row["judge"]["last"] |= row["asked"]
    figures = summary(told, referee(), prompts=2)
    assert figures["last chunk: colour + shape"].value == 1 and figures["last chunk: place"].count == 4
    assert figures["border/inside"].value == pytest.approx(1, abs=0.5)
    assert 0 <= figures["first chunk: shape"].value <= 1
    assert {name for name in figures if name.endswith("end/start")} == {
        f"{name}, end/start" for name in ("brightness", "contrast", "saturation", "motion", "sharpness")
    }


def test_processes_find_the_same() -> None:
    video = render(specified_scenes(Key(0).generator(), n=1, colour="blue"), frames=56)[0]
    jobs = [Job(video=video, first=16, stride=8, colour="blue")]
    [here], [there] = measured(jobs, 1), measured(jobs, 2)
    assert set(here) == set(there) >= {"cuts", "border", "object_found", "start", "end"}
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-5), name


def test_looks() -> None:
    flat = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    told = look(flat)
    assert (told.brightness, told.contrast, told.saturation, told.motion, told.sharpness) == (100, 0, 0, 0, 0)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("end", [0, 1])
def test_collapse_is_leaving_the_bounds(name: str, end: int) -> None:
    rows = [{"frame": 100 * i, **dict.fromkeys(BOUNDS, 10.0), "judge": {"place": "moon"}} for i in range(4)]
    assert collapse(rows, "moon") is None
    assert collapse(rows, "snow") == "moon in place of snow from frame 0 on"
    rows[2][name] = 10.0 * BOUNDS[name][end]
    assert collapse(rows, "moon") is None
    rows[2][name] *= (0.99, 1.01)[end]
    assert str(collapse(rows, "moon")).startswith(f"{name} ") and "from frame 200 on, 10 at" in str(
        collapse(rows, "moon")
    )


def test_pictures_are_drawn(tmp_path) -> None:
    rows = [
        [{"frame": 100 * i, **dict.fromkeys(BOUNDS, 10.0), "anchor distance": 0.1,
          "judge": {"place": "moon", "pattern": "core"}} for i in range(3)]
    ]  # fmt: skip
    draw(tmp_path / "plot.png", rows, [{"place": "moon"}], "title")
    draw_sheet(tmp_path / "sheet.png", [torch.zeros(300, 3, 8, 8, dtype=torch.uint8)], ["a prompt"])
    with Image.open(tmp_path / "plot.png") as plot, Image.open(tmp_path / "sheet.png") as sheet:
        assert plot.size[0] > 500 and sheet.size == (4 * 10, 8 + 2 + 14)


def test_too_short_to_be_followed(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.long_videos", "--frames", "99", "--over-time", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and "--over-time needs at least 100 frames, not 99" in " ".join(ran.stderr.split())
