"""CLIP's pooled image embedding, of the anchor frame."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from streaming.codec import ImageEncoder

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images, RGB in [0, 1]."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""


@final
class CLIPImageEncoder(ImageEncoder):
    """`transformers.CLIPVisionModelWithProjection` on images of any size.

    Images are resized to the tower's square, the aspect ratio ignored, by bicubic interpolation with aligned corners
    and without a low-pass filter: for 256 -> 224 this equals the published code, whose filter is the identity there;
    images several times larger than the tower's would alias. Nothing is clamped after it [convention of the published
    code].
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        vision: CLIPVisionModelWithProjection,
        *,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        """`mean` and `std` of RGB in [0, 1], as in training."""
        super().__init__()
        self.vision = vision
        self.register_buffer("_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """The projection's (ViT-H/14: 1024)."""
        return int(self.vision.config.projection_dim)

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Embeddings in the type of the images, not normalised."""
        return self.vision(pixel_values=self._prepare(images)).image_embeds.to(images.dtype)

    def _prepare(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch 3 size size"]:
        size: Any = self.vision.config.image_size
        if images.shape[-2:] != (size, size):
            images = functional.interpolate(images.float(), (size, size), mode="bicubic", align_corners=True)
        normal = (images.float() - self._mean.float()) / self._std.float()
        return normal.to(self.vision.visual_projection.weight.dtype)
