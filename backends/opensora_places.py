"""Waves that tell an Open-Sora transformer numbers: time, sizes, rows, columns, frames. Always computed in float32."""

import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

SLOWEST = 10_000.0
"""Ratio of the fastest to the (excluded) slowest wave."""


def angles(numbers: Float[Tensor, "*numbers"], count: int) -> Float[Tensor, "*numbers {count}"]:
    """The numbers times `count` rates, that fall from 1 to 1 / 10000."""
    # The published code takes the exponents in float32. Only `exp` is exact to more: processors' float32 ones differ by
    # an ulp, which is 1e-4 rad at a time of 1000.
    exponents = -math.log(SLOWEST) * torch.arange(count, dtype=torch.float32, device=numbers.device) / count
    rates = exponents.double().exp().float()
    return numbers.float()[..., None] * rates


def waves(numbers: Float[Tensor, "*numbers"], width: int) -> Float[Tensor, "*numbers {width}"]:
    """All sines, then all cosines."""
    turned = angles(numbers, width // 2)
    return torch.cat((turned.sin(), turned.cos()), dim=-1)


def table(rows: Float[Tensor, " rows"], cols: Float[Tensor, " cols"], width: int) -> Float[Tensor, "positions {width}"]:
    """Places of patches, row by row: the column's waves, then the row's (convention of the published code)."""
    down = waves(rows, width // 2)[:, None].expand(-1, len(cols), -1)
    across = waves(cols, width // 2)[None].expand(len(rows), -1, -1)
    return torch.cat((across, down), dim=-1).flatten(0, 1)


def scaled_table(
    rows: int, cols: int, side: Float[Tensor, ""], square: int, width: int
) -> Float[Tensor, "positions {width}"]:
    """Places in a picture of any form, as 1.1 and 1.2 number them: both axes are as long as those of a square.

    side: root of the picture's area in pixels; one of `square` leaves places unscaled.
    """
    base = round(math.sqrt(rows * cols))
    along = [torch.arange(n, dtype=torch.float32, device=side.device) * square / side * base / n for n in (rows, cols)]
    return table(along[0], along[1], width)


@final
class Rope(nn.Module):
    """Rotations that tell a temporal attention the frames' numbers; neighbouring channels make a pair."""

    freqs: Float[Tensor, " pairs"]

    def __init__(self, head: int) -> None:
        """head: channels of an attention head."""
        super().__init__()
        self.register_buffer("freqs", angles(torch.ones(()), head // 2))  # never trained, but saved with the weights

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rope":
        """Moves like any module, but stays float32: half precision would turn late frames by a wrong angle."""
        exact = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype != exact.dtype:
            self.freqs = exact.to(self.freqs.device)
        return self

    def forward(self, frames: int) -> Float[Tensor, "{frames} twice_the_head"]:
        """Sines, then cosines, each twice for its pair (as timm's attention wants them)."""
        numbers = torch.arange(frames, dtype=torch.float32, device=self.freqs.device)
        turned = (numbers[:, None] * self.freqs.float()).repeat_interleave(2, dim=-1)
        return torch.cat((turned.sin(), turned.cos()), dim=-1)
