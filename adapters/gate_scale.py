"""How large the text is that a backbone's cross-attentions read: what gates of a long-term memory are measured by."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streaming.backbone import Call, Guided
from streaming.errors import UserError
from streaming.model import Model
from streaming.sites import Delta


@torch.no_grad()
def context_spread(model: Model, captions: Sequence[str], device: torch.device | None = None) -> float:
    """Standard deviation of the text at the backbone's context sites, the mean over the sites; padding counts if the
    backbone reads it.

    captions: as long as those that are trained on. device: where to compute, and where the backbone stays; None: the
    CPU. Raises UserError if the backbone reaches no context site.
    """
    device = torch.device("cpu") if device is None else device
    text, codec, defaults = model.text(list(captions)), model.codec, model.defaults
    mask = None if text.mask is None else text.mask.to(device).bool()
    found: dict[str, float] = {}

    def watch(name: str) -> Delta:
        def delta(value: Tensor) -> Tensor:
            read = value if mask is None or mask.shape != value.shape[:2] else value[mask]
            found[name] = read.float().std().item()
            return torch.zeros_like(value)

        return delta

    high, wide = defaults.height // codec.factor, defaults.width // codec.factor
    shape = (len(captions), codec.channels, model.backbone.window.frames, high, wide)
    call = Call(
        latents=torch.zeros(shape, device=device, dtype=model.dtype),
        time=torch.zeros(len(captions), device=device),
        context=text.tokens.to(device),
        guided=(Guided(text=True, anchor=True),) * len(captions),
        context_mask=None if text.mask is None else text.mask.to(device),
    )
    model.backbone.to(device)(call, {site.name: watch(site.name) for site in model.backbone.context_sites})
    if not found:
        raise UserError(f"{model.name} reads no text that a long-term memory could add to")
    return sum(found.values()) / len(found)
