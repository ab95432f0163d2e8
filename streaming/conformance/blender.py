"""What every chunk blender keeps."""
# ruff: noqa: D102 - the names of tests are sentences

from abc import ABC, abstractmethod

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import Int
from torch import Tensor

from streaming.blend import ChunkBlender
from streaming.errors import UserError
from streaming.keys import Key

calm = settings(
    deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.differing_executors]
)
sizes = st.integers(1, 12).flatmap(lambda chunk: st.tuples(st.just(chunk), st.integers(0, chunk - 1)))
seeds = st.integers(0, 2**40)


class BlenderConformance(ABC):
    """Subclass it as `TestMine` and define `make`."""

    @abstractmethod
    def make(self, chunk: int, overlap: int) -> ChunkBlender:
        """The blender under test, for the sizes given."""

    @calm
    @given(sizes, st.integers(1, 60))
    def test_spans_cover_every_frame_with_whole_chunks(self, size: tuple[int, int], length: int) -> None:
        chunk, overlap = size
        spans = self.make(*size).spans(length)
        assert {frame for span in spans for frame in span} == set(range(length))
        assert all(len(span) == min(chunk, length) for span in spans)
        assert all(b.start - a.start == chunk - overlap for a, b in zip(spans[:-2], spans[1:-1], strict=True))
        assert all(0 < b.start - a.start <= chunk - overlap for a, b in zip(spans, spans[1:], strict=False))

    def test_a_video_without_frames_is_refused(self) -> None:
        with pytest.raises(UserError, match="without frames"):
            self.make(4, 1).spans(0)

    @pytest.mark.parametrize("overlap", [-1, 4, 5])
    def test_an_impossible_overlap_is_refused(self, overlap: int) -> None:
        with pytest.raises(UserError, match=f"chunks of 4 frames cannot overlap by {overlap}"):
            self.make(4, overlap)

    @calm
    @given(sizes, st.integers(1, 60), seeds)
    def test_owners_are_monotone_and_cover_their_frames(self, size: tuple[int, int], length: int, seed: int) -> None:
        blender = self.make(*size)
        spans, owners = blender.spans(length), blender.owners(length, Key(seed)).tolist()
        assert len(owners) == length
        assert all(frame in spans[owner] for frame, owner in enumerate(owners))
        assert owners == sorted(owners)

    @calm
    @given(sizes, st.integers(1, 60), seeds)
    def test_weights_are_shares_of_the_chunks_that_cover(self, size: tuple[int, int], length: int, seed: int) -> None:
        blender = self.make(*size)
        weights = blender.weights(length, Key(seed))
        covered = torch.tensor([[frame in span for frame in range(length)] for span in blender.spans(length)])
        assert weights.shape == covered.shape
        assert bool(((weights >= 0) & (weights <= 1)).all())
        assert bool((weights[~covered] == 0).all())
        torch.testing.assert_close(weights.sum(dim=0), torch.ones(length))

    @calm
    @given(sizes, st.integers(1, 60), seeds)
    def test_weights_and_owners_agree(self, size: tuple[int, int], length: int, seed: int) -> None:
        blender = self.make(*size)
        weights, owners = blender.weights(length, Key(seed)), blender.owners(length, Key(seed))
        whole = weights.amax(dim=0) == 1
        assert torch.equal(weights.argmax(dim=0)[whole], owners[whole])

    @calm
    @given(sizes, st.integers(1, 60), seeds, seeds)
    def test_outside_overlaps_the_key_does_not_matter(
        self, size: tuple[int, int], length: int, one: int, other: int
    ) -> None:
        blender = self.make(*size)
        alone = _coverage(blender, length) == 1
        assert torch.equal(blender.owners(length, Key(one))[alone], blender.owners(length, Key(other))[alone])
        assert torch.equal(blender.weights(length, Key(one))[:, alone], blender.weights(length, Key(other))[:, alone])

    @calm
    @given(sizes, st.integers(1, 60), seeds)
    def test_chunks_that_agree_are_left_alone(self, size: tuple[int, int], length: int, seed: int) -> None:
        blender = self.make(*size)
        video = Key(seed).fold("video").normal(length)
        blended = (blender.weights(length, Key(seed)) * video).sum(dim=0)
        torch.testing.assert_close(blended, video)

    @calm
    @given(sizes, st.integers(1, 60), seeds)
    def test_the_same_key_gives_the_same(self, size: tuple[int, int], length: int, seed: int) -> None:
        once, again = self.make(*size), self.make(*size)
        assert torch.equal(once.owners(length, Key(seed)), again.owners(length, Key(seed)))
        assert torch.equal(once.weights(length, Key(seed)), again.weights(length, Key(seed)))

    @calm
    @given(sizes, st.integers(1, 30), seeds)
    def test_an_overlap_is_cut_the_same_however_long_the_video(
        self, size: tuple[int, int], length: int, seed: int
    ) -> None:
        chunk, overlap = size
        blender, stride = self.make(*size), chunk - overlap
        short, long = chunk + stride, chunk + stride * (1 + length)
        shared = short - overlap
        assert torch.equal(blender.owners(short, Key(seed))[:shared], blender.owners(long, Key(seed))[:shared])

    @calm
    @given(sizes, st.integers(0, 12), seeds)
    def test_the_right_chunks_share_never_decreases(self, size: tuple[int, int], overlap: int, seed: int) -> None:
        share = self.make(*size).share(overlap, Key(seed))
        assert share.shape == (overlap,)
        assert bool(((share >= 0) & (share <= 1)).all())
        assert torch.equal(share, share.sort().values)

    @pytest.mark.parametrize(("chunk", "overlap"), [(24, 8), (8, 4), (5, 1), (6, 0)])
    def test_probability_is_what_is_drawn(self, chunk: int, overlap: int) -> None:
        """Over fixed keys, within six standard deviations of a binomial (weights in [0, 1] spread less than it).

        Overlaps are at most half a chunk, where no more than two chunks meet.
        """
        blender, draws = self.make(chunk, overlap), 600
        met = slice(chunk - overlap, chunk)
        right = sum(blender.weights(2 * chunk - overlap, Key(draw))[1, met] for draw in range(draws)) / draws
        expected = blender.probability()
        assert expected.shape == (overlap,)
        bound = 6 * (expected * (1 - expected) / draws).sqrt() + 1e-5
        assert bool(((right - expected).abs() <= bound).all())


def _coverage(blender: ChunkBlender, length: int) -> Int[Tensor, " length"]:
    covered = torch.zeros(length, dtype=torch.int64)
    for span in blender.spans(length):
        covered[span.start : span.stop] += 1
    return covered
