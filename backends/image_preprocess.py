"""Images as CLIP's vision tower reads them: resized the way the published code does it, then normalised."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Images = Float[Tensor, "batch 3 rows cols"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images, RGB in [0, 1]."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""

NO_BLUR = 1 / 6
"""Standard deviation in pixels up to which a blur is left out: there the two neighbours together weigh at most
2 exp(-18) = 3e-8 of the pixel itself, which is what float32 rounds off anyway. Reached when shrinking by 4/3;
256 -> 224 stays below."""


def prepare(
    images: Images, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 size_rows size_cols"]:
    """Images in [0, 1] of any size, resized to `size` = (rows, cols) and normalised; float32.

    mean, std: of RGB in [0, 1]. See `resize`; bicubic interpolation may leave [0, 1], nothing is clamped after it
    [convention of the published code].
    """
    resized = resize(images.float(), size)
    middle, scale = (torch.tensor(tuple(some), device=images.device).view(3, 1, 1) for some in (mean, std))
    return (resized - middle) / scale


def resize(images: Images, size: tuple[int, int]) -> Float[Tensor, "batch 3 size_rows size_cols"]:
    """Images in [0, 1] at `size` = (rows, cols), the aspect ratio ignored; those of that size as they are.

    Bicubic interpolation with aligned corners. Axes that shrink by more than 4/3 (see `NO_BLUR`) are first blurred by a
    Gaussian of standard deviation (factor - 1) / 2 pixels, so that fine detail turns grey instead of aliasing. Computed
    in [-1, 1], which decides the rounding [convention of the published code].
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    images = 2 * images - 1
    if images.shape[-2] > size[0] or images.shape[-1] > size[1]:
        images = _blur(_blur(images, -2, size[0]), -1, size[1])
    return (functional.interpolate(images, size, mode="bicubic", align_corners=True) + 1) / 2


def _blur(images: Images, axis: int, size: int) -> Images:
    """A Gaussian along one axis that is to shrink to `size`; the border is reflected, its own pixel not repeated."""
    length = images.shape[axis]
    sigma = (length / size - 1) / 2
    if sigma <= NO_BLUR:
        return images
    taps = max(int(4 * sigma), 3) // 2 * 2 + 1
    reach = torch.arange(taps, dtype=torch.float32) - taps // 2
    weights = torch.exp(-reach.square() / (2 * sigma**2))
    around = (taps // 2, taps // 2)
    border = (*around, 0, 0) if axis == -1 else (0, 0, *around)
    padded = functional.pad(images, border, mode="reflect")
    blurred = torch.zeros_like(images)
    for start, weight in enumerate((weights / weights.sum()).tolist()):  # a convolution may run in TF32 on a GPU
        blurred.add_(padded.narrow(axis, start, length), alpha=weight)
    return blurred
