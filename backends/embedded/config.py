"""Sizes of the embedded tiny model: one function a part, with a toy variant for rehearsals; and how parts are saved."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from streaming.backbone import Window
from streaming.errors import UserError
from streaming.folders import save_folder
from streaming.model import Defaults

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

LATENT_CHANNELS = 16
"""Channels of a latent frame; it is 8 times smaller than the picture on each side."""
SIZE, ENHANCED_SIZE = 64, 128
"""Rows and columns of the base model's and of the enhancer's frames, pixels."""
FRAMES, ENHANCED_FRAMES = 16, 24
"""Frames that the base model and the enhancer denoise together."""
OVERLAP = 8
"""Frames that a chunk shares with the one before it."""
TOKENS = 24
"""Text tokens, padding included."""
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Normalisation of the image encoder's input."""


def build_vae(*, toy: bool = False) -> "AutoencoderKL":
    """8 × 8 pixels to 16 numbers; purely convolutional, so that every picture size is coded alike (2.3 M parameters).

    Groups of 4 and more channels in the norms: with one channel a group they would wipe out every picture's own
    brightness and contrast.
    """
    from diffusers import AutoencoderKL

    widths = (16, 16, 16, 16) if toy else (32, 64, 96, 96)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4 if toy else 8,
        sample_size=SIZE,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def build_text_encoder(vocabulary: int, *, toy: bool = False) -> "CLIPTextModelWithProjection":
    """Three layers of width 192; `vocabulary` is the tokenizer's size."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from backends.embedded.tokenizer import BOS, EOS, PAD

    width = 32 if toy else 192
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=1 if toy else 3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return CLIPTextModelWithProjection(config)


def build_image_encoder(*, toy: bool = False) -> "CLIPVisionModelWithProjection":
    """Four layers of width 192 on 8 × 8 patches of a 64 × 64 picture."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width = 32 if toy else 192
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=1 if toy else 4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=16 if toy else 8,
    )
    return CLIPVisionModelWithProjection(config)


def build_base(text_width: int, *, toy: bool = False) -> "UNet3DConditionModel":
    """ModelScope's U-Net with two levels, of which the finer one attends to the text (11.3 M parameters)."""
    return _unet(
        (32, 32) if toy else (128, 160),
        ("CrossAttnDownBlock3D", "DownBlock3D"),
        ("UpBlock3D", "CrossAttnUpBlock3D"),
        text_width,
        SIZE // 8,
    )


def build_enhancer(text_width: int, *, toy: bool = False) -> "UNet3DConditionModel":
    """A smaller U-Net for four times as many positions, of which the coarser level attends to the text."""
    return _unet(
        (32, 32) if toy else (64, 96),
        ("DownBlock3D", "CrossAttnDownBlock3D"),
        ("CrossAttnUpBlock3D", "UpBlock3D"),
        text_width,
        ENHANCED_SIZE // 8,
    )


def _unet(
    widths: tuple[int, ...], down: tuple[str, ...], up: tuple[str, ...], text_width: int, size: int
) -> "UNet3DConditionModel":
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel(
        sample_size=size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=32,
        cross_attention_dim=text_width,
        attention_head_dim=16,
    )


def build_defaults(size: int, frames: int) -> tuple[Defaults, Window]:
    """Settings and window of a model for square frames; 8 frames of every window overlap with the one before.

    The enhancer (the larger size) goes back less far than the paper's, and the whole way at once: stronger, or in more
    steps, it repaints the objects.
    """
    base = size == SIZE
    defaults = Defaults(
        height=size,
        width=size,
        fps=8.0,
        steps=8 if base else 1,
        guidance=3.0 if base else 1.0,
        eta=0.0,
        strength=0.3 if base else 0.1,
        sampler="dpm++",
        short_term="cam+inject" if base else "none",
        long_term="apm" if base else "none",
    )
    return defaults, Window(frames, OVERLAP)


def build_scheduler() -> "DDIMScheduler":
    """Stable Diffusion's noise levels stretched to zero terminal signal-to-noise ratio, v-prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def begin_with(model: nn.Module, weights: Mapping[str, Tensor], otherwise: str) -> None:
    """Fill a model that is to be trained with another's weights. Raises UserError if they are of other sizes.

    otherwise: what then is wrong, as in "the U-Net in DIR has other sizes".
    """
    sizes, wanted = ({name: value.shape for name, value in each.items()} for each in (weights, model.state_dict()))
    if sizes != wanted:
        raise UserError(f"{otherwise}: leave --begin out")
    model.load_state_dict(weights)


def without_dropout(model: nn.Module) -> nn.Module:
    """Switch every dropout off, also in training: `TemporalConvLayer` carries 0.1, too much for so small a model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def save_half(model: nn.Module, folder: Path) -> None:
    """Save a diffusers or transformers model in float16, in safetensors files of at most 15 MB; see `save_folder`."""
    half: Any = copy.deepcopy(model).to("cpu").half()
    save_folder(folder, lambda target: half.save_pretrained(target, max_shard_size="15MB"))


def trained(work: Path, part: str, trainer: str) -> Path:
    """The folder of a part that must have been trained before. Raises UserError if it isn't there."""
    folder = work / part
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; train it first: streamingt2v train {trainer} --work {work}")
    return folder
