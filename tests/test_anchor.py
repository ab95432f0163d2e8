"""When the anchor is renewed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.anchor import AtChunks, OnPromptChange, OnSceneChange, colour_distance
from streaming.errors import UserError
from streaming.keys import Key
from streaming.prompts import PromptSchedule
from tests.toys import run, toy


def test_the_anchor_is_renewed_after_the_chunk_with_another_prompt():
    kit = toy(anchors=OnPromptChange())
    chunks = run(kit, 6, PromptSchedule.of({0: "a", 7: "b"}))  # chunk 3 begins at frame 8
    anchors = [chunk.checkpoint.anchor for chunk in chunks]
    first, last = chunks[0].frames[:, :1], chunks[3].frames[:, -1:]
    assert [torch.equal(anchor, first) for anchor in anchors] == [True, True, True, False, False, False]
    assert all(torch.equal(anchor, last) for anchor in anchors[3:])
    assert len(kit.long.anchors) == 2 and torch.equal(kit.long.anchors[1], last)


def test_a_prompt_may_change_as_early_as_in_the_second_chunk():
    """The first chunk is longer than the later ones, so its beginning is not found as theirs is."""
    kit = toy(anchors=OnPromptChange())
    chunks = run(kit, 5, PromptSchedule.of({0: "a", 4: "b"}))  # chunk 1 begins at frame 4
    assert chunks[0].checkpoint.frames_done == 4
    assert torch.equal(chunks[0].checkpoint.anchor, chunks[0].frames[:, :1])
    assert all(torch.equal(chunk.checkpoint.anchor, chunks[1].frames[:, -1:]) for chunk in chunks[1:])


def test_the_user_may_name_chunks():
    chunks = run(toy(anchors=AtChunks(frozenset({1, 3}))), 5)
    expected = [chunks[0].frames[:, :1], *[chunks[i].frames[:, -1:] for i in (1, 1, 3, 3)]]
    assert all(torch.equal(c.checkpoint.anchor, frame) for c, frame in zip(chunks, expected, strict=True))
    with pytest.raises(UserError, match="an anchor at chunk 0: later chunks count from 1"):
        AtChunks(frozenset({0}))


def test_a_scene_change_is_a_change_of_colours_not_of_places():
    day, night = torch.full((1, 1, 3, 8, 8), 0.9), torch.full((1, 1, 3, 8, 8), 0.1)
    half = torch.cat([day[..., :4], night[..., :4]], -1)
    assert colour_distance(day, day) == 0 and colour_distance(half, half.flip(-1)) == 0
    assert colour_distance(day, night) == pytest.approx(1) and colour_distance(day, half) == pytest.approx(0.5)
    policy = OnSceneChange(0.6)
    assert policy.renew(day, torch.cat([day, half], 1), 3, False) is None
    assert torch.equal(policy.renew(day, torch.cat([day, night], 1), 3, False), night)
    assert OnSceneChange(0.5).renew(day, half, 3, False) is None  # at the threshold, not beyond it
    for wrong in (0.0, 1.5):
        with pytest.raises(UserError, match=f"a scene-change threshold of {wrong}: choose more than 0 and at most 1"):
            OnSceneChange(wrong)


@given(st.integers(0, 99), st.integers(0, 99))
def test_colour_distance_is_symmetric_and_between_0_and_1(left, right):
    a, b = (Key(seed).normal(1, 2, 3, 4, 4).sigmoid() for seed in (left, right))
    assert colour_distance(a, b) == pytest.approx(colour_distance(b, a))
    assert 0 <= colour_distance(a, b) <= 1 + 1e-6
