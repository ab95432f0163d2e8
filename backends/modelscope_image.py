"""CLIP's pooled image embedding, of the anchor frame."""

from collections.abc import Sequence
from typing import Any, final

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from backends.image_preprocess import CLIP_MEAN, CLIP_STD, prepare
from streaming.codec import ImageEncoder


@final
class CLIPImageEncoder(ImageEncoder):
    """`transformers.CLIPVisionModelWithProjection` on images of any size.

    Images are resized to the tower's square as in `backends.image_preprocess`.
    """

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
        self._mean, self._std = tuple(mean), tuple(std)

    @property
    def width(self) -> int:
        """The projection's (ViT-H/14: 1024)."""
        return int(self.vision.config.projection_dim)

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Embeddings in the type of the images, not normalised."""
        size: Any = self.vision.config.image_size
        pixels = prepare(images, (size, size), self._mean, self._std)
        pixels = pixels.to(self.vision.visual_projection.weight.dtype)
        return self.vision(pixel_values=pixels).image_embeds.to(images.dtype)
