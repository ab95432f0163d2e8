"""Where a rollout's random numbers come from: keys that name them, or one generator for the whole video."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.keys import Key
from streaming.types import Latents

Shape: TypeAlias = tuple[int, int, int, int]
"""Latents of one video's chunk: channels, frames, high, wide."""


class Noise(ABC):
    """A pure function of its own fields and the arguments, so a resumed run draws what the unbroken one drew."""

    @abstractmethod
    def start(self, key: Key, index: int, steps: int, shape: Shape) -> Latents:
        """Standard normal noise [1, *shape] that a chunk's trajectory begins with, float32 on the CPU.

        key: the video's own. index: the chunk's number, 0 for the opening. steps: denoising steps of every chunk.
        """

    @abstractmethod
    def step(self, key: Key, index: int, step: int, steps: int, shape: Shape) -> Latents:
        """Standard normal noise [1, *shape] that the solver adds after evaluation `step` (from 0) of a chunk."""


@final
@dataclass(frozen=True)
class Keyed(Noise):
    """Every draw has a name below the video's key; nothing depends on what was drawn before."""

    def start(self, key: Key, index: int, steps: int, shape: Shape) -> Latents:
        """From `key.fold("chunk", index, "start")`."""
        return key.fold("chunk", index, "start").normal(*shape)[None]

    def step(self, key: Key, index: int, step: int, steps: int, shape: Shape) -> Latents:
        """From `key.fold("chunk", index, "step", step)`."""
        return key.fold("chunk", index, "step", step).normal(*shape)[None]


@final
@dataclass(frozen=True)
class OneGenerator(Noise):
    """One CPU generator, seeded once, for all chunks of a video after the first (convention of the published code).

    A chunk draws its starting latents [channels, frames, ...] and then, after each evaluation, noise that is
    FRAME-major [frames, channels, ...]. The key plays no part in that: like the published code, which makes one video
    at a time, every video of a batch gets the same numbers. The first chunk takes nothing from the generator; if it
    needs numbers they are those of `Keyed`, so the seed of the run decides how a video begins.
    """

    seed: int = 33
    """The published code's, whatever seed its command line is given."""

    def start(self, key: Key, index: int, steps: int, shape: Shape) -> Latents:
        """The first draw of the chunk."""
        if index == 0:
            return Keyed().start(key, index, steps, shape)
        return _draw(self.seed, shape, (index - 1) * (steps + 1)).view(1, *shape)

    def step(self, key: Key, index: int, step: int, steps: int, shape: Shape) -> Latents:
        """The draw after evaluation `step`."""
        if index == 0:
            return Keyed().step(key, index, step, steps, shape)
        channels, frames, high, wide = shape
        drawn = _draw(self.seed, shape, (index - 1) * (steps + 1) + 1 + step)
        return drawn.view(1, frames, channels, high, wide).transpose(1, 2)


_KEPT = 64
"""Positions of generators that are remembered (5 kB each)."""
_positions: dict[tuple[int, int, int], Tensor] = {}
"""A generator's state by seed, numbers in a draw, and draws made before. Only saves time: all can be computed."""


def _draw(seed: int, shape: Shape, number: int) -> Float[Tensor, " numbers"]:
    """Draw `number` (from 0) of a sequence of equally large ones."""
    size = torch.Size(shape).numel()
    known = [made for s, n, made in tuple(_positions) if (s, n) == (seed, size) and made <= number]
    generator, begin = torch.Generator("cpu").manual_seed(seed), 0
    if known and (state := _positions.get((seed, size, max(known)))) is not None:
        generator.set_state(state)
        begin = max(known)
    for _ in range(begin, number):  # one by one: how much a draw takes from the generator depends on its size
        torch.randn(size, generator=generator)
    _remember((seed, size, number), generator)
    drawn = torch.randn(size, generator=generator)
    _remember((seed, size, number + 1), generator)
    return drawn


def _remember(position: tuple[int, int, int], generator: torch.Generator) -> None:
    """Keeps a state as the youngest, drops the oldest."""
    _positions.pop(position, None)
    _positions[position] = generator.get_state()
    for old in tuple(_positions)[:-_KEPT]:
        _positions.pop(old, None)
