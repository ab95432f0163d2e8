"""The parts of an Open-Sora folder, loaded and put together. Import it on first use: it is slow."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5EncoderModel
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from backends.image_weights import read_weights
from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_folder import check_finite, check_weights, load_part, load_scheduler, load_tokenizer
from backends.modelscope_old import load_autoencoder
from backends.modelscope_parts import load_image, load_text
from backends.modelscope_settings import FILE, read_json
from backends.modelscope_text import CLIPTextEncoder
from backends.opensora_backbone import OpenSora3Backbone
from backends.opensora_backbone1 import OpenSora1Backbone, OpenSora2Backbone
from backends.opensora_codec import OpenSoraCodec, load_codec
from backends.opensora_config import STDiTConfig, Version, version_of
from backends.opensora_settings import read_settings, schedule_of
from backends.opensora_stdit import STDiT
from backends.opensora_stdit2 import STDiT2
from backends.opensora_stdit3 import STDiT3
from backends.opensora_text import AESTHETICS, T5TextEncoder
from backends.opensora_weights import load_stdit
from streaming.backbone import Backbone, Window
from streaming.codec import Codec
from streaming.errors import UserError
from streaming.model import Model, check_size
from streaming.weights import Checkpoint

_T5 = ("T5EncoderModel", "T5ForConditionalGeneration")
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_GROUPS = 32
"""Of the norms of the published autoencoder of 1.2."""
_SOURCES = {
    "transformer": "for example the file of hpcai-tech/OpenSora-STDiT-v3",
    "vae": "for 1.2 the file of hpcai-tech/OpenSora-VAE-v1.2, for 1.0 and 1.1 stabilityai/sd-vae-ft-ema",
    "text_encoder": "that of T5 v1.1 xxl, as safetensors",
    "tokenizer": "that of T5 v1.1 xxl",
}


def load_open_sora(folders: list[Path], *, device: torch.device, dtype: torch.dtype) -> Model:
    """The model whose parts lie each in the first of the folders that has it; frozen, in eval mode.

    Settings, scheduler and memories are the first folder's alone. The format: see `backends.opensora`.
    Raises UserError for what is missing, damaged, or belongs to different models.
    """
    weights, where = read_transformer(_place(folders, "transformer"))
    version = version_of(weights, where)
    codec = load_vae(_place(folders, "vae"), dtype)
    if version != "1.2" and isinstance(codec, OpenSoraCodec):
        raise UserError(f"{where} is Open-Sora {version}, the autoencoder 1.2's: give {_SOURCES['vae']}")
    net = load_stdit(weights, str(where), dtype, heads=_heads(where, version), channels=codec.channels)
    size, frames = _made_for(net, codec)
    defaults, window = read_settings(folders[0], version, codec, size=size, frames=frames)
    backbone = make_backbone(net, window, defaults.fps, codec).eval()
    check_size(backbone, codec.factor, defaults.height, defaults.width, f"{folders[0] / FILE}: this model")
    text = load_words(folders, version, weights, dtype)
    _check_text(where, net.config, text)
    image = load_image(folders, dtype)
    own = folders[0] / "scheduler"
    schedule = schedule_of(version, codec, window)
    return Model(
        name=str(folders[0]),
        backbone=backbone.to(device),
        codec=codec.to(device),
        text=text.to(device),
        image=None if image is None else image.to(device),
        scheduler=load_scheduler(own) if own.is_dir() else schedule(defaults.height, defaults.width),
        schedule=None if own.is_dir() else schedule,
        defaults=defaults,
        directory=folders[0],
        device=device,
        dtype=dtype,
    )


def read_transformer(folder: Path) -> tuple[Mapping[str, Tensor], Path]:
    """The tensors of the folder's safetensors files, by name, their numbers still on disk, and where they are from.

    Raises UserError for files that are missing, pickled, truncated, or hold the same tensor twice.
    """
    files = _files(folder)
    holders: dict[str, Path] = {}
    for file in files:
        for name in Checkpoint(file).meta:
            if (first := holders.setdefault(name, file)) != file:
                raise UserError(f"{folder} has {name} both in {first.name} and {file.name}: take one of the files out")
    return read_weights(files), files[0] if len(files) == 1 else folder


def load_vae(folder: Path, dtype: torch.dtype) -> OpenSoraCodec | AutoencoderKLCodec:
    """The codec in the folder: AutoencoderKL, if its config.json names that, otherwise the published file of 1.2.

    Raises UserError for weights that are missing, pickled, damaged, not finite, or something else's.
    """
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    if config.get("_class_name") == "AutoencoderKL":
        return AutoencoderKLCodec(load_autoencoder(folder, dtype)).eval()
    groups = config.get("norm_num_groups", _GROUPS)
    if type(groups) is not int or groups < 1:
        raise UserError(f"{path}: norm_num_groups must be a whole number above 0, not {groups}")
    files = _files(folder)
    listed = sorted(folder.glob("*.safetensors.index.json"))
    if len(files) > 1 and len(listed) != 1:
        raise UserError(f"{folder} holds {len(files)} safetensors files: leave only the autoencoder's there")
    try:
        codec = load_codec((listed if len(files) > 1 else files)[0], dtype=dtype, groups=groups)
    except UserError as error:
        told = str(error)
        raise UserError(told if str(folder) in told else f"{folder}: {told}") from error
    check_finite(codec, folder)
    return codec.requires_grad_(False)


def load_words(
    folders: list[Path], version: Version, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> T5TextEncoder | CLIPTextEncoder:
    """The text encoder and tokenizer: T5, for which the transformer's y_embedding stands for no text, or CLIP.

    Raises UserError for another class, and as `load_part` does.
    """
    folder, tokenizer = _place(folders, "text_encoder"), _place(folders, "tokenizer")
    config = read_json(folder / "config.json")
    named = (config.get("architectures") or [None])[0]
    if named in _CLIP:
        return load_text(folders, dtype)
    if named not in _T5:
        raise UserError(f"{folder}/config.json describes {named}: Open-Sora reads {' or '.join((*_T5, *_CLIP))}")
    model = load_part({named: T5EncoderModel}, folder, dtype)
    none = weights["y_embedder.y_embedding"].to(dtype)
    suffix = AESTHETICS if version == "1.2" else ""
    _check_readable(tokenizer)
    return T5TextEncoder(model, load_tokenizer(tokenizer), none, suffix=suffix).eval()


def _check_readable(tokenizer: Path) -> None:
    """T5's tokenizer is published without tokenizer.json, for which transformers needs two more packages."""
    alone = not (tokenizer / "tokenizer.json").exists() and any(tokenizer.glob("*.model"))
    if alone and not (is_sentencepiece_available() and is_protobuf_available()):
        raise UserError(
            f"{tokenizer} has no tokenizer.json: add one (such as google-t5/t5-small's), or make its spiece.model "
            "readable with 'pip install sentencepiece protobuf'"
        )


