"""Blenders beyond what every blender keeps (tests/test_conformance.py): the conventions and the published code."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from streaming.blend import (
    CrossFade,
    Naive,
    RandomizedBlending,
    SharedNoise,
    cross_fade,
    naive,
    origins_from_draws,
    randomized,
    randomized_official,
    shared_noise,
)
from streaming.keys import Key

DATA = Path(__file__).parent / "parity" / "fixtures"
sizes = st.integers(1, 12).flatmap(lambda chunk: st.tuples(st.just(chunk), st.integers(0, chunk - 1)))


def naive_origins(draws, chunk, overlap, length):
    """Frame by frame: the last chunk whose own frames have begun."""
    starts = [0]
    while starts[-1] + chunk < length:
        starts.append(min(starts[-1] + chunk - overlap, length - chunk))
    origins = []
    for frame in range(length):
        begun = [0] + [k + 1 for k, kept in enumerate(draws) if frame >= starts[k + 1] + kept]
        origins.append(max(begun))
    return origins


def test_published_origins_are_met_exactly():
    data = load_file(DATA / "st2v_blend_a.safetensors")
    for draws, origins in zip(data["out.offsets"], data["out.origin"], strict=True):
        assert torch.equal(origins_from_draws(draws, 24, 8, 88), origins)


@given(sizes, st.integers(1, 60), st.data())
def test_origins_equal_the_naive_reference(size, length, data):
    spans = Naive(chunk=size[0], overlap=size[1]).spans(length)
    overlaps = [a.stop - b.start for a, b in zip(spans, spans[1:], strict=False)]
    draws = [data.draw(st.integers(0, overlap)) for overlap in overlaps]
    origins = origins_from_draws(torch.tensor(draws, dtype=torch.int64), *size, length)
    assert origins.tolist() == naive_origins(draws, *size, length)


def test_a_wrong_number_of_draws_is_refused():
    with pytest.raises(ValueError, match="shorter|longer"):
        origins_from_draws(torch.tensor([1, 2, 3]), 24, 8, 40)


@pytest.mark.parametrize("length", [24, 25, 40, 41, 57])
def test_no_frame_is_trimmed(length):
    """The published code leaves the end of a video that does not fit as uninitialised memory."""
    assert RandomizedBlending(chunk=24, overlap=8).owners(length, Key(0)).shape == (length,)


def test_the_last_chunk_is_shifted_and_overlaps_more():
    spans = RandomizedBlending(chunk=24, overlap=8).spans(57)
    assert spans[-2:] == [range(32, 56), range(33, 57)]


def test_paper_probabilities():
    expected = torch.tensor([f / 9 for f in range(1, 9)])
    torch.testing.assert_close(randomized(24, 8).probability(), expected)


def test_official_probabilities():
    expected = torch.tensor([f / 8 for f in range(1, 9)])
    torch.testing.assert_close(randomized_official(24, 8).probability(), expected)


def kept_by_the_left(blender, draws=300):
    return {8 - int(blender.share(8, Key(draw)).sum()) for draw in range(draws)}


def test_the_paper_may_keep_the_whole_overlap():
    assert kept_by_the_left(randomized(24, 8)) == set(range(9))


def test_the_published_code_always_takes_the_last_frame_from_the_right():
    assert kept_by_the_left(randomized_official(24, 8)) == set(range(8))


def test_boundaries_are_cut_independently():
    cuts = torch.stack([torch.bincount(randomized(24, 8).owners(88, Key(k)), minlength=5) for k in range(40)])
    assert len({tuple(row) for row in cuts.tolist()}) > 35


@given(sizes, st.integers(1, 60), st.integers(0, 2**40))
def test_naive_and_shared_noise_keep_the_left_chunk(size, length, seed):
    spans = naive(*size).spans(length)
    first = [next(k for k, span in enumerate(spans) if frame in span) for frame in range(length)]
    for blender in (naive(*size), shared_noise(*size)):
        owners = blender.owners(length, Key(seed)).tolist()
        assert owners == naive_origins(
            [a.stop - b.start for a, b in zip(spans, spans[1:], strict=False)], *size, length
        )
        if size[1] * 2 <= size[0] and len(spans) < 3:
            assert owners == first


def test_cross_fade_is_the_mean_of_randomized_blending():
    torch.testing.assert_close(cross_fade(24, 8).weights(40, Key(0))[1, 16:24], randomized(24, 8).probability())


def test_cross_fade_needs_no_key():
    assert torch.equal(cross_fade(24, 8).weights(57, Key(0)), cross_fade(24, 8).weights(57, Key(1)))


@pytest.mark.parametrize(
    ("blender", "coupled", "shares_noise"),
    [
        (randomized(24, 8), True, True),
        (randomized_official(24, 8), True, True),
        (cross_fade(24, 8), True, True),
        (shared_noise(24, 8), False, True),
        (naive(24, 8), False, False),
    ],
)
def test_kinds(blender, coupled, shares_noise):
    assert (blender.coupled, blender.shares_noise) == (coupled, shares_noise)


def test_factories_give_finals_of_the_size_asked_for():
    kinds = {randomized: RandomizedBlending, naive: Naive, shared_noise: SharedNoise, cross_fade: CrossFade}
    for factory, kind in kinds.items():
        assert type(factory(6, 2)) is kind and (factory(6, 2).chunk, factory(6, 2).overlap) == (6, 2)
    assert (randomized(6, 2).convention, randomized_official(6, 2).convention) == ("paper", "official")
