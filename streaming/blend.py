"""Chunk blenders: how a long video that is enhanced in overlapping chunks stays one video [StreamingT2V §4.3]."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from streaming.errors import UserError
from streaming.keys import Key

EXTRA_CHOICES = {"paper": 1, "official": 0}
"""Frames that may come from the left: 0..O in the paper (O + 1 choices), 0..O-1 in the published code."""


@dataclass(frozen=True, kw_only=True)
class ChunkBlender(ABC):
    """Cuts a video into overlapping chunks and says, for one denoising step, which chunk each frame is taken from.

    A new blender answers four questions (the abstract members). Raises UserError for an impossible overlap.
    """

    chunk: int
    """Latent frames denoised together (paper: 24)."""
    overlap: int
    """Latent frames shared by neighbouring chunks (paper: 8)."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.chunk:
            raise UserError(
                f"chunks of {self.chunk} frames cannot overlap by {self.overlap}: "
                "choose an overlap of at least 0 and less than the chunk"
            )

    @property
    @abstractmethod
    def coupled(self) -> bool:
        """Whether neighbours agree on their predictions at every step (else each is denoised on its own)."""

    @property
    @abstractmethod
    def shares_noise(self) -> bool:
        """Whether a frame has the same noise in every chunk that covers it (else each chunk has its own)."""

    @abstractmethod
    def share(self, overlap: int, key: Key) -> Float[Tensor, " overlap"]:
        """The right chunk's weight in each frame of one overlap at one step: in [0, 1], never decreasing.

        `overlap` is `self.overlap`, or more before a last chunk that was shifted left.
        """

    @abstractmethod
    def probability(self) -> Float[Tensor, " overlap"]:
        """The right chunk's expected weight in each frame of a regular overlap: P(from it) if weights are 0 or 1.

        It holds for overlaps of at most half a chunk; with more, three chunks meet in a frame and share its weight.
        """

    def spans(self, length: int) -> list[range]:
        """The latent frames of each chunk: `chunk` of them, the last one shifted left rather than cut off.

        A video shorter than a chunk is one shorter span. Raises UserError for a video without frames.
        """
        if length < 1:
            raise UserError("a video without frames cannot be cut into chunks: give at least one frame")
        if length <= self.chunk:
            return [range(length)]
        starts = [*range(0, length - self.chunk, self.chunk - self.overlap), length - self.chunk]
        return [range(start, start + self.chunk) for start in starts]

    def owners(self, length: int, key: Key) -> Int[Tensor, " length"]:
        """The chunk from which each frame is taken at the step that `key` belongs to; never decreasing."""
        cuts = [int((share <= 0.5).sum()) for share in self._shares(self.spans(length), key)]
        return origins_from_draws(torch.tensor(cuts, dtype=torch.int64), self.chunk, self.overlap, length)

    def weights(self, length: int, key: Key) -> Float[Tensor, "chunks length"]:
        """Each chunk's weight in each frame at the step that `key` belongs to; columns sum to one."""
        spans = self.spans(length)
        weights = torch.zeros(len(spans), length)
        weights[0, : spans[0].stop] = 1
        for right, share in enumerate(self._shares(spans, key), start=1):
            span, met = spans[right], spans[right - 1].stop
            weights[:, span.start : met] *= 1 - share
            weights[right, span.start : met] = share
            weights[right, met : span.stop] = 1
        return weights

    def boundary_share(self, right: int, overlap: int, key: Key) -> Float[Tensor, " overlap"]:
        """`share` for the boundary between the chunks right - 1 and right, whose draws are its own."""
        return self.share(overlap, key.fold("boundary", right))

    def _shares(self, spans: list[range], key: Key) -> list[Float[Tensor, " _"]]:
        pairs = enumerate(zip(spans, spans[1:], strict=False), start=1)
        return [self.boundary_share(right, a.stop - b.start, key) for right, (a, b) in pairs]


