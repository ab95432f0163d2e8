"""Add-Cond, a rival of CAM: the features of its encoder added as ControlNet does [StreamingT2V, ablations]."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import nn

from adapters.cam import CAMConfig, tile
from adapters.condition import ConditionEncoder
from adapters.store import adapter_folder, check_sites, load_weights, read_config, write_adapter
from streaming.backbone import Backbone, Call, FeatureEncoder
from streaming.codec import Codec
from streaming.memory import ShortTermMemory, Tail
from streaming.model import Model
from streaming.sites import Delta, Deltas, FeatureSite
from streaming.types import Features

KIND = "AddCond"


@final
@dataclass(frozen=True, kw_only=True)
class AddCondConfig:
    """Sizes of an Add-Cond, and the sites that it was made for."""

    sites: tuple[FeatureSite, ...]
    """The backbone's feature sites, in order."""
    condition: Literal["pixels", "latents"]
    """What it reads of the tail, as CAM."""
    channels: int
    """Of the condition, without the mask: 3 for pixels, the codec's for latents."""
    widths: tuple[int, ...]
    """Channels of E_cond, as CAM's."""

    @classmethod
    def fitting(
        cls, backbone: Backbone, codec: Codec, *, condition: Literal["pixels", "latents"] | None = None
    ) -> "AddCondConfig":
        """The sizes that CAM has. Raises UserError for pixels if the codec packs several frames into a latent one."""
        cam = CAMConfig.fitting(backbone, codec, condition=condition)
        return cls(sites=cam.sites, condition=cam.condition, channels=cam.channels, widths=cam.widths)


@final
@dataclass(frozen=True)
class AddCondState:
    """What Add-Cond knows of the end of the previous chunk."""

    condition: Features
    """E_cond of the overlap's frames with mask 1 and, last, of one frame of zeros with mask 0
    [batch, overlap + 1, positions, encoder.condition_width]; computed once per chunk."""


@final
class AddCond(ShortTermMemory[AddCondState]):
    """CAM's E_cond and encoder copy, over ALL frames of the chunk; its features are added through zero convolutions.

    E_cond sees [frames * mask, mask], the mask being 1 in the overlap's frames; as nothing is attended to, the frames
    to be generated have to be filled up with zeros. Untrained, it adds exact zeros.
    """

    def __init__(self, config: AddCondConfig, encoder: FeatureEncoder) -> None:
        """encoder: `backbone.feature_encoder()` of the backbone whose sites are in `config`."""
        super().__init__()
        self.config = config
        self.condition = ConditionEncoder(
            config.channels + 1, config.widths, encoder.condition_width, shrink=config.condition == "pixels"
        )
        self.encoder = encoder
        self.zeros = nn.ModuleList(nn.Linear(site.width, site.width) for site in config.sites)
        for value in self.zeros.parameters():
            nn.init.zeros_(value)

    @property
    def reads(self) -> Literal["pixels", "latents"]:
        """What it needs of a tail."""
        return self.config.condition

    def remember(self, tail: Tail) -> AddCondState:
        """E_cond of the tail's frames (in [-1, 1]) or latents with the mask, and of a frame of zeros."""
        known = tail.latents if self.reads == "latents" else 2 * tail.frames.transpose(1, 2) - 1
        known = torch.cat((known, torch.ones_like(known[:, :1])), dim=1)
        whole = torch.cat((known, torch.zeros_like(known[:, :, :1])), dim=2)
        return AddCondState(self.condition(whole.to(self.condition.conv_in.weight.dtype)))

    def deltas(self, state: AddCondState, call: Call) -> Deltas:
        """One zero convolution a site; the copy of the encoder runs once per call, here."""
        known, blank = state.condition[:, :-1], state.condition[:, -1:]
        blanks = blank.expand(-1, call.latents.shape[2] - known.shape[1], -1, -1)
        features = self.encoder(call, tile(torch.cat((known, blanks), dim=1), call))
        sites = zip(self.config.sites, self.zeros, strict=True)
        return {site.name: _adding(zero, features[site.name]) for site, zero in sites}

    def save(self, folder: Path) -> None:
        """Write config.json and weights (fp16 safetensors, in parts under 15 MB)."""
        write_adapter(folder, KIND, self.config, self.state_dict())


def new_add_cond(model: Model, *, condition: Literal["pixels", "latents"] | None = None) -> AddCond:
    """An untrained Add-Cond for a model, its encoder initialised from the model's backbone.

    condition: None takes what CAM does. Raises UserError for pixels if the codec packs time.
    """
    config = AddCondConfig.fitting(model.backbone, model.codec, condition=condition)
    return AddCond(config, model.backbone.feature_encoder()).to(model.device)


def add_cond(model: Model, weights: Path | None) -> AddCond:
    """Entry point `add-cond`: the trained one in the folder `weights`, by default `add-cond` beside the model's parts.

    Raises UserError if there is none, if it belongs to another backbone, or if its files are damaged.
    """
    folder = adapter_folder(model, weights, "add-cond")
    config = read_config(folder, KIND, AddCondConfig)
    check_sites(folder, config.sites, model.backbone.feature_sites)
    loaded = AddCond(config, model.backbone.feature_encoder())
    load_weights(folder, loaded)
    return loaded.to(model.device, model.dtype).eval().requires_grad_(False)


def _adding(zero: nn.Module, features: Features) -> Delta:
    def delta(value: Features) -> Features:
        return zero(features).to(value.dtype)

    return delta
