import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.backbone import Guided
from streaming.guidance import ClassifierFree, TextThenAnchor, Unguided
from streaming.keys import Key

scales = st.floats(0, 20, width=32)
seeds = st.integers(0, 99)


def predictions(rows, seed, batch=2):
    return Key(seed).normal(rows, batch, 2, 3, 2, 2)


@given(seeds, scales, st.sampled_from(["one", "two", "three"]))
def test_equal_rows_are_a_fixed_point(seed, scale, kind):
    guidance = {"one": Unguided(), "two": ClassifierFree(scale, rescale=0.3), "three": TextThenAnchor(scale, scale)}[
        kind
    ]
    row = predictions(1, seed)
    same = row.expand(len(guidance.rows), -1, -1, -1, -1, -1)
    torch.testing.assert_close(guidance.combine(same), row[0])


@given(seeds, scales)
def test_classifier_free_is_an_extrapolation(seed, scale):
    free, bound = predictions(2, seed)
    expected = free * (1 - scale) + bound * scale
    torch.testing.assert_close(
        ClassifierFree(scale).combine(torch.stack([free, bound])), expected, atol=1e-4, rtol=1e-4
    )


def test_scale_one_is_the_conditional_row():
    rows = predictions(2, 0)
    torch.testing.assert_close(ClassifierFree(1.0).combine(rows), rows[1])


@given(seeds, st.floats(2, 20))
def test_full_rescaling_gives_the_conditional_rows_spread_for_each_video(seed, scale):
    rows = predictions(2, seed)
    result = ClassifierFree(scale, rescale=1.0).combine(rows)
    torch.testing.assert_close(result.flatten(1).std(1), rows[1].flatten(1).std(1))
    plain = ClassifierFree(scale).combine(rows)
    torch.testing.assert_close(ClassifierFree(scale, rescale=0.2).combine(rows), 0.2 * result + 0.8 * plain)


@given(seeds, scales, scales)
def test_three_rows_reduce_to_two(seed, text, anchor):
    free, prompt, both = predictions(3, seed)
    three = TextThenAnchor(text, anchor).combine(torch.stack([free, prompt, both]))
    torch.testing.assert_close(three, free + text * (prompt - free) + anchor * (both - prompt))
    nothing_of_anchor = TextThenAnchor(text, anchor).combine(torch.stack([free, prompt, prompt]))
    two = ClassifierFree(text).combine(torch.stack([free, prompt]))
    torch.testing.assert_close(nothing_of_anchor, two)


def test_rows_say_what_they_are_conditioned_on():
    off, text, both = Guided(False, False), Guided(True, False), Guided(True, True)
    assert Unguided().rows == (both,)
    assert ClassifierFree(7.5).rows == (off, both)
    assert TextThenAnchor().rows == (off, text, both)


@pytest.mark.parametrize("guidance", [Unguided(), ClassifierFree(7.5, 0.2), TextThenAnchor()])
def test_videos_of_a_batch_do_not_mix(guidance):
    rows = predictions(len(guidance.rows), 5, batch=3)
    whole = guidance.combine(rows)
    for b in range(3):
        torch.testing.assert_close(guidance.combine(rows[:, b : b + 1])[0], whole[b])
