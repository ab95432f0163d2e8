"""What a backend loads, and the contract of the plugin that loads it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch

from streaming.backbone import Backbone
from streaming.codec import Codec, ImageEncoder, TextEncoder
from streaming.errors import UserError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


@final
@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Settings that a model was made for; the command line's options replace them."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: float
    """Frames a second."""
    steps: int = 50
    """Denoising steps a chunk."""
    guidance: float = 7.5
    """Classifier-free guidance scale."""
    rescale: float = 0.0
    """Of an enhancer: share of a guided chunk that is brought back to the conditional one's standard deviation."""
    eta: float = 1.0
    """DDIM's share of fresh noise a step (0: deterministic)."""
    strength: float = 0.6
    """Of an enhancer: share of the noise schedule that SDEdit goes back [StreamingT2V §4.3: level 600 of 1000]."""
    sampler: str = "ddim"
    """Name of a sampler, see `streaming.sample`; of an enhancer, `streaming.sample_sde` too."""
    canvas_height: int = 0
    """Of an enhancer: pixels of the frame in whose middle its video of `height` rows lies, on black; 0: no canvas."""
    canvas_width: int = 0
    """Likewise in columns; both are 0 or neither."""
    short_term: str = "cam"
    """Registered name of the short-term memory."""
    long_term: str = "apm"
    """Registered name of the long-term memory."""


@final
@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded base model with everything around its denoiser."""

    name: str
    """As the user named it: a registered name or a directory."""
    backbone: Backbone
    """The denoiser, in eval mode."""
    codec: Codec
    """Pixels to latents and back."""
    text: TextEncoder
    """Prompts to tokens."""
    image: ImageEncoder | None
    """Anchor frames to embeddings; None if the model has no image encoder."""
    scheduler: "SchedulerMixin"
    """The diffusers scheduler that it was trained with; samplers copy its configuration."""
    defaults: Defaults
    """Settings that it was made for."""
    directory: Path | None = None
    """Where it was loaded from; trained memories lie in subfolders named after them."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where it computes."""
    dtype: torch.dtype = torch.float32
    """The weights' type."""
    first: "Model | None" = None
    """The unmodified base model, which makes the first chunk, if `backbone` was trained on; shares all other parts."""
    schedule: "Callable[[int, int], SchedulerMixin] | None" = None
    """Rows and columns of frames in pixels -> the scheduler for them; None: `scheduler` serves frames of any size."""

    def scheduler_for(self, height: int, width: int) -> "SchedulerMixin":
        """The scheduler for frames of so many pixels; `scheduler` itself for those that the model was made for."""
        if self.schedule is None or (height, width) == (self.defaults.height, self.defaults.width):
            return self.scheduler
        return self.schedule(height, width)


class Backend(ABC):
    """A plugin of the group `streaming.backbones`: knows one family of base models."""

    @abstractmethod
    def describe(self) -> str:
        """One line about the family, for `streamingt2v models`."""

    @abstractmethod
    def matches(self, directory: Path) -> bool:
        """Whether this folder holds a model of this family."""

    @abstractmethod
    def load(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """The model in the folder; None: the one that ships with the plugin.

        Raises UserError for a missing, truncated or foreign folder, for NaN in weights, and for None where nothing
        ships.
        """

    def enhancer(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model | None:
        """The video-to-video model of stage 3 that belongs to the folder; default: none."""
        return None


def check_size(backbone: Backbone, factor: int, rows: int, cols: int, who: str) -> None:
    """Raises UserError, naming the nearest size, if the backbone cannot denoise frames of so many pixels.

    factor: pixels that a latent cell covers along a side. who: cannot do it, in the message.
    """
    high, wide = backbone.fitting_size(rows // factor, cols // factor)
    if (high, wide) != (rows // factor, cols // factor):
        raise UserError(
            f"{who} cannot make {cols}x{rows}: the nearest size that it can is {wide * factor}x{high * factor}"
        )
