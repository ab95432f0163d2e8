"""Open-Sora 1.2 at full size with random weights: speed and memory do not depend on their values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_image import CLIPImageEncoder
from backends.opensora_backbone import OpenSora3Backbone
from backends.opensora_codec import PIECE, OpenSoraCodec, PieceVAE, latent_window
from backends.opensora_config import STDiTConfig
from backends.opensora_places import Rope
from backends.opensora_rflow import flow_scheduler
from backends.opensora_settings import family
from backends.opensora_stdit3 import STDiT3
from backends.opensora_vae import TemporalSizes, TemporalVAE
from benchmarks.random_model import made_on
from streaming.codec import EncodedText, TextEncoder
from streaming.keys import Key
from streaming.model import Model


@final
@dataclass(frozen=True)
class Sizes:
    """Widths and depths of all networks, and the frames."""

    transformer: STDiTConfig
    """STDiT3."""
    spatial: tuple[int, ...] = (128, 256, 512, 512)
    """Of each level of the spatial autoencoder."""
    temporal: tuple[int, ...] = (128, 256, 256, 512)
    """Of each level of the temporal autoencoder."""
    vision_layers: int = 32
    """Of ViT-H/14, 1280 wide."""
    height: int = 240
    """Pixels."""
    width: int = 424
    """Pixels."""


FULL = Sizes(STDiTConfig(width=1152, depth=28, heads=16, hidden=4608, text_depth=4096, text_tokens=300))
"""STDiT3-XL/2 at 240p: 1208 M parameters."""
SMALL = Sizes(
    STDiTConfig(width=64, depth=4, heads=4, hidden=128, text_depth=32, text_tokens=8), (32,) * 4, (32,) * 4, 1, 32, 48
)
"""To try the benchmark itself on a CPU."""


@final
class RandomWords(TextEncoder):
    """Random tokens for every prompt, as long as a sentence is: the text encoder (T5 v1.1 xxl) runs once a video and is
    not measured."""

    words = 24

    def __init__(self, tokens: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("table", Key(0).normal(tokens, depth))

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """[batch, tokens, depth] and the mask of the words."""
        tokens = self.table.expand(len(prompts), -1, -1)
        seen = torch.arange(tokens.shape[1], device=tokens.device) < self.words
        return EncodedText(tokens, seen.expand(len(prompts), -1))


def open_sora(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Model:
    """STDiT3, its codec of pieces, ViT-H/14; windows of 51 frames, 17 of them overlap, 30 Euler steps."""
    config = sizes.transformer
    with made_on(device, dtype):
        net = STDiT3(config)
        nn.init.normal_(net.final_layer.linear.weight, std=0.02)
        codec = OpenSoraCodec(_spatial(sizes), PieceVAE(_temporal(sizes)))
        vision = CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1024,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=16,
            patch_size=14,
        )
        image = CLIPImageEncoder(CLIPVisionModelWithProjection(vision))
    net.rope.freqs = Rope(config.width // config.heads).freqs.to(device)  # exact, whatever the type
    window, published = latent_window(codec), family("1.2")
    backbone = OpenSora3Backbone(net, window=window, fps=published.fps, factor=codec.factor)
    text = RandomWords(config.text_tokens, config.text_depth).to(dtype)
    for part in (backbone, codec, text, image):
        part.to(device).eval().requires_grad_(False)
    return Model(
        name="random weights",
        backbone=backbone,
        codec=codec,
        text=text,
        image=image,
        scheduler=flow_scheduler(sizes.height, sizes.width, codec.pixel_frames(window.frames)),
        defaults=family("1.2", (sizes.height, sizes.width)),
        device=device,
        dtype=dtype,
    )


def _spatial(sizes: Sizes) -> AutoencoderKLCodec:
    levels = len(sizes.spatial)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.spatial,
        layers_per_block=2,
        sample_size=512,
    )
    return AutoencoderKLCodec(vae)


def _temporal(sizes: Sizes) -> TemporalVAE:
    entry = sizes.temporal[0]
    shape = TemporalSizes(
        channels=4, latents=4, inner=4, entry=entry, widths=sizes.temporal, blocks=4, shortened=(1, 2), groups=32
    )
    made = TemporalVAE(shape)
    assert made.factor * 4 + 1 == PIECE
    return made
