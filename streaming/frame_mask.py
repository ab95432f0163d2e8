"""Given frames as the base model itself knows them: clean latents and a mask, a short-term memory without weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from streaming.backbone import Call
from streaming.errors import UserError
from streaming.memory import NoShortTerm, ShortTermMemory, Tail
from streaming.model import Model
from streaming.sites import Deltas
from streaming.types import Latents


@final
@dataclass(frozen=True)
class Masked:
    """State of a frame mask."""

    known: Latents
    """Latents of the overlap [batch, channels, overlap, high, wide]."""
    inner: Any
    """State of the memory that it is put around."""


@final
class FrameMask(ShortTermMemory[Masked]):
    """Shows the denoiser the known overlap without any noise, and tells it by `Call.mask` that these frames are given.

    For backbones that take given frames: such a one treats them as being at time 0, whatever the time of the others
    (conditioning of Open-Sora 1.1 and 1.2, and what the paper's baseline of that name does). What it predicts for them
    is not used: the overlap's own latents are replaced before every evaluation, and no chunk ends up with them.
    Unlike injection it needs no noise level, so a backbone may be trained with it as well.
    """

    def __init__(self, inner: ShortTermMemory[Any] | None = None) -> None:
        """inner: the memory that it is put around, which sees the clean frames and the mask too; None: no other."""
        super().__init__()
        self.inner: ShortTermMemory[Any] = NoShortTerm() if inner is None else inner

    def remember(self, tail: Tail) -> Masked:
        """The overlap's latents and the inner memory's state."""
        return Masked(tail.latents, self.inner.remember(tail))

    def deltas(self, state: Masked, call: Call) -> Deltas:
        """The inner memory's."""
        return self.inner.deltas(state.inner, call)

    def rewrite(self, state: Masked, call: Call) -> Call:
        """The inner memory's call with known latents in its first `overlap` frames, and a mask that is False there.

        All guidance rows get the same. Frames that an earlier mask gives stay given. The mask is per row and frame,
        True where a frame is to be generated.
        """
        call = self.inner.rewrite(state.inner, call)
        rows, _, frames = call.latents.shape[:3]
        batch, overlap = state.known.shape[0], state.known.shape[2]
        latents = call.latents.clone()
        latents[:, :, :overlap] = state.known.to(latents).repeat(rows // batch, 1, 1, 1, 1)
        mask = call.mask
        generated = torch.ones(rows, frames, dtype=torch.bool, device=latents.device) if mask is None else mask.clone()
        generated[:, :overlap] = False
        return call.with_(latents=latents, mask=generated)


def frame_mask(model: Model, weights: Path | None) -> FrameMask:
    """Entry point `frame-mask`: the frame mask alone. Raises UserError for a model that takes no given frames."""
    check_takes_given_frames(model, instead="inject")
    return FrameMask()


def check_takes_given_frames(model: Model, *, instead: str) -> None:
    """Raises UserError, naming the short-term memory to choose instead, for a model that takes no given frames."""
    if not model.backbone.takes_given_frames:
        raise UserError(
            f"the model '{model.name}' generates all frames, it cannot be given known ones by a frame mask: "
            f"choose the short-term memory {instead}"
        )
