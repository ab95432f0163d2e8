"""How large the text is that a backbone's cross-attentions read: what gates of a long-term memory are measured by."""

import torch
from torch import Tensor

from streaming.backbone import Call, Guided
from streaming.errors import UserError
from streaming.model import Model
from streaming.sites import Delta


@torch.no_grad()
def context_spread(model: Model, captions: list[str], device: str | None = None) -> float:
    """Standard deviation of the text at the backbone's context sites, padding included; the mean over the sites.

    captions: one is enough. device: where to compute, "cpu" or "cuda"; None: what is there; the backbone stays there.
    Raises UserError if the backbone reaches no context site.
    """
    where = torch.device("cuda" if torch.cuda.is_available() and device != "cpu" else "cpu")
    found: dict[str, float] = {}

    def watch(name: str) -> Delta:
        def delta(text: Tensor) -> Tensor:
            found[name] = text.float().std().item()
            return torch.zeros_like(text)

        return delta

    text, codec, defaults = model.text(captions), model.codec, model.defaults
    high, wide = defaults.height // codec.factor, defaults.width // codec.factor
    shape = (len(captions), codec.channels, model.backbone.window.frames, high, wide)
    call = Call(
        latents=torch.zeros(shape, device=where, dtype=model.dtype),
        time=torch.zeros(len(captions), device=where),
        context=text.tokens.to(where),
        guided=(Guided(text=True, anchor=True),) * len(captions),
        context_mask=None if text.mask is None else text.mask.to(where),
    )
    model.backbone.to(where)(call, {site.name: watch(site.name) for site in model.backbone.context_sites})
    if not found:
        raise UserError(f"{model.name} reads no text that a long-term memory could add to")
    return sum(found.values()) / len(found)
