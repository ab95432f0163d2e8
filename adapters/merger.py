"""How a skip feature reads the short-term memory: attention along time, per spatial position [StreamingT2V §4.1]."""

import math
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from adapters.distance_bias import DistanceBias
from streaming.short_attention import attention
from streaming.types import Features


@final
class Merger(nn.Module):
    """delta(x) = proj_out(Attention(q = proj_in(GroupNorm(x)), k = v = memory)), zero before training.

    Queries are all frames of the chunk, keys and values the remembered ones; their numbers need not match. The memory
    is neither normalised nor projected by `proj_in`; q, k, v have no bias, `to_out` has one (conventions of the
    published code). Untrained, values pass through unmixed. With distances, attention also knows how far away the
    remembered frames lie (`DistanceBias`).
    """

    def __init__(self, width: int, head_dim: int, norm_groups: int = 32, distances: bool = False) -> None:
        """width: channels of the site, a multiple of head_dim; norm_groups: at most so many groups of channels.

        distances: whether there is a `DistanceBias`; the paper has none.
        """
        super().__init__()
        if width % head_dim:
            raise ValueError(f"{width} channels are no multiple of heads of {head_dim}")
        self.head_dim = head_dim
        self.norm = nn.GroupNorm(math.gcd(norm_groups, width), width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.proj_out = nn.Linear(width, width)
        self.distance = DistanceBias(width // head_dim) if distances else None
        for part in (self.to_v, self.to_out):  # learns faster than from two random maps in a row
            nn.init.eye_(part.weight)
        nn.init.zeros_(self.to_out.bias)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, features: Features, memory: Float[Tensor, "batch remembered positions width"]) -> Features:
        """What to add to features [batch, frames, positions, width], given memory [batch, span, positions, width]."""
        batch, frames, positions, width = features.shape
        normed = self.norm(features.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        query = self._heads(self.to_q(self.proj_in(normed.unflatten(1, (frames, positions)))))
        bias = None if self.distance is None else self.distance(frames, memory.shape[1])
        attended = attention(query, self._heads(self.to_k(memory)), self._heads(self.to_v(memory)), bias)
        joined = attended.transpose(1, 2).reshape(batch, positions, frames, width).transpose(1, 2)
        return self.proj_out(self.to_out(joined)).to(features.dtype)

    def _heads(self, value: Features) -> Float[Tensor, "sequences heads span head_dim"]:
        """[batch, frames, positions, width] to [batch * positions, heads, frames, head_dim]."""
        return value.transpose(1, 2).flatten(0, 1).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
