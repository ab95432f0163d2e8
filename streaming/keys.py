"""Counter-based randomness: a key names its numbers, so nothing depends on the order in which they are drawn.

A resumed run equals an unbroken one, a chunk can be made again alone and a seed means the same on every device,
because every draw is a pure function of (seed, path) and is made on the CPU.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

Name = str | int


@final
@dataclass(frozen=True)
class Key:
    """A seed and the path of names below it."""

    seed: int
    """Any integer; the user's `--seed`."""
    path: tuple[Name, ...] = ()
    """What the numbers are for, outermost first."""

    def __post_init__(self) -> None:
        # NumPy's integers and the like would print, and so draw, otherwise than Python's.
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "path", tuple(n if isinstance(n, str) else int(n) for n in self.path))

    def fold(self, *names: Name) -> "Key":
        """The key of a part: `key.fold("chunk", 3)`. Different paths give independent numbers."""
        return Key(self.seed, (*self.path, *names))

    def generator(self) -> torch.Generator:
        """A CPU generator that starts at this key (SHA-256 of seed and path)."""
        text = repr((self.seed, *self.path)).encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
        return torch.Generator("cpu").manual_seed(number)

    def normal(self, *shape: int) -> Float[Tensor, "..."]:
        """Standard normal numbers of the given shape, float32 on the CPU."""
        return torch.randn(shape, generator=self.generator())

    def integers(self, low: int, high: int, *shape: int) -> Int[Tensor, "..."]:
        """Uniform integers in [low, high), int64 on the CPU."""
        return torch.randint(low, high, shape, generator=self.generator())


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Modules made on the CPU inside begin with the seed's weights; torch's own generators are as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move those of other devices, too
        yield
