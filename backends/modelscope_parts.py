"""The parts of a ModelScope folder, loaded and put together. Import it on first use: it is slow."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from backends.image_folder import load_image_encoder
from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_folder import load_part, load_scheduler, load_tokenizer
from backends.modelscope_old import load_autoencoder
from backends.modelscope_settings import VIDEO_TO_VIDEO, load_variant
from backends.modelscope_text import CLIPTextEncoder
from backends.modelscope_unet import UNet3DBackbone
from backends.modelscope_v2v import video_to_video
from streaming.backbone import Window
from streaming.codec import ImageEncoder
from streaming.errors import UserError
from streaming.model import Defaults, Model


def load_model(
    folders: list[Path], defaults: Defaults, window: Window, device: torch.device, dtype: torch.dtype
) -> Model:
    """A model whose parts lie in the first folder, those that may be shared in the first that has them."""
    text, codec = load_text(folders, dtype), load_codec(folders, dtype)
    backbone = load_backbone(folders[0], text.tokens, window, dtype)
    _check_fit(folders[0], backbone, text, codec)
    _check_size(folders[0], defaults, codec)
    image = load_image(folders, dtype)
    return Model(
        name=str(folders[0]),
        backbone=backbone.to(device),
        codec=codec.to(device),
        text=text.to(device),
        image=None if image is None else image.to(device),
        scheduler=load_scheduler(folders[0] / "scheduler"),
        defaults=defaults,
        directory=folders[0],
        device=device,
        dtype=dtype,
    )


def load_first(folder: Path, model: Model, defaults: Defaults) -> Model:
    """The network in `folder`, with the model's other parts: what makes the first chunk of the model's videos."""
    text, codec, window = model.text, model.codec, model.backbone.window
    assert isinstance(text, CLIPTextEncoder) and isinstance(codec, AutoencoderKLCodec)
    backbone = load_backbone(folder, text.tokens, window, model.dtype)
    _check_fit(folder, backbone, text, codec)
    own = (folder / "scheduler").is_dir()
    return replace(
        model,
        name=str(folder),
        backbone=backbone.to(model.device),
        scheduler=load_scheduler(folder / "scheduler") if own else model.scheduler,
        defaults=defaults,
        directory=folder,
    )


def load_backbone(folder: Path, tokens: int, window: Window, dtype: torch.dtype) -> UNet3DBackbone:
    """The UNet in `folder`/unet, changed if the folder's settings say so. Raises UserError as `load_part` does."""
    unet = load_part({"UNet3DConditionModel": UNet3DConditionModel}, folder / "unet", dtype)
    if load_variant(folder) == VIDEO_TO_VIDEO:
        unet = video_to_video(unet)
    return UNet3DBackbone(unet, tokens=tokens, window=window).eval()


def load_codec(folders: list[Path], dtype: torch.dtype) -> AutoencoderKLCodec:
    """The autoencoder in the first folder that has `vae`."""
    return AutoencoderKLCodec(load_autoencoder(_first(folders, "vae"), dtype)).eval()


def load_text(folders: list[Path], dtype: torch.dtype) -> CLIPTextEncoder:
    """The text tower and tokenizer in the first folder that has `text_encoder`, or `tokenizer`."""
    kinds = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    tower = load_part(kinds, _first(folders, "text_encoder"), dtype)
    return CLIPTextEncoder(tower, load_tokenizer(_first(folders, "tokenizer"))).eval()


def load_image(folders: list[Path], dtype: torch.dtype) -> ImageEncoder | None:
    """The encoder in the first folder that has `image_encoder`, None if there is none; see `backends.image_folder`."""
    folder = _first(folders, "image_encoder")
    return load_image_encoder(folder, dtype) if folder.is_dir() else None


def _first(folders: list[Path], part: str) -> Path:
    """Where the part is; if nowhere, where it is expected."""
    return next((folder / part for folder in folders if (folder / part).is_dir()), folders[-1] / part)


def _check_fit(folder: Path, backbone: UNet3DBackbone, text: CLIPTextEncoder, codec: AutoencoderKLCodec) -> None:
    unet = backbone.unet.config
    depth, taken, given = (unet[name] for name in ("cross_attention_dim", "in_channels", "out_channels"))
    if depth != text.depth:
        raise UserError(
            f"{folder}: the UNet reads text of width {depth}, the text encoder writes {text.depth}: "
            "they belong to different models"
        )
    if not taken == given == codec.channels:
        raise UserError(
            f"{folder}: the UNet takes {taken} and gives {given} latent channels, "
            f"the autoencoder has {codec.channels}: they belong to different models"
        )


def _check_size(folder: Path, defaults: Defaults, codec: AutoencoderKLCodec) -> None:
    if defaults.height % codec.factor or defaults.width % codec.factor:
        raise UserError(
            f"{folder}: frames of {defaults.height}x{defaults.width} pixels in streamingt2v.json: "
            f"height and width must be multiples of {codec.factor}"
        )