def make_backbone(net: STDiT | STDiT2 | STDiT3, window: Window, fps: float, codec: Codec) -> Backbone:
    """The transformer as the loop takes it; `window` in latent frames. Raises UserError for a window that is too long
    for a 1.0."""
    if isinstance(net, STDiT3):
        return OpenSora3Backbone(net, window=window, fps=fps, factor=codec.factor)
    if isinstance(net, STDiT2):
        return OpenSora2Backbone(net, window=window, fps=fps, factor=codec.factor, pixel_frames=codec.pixel_frames)
    return OpenSora1Backbone(net, window=window)


def _place(folders: list[Path], part: str) -> Path:
    """The first folder's that has it. Raises UserError, saying what belongs there, if none has."""
    found = next((folder / part for folder in folders if (folder / part).is_dir()), None)
    if found is None:
        raise UserError(f"{folders[0] / part} is missing: put the {part} there, {_SOURCES[part]}")
    return found


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors files, all intact; half-precision copies only if there are no others."""
    check_weights(folder)
    files = sorted(folder.glob("*.safetensors"))
    return [path for path in files if ".fp16" not in path.name] or files


def _heads(where: Path, version: Version) -> int | None:
    """What the config.json beside a transformer 1.0 says; its weights do not tell."""
    path = (where if where.is_dir() else where.parent) / "config.json"
    if version != "1.0" or not path.exists():
        return None
    heads = read_json(path).get("num_heads")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise UserError(f"{path}: num_heads must be a whole number above 0, not {heads}")
    return heads


def _made_for(net: STDiT | STDiT2 | STDiT3, codec: Codec) -> tuple[tuple[int, int] | None, int | None]:
    """Rows and columns in pixels and the frames that a 1.0 was made for; None of the others, which take any."""
    if not isinstance(net, STDiT):
        return None, None
    high, wide = net.config.patch
    return (net.grid.rows * high * codec.factor, net.grid.cols * wide * codec.factor), net.grid.frames


def _check_text(where: Path, config: STDiTConfig, text: T5TextEncoder | CLIPTextEncoder) -> None:
    if (config.text_tokens, config.text_depth) != (text.tokens, text.depth):
        raise UserError(
            f"{where} reads {config.text_tokens} text tokens of width {config.text_depth}, the text encoder writes "
            f"{text.tokens} of {text.depth}: they belong to different models"
        )
