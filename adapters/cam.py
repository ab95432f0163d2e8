"""CAM, the conditional attention module: a chunk attends to the end of the chunk before it [StreamingT2V §4.1]."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn

from adapters.condition import ConditionEncoder
from adapters.merger import Merger
from adapters.store import adapter_folder, check_sites, load_weights, read_config, write_adapter
from streaming.backbone import Backbone, Call, FeatureEncoder
from streaming.codec import Codec
from streaming.errors import UserError
from streaming.frame_mask import FrameMask, check_takes_given_frames
from streaming.injection import Injection
from streaming.memory import ShortTermMemory, Tail
from streaming.model import Model
from streaming.sites import Delta, Deltas, FeatureSite
from streaming.types import Features

KIND = "CAM"
STAGE_WIDTHS = (16, 32, 64, 96)
"""E_cond of small models; repeated at the end if the codec shrinks more than eightfold."""


@final
@dataclass(frozen=True, kw_only=True)
class CAMConfig:
    """Sizes of a CAM, and the sites that it was made for."""

    sites: tuple[FeatureSite, ...]
    """The backbone's feature sites, in order."""
    condition: Literal["pixels", "latents"]
    """What E_cond reads of the tail: its frames (the paper) or its latents (spares E_cond the strides)."""
    channels: int
    """Of the condition: 3 for pixels, the codec's for latents."""
    widths: tuple[int, ...]
    """Channels of E_cond: after the first layer, then after each stage; with pixels a stage halves the resolution
    (published model: 32, 96, 256, 512)."""
    head_dim: int
    """Channels of an attention head in the mergers (published model: 64)."""
    norm_groups: int = 32
    """Groups of the mergers' GroupNorm, at most."""
    distances: bool = False
    """Whether the mergers know how far away a remembered frame lies (`adapters.distance_bias`); the paper's don't."""

    @classmethod
    def fitting(
        cls,
        backbone: Backbone,
        codec: Codec,
        *,
        condition: Literal["pixels", "latents"] | None = None,
        widths: tuple[int, ...] = STAGE_WIDTHS,
        distances: bool = False,
    ) -> "CAMConfig":
        """Sizes for a backbone and its codec; heads as wide as all sites allow, 64 at most.

        condition: None takes what `fitting_condition` says. Raises UserError for pixels if the codec packs several
        frames into a latent one.
        """
        possible = fitting_condition(backbone, codec)
        condition = condition or possible
        if condition == "pixels" and possible != "pixels":
            raise UserError("this codec packs frames in time, so CAM cannot be conditioned on pixels: choose latents")
        stages = round(math.log2(codec.factor)) if condition == "pixels" else 1
        return cls(
            sites=backbone.feature_sites,
            condition=condition,
            channels=3 if condition == "pixels" else codec.channels,
            widths=(widths + (widths[-1],) * stages)[: stages + 1] if condition == "pixels" else widths[-2:],
            head_dim=math.gcd(64, *(site.width for site in backbone.feature_sites)),
            distances=distances,
        )


@final
@dataclass(frozen=True)
class CAMState:
    """What CAM knows of the end of the previous chunk."""

    condition: Features
    """E_cond of the tail [batch, span, positions, encoder.condition_width]; computed once per chunk."""


@final
class CAM(ShortTermMemory[CAMState]):
    """E_cond, a trainable copy of the backbone's encoder half, and a merger for every feature site.

    The copy sees the first `span` frames of the SAME noisy latents, the same time and the text tokens, plus E_cond of
    the `span` remembered frames; each feature site then attends to its output. Untrained, it adds exact zeros.
    """

    def __init__(self, config: CAMConfig, encoder: FeatureEncoder) -> None:
        """encoder: `backbone.feature_encoder()` of the backbone whose sites are in `config`."""
        super().__init__()
        self.config = config
        self.condition = ConditionEncoder(
            config.channels, config.widths, encoder.condition_width, shrink=config.condition == "pixels"
        )
        self.encoder = encoder
        self.mergers = nn.ModuleList(
            Merger(site.width, config.head_dim, config.norm_groups, config.distances) for site in config.sites
        )

    @property
    def reads(self) -> Literal["pixels", "latents"]:
        """What it needs of a tail."""
        return self.config.condition

    def remember(self, tail: Tail) -> CAMState:
        """E_cond of the tail's frames (in [-1, 1]) or latents."""
        if self.config.condition == "latents":
            value = tail.latents
        else:
            value = 2 * tail.frames.transpose(1, 2) - 1
        return CAMState(self.condition(value.to(self.condition.conv_in.weight.dtype)))

    def deltas(self, state: CAMState, call: Call) -> Deltas:
        """One merger a site; the copy of the encoder runs once per call, here."""
        memory = self.encoder(first_frames(call, state.condition.shape[1]), tile(state.condition, call))
        return {
            site.name: _reading(merger, memory[site.name])
            for site, merger in zip(self.config.sites, self.mergers, strict=True)
        }

    def save(self, folder: Path) -> None:
        """Write config.json and weights (fp16 safetensors, in parts under 15 MB)."""
        write_adapter(folder, KIND, self.config, self.state_dict())


