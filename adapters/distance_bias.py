"""How far away a remembered frame lies, told to the attention that reads it."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEEPEST, FLATTEST = 2.0, 0.25
"""Slopes of the heads at the beginning: a frame further away counts e**2 to e**.25 times less."""


@final
class DistanceBias(nn.Module):
    """Attention scores fall with the distance between reading and remembered frame, by a learned slope a head.

    A departure from the paper, whose attention along time has no positions: queries of new frames cannot tell the last
    remembered frame from those before it, but for the zeros around temporal convolutions. The form is ALiBi's (arXiv
    2108.12409), with slopes that are trained, for frames behind and ahead of the reading one.
    """

    def __init__(self, heads: int) -> None:
        """heads: of the attention; each has slopes of its own."""
        super().__init__()
        start = torch.linspace(math.log(STEEPEST), math.log(FLATTEST), heads)
        self.behind = nn.Parameter(start.clone())
        self.ahead = nn.Parameter(start.clone())

    def forward(self, frames: int, span: int) -> Float[Tensor, "heads frames span"]:
        """For all frames of a chunk that read the `span` remembered ones, which lie on its first frames."""
        device = self.behind.device
        back = torch.arange(frames, device=device)[:, None] - torch.arange(span, device=device)
        behind, ahead = (slope.exp()[:, None, None] for slope in (self.behind, self.ahead))
        return -behind * back.clamp(min=0) - ahead * (-back).clamp(min=0)
