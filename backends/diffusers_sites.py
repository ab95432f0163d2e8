"""Named sites on any diffusers video UNet, by hooks: nothing of diffusers is copied or replaced.

Serves every UNet of diffusers whose `up_blocks` take the long skips as the keyword `res_hidden_states_tuple` and whose
spatial attentions read the text as the keyword `encoder_hidden_states` (UNet3DConditionModel, I2VGenXLUNet,
UNetMotionModel, ...). Such UNets compute on [batch * frames, channels, high, wide], frames fastest.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from streaming.sites import ContextSite, Delta, Deltas, FeatureSite, InputSite, check_sites
from streaming.types import Features

T = TypeVar("T")
Maps = Float[Tensor, "batch_frames width high wide"]


def to_features(maps: Maps, batch: int) -> Features:
    """[batch * span, width, high, wide] -> [batch, span, high * wide, width]."""
    return maps.unflatten(0, (batch, -1)).flatten(3).transpose(2, 3)


def to_maps(features: Features, high: int) -> Maps:
    """The inverse of `to_features`; needs to know how many rows the positions form."""
    return features.transpose(2, 3).flatten(0, 1).unflatten(2, (high, -1))


@final
@dataclass(frozen=True)
class Evaluation:
    """What the hooks must know of the evaluation under way."""

    deltas: Deltas
    """What to add, by site."""
    batch: int
    """Rows, guidance included; the UNet itself only sees batch * frames."""


class _Current(threading.local):
    """The evaluation under way in this thread."""

    def __init__(self) -> None:  # runs once in every thread; a class attribute instead costs a second compilation
        self.evaluation: Evaluation | None = None


@final
class DiffusersSites:
    """The sites of one UNet. A plain object, so that it adds nothing to the UNet's parameters or state dict.

    Input site: `conv_in`, the first convolution. Feature sites: `skips.0`, ... in the order of the down path, then
    `mid_block`. Context sites: the spatial transformers by their own names, in order of evaluation. A site without a
    delta costs one dictionary look-up and leaves its tensor untouched.
    """

    def __init__(self, unet: Any, *, depth: int, tokens: int) -> None:
        first = unet.conv_in
        self.input = InputSite("conv_in", first.out_channels, tuple(first.kernel_size), tuple(first.stride))
        self.features = (*_skips(unet), FeatureSite("mid_block", unet.config["block_out_channels"][-1]))
        self.contexts = tuple(ContextSite(name, depth, tokens) for name, _ in spatial_attentions(unet))
        self._current = _Current()
        self._hook(unet)

    def evaluate(self, evaluation: Evaluation, unet: Callable[[], T]) -> T:
        """What `unet` returns; its evaluation by this thread adds the deltas.

        Raises KeyError, listing the sites, if a delta names one that does not exist.
        """
        check_sites(evaluation.deltas, (self.input, *self.features, *self.contexts))
        before = self._current.evaluation
        self._current.evaluation = evaluation
        try:
            return unet()
        finally:
            self._current.evaluation = before

    def __deepcopy__(self, memo: dict[int, Any]) -> "DiffusersSites":
        raise TypeError("a UNet with sites can't be copied: build another from its configuration and state dict")

    def _hook(self, unet: Any) -> None:
        """Hooks sit on whole blocks, outside of whatever checkpoints gradients inside them."""
        unet.conv_in.register_forward_hook(self._output_hook(self.input.name))
        end = len(self.features) - 1
        for block in unet.up_blocks:
            start = end - len(block.resnets)
            names = [site.name for site in self.features[start:end]]
            block.register_forward_pre_hook(self._skip_hook(names), with_kwargs=True)
            end = start
        unet.mid_block.register_forward_hook(self._output_hook("mid_block"))
        for name, attention in spatial_attentions(unet):
            attention.register_forward_pre_hook(self._context_hook(name), with_kwargs=True)

    def _skip_hook(self, names: list[str]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            now = self._current.evaluation
            if now is None or not any(name in now.deltas for name in names):
                return None
            skips = kwargs["res_hidden_states_tuple"]
            edited = tuple(_add(now, name, skip) for name, skip in zip(names, skips, strict=True))
            return args, {**kwargs, "res_hidden_states_tuple": edited}

        return hook

    def _output_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            now = self._current.evaluation
            return None if now is None or name not in now.deltas else _add(now, name, output)

        return hook

    def _context_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            now = self._current.evaluation
            if now is None or name not in now.deltas:
                return None
            repeated = kwargs["encoder_hidden_states"]
            frames = repeated.shape[0] // now.batch
            delta = _evaluate(name, now.deltas[name], repeated[::frames])
            return args, {**kwargs, "encoder_hidden_states": repeated + delta.repeat_interleave(frames, dim=0)}

        return hook


def spatial_attentions(unet: Any) -> list[tuple[str, nn.Module]]:
    """The spatial transformers by name, in order of evaluation: down, middle, up."""
    blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block)]
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    return [
        (f"{name}.attentions.{i}", attention)
        for name, block in blocks
        for i, attention in enumerate(getattr(block, "attentions", ()))
    ]


def checkpoint_gradients(modules: Iterable[nn.Module]) -> None:
    """From now on, backward computes these modules' activations anew instead of keeping them.

    Only `forward` is wrapped: hooks stay outside, so what they add gets its gradients.
    """
    from torch.utils.checkpoint import checkpoint

    for module in modules:
        plain = module.forward

        def forward(*args: Any, plain: Any = plain, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)

        module.forward = forward


def _skips(unet: Any) -> list[FeatureSite]:
    widths = [unet.config["block_out_channels"][0]]
    for block, width in zip(unet.down_blocks, unet.config["block_out_channels"], strict=True):
        widths += [width] * (len(block.resnets) + bool(block.downsamplers))
    return [FeatureSite(f"skips.{i}", width) for i, width in enumerate(widths)]


def _add(now: Evaluation, name: str, maps: Maps) -> Maps:
    if name not in now.deltas:
        return maps
    delta = _evaluate(name, now.deltas[name], to_features(maps, now.batch))
    return maps + to_maps(delta, maps.shape[2])


def _evaluate(name: str, delta: Delta, value: Tensor) -> Tensor:
    result = delta(value)
    if result.shape != value.shape:
        raise ValueError(f"the delta at {name} has shape {tuple(result.shape)}, the site {tuple(value.shape)}")
    return result.to(value.dtype)
