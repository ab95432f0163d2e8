"""Configurations of the published checkpoint's networks, read off its tensors' shapes.

Depths are the published ones, widths whatever the tensors have. What shapes don't tell is as published: 32 groups,
8 heads in the first temporal transformer, heads of 64 channels in CLIP's text tower and of 80 in ViT-H/14.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from torch import nn

from adapters.apm import KIND as APM_KIND
from adapters.apm import APMConfig, ContextMixer
from adapters.cam import KIND as CAM_KIND
from adapters.cam import CAMConfig
from adapters.condition import ConditionEncoder
from adapters.merger import Merger
from streaming.sites import ContextSite, FeatureSite

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of one part's tensors, by our names."""
Config = dict[str, Any]

LEVELS, LAYERS, SCALING = 4, 2, 0.18215
"""Of UNet and autoencoder: levels, residual blocks a level on the way down; factor of the latents."""
SKIPS = LEVELS * (LAYERS + 1)
"""Skip connections of the UNet: what enters the down path, and each block's; the last level shrinks no further."""
TEXT_LAYERS, IMAGE_LAYERS = 23, 32
_TEXT_HEAD, _IMAGE_HEAD, _MERGER_HEAD = 64, 80, 64
_GROUPS, _FIRST_HEADS = 32, 8
_ENCODER = ("conv_in.", "time_embedding.", "transformer_in.", "down_blocks.", "mid_block.")
"""The half of the UNet that CAM has a copy of."""
_RESNET = "resnets.0.conv1.weight"


def unet_config(shapes: Shapes) -> Config:
    """Of `diffusers.UNet3DConditionModel`."""
    cross, plain = ["CrossAttnDownBlock3D"] * (LEVELS - 1), ["CrossAttnUpBlock3D"] * (LEVELS - 1)
    widths = [shapes[f"down_blocks.{i}.{_RESNET}"][0] for i in range(LEVELS)]
    return {
        "_class_name": "UNet3DConditionModel",
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "sample_size": 32,
        "block_out_channels": widths,
        "layers_per_block": LAYERS,
        "down_block_types": [*cross, "DownBlock3D"],
        "up_block_types": ["UpBlock3D", *plain],
        "norm_num_groups": math.gcd(_GROUPS, *widths),
        "attention_head_dim": max(1, shapes["transformer_in.proj_in.weight"][0] // _FIRST_HEADS),
        "cross_attention_dim": shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
    }


def vae_config(shapes: Shapes) -> Config:
    """Of `diffusers.AutoencoderKL`."""
    widths = [shapes[f"encoder.down_blocks.{i}.{_RESNET}"][0] for i in range(LEVELS)]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": LAYERS,
        "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
        "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
        "norm_num_groups": math.gcd(_GROUPS, *widths),
        "sample_size": 256,
        "scaling_factor": SCALING,
    }


def text_config(shapes: Shapes) -> Config:
    """Of `transformers.CLIPTextModel`."""
    words, width = shapes["embeddings.token_embedding.weight"][:2]
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": width // math.gcd(_TEXT_HEAD, width),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 0,
    }


def image_config(shapes: Shapes) -> Config:
    """Of open_clip's vision tower, as `image_encoder/config.json` has it."""
    width, _, patch = shapes["conv1.weight"][:3]
    cells = math.isqrt(max(1, shapes["positional_embedding"][0] - 1))
    return {
        "library": "open_clip",
        "model": "ViT-H-14",
        "embed_dim": shapes["proj"][1],
        "vision_cfg": {
            "image_size": cells * patch,
            "patch_size": patch,
            "width": width,
            "layers": IMAGE_LAYERS,
            "head_width": math.gcd(_IMAGE_HEAD, width),
            "mlp_ratio": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
        },
    }


def cam_config(shapes: Shapes) -> Config:
    """Of our CAM: a merger for each skip, named in the order of the down path, and for the mid block."""
    widths = [shapes[f"mergers.{i}.norm.weight"][0] for i in range(SKIPS + 1)]
    names = [*(f"skips.{i}" for i in range(SKIPS)), "mid_block"]
    stages = [shapes[f"condition.blocks.{i}.weight"][0] for i in (1, 3, 5)]
    config = CAMConfig(
        sites=tuple(FeatureSite(name, width) for name, width in zip(names, widths, strict=True)),
        condition="pixels",
        channels=shapes["condition.conv_in.weight"][1],
        widths=(shapes["condition.conv_in.weight"][0], *stages),
        head_dim=math.gcd(_MERGER_HEAD, *widths),
        norm_groups=_GROUPS,
    )
    return {"class": CAM_KIND, **asdict(config)}


def apm_config(shapes: Shapes) -> Config:
    """Of our APM: a mixer for each spatial cross-attention."""
    tokens, all_tokens = shapes["mixers.0.conv.weight"][:2]
    inner, image_width = shapes["proj_in.weight"][:2]
    depth = shapes["mixers.0.norm.weight"][0]
    config = APMConfig(
        sites=tuple(ContextSite(name, depth, tokens) for name in ATTENTIONS),
        image_width=image_width,
        inner=inner,
        image_tokens=all_tokens - tokens,
    )
    return {"class": APM_KIND, **asdict(config)}


