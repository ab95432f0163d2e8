"""How far back a remembered frame lies, told to the attention that reads it."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEEPEST, FLATTEST = 4.0, 0.25
"""Of the heads at the beginning: a factor of e**4, and of e**0.25, from one frame to the next."""


@final
class DistanceBias(nn.Module):
    """A learned bias on attention scores for each head and each distance between reading and remembered frame.

    A departure from the paper: attention along time without positions cannot tell the last remembered frame from the
    one before, and has to find the way by the zeros around temporal convolutions. Begins as heads that look at the
    nearest remembered frame, more or less sharply (slopes as in ALiBi, arXiv 2108.12409, on both sides).
    """

    def __init__(self, heads: int, reach: int) -> None:
        """reach: the largest distance in latent frames that has a bias of its own; those beyond share the last."""
        super().__init__()
        self.reach = reach
        slopes = torch.logspace(0, 1, heads, base=FLATTEST / STEEPEST) * STEEPEST
        self.table = nn.Parameter(-slopes[:, None] * torch.arange(-reach, reach + 1).abs())

    def forward(self, frames: int, span: int) -> Float[Tensor, "heads frames span"]:
        """For all frames of a chunk that read the `span` remembered ones, which lie on its first frames."""
        device = self.table.device
        distance = torch.arange(frames, device=device)[:, None] - torch.arange(span, device=device)
        return self.table[:, distance.clamp(-self.reach, self.reach) + self.reach]
