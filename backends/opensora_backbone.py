"""Open-Sora 1.2's transformer as a backbone; its own conditioning by given frames is `Call.mask`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from backends.opensora_config import STDiTConfig
from backends.opensora_layers import Sizes
from backends.opensora_stdit3 import Prepared, STDiT3
from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.sites import ContextSite, Deltas, FeatureSite
from streaming.types import Features, Latents, SiteFeatures


@final
class OpenSora3Backbone(Backbone):
    """STDiT3 of any size. Feature sites are the outputs of the last half of its pairs [StreamingT2V §5.2], context
    sites the projected text of all cross-attentions.

    The network predicts data minus noise, besides variances that nobody reads; this gives noise minus data, as
    diffusers' schedulers have it.
    """

    takes_given_frames = True

    def __init__(self, net: STDiT3, *, window: Window, fps: float, factor: int) -> None:
        """`window` in latent frames; fps: the rate it is told; factor: pixels a latent cell covers along a side."""
        super().__init__()
        self.net, self._window, self.fps, self.factor = net, window, fps, factor
        self.input_site = net.input_site

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """`pair14` to `pair27` in the published model."""
        return self.net.feature_sites

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        """`spatial0.text`, `temporal0.text`, and so on."""
        return self.net.context_sites

    @property
    def window(self) -> Window:
        """As given: in the published model 15 latent frames, 5 of them overlap."""
        return self._window

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The flow, noise minus data. Raises KeyError for an unknown site."""
        sizes = told_sizes(call, self.fps, self.factor)
        velocity = self.net(
            call.latents,
            call.time,
            call.context,
            **sizes,
            text_mask=call.context_mask,
            generated=call.mask,
            deltas=deltas,
        )
        return -velocity[:, : self.net.config.channels]

    def feature_encoder(self) -> FeatureEncoder:
        """The first half of the pairs as a module of its own, with copies of this network's weights, trainable."""
        with torch.device("meta"):
            encoder = OpenSora3Features(self.net.config, self.feature_sites, fps=self.fps, factor=self.factor)
        encoder.load(self.net.state_dict())
        return encoder

    def checkpoint_gradients(self) -> None:
        """Trades time for memory in training: activations inside blocks are computed anew in the backward pass."""
        self.net.recompute = True


@final
class OpenSora3Features(FeatureEncoder):
    """A trainable copy of the first half of the pairs: its n-th pair feeds the n-th feature site.

    Its state dict has the network's own names, a subset of them.
    """

    def __init__(self, config: STDiTConfig, sites: tuple[FeatureSite, ...], *, fps: float, factor: int) -> None:
        """config: the whole network's; `load` fills the weights."""
        super().__init__()
        self.net = STDiT3(replace(config, depth=len(sites)))
        del self.net.final_layer, self.net.y_embedder.y_embedding  # what it doesn't read
        turning = self.net.rope
        turning.register_buffer("freqs", turning.freqs, persistent=False)  # never trained: not saved with a memory
        self.names, self.fps, self.factor = tuple(site.name for site in sites), fps, factor

    @property
    def condition_width(self) -> int:
        """Channels of a token, shared out among the cells of its patch (published model: 288)."""
        high, wide = self.net.config.patch
        return self.net.config.width // (high * wide)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes copies of the first half's tensors from a network's state dict."""
        own = {name: state[name].detach().clone() for name in self.net.state_dict()}
        self.net.load_state_dict(own, assign=True)
        self.net.rope.freqs = state["rope.freqs"].clone()
        self.net.requires_grad_(True)

    def forward(self, call: Call, condition: Features) -> Mapping[str, SiteFeatures]:
        """Features at every site; the condition is added to the tokens of the patches."""
        sizes = told_sizes(call, self.fps, self.factor)
        prepared = self.net.prepare(
            call.latents, call.time, call.context, **sizes, text_mask=call.context_mask, generated=call.mask
        )
        x = prepared.tokens
        x = x + to_patches(condition.to(x.dtype), call.latents.shape[3:], self.net.config.patch)
        return dict(zip(self.names, self._pairs(x, prepared), strict=True))

    def _pairs(self, x: Features, prepared: Prepared) -> list[Features]:
        features = []
        for i in range(self.net.config.depth):
            x = self.net.pair(i, x, prepared)
            features.append(x)
        return features

    def checkpoint_gradients(self) -> None:
        """As the backbone's."""
        self.net.recompute = True


def told_sizes(call: Call, fps: float, factor: int) -> dict[str, Sizes]:
    """What the network is told of each row's clip: frames a second, and its size in pixels, by the latents' cells."""
    rows, device = call.latents.shape[0], call.latents.device
    high, wide = (factor * cells for cells in call.latents.shape[3:])
    told = {"fps": fps, "height": float(high), "width": float(wide)}
    return {name: torch.full((rows,), value, device=device) for name, value in told.items()}


def to_patches(
    cells: Float[Tensor, "batch span cells depth"], size: tuple[int, int] | torch.Size, patch: tuple[int, int]
) -> Float[Tensor, "batch span patches width"]:
    """What each latent cell holds, row by row, side by side for each patch; zeros where sizes don't divide."""
    (rows, cols), (high, wide) = size, patch
    grid = cells.unflatten(2, (rows, cols))
    grid = functional.pad(grid, (0, 0, 0, -cols % wide, 0, -rows % high))
    return rearrange(grid, "b t (h p) (w q) c -> b t (h w) (p q c)", p=high, q=wide)
