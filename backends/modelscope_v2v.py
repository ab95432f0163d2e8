"""ModelScope's Video-to-Video UNet: `diffusers.UNet3DConditionModel` with two changes in how rows are sampled.

Convolutions of stride 2 pad two rows, not one, above and below: 90 rows become 46, 24, 13. Upsampling therefore drops
the first and the last row again: 13 rows become 24, 46, 90 [convention of the published code]. Parameters, their names
and everything else are as in the text-to-video UNet.
"""

from typing import Any, final

from diffusers import UNet3DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from streaming.errors import UserError

ROWS, COLS = 2, 1
"""Padding of a convolution of stride 2."""


@final
class CroppedUpsample(nn.Module):
    """Doubles rows and columns by repetition, drops the first and the last row, then convolves."""

    def __init__(self, conv: nn.Module) -> None:
        """Takes over the convolution."""
        super().__init__()
        self.conv = conv

    def forward(self, x: Float[Tensor, "batch channels high wide"], output_size: object = None) -> Tensor:
        """[batch, channels, 2 high - 2, 2 wide]; diffusers' `output_size`, which another padding needs, is ignored."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")[..., 1:-1, :])


def video_to_video(unet: UNet3DConditionModel) -> UNet3DConditionModel:
    """The same UNet, changed in place into a video-to-video one; call it once, before anything is hooked to it.

    Its forward then raises UserError for latents of a size that it cannot return, naming the nearest one that it can.
    """
    for block in unet.down_blocks:
        downs: Any = getattr(block, "downsamplers", None) or ()
        for down in downs:
            down.conv.padding = (ROWS, COLS)
    for block in unet.up_blocks:
        ups: Any = getattr(block, "upsamplers", None)
        if ups:
            block.upsamplers = nn.ModuleList(CroppedUpsample(up.conv) for up in ups)
    unet.register_forward_pre_hook(_check, with_kwargs=True)
    return unet


def is_video_to_video(unet: UNet3DConditionModel) -> bool:
    """Whether `video_to_video` has changed it; a UNet of one level is the same either way."""
    return any(isinstance(module, CroppedUpsample) for module in unet.modules())


def nearest_size(high: int, wide: int, halvings: int) -> tuple[int, int]:
    """The nearest latent rows and columns that survive so many halvings: rows 2 more than a multiple of 2**halvings.

    Rows must be even before each halving, which makes n of them n / 2 + 1; columns are halved as usual.
    """
    unit = 2**halvings
    return max(round((high - 2) / unit), 0) * unit + 2, max(round(wide / unit), 1) * unit


def halvings(unet: UNet3DConditionModel) -> int:
    """How often a UNet halves rows and columns."""
    return len(unet.config["block_out_channels"]) - 1


def _check(unet: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    high, wide = (args[0] if args else named["sample"]).shape[-2:]
    rows, cols = nearest_size(high, wide, halvings(unet))
    if (high, wide) != (rows, cols):
        unit = 2 ** halvings(unet)
        raise UserError(
            f"this video-to-video model cannot take latents of {wide}x{high}: the nearest size that it can is "
            f"{cols}x{rows} (width x height; a multiple of {unit}, and 2 more than such a multiple)"
        )