ATTENTIONS = (
    *(f"down_blocks.{i}.attentions.{j}" for i in range(LEVELS - 1) for j in range(LAYERS)),
    "mid_block.attentions.0",
    *(f"up_blocks.{i}.attentions.{j}" for i in range(1, LEVELS) for j in range(LAYERS + 1)),
)
"""The published UNet's spatial transformers, in order of evaluation."""

CONFIGS: Mapping[str, Callable[[Shapes], Config]] = {
    "unet": unet_config,
    "cam": cam_config,
    "apm": apm_config,
    "vae": vae_config,
    "text_encoder": text_config,
    "image_encoder": image_config,
}
"""By part: the configuration for the shapes of its tensors. They raise KeyError for a missing one."""


class _Stand(dict[str, tuple[int, ...]]):
    """Some shape for every tensor; levels differ where they do in the published model, so that shortcuts are there."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        level = re.search(r"down_blocks\.(\d+)", name)
        return (64 * min(LEVELS - 1, int(level[1]) + 1) if level else 64, 80, 8, 8)


@cache
def axes() -> Mapping[str, Mapping[str, int]]:
    """By part, our names of all tensors that the published networks have, whatever their sizes; how many axes each."""
    unet = unet_config(_Stand())
    shapes = {part: expected(part, CONFIGS[part](_Stand()), unet) for part in CONFIGS}
    return {part: {name: len(shape) for name, shape in found.items()} for part, found in shapes.items()}


@cache
def known(part: str) -> frozenset[str]:
    """The names in `axes` with N for every number: what a tensor of this part may be called at any depth."""
    return frozenset(unnumbered(name) for name in axes()[part])


def unnumbered(name: str) -> str:
    """A name with N for every number between dots."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name)


def merger_widths(unet: Config) -> list[int]:
    """Channels that CAM's mergers see: of each skip connection in the order of the down path, then of the mid block."""
    widths = list(unet["block_out_channels"])
    last = len(widths) - 1
    levels = [[width] * (LAYERS + (i < last)) for i, width in enumerate(widths)]
    return [widths[0], *(width for level in levels for width in level), widths[-1]]


def expected(part: str, config: Config, unet: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a network of this configuration has; built on the meta device.

    unet: configuration of the UNet, of whose encoder half CAM has a copy. Raises what the libraries raise for sizes
    that make no sense.
    """
    with torch.device("meta"):
        state = _BUILDERS[part](config, unet)
    return {name: tuple(value.shape) for name, value in state.items()}


def _unet(config: Config, unet: Config) -> Mapping[str, torch.Tensor]:
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel.from_config(config).state_dict()  # pyright: ignore[reportAttributeAccessIssue]


def _vae(config: Config, unet: Config) -> Mapping[str, torch.Tensor]:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config).state_dict()  # pyright: ignore[reportAttributeAccessIssue]


def _text(config: Config, unet: Config) -> Mapping[str, torch.Tensor]:
    from transformers import CLIPTextConfig, CLIPTextModel

    state = CLIPTextModel(CLIPTextConfig(**config)).state_dict()
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def _image(config: Config, unet: Config) -> Mapping[str, torch.Tensor]:
    from open_clip.transformer import VisionTransformer

    sizes = dict(config["vision_cfg"])
    heads = sizes["width"] // sizes.pop("head_width")
    return VisionTransformer(**sizes, heads=heads, output_dim=config["embed_dim"]).state_dict()


def _cam(config: Config, unet: Config) -> Mapping[str, torch.Tensor]:
    half = {name: value for name, value in _unet(unet, unet).items() if name.startswith(_ENCODER)}
    width, widths = unet["block_out_channels"][0], merger_widths(unet)
    head = math.gcd(config["head_dim"], *widths)
    own = nn.ModuleDict(
        {
            "condition": ConditionEncoder(config["channels"], tuple(config["widths"]), width, shrink=True),
            "mergers": nn.ModuleList(Merger(each, head, config["norm_groups"]) for each in widths),
        }
    )
    return {**{f"encoder.{name}": value for name, value in half.items()}, **own.state_dict()}


def _apm(config: Config, unet: Config) -> Mapping[str, torch.Tensor]:
    sites = [ContextSite(**site) for site in config["sites"]]
    own = nn.ModuleDict(
        {
            "proj_in": nn.Linear(config["image_width"], config["inner"]),
            "proj_out": nn.Linear(config["inner"], config["image_tokens"] * sites[0].depth),
            "mixers": nn.ModuleList(ContextMixer(site, config["image_tokens"]) for site in sites),
        }
    )
    return own.state_dict()


_BUILDERS: Mapping[str, Callable[[Config, Config], Mapping[str, torch.Tensor]]] = {
    "unet": _unet,
    "cam": _cam,
    "apm": _apm,
    "vae": _vae,
    "text_encoder": _text,
    "image_encoder": _image,
}
