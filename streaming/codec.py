"""Contracts of what surrounds a denoiser: codec, text encoder, image encoder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from streaming.types import Frames, Latents, TokenMask, Tokens


class Codec(nn.Module, ABC):
    """Pixels to latents and back. Its compression in time is its own affair."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Latent channels."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """Pixels a latent cell covers along a side."""

    @abstractmethod
    def latent_frames(self, pixel_frames: int) -> int:
        """Latent frames that hold so many pixel frames."""

    @abstractmethod
    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames that so many latent frames decode to."""

    @abstractmethod
    def encode(self, frames: Frames) -> Latents:
        """Latents (the posterior's mode, no randomness) of frames in [0, 1]."""

    @abstractmethod
    def decode(self, latents: Latents) -> Frames:
        """Frames, clamped to [0, 1]."""


@final
@dataclass(frozen=True)
class EncodedText:
    """Prompts as cross-attention reads them."""

    tokens: Tokens
    """[batch, tokens, depth]."""
    mask: TokenMask | None = None
    """True where a token is to be read; None: all."""


class TextEncoder(nn.Module, ABC):
    """Prompts to tokens."""

    @abstractmethod
    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """Tokens of each prompt. Raises UserError, naming them, for words that the model cannot know."""

    def nothing(self, beside: EncodedText) -> EncodedText | None:
        """What guidance reads as no text beside these encoded prompts: row by row, of their shape, masked if they are.

        Default: None, the empty prompt is encoded like any other.
        """
        return None

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The words of a closed vocabulary, sorted. Default: None, any word can be read."""
        return None


class ImageEncoder(nn.Module, ABC):
    """Images to one embedding each (CLIP's pooled image embedding, for APM)."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of an embedding."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Embeddings, not normalised, of images in [0, 1] of any size (resizing is the encoder's affair)."""
