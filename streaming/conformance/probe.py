"""What the suites share: calls made from keys, deltas that listen, and weights that are no longer zero."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from streaming.backbone import Backbone, Call, Guided
from streaming.keys import Key
from streaming.sites import Deltas, Site
from streaming.types import Latents, Tokens


def sites_of(backbone: Backbone) -> tuple[Site, ...]:
    """All sites of a backbone."""
    first = () if backbone.input_site is None else (backbone.input_site,)
    return (*first, *backbone.feature_sites, *backbone.context_sites)


def plain_call(latents: Latents, context: Tokens, time: float) -> Call:
    """A call without guidance: each row has the prompt and the anchor."""
    rows = latents.shape[0]
    return Call(latents=latents, time=torch.full((rows,), time), context=context, guided=(Guided(True, True),) * rows)


def unit(key: Key, like: Tensor) -> Tensor:
    """Standard normal numbers of a tensor's shape and type."""
    return key.normal(*like.shape).to(like)


@final
class Listener:
    """Deltas of zero at the sites asked for, which keep the values that they see."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self.seen: dict[str, list[Tensor]] = {site.name: [] for site in sites}

    @property
    def deltas(self) -> Deltas:
        """What to give to the backbone."""

        def listen(name: str, value: Tensor) -> Tensor:
            self.seen[name].append(value.detach().clone())
            return torch.zeros_like(value)

        return {name: lambda value, name=name: listen(name, value) for name in self.seen}


def unzeroed(module: nn.Module, key: Key, spread: float = 0.3) -> nn.Module:
    """The module with random numbers in place of parameters that are all zero, as after some training."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if not bool(value.any()):
                value.copy_(spread * unit(key.fold(name), value))
    return module
