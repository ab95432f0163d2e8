"""The contract of a base model's denoiser, and of the trainable copy of its encoder half."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor, nn

from streaming.sites import ContextSite, Deltas, FeatureSite, InputSite
from streaming.types import Features, Latents, SiteFeatures, TokenMask, Tokens


@final
@dataclass(frozen=True)
class Guided:
    """What one row of a guided evaluation is conditioned on."""

    text: bool
    """The prompt (True) or the negative prompt, by default empty (False)."""
    anchor: bool
    """The anchor frame (True) or the memory's own notion of none (False)."""


@final
@dataclass(frozen=True)
class NoiseLevel:
    """x_t = signal * x_0 + noise * eps, the level of one sampling step."""

    signal: float | Float[Tensor, ""]
    """sqrt(alpha_bar) of a diffusion, 1 - t of a rectified flow."""
    noise: float | Float[Tensor, ""]
    """sqrt(1 - alpha_bar) of a diffusion, t of a rectified flow."""


@final
@dataclass(frozen=True)
class Window:
    """What a denoiser handles at once, in LATENT frames (the codec translates to pixel frames)."""

    frames: int
    """Frames denoised together (paper: 16; enhancer: 24)."""
    overlap: int
    """Frames shared with the previous chunk, the memory's span (paper: 8; enhancer: 8)."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.frames:
            raise ValueError(f"a window of {self.frames} frames cannot overlap by {self.overlap}")


@final
@dataclass(frozen=True, kw_only=True)
class Call:
    """One evaluation of a denoiser, guidance rows included in the batch."""

    latents: Latents
    """Noisy latents [batch, channels, frames, high, wide]."""
    time: Float[Tensor, " batch"] | Float[Tensor, "batch frames"]
    """Time in the backbone's own unit (a UNet's 0..999), one for each row or one for each frame."""
    context: Tokens
    """Text tokens of each row."""
    guided: tuple[Guided, ...]
    """Each row's part in guidance, as long as the batch."""
    mask: Bool[Tensor, "batch frames"] | None = None
    """True where a frame is to be generated, False where it is given; None: all are generated."""
    context_mask: TokenMask | None = None
    """True where a text token is to be read; None: all of them."""
    level: NoiseLevel | None = None
    """The level while sampling; None in training, where every row has its own."""
    start: Latents | None = None
    """The noise that the trajectory began with, rows included, while sampling; None in training."""

    def with_(self, **changes: object) -> "Call":
        """A copy with some fields replaced."""
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]


class FeatureEncoder(nn.Module, ABC):
    """A trainable copy of a backbone's encoder half: what CAM passes the last frames through [StreamingT2V §4.1]."""

    @property
    @abstractmethod
    def condition_width(self) -> int:
        """Channels that `condition` must have: those of the features after the first layer (per cell of a patch)."""

    def optimize(self) -> None:
        """As `Backbone.optimize`."""
        return None

    @abstractmethod
    def forward(self, call: Call, condition: Features) -> Mapping[str, SiteFeatures]:
        """Features of the condition at every feature site.

        `call` holds as many latent frames as `condition` spans; condition [batch, span, positions, condition_width]
        is added after the first layer. Its positions are the latents' cells, row-major: an encoder of patches
        cuts it like the latents. The keys of the result are the backbone's feature sites, in their order. Every weight
        takes part in them: one without a gradient would stop training on several GPUs.
        """


class Backbone(nn.Module, ABC):
    """A denoiser that publishes named sites and adds deltas there. Stateless between calls."""

    takes_given_frames: bool = False
    """Whether it knows of frames that are given: it takes `Call.mask`, treats frames where that is False as clean (time
    0, whatever `Call.time` says), and takes a time for every frame. One that doesn't raises ValueError for such a mask,
    rather than generate the given frames in silence."""
    input_site: InputSite | None = None
    """The output of its first layer, for memories that widen its input; None: it publishes none."""

    @property
    @abstractmethod
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """Where the encoder half hands features on (long skips and middle of a UNet), in order of evaluation."""

    @property
    @abstractmethod
    def context_sites(self) -> tuple[ContextSite, ...]:
        """The text as each spatial cross-attention reads it, in order of evaluation."""

    @property
    @abstractmethod
    def window(self) -> Window:
        """Frames and overlap that it was trained for, in latent frames."""

    def fitting_size(self, high: int, wide: int) -> tuple[int, int]:
        """The nearest latent rows and columns that it can denoise. Default: it can denoise any."""
        return high, wide

    def optimize(self) -> None:
        """Rearranges itself for speed before it is compiled; results stay the same up to rounding. Default: nothing."""
        return None

    @abstractmethod
    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The network's prediction (noise, v or flow, as its scheduler says), of the shape of `call.latents`.

        These span `window.frames`, or fewer, down to `window.overlap` (as CAM's encoder sees them).
        Every site named in `deltas` is reached exactly once; with none the base model's output is bit-identical.
        Raises KeyError, listing the sites, if `deltas` names one that does not exist.
        """

    @abstractmethod
    def feature_encoder(self) -> FeatureEncoder:
        """A new trainable copy of the encoder half, initialised from this model, built from config and state dict."""