@final
@dataclass(frozen=True, kw_only=True)
class RandomizedBlending(ChunkBlender):
    """A fresh random cut in each overlap at each step, left chunk before it, right one after it [StreamingT2V §4.3]."""

    convention: Literal["paper", "official"] = "paper"
    """Frames from the left: uniform on 0..overlap (paper) or on 0..overlap-1 (convention of the published code)."""

    @property
    def coupled(self) -> bool:
        """Yes."""
        return True

    @property
    def shares_noise(self) -> bool:
        """Yes."""
        return True

    def share(self, overlap: int, key: Key) -> Float[Tensor, " overlap"]:
        """0 for the frames before the cut, 1 after it."""
        choices = max(overlap + EXTRA_CHOICES[self.convention], 1)
        return (torch.arange(overlap) >= key.integers(0, choices, 1)).float()

    def probability(self) -> Float[Tensor, " overlap"]:
        """f / (O + 1) for frame f = 1..O of the paper, f / O of the published code."""
        return torch.arange(1, self.overlap + 1) / (self.overlap + EXTRA_CHOICES[self.convention])


@final
@dataclass(frozen=True, kw_only=True)
class CrossFade(ChunkBlender):
    """Predictions averaged at every step, the right chunk's weight rising linearly: the mean of randomized blending."""

    @property
    def coupled(self) -> bool:
        """Yes."""
        return True

    @property
    def shares_noise(self) -> bool:
        """Yes."""
        return True

    def share(self, overlap: int, key: Key) -> Float[Tensor, " overlap"]:
        """f / (O + 1) for frame f = 1..O, whatever the key."""
        return torch.arange(1, overlap + 1) / (overlap + 1)

    def probability(self) -> Float[Tensor, " overlap"]:
        """The weights themselves."""
        return torch.arange(1, self.overlap + 1) / (self.overlap + 1)


@final
@dataclass(frozen=True, kw_only=True)
class SharedNoise(ChunkBlender):
    """Chunks denoised on their own from common noise; the left one keeps the overlap (the paper's second baseline)."""

    @property
    def coupled(self) -> bool:
        """No."""
        return False

    @property
    def shares_noise(self) -> bool:
        """Yes."""
        return True

    def share(self, overlap: int, key: Key) -> Float[Tensor, " overlap"]:
        """0: all is the left chunk's."""
        return torch.zeros(overlap)

    def probability(self) -> Float[Tensor, " overlap"]:
        """0."""
        return torch.zeros(self.overlap)


@final
@dataclass(frozen=True, kw_only=True)
class Naive(ChunkBlender):
    """Chunks denoised on their own from their own noise, then concatenated (the paper's first baseline: seams)."""

    @property
    def coupled(self) -> bool:
        """No."""
        return False

    @property
    def shares_noise(self) -> bool:
        """No."""
        return False

    def share(self, overlap: int, key: Key) -> Float[Tensor, " overlap"]:
        """0: all is the left chunk's."""
        return torch.zeros(overlap)

    def probability(self) -> Float[Tensor, " overlap"]:
        """0."""
        return torch.zeros(self.overlap)


def origins_from_draws(
    draws: Int[Tensor, " boundaries"], chunk: int, overlap: int, length: int
) -> Int[Tensor, " length"]:
    """The chunk each frame is taken from, given how many frames of each overlap are the left chunk's.

    The published code's `random.randint` values are such draws (boundaries left to right). Raises ValueError for a
    number of draws other than the number of boundaries.
    """
    spans = Naive(chunk=chunk, overlap=overlap).spans(length)
    origins = torch.zeros(length, dtype=torch.int64)
    for right, (span, kept) in enumerate(zip(spans[1:], draws.tolist(), strict=True), start=1):
        origins[span.start + kept :] = right
    return origins


def randomized(chunk: int, overlap: int) -> RandomizedBlending:
    """Entry point `randomized`: the paper's probabilities."""
    return RandomizedBlending(chunk=chunk, overlap=overlap)


def randomized_official(chunk: int, overlap: int) -> RandomizedBlending:
    """Entry point `randomized-official`: the published code's probabilities."""
    return RandomizedBlending(chunk=chunk, overlap=overlap, convention="official")


def naive(chunk: int, overlap: int) -> Naive:
    """Entry point `naive`."""
    return Naive(chunk=chunk, overlap=overlap)


def shared_noise(chunk: int, overlap: int) -> SharedNoise:
    """Entry point `shared-noise`."""
    return SharedNoise(chunk=chunk, overlap=overlap)


def cross_fade(chunk: int, overlap: int) -> CrossFade:
    """Entry point `cross-fade`."""
    return CrossFade(chunk=chunk, overlap=overlap)
