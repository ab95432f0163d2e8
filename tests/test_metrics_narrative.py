"""The narrative score: does each segment fit its own prompt best, are the prompts told in order; in one pass."""

import json
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.world import canonical_captions, render, specified_scenes
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import How, Narrative, evaluate_stream
from streaming.metrics.clip import ClipEncoder
from streaming.metrics.clip_registry import make_clip
from streaming.metrics.contract import Observation, Tools
from streaming.metrics.narrative import NUMBERS, narrative_score
from streaming.prompts import PromptSchedule
from tests.test_metrics_contract import MeanColour, noise

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
STORY = PromptSchedule.of({0: "a red thing", 6: "a green thing", 13: "a blue thing"})


def plain(colour, frames):
    return torch.tensor(COLOURS[colour], dtype=torch.uint8).view(1, 3, 1, 1).expand(frames, 3, 8, 8)


def told(*parts):
    """A video of plain colours: (colour, frames) after each other."""
    return torch.cat([plain(*part) for part in parts])


def score(video, prompts=STORY, clip=None, **settings):
    return narrative_score([video[None]], prompts, clip or MeanColour(), **settings)


def naive(video, prompts, clip, settle=0, piece=8):
    """The definition, with all embeddings at hand."""
    images, entries = clip.images(video).double(), prompts.entries
    images /= images.norm(dim=1, keepdim=True)
    texts = list(dict.fromkeys(text for _, text in entries))
    known = clip.texts(texts).double()
    known /= known.norm(dim=1, keepdim=True)
    segments, pieces = [], []
    ends = [*(frame for frame, _ in entries[1:]), len(video)]
    for i, ((start, text), end) in enumerate(zip(entries, ends, strict=True)):
        start += settle if i else 0
        own = texts.index(text)
        fits = [100 * float(images[start:end].mean(0) @ each) for each in known]
        others = [fit for j, fit in enumerate(fits) if j != own]
        segments.append((fits[own], fits[own] - max(others)))
        for first in range(start, end, piece):
            fits = images[first : min(first + piece, end)].mean(0) @ known.T
            pieces.append((own, int(fits.argmax())))
    pairs = [(a, b) if a[0] < b[0] else (b, a) for a, b in combinations(pieces, 2) if a[0] != b[0]]
    return {
        "fit": fmean(fit for fit, _ in segments),
        "margin": fmean(margin for _, margin in segments),
        "accuracy": fmean(margin > 0 for _, margin in segments),
        "order": fmean((b[1] > a[1]) - (b[1] < a[1]) for a, b in pairs),
    }


@given(st.integers(0, 999), st.integers(0, 3), st.integers(1, 9), st.sampled_from([17, 30]))
def test_the_scores_equal_the_definition(seed, settle, piece, frames):
    video = noise(frames, 4, 5, seed)
    found = score(video, settle=settle, piece=piece)
    expected = naive(video, STORY, MeanColour(), settle, piece)
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, abs=1e-3)
    assert [(s.start, s.frames) for s in found.segments] == [
        (0, 6),
        (6 + settle, 7 - settle),
        (13 + settle, frames - 13 - settle),
    ]


def test_a_story_told_as_asked():
    found = score(told(("red", 6), ("green", 7), ("blue", 5)))
    assert found.accuracy == found.order == 1 and found.fit and found.fit > 98
    assert found.margin and found.margin > 80
    assert [each.best for each in found.segments] == [each.prompt for each in found.segments]


def test_told_backwards():
    found = score(told(("blue", 6), ("green", 7), ("red", 5)), piece=4)
    assert found.order == -1 and found.accuracy == pytest.approx(1 / 3)
    assert [each.best for each in found.segments] == ["a blue thing", "a green thing", "a red thing"]


def test_a_video_that_stays_with_its_first_prompt_is_not_in_order():
    found = score(told(("red", 18)))
    assert found.order == 0 and found.accuracy == pytest.approx(1 / 3) and found.margin and found.margin < 0


def test_frames_right_after_a_change_can_be_left_out():
    late = told(("red", 9), ("green", 7), ("blue", 5))  # three frames behind its schedule
    assert score(late, piece=1).order != 1
    found = score(late, settle=3, piece=1)
    assert found.order == found.accuracy == 1
    assert [(each.start, each.frames) for each in found.segments] == [(0, 6), (9, 4), (16, 5)]


def test_a_prompt_that_returns():
    prompts = PromptSchedule.of({0: "red", 6: "green", 12: "red"})
    found = score(told(("red", 6), ("green", 6), ("red", 6)), prompts)
    assert found.order == found.accuracy == 1 and len(found.segments) == 3
    stuck = score(told(("red", 6), ("green", 12)), prompts)
    assert stuck.accuracy == pytest.approx(2 / 3) and stuck.order == pytest.approx(1 / 2)


@pytest.mark.parametrize("prompts", [{0: "a red thing"}, {0: "red", 6: "red"}])
def test_without_two_different_prompts_there_is_no_narrative(prompts):
    found = score(told(("red", 18)), PromptSchedule.of(prompts))
    assert (found.fit, found.margin, found.accuracy, found.order) == (None,) * 4
    assert [each.best for each in found.segments] == [text for text in prompts.values()]


@pytest.mark.parametrize(("frames", "settle", "reached"), [(13, 0, 2), (14, 0, 3), (14, 1, 2), (3, 0, 1)])
def test_a_video_that_ends_too_early_has_no_score(frames, settle, reached):
    """Else the shortest video would be the best one."""
    found = score(told(("red", 6), ("green", 7), ("blue", 5))[:frames], settle=settle)
    assert len(found.segments) == reached and (found.accuracy is None) == (reached < 3)


