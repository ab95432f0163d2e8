"""Open-Sora 1.0's and 1.1's transformers as backbones: both predict noise, besides variances that nobody reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, final

import torch
from torch import Tensor

from backends.opensora_backbone import to_patches, told_sizes
from backends.opensora_layers import FrameMask, Sizes
from backends.opensora_stdit import STDiT
from backends.opensora_stdit2 import STDiT2
from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.errors import UserError
from streaming.sites import ContextSite, Deltas, FeatureSite
from streaming.types import Features, Latents, SiteFeatures

Net = TypeVar("Net", STDiT, STDiT2)
Told = Callable[[Call], Mapping[str, Sizes | FrameMask | None]]
"""What a network is told of a call beside latents, times and text."""


@final
class OpenSora1Backbone(Backbone):
    """STDiT, which denoises latents of one size. Feature sites are the outputs of the last half of its blocks
    [StreamingT2V §5.2], context sites the projected text of all cross-attentions."""

    takes_given_frames = False

    def __init__(self, net: STDiT, *, window: Window) -> None:
        """Raises UserError for a window of more frames than the network was made for."""
        super().__init__()
        if window.frames > net.grid.frames:
            made = net.grid.frames
            raise UserError(
                f"a window of {window.frames} frames: this Open-Sora 1.0 was made for {made}, choose no more"
            )
        self.net, self._window = net, window

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """`block14` to `block27` in the published models."""
        return self.net.feature_sites

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        """`block0.text` and so on."""
        return self.net.context_sites

    @property
    def window(self) -> Window:
        """As given: in the published models 16 frames, 8 of them overlap."""
        return self._window

    def fitting_size(self, high: int, wide: int) -> tuple[int, int]:
        """The one size that the network was made for: 32x32 cells at 256 pixels, 64x64 at 512."""
        grid, patch = self.net.grid, self.net.config.patch
        return grid.rows * patch[0], grid.cols * patch[1]

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The noise. Raises KeyError for an unknown site, UserError for latents of another size, ValueError for a mask
        of given frames, which this network does not have."""
        told = no_given_frames(call)
        noise = self.net(call.latents, call.time, call.context, **told, text_mask=call.context_mask, deltas=deltas)
        return noise[:, : self.net.config.channels]

    def feature_encoder(self) -> FeatureEncoder:
        """The first half of the blocks as a module of its own, with copies of this network's weights, trainable."""
        half = replace(self.net.config, depth=len(self.feature_sites))
        return FirstBlocks(_first(self.net, lambda: STDiT(half, self.net.grid)), self.feature_sites, no_given_frames)

    def checkpoint_gradients(self) -> None:
        """Trades time for memory in training: activations inside blocks are computed anew in the backward pass."""
        self.net.recompute = True


@final
class OpenSora2Backbone(Backbone):
    """STDiT2 of any size, with its own conditioning by given frames, `Call.mask`. Sites: as those of 1.0."""

    takes_given_frames = True

    def __init__(
        self, net: STDiT2, *, window: Window, fps: float, factor: int, pixel_frames: Callable[[int], int]
    ) -> None:
        """What the network is told of a clip: as in `Clip`. `window` in latent frames."""
        super().__init__()
        self.net, self._window = net, window
        self.clip = Clip(fps=fps, factor=factor, pixel_frames=pixel_frames)

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """`block14` to `block27` in the published models."""
        return self.net.feature_sites

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        """`block0.text` and so on."""
        return self.net.context_sites

    @property
    def window(self) -> Window:
        """As given: in the published models 16 frames, 8 of them overlap."""
        return self._window

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The noise. Raises KeyError for an unknown site."""
        told = self.clip(call)
        noise = self.net(call.latents, call.time, call.context, **told, text_mask=call.context_mask, deltas=deltas)
        return noise[:, : self.net.config.channels]

    def feature_encoder(self) -> FeatureEncoder:
        """As that of 1.0."""
        half = replace(self.net.config, depth=len(self.feature_sites))
        return FirstBlocks(_first(self.net, lambda: STDiT2(half)), self.feature_sites, self.clip)

    def checkpoint_gradients(self) -> None:
        """As that of 1.0."""
        self.net.recompute = True


@final
class FirstBlocks(FeatureEncoder):
    """A trainable copy of the first half of the blocks: its n-th block feeds the n-th feature site.

    Its state dict has the network's own names, a subset of them.
    """

    def __init__(self, net: STDiT | STDiT2, sites: tuple[FeatureSite, ...], told: Told) -> None:
        """net: one block a site."""
        super().__init__()
        self.net, self.told = net, told
        self.names = tuple(site.name for site in sites)

    @property
    def condition_width(self) -> int:
        """Channels of a token, shared out among the cells of its patch (published models: 288)."""
        high, wide = self.net.config.patch
        return self.net.config.width // (high * wide)

    def forward(self, call: Call, condition: Features) -> Mapping[str, SiteFeatures]:
        """Features at every site; the condition is added to the tokens of the patches. Raises as the backbone does."""
        prepared = self.net.prepare(
            call.latents, call.time, call.context, **self.told(call), text_mask=call.context_mask
        )
        x, features = prepared.tokens, {}
        x = x + to_patches(condition.to(x.dtype), call.latents.shape[3:], self.net.config.patch)
        for i, name in enumerate(self.names):
            features[name] = x = self.net.block(i, x, prepared)
        return features

    def checkpoint_gradients(self) -> None:
        """As the backbone's."""
        self.net.recompute = True


@final
@dataclass(frozen=True, kw_only=True)
class Clip:
    """What 1.1 is told of each row's clip, by the size of its latents."""

    fps: float
    """Frames a second."""
    factor: int
    """Pixels that a latent cell covers along a side."""
    pixel_frames: Callable[[int], int]
    """Pixel frames that so many latent ones are."""

    def __call__(self, call: Call) -> dict[str, Sizes | FrameMask | None]:
        """Sizes in pixels, form (height by width), length, rate, and the frames that are to be generated."""
        sizes = told_sizes(call, self.fps, self.factor)
        frames = float(self.pixel_frames(call.latents.shape[2]))
        return sizes | {
            "aspect": sizes["height"] / sizes["width"],
            "num_frames": torch.full_like(sizes["fps"], frames),
            "generated": call.mask,
        }


def no_given_frames(call: Call) -> dict[str, Tensor]:
    """Nothing: that is what 1.0 is told of a clip. Raises ValueError for a mask that it would silently do without."""
    known = not torch.compiler.is_compiling()  # else values aren't
    if known and call.mask is not None and not bool(call.mask.all()):
        raise ValueError("Open-Sora 1.0 generates all frames; it has no mask for given ones")
    return {}


def _first(whole: Net, make: Callable[[], Net]) -> Net:
    """The network that `make` gives, less its last layer, with copies of the weights that it shares with the whole.

    What is never trained, tables of places and frequencies, is not saved with a memory, which would round it.
    """
    with torch.device("meta"):
        net = make()
    del net.final_layer, net.y_embedder.y_embedding
    wanted = net.state_dict().keys()
    state = {name: value.detach().clone() for name, value in whole.state_dict().items() if name in wanted}
    for name, _ in list(net.named_buffers()):
        owner, _, own = name.rpartition(".")
        net.get_submodule(owner).register_buffer(own, state.pop(name), persistent=False)
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(True)
