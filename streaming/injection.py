"""Known overlap latents in place of noisy ones: the simplest short-term memory, needing no training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from streaming.backbone import Call
from streaming.memory import NoShortTerm, ShortTermMemory, Tail
from streaming.model import Model
from streaming.sites import Deltas
from streaming.types import Latents


@final
@dataclass(frozen=True)
class Injected:
    """State of an injection."""

    known: Latents
    """Latents of the overlap [batch, channels, overlap, high, wide]."""
    inner: Any
    """State of the memory that it is put around."""


@final
class Injection(ShortTermMemory[Injected]):
    """Shows the denoiser the known overlap, at the current noise level, where it would see its own.

    The overlap's noise is the trajectory's own starting noise, so it stays the same at every step and differs from
    chunk to chunk (replacement as in inpainting; convention of many samplers, not part of the paper).
    """

    def __init__(self, inner: ShortTermMemory[Any]) -> None:
        super().__init__()
        self.inner = inner

    def remember(self, tail: Tail) -> Injected:
        """The overlap's latents and the inner memory's state."""
        return Injected(tail.latents, self.inner.remember(tail))

    def deltas(self, state: Injected, call: Call) -> Deltas:
        """The inner memory's."""
        return self.inner.deltas(state.inner, call)

    def rewrite(self, state: Injected, call: Call) -> Call:
        """The call with its first `overlap` latent frames = signal * known + noise * starting noise.

        Raises ValueError for a call without `level` or `start`, i.e. outside of sampling.
        """
        call = self.inner.rewrite(state.inner, call)
        if call.level is None or call.start is None:
            raise ValueError("injection is for sampling only: the call has no noise level or no starting noise")
        overlap = state.known.shape[2]
        known = state.known.to(call.latents).repeat(call.latents.shape[0] // state.known.shape[0], 1, 1, 1, 1)
        noise = call.start[:, :, :overlap].to(call.latents)
        latents = call.latents.clone()
        latents[:, :, :overlap] = call.level.signal * known + call.level.noise * noise
        return call.with_(latents=latents)


def inject(model: Model, weights: Path | None) -> Injection:
    """Entry point `inject`: injection alone."""
    return Injection(NoShortTerm())
