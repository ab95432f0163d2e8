"""The published model at full size with random weights: speed and memory do not depend on their values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNet3DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from adapters.apm import APM, new_apm
from adapters.cam import CAM, CAMConfig
from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_image import CLIPImageEncoder
from backends.modelscope_unet import UNet3DBackbone
from backends.modelscope_v2v import video_to_video
from backends.modelscope_v2v_schedule import video_to_video_scheduler
from streaming.backbone import Window
from streaming.codec import EncodedText, TextEncoder
from streaming.model import Defaults, Model
from streaming.sample_sde import TRAILING_SDE

TOKENS = 77


@final
@dataclass(frozen=True)
class Sizes:
    """Widths and depths of all networks."""

    unet: tuple[int, ...] = (320, 640, 1280, 1280)
    """Of each level; heads are 64 wide."""
    autoencoder: tuple[int, ...] = (128, 256, 512, 512)
    """Of each level."""
    condition: tuple[int, ...] = (32, 96, 256, 512)
    """Of CAM's E_cond."""
    text_layers: int = 23
    """Of Stable Diffusion 2's text tower, 1024 wide."""
    vision_layers: int = 32
    """Of ViT-H/14, 1280 wide."""
    side: int = 256
    """Pixels of a frame's sides."""
    enhanced: tuple[int, int] = (720, 1280)
    """Rows and columns of an enhanced frame."""


FULL = Sizes()
"""As published: 1411 M parameters in the UNet, 622 M in CAM, 69 M in its mergers."""
SMALL = Sizes((64, 64, 64, 64), (32, 32, 32, 32), (8, 8, 8, 8), 1, 1, 64, (80, 64))
"""To try the benchmark itself on a CPU."""


@final
class RandomText(TextEncoder):
    """A CLIP text tower over a prompt's bytes: real work, meaningless words."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16
        )
        self.tower = CLIPTextModel(config)

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """[batch, 77, 1024]."""
        rows = [list(prompt.encode()[:TOKENS].ljust(TOKENS)) for prompt in prompts]
        return EncodedText(self.tower(input_ids=torch.tensor(rows, device=self.tower.device)).last_hidden_state)


def base_model(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Model:
    """ModelScope's UNet, Stable Diffusion's autoencoder, its text tower and ViT-H/14."""
    with made_on(device, dtype):
        vision = CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1024,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=16,
            patch_size=14,
        )
        image = CLIPImageEncoder(CLIPVisionModelWithProjection(vision))
        backbone = UNet3DBackbone(_unet(sizes), tokens=TOKENS, window=Window(16, 8))
        codec, text = _codec(sizes), RandomText(sizes.text_layers)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    defaults = Defaults(height=sizes.side, width=sizes.side, fps=8.0)
    return _model(backbone, codec, text, image, scheduler, defaults, device, dtype)


def enhancer_model(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Model:
    """ModelScope's Video-to-Video model, in chunks of 24 frames."""
    height, width = sizes.enhanced
    with made_on(device, dtype):
        backbone = UNet3DBackbone(video_to_video(_unet(sizes)), tokens=TOKENS, window=Window(24, 8))
        codec, text = _codec(sizes), RandomText(sizes.text_layers)
    defaults = Defaults(
        height=height, width=width, fps=8.0, steps=30, guidance=7.5, rescale=0.2, strength=0.6, sampler=TRAILING_SDE
    )
    return _model(backbone, codec, text, None, video_to_video_scheduler(), defaults, device, dtype)


def memories(sizes: Sizes, model: Model) -> tuple[CAM, APM]:
    """The published sizes; what is zero before training is random, too: zeros would cost less power."""
    with made_on(model.device, model.dtype):
        config = CAMConfig.fitting(model.backbone, model.codec, widths=sizes.condition)
        cam, apm = CAM(config, model.backbone.feature_encoder()), new_apm(model)
        for value in (*cam.parameters(), *apm.parameters()):
            if not bool(value.any()):
                nn.init.normal_(value, std=0.02)
    return cam.requires_grad_(False), apm.requires_grad_(False)


def _unet(sizes: Sizes) -> UNet3DConditionModel:
    return UNet3DConditionModel(block_out_channels=sizes.unet, attention_head_dim=64)


def _codec(sizes: Sizes) -> AutoencoderKLCodec:
    levels = len(sizes.autoencoder)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.autoencoder,
        layers_per_block=2,
        sample_size=512,
    )
    return AutoencoderKLCodec(vae)


def _model(
    backbone: UNet3DBackbone,
    codec: AutoencoderKLCodec,
    text: RandomText,
    image: CLIPImageEncoder | None,
    scheduler: SchedulerMixin,
    defaults: Defaults,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    for part in (backbone, codec, text, *([image] if image else [])):
        part.to(device).eval().requires_grad_(False)
    return Model(
        name="random weights",
        backbone=backbone,
        codec=codec,
        text=text,
        image=image,
        scheduler=scheduler,
        defaults=defaults,
        device=device,
        dtype=dtype,
    )


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made within are initialised where they are to compute: on a CPU two billion numbers take minutes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
