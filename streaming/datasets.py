"""Captioned clips to train on, and a rolling pool that shares the cost of making them between steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from streaming.keys import Key


@final
@dataclass(frozen=True, kw_only=True)
class CaptionedClips:
    """Short videos, what they show, and one earlier frame of each."""

    frames: UInt8[Tensor, "clips time 3 rows cols"]
    """RGB, 0 to 255, at the dataset's frame rate."""
    anchors: UInt8[Tensor, "clips 3 rows cols"]
    """A frame of the same video, from its beginning or some time before the clip: what a long-term memory sees."""
    captions: list[str]
    """One line of text a clip."""
    subject: Float[Tensor, "clips time rows cols"] | None = None
    """How much of each pixel the video's subject covers, 0 to 1, where it is to count more than the background; None:
    all pixels count alike."""


class ClipDataset(ABC):
    """Endless captioned clips; registered in the entry point group `streaming.datasets`."""

    @abstractmethod
    def clips(
        self,
        n: int,
        generator: torch.Generator,
        *,
        frames: int,
        size: int,
        device: torch.device,
        context_seconds: float = 30.0,
    ) -> CaptionedClips:
        """Draw n clips of `frames` frames, size × size pixels, on `device`.

        Every random choice comes from `generator` (on the CPU), so equal generators give equal clips. An anchor lies
        at the beginning of its video or at most `context_seconds` before the clip.
        """

    def prompts(self, n: int, generator: torch.Generator) -> list[str]:
        """What videos of this kind may be asked for, drawn by the generator. Default: captions of n clips."""
        return self.clips(n, generator, frames=1, size=64, device=torch.device("cpu")).captions

    def openings(self, n: int, generator: torch.Generator) -> list[str] | None:
        """What the first chunks of `prompts` may be asked for with an equal generator: the same, and besides what a
        prompt leaves open and a long-term memory is to keep. Default: None, it is not known."""
        return None


Samples = Mapping[str, Tensor]
"""Tensors with one row a sample."""


@final
class RollingPool:
    """Samples that are made once, used several times, and replaced slice by slice.

    What the pool holds at a step is a function of the step alone (slice `r` is `make(r)`, whatever was asked before),
    so a resumed training meets the same data as an unbroken one. With batches of one slice's size a sample is used
    `period` times on average.
    """

    def __init__(self, make: Callable[[int], Samples], *, slices: int, period: int) -> None:
        if slices < 1 or period < 1:
            raise ValueError(f"a pool needs at least one slice and one step between slices, not {slices} and {period}")
        self._make = make
        self._slices = slices
        self._period = period
        self._rows = 0
        self._newest: int | None = None
        self._samples: dict[str, Tensor] = {}

    def at(self, step: int) -> Samples:
        """All samples of the pool at this step; making the slices that are missing. Read them before the next call."""
        newest = step // self._period
        start = newest - self._slices + 1
        known = self._newest
        if known is not None and start <= known <= newest:
            start = known + 1
        for index in range(start, newest + 1):
            self._put(index, self._make(index))
        self._newest = newest
        return self._samples

    def _put(self, index: int, samples: Samples) -> None:
        if not self._samples:
            self._rows = next(iter(samples.values())).shape[0]
            self._samples = {
                name: value.new_empty((self._slices * self._rows, *value.shape[1:])) for name, value in samples.items()
            }
        place = (index % self._slices) * self._rows
        for name, value in samples.items():
            self._samples[name][place : place + self._rows] = value


def draw(samples: Samples, n: int, key: Key) -> dict[str, Tensor]:
    """n rows of a pool, drawn with replacement by the key."""
    rows, device = len(next(iter(samples.values()))), next(iter(samples.values())).device
    index = key.integers(0, rows, n).to(device, non_blocking=True)
    return {name: value[index] for name, value in samples.items()}


def device_generator(key: Key, device: torch.device) -> torch.Generator:
    """A generator on `device` that starts at the key: for training noise only, where devices may differ."""
    return torch.Generator(device).manual_seed(key.generator().initial_seed())


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA; float32 elsewhere (a CPU is slower in bfloat16)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
