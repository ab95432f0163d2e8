"""ModelScope's text-to-video UNet as a backbone: stock `diffusers.UNet3DConditionModel`, sites by hooks."""

from collections.abc import Mapping
from typing import Any, final

import torch
from diffusers import UNet3DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from backends.diffusers_attention import shorten_attention
from backends.diffusers_sites import DiffusersSites, Evaluation, checkpoint_gradients, to_features, to_maps
from backends.modelscope_v2v import halvings, is_video_to_video, nearest_size
from backends.temporal_conv import channels_last, flatten_temporal
from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.errors import UserError
from streaming.sites import ContextSite, Deltas, FeatureSite
from streaming.types import Features, Latents, SiteFeatures

_HEAVY = ("ResnetBlock2D", "TemporalConvLayer", "Transformer2DModel", "TransformerTemporalModel")


@final
class UNet3DBackbone(Backbone):
    """`diffusers.UNet3DConditionModel` of any size, with its long skips, middle and spatial cross-attentions as sites.

    At full size 12 skips and the middle, and 16 cross-attentions (6 down, 1 middle, 9 up). Skips are edited when the
    whole down path has run, the middle after the mid block: neither the down path nor the mid block sees a delta
    [StreamingT2V §4.1; convention of the published code].
    """

    def __init__(self, unet: UNet3DConditionModel, *, tokens: int, window: Window) -> None:
        """Hooks the UNet; `tokens` is the length of the text it is given, `window` in latent frames."""
        super().__init__()
        shorten_attention(unet)
        self.unet = unet
        self._window = window
        self._sites = DiffusersSites(unet, depth=unet.config["cross_attention_dim"], tokens=tokens)
        self.input_site = self._sites.input

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """`skips.0`, ... in the order of the down path (the first is the sum that enters it), then `mid_block`."""
        return self._sites.features

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        """The spatial transformers, by diffusers' names: down, middle, up."""
        return self._sites.contexts

    @property
    def window(self) -> Window:
        """As given: ModelScope 16 frames, 8 of them overlap."""
        return self._window

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The prediction [batch, channels, frames, high, wide], in the type of `call.latents`.

        Raises KeyError for an unknown site, ValueError for what this UNet cannot take: a time for each frame, a mask
        of given frames or on the text.
        """
        _check(call)
        latents = call.latents.to(self.unet.conv_in.weight.dtype)
        context = call.context.to(latents.dtype)
        prediction = self._sites.evaluate(
            Evaluation(deltas, batch=latents.shape[0]),
            lambda: self.unet(latents, call.time, context, return_dict=False)[0],
        )
        return prediction.to(call.latents.dtype)

    def feature_encoder(self) -> FeatureEncoder:
        """The encoder half as a module of its own, with copies of this UNet's weights, in training mode.

        Raises UserError for a video-to-video UNet.
        """
        if is_video_to_video(self.unet):
            raise UserError("memories are for the base model: a video-to-video UNet has no encoder half for them")
        encoder = UNet3DFeatureEncoder(self.unet.config, self.feature_sites)
        encoder.load(self.unet.state_dict())
        return encoder

    def fitting_size(self, high: int, wide: int) -> tuple[int, int]:
        """What a video-to-video UNet says (see `backends.modelscope_v2v`), any for the others."""
        return nearest_size(high, wide, halvings(self.unet)) if is_video_to_video(self.unet) else (high, wide)

    def optimize(self) -> None:
        """Convolutions in two dimensions, channels last; see `backends.temporal_conv`."""
        flatten_temporal(self)
        channels_last(self)

    def checkpoint_gradients(self) -> None:
        """Trades time for memory in training: activations inside blocks are computed anew in the backward pass."""
        checkpoint_gradients(heavy_blocks(self.unet))


@final
class UNet3DFeatureEncoder(FeatureEncoder):
    """The UNet's encoder half over the condition's frames, raw: no zero convolutions [StreamingT2V §4.1].

    Its state dict has diffusers' own names, a subset of the UNet's.
    """

    def __init__(self, config: Mapping[str, Any], sites: tuple[FeatureSite, ...]) -> None:
        """Built on the meta device, from the configuration of a `UNet3DConditionModel`; `load` fills it."""
        super().__init__()
        with torch.device("meta"):
            whole: Any = UNet3DConditionModel.from_config(dict(config))
        self.time_proj, self.time_embedding = whole.time_proj, whole.time_embedding
        self.conv_in, self.transformer_in = whole.conv_in, whole.transformer_in
        self.down_blocks, self.mid_block = whole.down_blocks, whole.mid_block
        shorten_attention(self)
        self._names = tuple(site.name for site in sites)
        self._width = int(config["block_out_channels"][0])

    @property
    def condition_width(self) -> int:
        """Channels of the first level (full size: 320)."""
        return self._width

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes copies of the encoder half's tensors from a UNet's state dict, trainable."""
        own = {name: state[name].detach().clone() for name in self.state_dict()}
        self.load_state_dict(own, assign=True)

    def forward(self, call: Call, condition: Features) -> Mapping[str, SiteFeatures]:
        """Skips and middle, by site; `condition` [batch, span, positions, condition_width] may span any length.

        The condition is added to what enters the down path: after the first convolution and after the temporal
        transformer that follows it [convention of the published code]. Raises ValueError as the backbone does.
        """
        _check(call)
        batch, _, span, high, _ = call.latents.shape
        embedding, context = self._conditions(call, span)
        x = call.latents.to(self.conv_in.weight.dtype).transpose(1, 2).flatten(0, 1)
        x = self.transformer_in(self.conv_in(x), num_frames=span, return_dict=False)[0]
        x = x + to_maps(condition.to(x.dtype), high)
        skips = [x]
        for block in self.down_blocks:
            text = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
            x, more = block(hidden_states=x, temb=embedding, num_frames=span, **text)
            skips += more
        x = self.mid_block(x, embedding, encoder_hidden_states=context, num_frames=span)
        maps = zip(self._names, (*skips, x), strict=True)
        return {name: to_features(each, batch) for name, each in maps}

    def optimize(self) -> None:
        """As the backbone's."""
        flatten_temporal(self)
        channels_last(self)

    def checkpoint_gradients(self) -> None:
        """As the backbone's."""
        checkpoint_gradients(heavy_blocks(self))

    def _conditions(
        self, call: Call, span: int
    ) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows tokens depth"]]:
        """Embedded time and text, repeated for each frame."""
        dtype = self.conv_in.weight.dtype
        embedding = self.time_embedding(self.time_proj(call.time).to(dtype))
        return embedding.repeat_interleave(span, dim=0), call.context.to(dtype).repeat_interleave(span, dim=0)


def heavy_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks whose activations are worth computing twice."""
    return [module for module in model.modules() if type(module).__name__ in _HEAVY]


def _check(call: Call) -> None:
    """Raises ValueError for what a `UNet3DConditionModel` would silently do without."""
    if call.time.ndim != 1:
        raise ValueError(f"this UNet has one time for each sample, not one for each frame: {tuple(call.time.shape)}")
    if torch.compiler.is_compiling():  # values are unknown
        return
    if call.context_mask is not None and not bool(call.context_mask.all()):
        raise ValueError("this UNet reads all text tokens; it has no mask for them")
    if call.mask is not None and not bool(call.mask.all()):
        raise ValueError("this UNet generates all frames; it has no mask for given ones")