def test_an_encoder_that_sees_nothing_gives_no_credit():
    @final
    @dataclass(frozen=True, kw_only=True)
    class Blind(ClipEncoder):
        def images(self, frames):
            return torch.ones(len(frames), 2)

        def texts(self, prompts):
            return torch.ones(len(prompts), 2)

    found = score(told(("red", 18)), clip=Blind())
    assert found.accuracy == 0 and found.order == 0 and found.margin == 0
    assert all(each.best != each.prompt for each in found.segments)


@given(st.integers(0, 99), st.integers(1, 20))
def test_pieces_of_the_file_do_not_matter(seed, step):
    video = noise(20, 4, 5, seed)
    pieces = [part[None] for part in video.split(step)]
    assert narrative_score(pieces, STORY, MeanColour()) == score(video)


def test_it_runs_in_the_pass_of_an_evaluation():
    metric = Narrative(prompts=STORY, settle=1, piece=4)
    video = told(("red", 6), ("blue", 7), ("blue", 5))
    found = evaluate_stream([video[None]], [metric], How(clip=MeanColour()))
    alone = score(video, settle=1, piece=4)
    assert found.numbers == {name: getattr(alone, name.removeprefix("narrative_")) for name in NUMBERS}
    assert found.settings["metrics"] == [
        {
            "kind": "Narrative",
            "prompts": [[0, "a red thing"], [6, "a green thing"], [13, "a blue thing"]],
            "settle": 1,
            "piece": 4,
        }
    ]
    margins = found.series["narrative_margin"].points
    assert len(margins) == 18 and min(margins[:6]) > 0 > max(margins[6:13]) and min(margins[13:]) > 0
    json.loads(found.to_json())


def test_memory_does_not_grow_with_the_video():
    meter = Narrative(prompts=STORY).start(Tools(clip=MeanColour()))

    frame, embeddings = noise(1)[0], torch.nn.functional.normalize(Key(0).normal(7, 3).abs() + 0.01, dim=1)
    sizes = []
    for index in range(9000):
        meter.add(Observation(index=index, shown=frame, frame=frame, embedding=embeddings[index % 7]))
        if index in (100, 8999):
            curve = len(meter.curves()["narrative_margin"].points)
            sizes.append((curve, sum(meter._places.values()), len(meter._places), len(meter.score().segments)))
    assert sizes[0][0] == 101 and sizes[1][0] <= 4096  # the curve gets coarser
    assert sizes[1][1] > 1000 and sizes[1][2] <= 9 and sizes[1][3] == 3


def test_the_embedded_worlds_clip_follows_a_story():
    """Rendered scenes in the order of their prompts, and in the other order."""
    scenes = [specified_scenes(Key(i).generator(), n=1, **asked) for i, asked in enumerate(ASKED)]
    texts = [canonical_captions(scene)[0] for scene in scenes]
    clips = [render(scene, frames=8)[0] for scene in scenes]
    prompts, clip = PromptSchedule.of({8 * i: text for i, text in enumerate(texts)}), make_clip("embedded")
    good, bad = (score(torch.cat(part), prompts, clip, piece=4) for part in (clips, clips[::-1]))
    assert good.accuracy == good.order == 1 and good.margin is not None and bad.margin is not None
    assert bad.order == -1 and bad.margin < 0 < good.margin


ASKED = (
    dict(place="meadow", shape="ball", colour="red"),
    dict(place="city at night", shape="star", colour="yellow"),
    dict(place="ocean", shape="cube", colour="purple"),
)


@pytest.mark.parametrize(
    ("settings", "wording"),
    [
        ({"piece": 0}, "pieces of 0 frames, 0 to settle: at least 1, and 0 or more"),
        ({"settle": -1}, "pieces of 8 frames, -1 to settle"),
        (
            {"settle": 7},
            "the prompt at frame 6 holds for 7 frames only, up to 'a blue thing', and 7 are left out for it to settle",
        ),
    ],
)
def test_settings_that_cannot_be(settings, wording):
    with pytest.raises(UserError, match=wording):
        Narrative(prompts=STORY, **settings)


def test_without_a_clip_model_one_line_says_so():
    with pytest.raises(UserError, match="Narrative needs a CLIP model: choose one, or leave Narrative out"):
        evaluate_stream([noise(3)[None]], [Narrative(prompts=STORY)], How())


def test_the_benchmark_scores_as_the_library_does():
    from benchmarks.anchor_narrative import _scores

    video = told(("red", 6), ("blue", 7), ("green", 5))
    found = _scores(video[None], STORY, MeanColour(), (0, 2), 4)
    assert found == [score(video, settle=settle, piece=4) for settle in (0, 2)]


def test_the_benchmarks_pairs_are_schedules(capsys):
    from benchmarks.anchor_narrative import _mean_of, _report

    def one(policy, place, seed, value):
        scores = dict.fromkeys(("fit", "margin", "accuracy", "order"), value)
        return {"anchor": policy, "schedule": place, "seed": seed, "settle 0": scores}

    videos = [one("fixed", place, seed, place + seed) for place in range(7) for seed in range(2)]
    videos += [one("renewed", place, seed, 3.0 * place + seed) for place in range(7) for seed in range(2)]
    assert _mean_of(videos, "renewed", 2, 0, "fit") == 6.5
    found = _report(videos, 0, 7)["narrative_fit"]
    assert found["pairs"] == 7 and found["means"] == (3.5, 9.5) and found["p"] == 2 / 2**6  # one pair does not differ
    assert "| narrative_fit | 3.500 | 9.500 | +6.000 |" in capsys.readouterr().out
    videos[0]["settle 0"]["fit"] = None
    assert _mean_of(videos, "fixed", 0, 0, "fit") is None