def fitting_condition(backbone: Backbone, codec: Codec) -> Literal["pixels", "latents"]:
    """Pixels (the paper) wherever every latent frame of the overlap is one frame; latents if the codec packs time."""
    span = backbone.window.overlap
    return "pixels" if codec.latent_frames(span) == span else "latents"


def first_frames(call: Call, span: int) -> Call:
    """The call, cut down to its first `span` latent frames."""
    time = call.time if call.time.ndim == 1 else call.time[:, :span]
    mask = None if call.mask is None else call.mask[:, :span]
    start = None if call.start is None else call.start[:, :, :span]
    return call.with_(latents=call.latents[:, :, :span], time=time, mask=mask, start=start)


def tile(condition: Features, call: Call) -> Float[Tensor, "rows span positions width"]:
    """One condition a row of the call, whose guidance rows are row-major (all videos of the first row, then ...)."""
    rows, batch = call.latents.shape[0], condition.shape[0]
    if rows % batch:
        raise ValueError(f"{rows} rows cannot share the memory of {batch} videos evenly")
    return condition if rows == batch else condition.repeat(rows // batch, 1, 1, 1)


def new_cam(model: Model, *, condition: Literal["pixels", "latents"] | None = None, distances: bool = False) -> CAM:
    """An untrained CAM for a model, its encoder initialised from the model's backbone.

    condition: None takes what `fitting_condition` says. distances: as `CAMConfig.distances`. Raises UserError for
    pixels if the codec packs time.
    """
    config = CAMConfig.fitting(model.backbone, model.codec, condition=condition, distances=distances)
    return CAM(config, model.backbone.feature_encoder()).to(model.device)


def cam(model: Model, weights: Path | None) -> CAM:
    """Entry point `cam`: the trained CAM in the folder `weights`, by default `cam` beside the model's parts.

    Raises UserError if there is none, if it belongs to another backbone, or if its files are damaged.
    """
    folder = adapter_folder(model, weights, "cam")
    config = read_config(folder, KIND, CAMConfig)
    check_sites(folder, config.sites, model.backbone.feature_sites)
    loaded = CAM(config, model.backbone.feature_encoder())
    load_weights(folder, loaded)
    return loaded.to(model.device, model.dtype).eval().requires_grad_(False)


def cam_with_injection(model: Model, weights: Path | None) -> Injection:
    """Entry point `cam+inject`: CAM, with the known frames of the overlap put in place of the noisy ones besides."""
    return Injection(cam(model, weights))


def cam_with_frame_mask(model: Model, weights: Path | None) -> FrameMask:
    """Entry point `cam+frame-mask`: CAM, with the overlap given to the base model besides, as clean frames and a mask.

    Without `weights` it is the CAM in the folder `cam+frame-mask`, which was trained so, if there is one beside the
    model's parts, else the plain `cam`. Raises UserError for a model that takes no given frames, and as `cam` does.
    """
    check_takes_given_frames(model, instead="cam+inject")
    own = None if model.directory is None else model.directory / "cam+frame-mask"
    return FrameMask(cam(model, own if weights is None and own is not None and own.is_dir() else weights))


def _reading(merger: nn.Module, memory: Features) -> Delta:
    def delta(value: Features) -> Features:
        return merger(value, memory)

    return delta
