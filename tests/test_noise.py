"""Where random numbers come from: keys as ever, and one generator against a naive one that simply goes on drawing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import streaming.noise
from streaming.keys import Key
from streaming.noise import Keyed, Noise, OneGenerator, Shape

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
KEY = Key(4).fold("video", 0)


def naive(seed: int, chunks: int, steps: int, shape: Shape) -> dict[tuple[int, int | None], torch.Tensor]:
    """Starts (step None) and steps of chunks 1, 2 ..., from a generator that is seeded once."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    channels, frames, high, wide = shape
    for index in range(1, chunks + 1):
        drawn[index, None] = torch.randn(1, *shape, generator=generator)
        for step in range(steps):
            by_frame = torch.randn(frames, channels, high, wide, generator=generator)
            drawn[index, step] = torch.stack([by_frame[:, c] for c in range(channels)])[None]
    return drawn


def ask(noise: Noise, index: int, step: int | None, steps: int, shape: Shape) -> torch.Tensor:
    return noise.start(KEY, index, steps, shape) if step is None else noise.step(KEY, index, step, steps, shape)


@given(seed=st.integers(0, 2**40), chunks=st.integers(1, 4), steps=st.integers(1, 5), shape=SHAPES, data=st.data())
def test_one_generator_equals_a_naive_one_in_any_order(seed, chunks, steps, shape, data):
    """Sizes of fewer than 16 numbers and of others than multiples of 16, which torch draws otherwise, included."""
    expected = naive(seed, chunks, steps, shape)
    order = data.draw(st.permutations(sorted(expected, key=str)))
    for index, step in order:
        assert torch.equal(ask(OneGenerator(seed), index, step, steps, shape), expected[index, step])


@pytest.mark.parametrize("kept", [1, 2, 64])
def test_what_is_remembered_only_saves_time(kept, monkeypatch):
    shape = (2, 3, 2, 4)
    expected = naive(33, 4, 3, shape)
    monkeypatch.setattr(streaming.noise, "_KEPT", kept)
    monkeypatch.setattr(streaming.noise, "_positions", {})
    for (index, step), value in [*expected.items(), *reversed(expected.items())]:
        assert torch.equal(ask(OneGenerator(), index, step, 3, shape), value)
        assert len(streaming.noise._positions) <= kept
    streaming.noise._positions.clear()  # as after a restart
    assert torch.equal(OneGenerator().step(KEY, 3, 1, 3, shape), expected[3, 1])


def test_going_on_draws_nothing_twice(monkeypatch):
    """Also with several videos, whose steps are drawn side by side."""
    calls, real = [], torch.randn
    monkeypatch.setattr(streaming.noise, "_positions", {})
    monkeypatch.setattr(torch, "randn", lambda *size, **more: calls.append(size) or real(*size, **more))
    for index in (1, 2, 3):
        for step in (None, 0, 1, 2):
            ask(OneGenerator(), index, step, 3, (2, 2, 2, 2))
    assert len(calls) == 12
    for step in (None, 0, 1, 2):
        for _ in range(5):
            ask(OneGenerator(), 4, step, 3, (2, 2, 2, 2))
    assert len(calls) == 12 + 4 * 5


def test_the_published_seed_is_the_default_and_the_key_plays_no_part():
    one, other = OneGenerator(), OneGenerator(33)
    shape = (2, 3, 4, 4)
    assert one == other != OneGenerator(34)
    for noise in (one.start(KEY, 2, 3, shape), other.start(Key(99), 2, 3, shape)):
        assert torch.equal(noise, naive(33, 2, 3, shape)[2, None])


def test_the_first_chunk_takes_nothing_from_the_generator():
    shape, noise = (2, 3, 4, 4), OneGenerator()
    assert torch.equal(noise.start(KEY, 0, 3, shape), Keyed().start(KEY, 0, 3, shape))
    assert torch.equal(noise.step(KEY, 0, 2, 3, shape), Keyed().step(KEY, 0, 2, 3, shape))
    assert torch.equal(noise.start(KEY, 1, 3, shape), naive(33, 1, 3, shape)[1, None])


@given(index=st.integers(0, 9), step=st.integers(0, 9), steps=st.integers(1, 50))
def test_keyed_draws_are_named(index, step, steps):
    shape, key = (2, 3, 2, 2), KEY
    assert torch.equal(Keyed().start(key, index, steps, shape)[0], key.fold("chunk", index, "start").normal(*shape))
    assert torch.equal(
        Keyed().step(key, index, step, steps, shape)[0], key.fold("chunk", index, "step", step).normal(*shape)
    )


@pytest.mark.parametrize("noise", [Keyed(), OneGenerator()])
def test_global_state_is_neither_read_nor_changed(noise):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = noise.start(KEY, 1, 2, (1, 2, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(noise.start(KEY, 1, 2, (1, 2, 3, 4)), first)
    torch.set_rng_state(before)
