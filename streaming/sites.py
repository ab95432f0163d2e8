"""Where memories meet a denoiser: named sites, and the deltas that are added there."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

from jaxtyping import Float
from torch import Tensor

Delta: TypeAlias = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]
"""The value at a site -> what to ADD to it, of the same shape.

At a feature or input site the value is `Features` [batch, span, positions, width], at a context site `Tokens`
[batch, tokens, depth]; batch counts the guidance rows.
"""

Deltas: TypeAlias = Mapping[str, Delta]
"""Deltas by site name. A site without an entry is left alone, bit for bit."""


@final
@dataclass(frozen=True)
class FeatureSite:
    """A place where the denoiser's encoder half hands features on."""

    name: str
    """Unique among all sites of a backbone."""
    width: int
    """Channels of the features."""


@final
@dataclass(frozen=True)
class ContextSite:
    """The text as ONE spatial cross-attention reads it."""

    name: str
    """Unique among all sites of a backbone."""
    depth: int
    """Channels of a token."""
    tokens: int
    """Number of text tokens."""


@final
@dataclass(frozen=True)
class InputSite:
    """The output of the denoiser's first layer, a convolution of each latent frame.

    What is added there could as well have come from more input channels, since a convolution is linear: with the same
    kernel and stride, a memory widens the denoiser's input without touching its weights. The value is `Features`.
    """

    name: str
    """Unique among all sites of a backbone."""
    width: int
    """Channels of the output."""
    kernel: tuple[int, int]
    """Latent rows and columns that one output position sees."""
    stride: tuple[int, int]
    """Latent rows and columns from one position to the next. Zeros are around the frame, (kernel - stride) / 2 of them;
    where the frame does not divide, there are more below and on the right."""


Site: TypeAlias = FeatureSite | ContextSite | InputSite
"""Any of the three kinds."""


def combine(*parts: Deltas) -> dict[str, Delta]:
    """Union of deltas; where several name one site, their values are summed (all read the same input)."""
    merged: dict[str, list[Delta]] = {}
    for part in parts:
        for name, delta in part.items():
            merged.setdefault(name, []).append(delta)
    return {name: deltas[0] if len(deltas) == 1 else _sum(deltas) for name, deltas in merged.items()}


def _sum(deltas: list[Delta]) -> Delta:
    def total(value: Tensor) -> Tensor:
        result = deltas[0](value)
        for delta in deltas[1:]:
            result = result + delta(value)
        return result

    return total


def check_sites(deltas: Deltas, sites: Iterable[Site]) -> None:
    """Raises KeyError, listing the sites there are, if a delta names one that does not exist."""
    known = [site.name for site in sites]
    unknown = sorted(set(deltas) - set(known))
    if unknown:
        raise KeyError(f"no such site: {', '.join(unknown)}; this backbone has {', '.join(known)}")
