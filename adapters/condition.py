"""E_cond, the small image encoder through which CAM sees the last frames [StreamingT2V §4.1]."""

from typing import final

import torch.nn.functional as F
from torch import nn

from streaming.types import Features, Latents


@final
class ConditionEncoder(nn.Module):
    """Convolutions with SiLU and no norms: one in, two a stage, one out (zero before training, as in ControlNet).

    A stage goes from one width to the next; it halves the resolution if `shrink`, for pixels that must come down to
    the resolution of the denoiser's first features, and keeps it otherwise, for conditions that are latents already.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], out: int, *, shrink: bool) -> None:
        """channels: of the condition; out: of the result; len(widths) - 1 stages."""
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2 if shrink else 1))
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)
        for value in self.conv_out.parameters():
            nn.init.zeros_(value)

    def forward(self, condition: Latents) -> Features:
        """Features [batch, frames, positions, out] of a condition [batch, channels, frames, rows, cols].

        Pixels are expected in [-1, 1]. Each frame is encoded on its own; positions are row-major.
        """
        batch, _, frames, _, _ = condition.shape
        hidden = F.silu(self.conv_in(condition.transpose(1, 2).flatten(0, 1)))
        for block in self.blocks:
            hidden = F.silu(block(hidden))
        return self.conv_out(hidden).flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
