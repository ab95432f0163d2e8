"""Conc-Cond, a rival of CAM: known latents and a mask as more channels of the input [StreamingT2V, ablations]."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.store import adapter_folder, check_sites, load_weights, read_config, write_adapter
from streaming.backbone import Call
from streaming.errors import UserError
from streaming.memory import ShortTermMemory, Tail
from streaming.model import Model
from streaming.sites import Deltas, InputSite
from streaming.types import Features, Latents

KIND = "ConcCond"


@final
@dataclass(frozen=True, kw_only=True)
class ConcCondConfig:
    """Sizes of a Conc-Cond, and the first layer that it was made for."""

    channels: int
    """Of the latents."""
    site: str
    """The backbone's input site."""
    width: int
    """Channels of the first layer's output."""
    kernel: tuple[int, ...]
    """Rows and columns of its kernel, in latent cells."""
    stride: tuple[int, ...]
    """Rows and columns from one of its positions to the next."""

    @classmethod
    def fitting(cls, model: Model) -> "ConcCondConfig":
        """Sizes for a model. Raises UserError if its backbone publishes no input site."""
        site = model.backbone.input_site
        if site is None:
            raise UserError(
                f"the base model of {model.name} publishes no input site, which conc-cond needs: "
                "choose another short-term memory"
            )
        return cls(
            channels=model.codec.channels, site=site.name, width=site.width, kernel=site.kernel, stride=site.stride
        )

    @property
    def input_site(self) -> InputSite:
        """The site that it was made for."""
        return InputSite(self.site, self.width, *((pair[0], pair[1]) for pair in (self.kernel, self.stride)))


@final
@dataclass(frozen=True)
class ConcCondState:
    """What Conc-Cond knows of the end of the previous chunk."""

    added: Features
    """What the further input channels add to the first layer's output, in the frames of the overlap."""


@final
class ConcCond(ShortTermMemory[ConcCondState]):
    """Concatenation of [z_t, E(frames) * mask, mask] along the channels; only the weights of the added ones train.

    A convolution of concatenated channels is a sum of convolutions, so the base model's own first layer stays as it is
    and this one's output is added to it. The mask is 1 in the overlap's frames; in the others all added channels are 0
    and, there being no bias, nothing is added. Untrained, its weights are zero: not a bit changes.
    """

    reads: Literal["pixels", "latents"] = "latents"
    """What it needs of a tail."""

    def __init__(self, config: ConcCondConfig) -> None:
        super().__init__()
        self.config = config
        kernel, stride = config.input_site.kernel, config.input_site.stride
        self.conv = nn.Conv2d(config.channels + 1, config.width, kernel, stride, bias=False)
        nn.init.zeros_(self.conv.weight)

    def remember(self, tail: Tail) -> ConcCondState:
        """The convolution of the tail's latents and the mask, which is the same at every denoising step."""
        known = tail.latents.to(self.conv.weight.dtype)
        given = torch.cat((known, torch.ones_like(known[:, :1])), dim=1)
        return ConcCondState(self._convolved(given))

    def deltas(self, state: ConcCondState, call: Call) -> Deltas:
        """What is added at the input site: something in the overlap's frames, zeros in the others."""
        rows, batch = call.latents.shape[0], state.added.shape[0]
        if rows % batch:
            raise ValueError(f"{rows} rows cannot share the memory of {batch} videos evenly")

        def delta(value: Features) -> Features:
            added = state.added.to(value.dtype).repeat(rows // batch, 1, 1, 1)
            return F.pad(added, (0, 0, 0, 0, 0, value.shape[1] - added.shape[1]))

        return {self.config.site: delta}

    def save(self, folder: Path) -> None:
        """Write config.json and weights (fp16 safetensors)."""
        write_adapter(folder, KIND, self.config, self.state_dict())

    def _convolved(self, given: Latents) -> Features:
        """Zeros around the frames as the first layer has them."""
        around: list[int] = []
        for cells, kernel, stride in zip(
            given.shape[:2:-1], self.config.kernel[::-1], self.config.stride[::-1], strict=True
        ):
            side = (kernel - stride) // 2
            around += [side, side + -cells % stride]
        images: Tensor = F.pad(given.transpose(1, 2).flatten(0, 1), around)
        return self.conv(images).flatten(2).transpose(1, 2).unflatten(0, (given.shape[0], -1))


def new_conc_cond(model: Model) -> ConcCond:
    """An untrained Conc-Cond for a model. Raises UserError if the model's backbone publishes no input site."""
    return ConcCond(ConcCondConfig.fitting(model)).to(model.device)


def conc_cond(model: Model, weights: Path | None) -> ConcCond:
    """Entry point `conc-cond`: the trained one in the folder `weights`, by default `conc-cond` beside the model.

    Raises UserError if there is none, if it belongs to another backbone, or if its files are damaged.
    """
    here = ConcCondConfig.fitting(model).input_site
    folder = adapter_folder(model, weights, "conc-cond")
    config = read_config(folder, KIND, ConcCondConfig)
    check_sites(folder, (config.input_site,), (here,))
    loaded = ConcCond(config)
    load_weights(folder, loaded)
    return loaded.to(model.device, model.dtype).eval().requires_grad_(False)
