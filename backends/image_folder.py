"""Image encoders on disk: a model folder's `image_encoder`, or any folder that `--image-encoder` names.

The folder holds config.json and safetensors files, in one of three forms:

- open_clip's vision tower: {"library": "open_clip", "model": "ViT-H-14"}. Optional: "embed_dim", "vision_cfg" and
  "quick_gelu", named and meant as in open_clip's model configurations (for towers that open_clip has no name for: then
  "embed_dim" and "vision_cfg" must be there); "mean" and "std", three numbers each, of RGB in [0, 1] (default: those of
  the model's pretrained weights, CLIP's if it has none). If these differ from each other, in "quick_gelu" or the
  colours, the setting must be there.
  Tensors: the names of open_clip's `visual` module without that prefix.
- a model of timm: {"library": "timm", "model": "vit_small_patch14_dinov2.lvd142m"}. Optional: "model_args", an object
  of sizes for `timm.create_model`; "mean" and "std" (default: what timm knows of the model).
  Tensors: the names of timm's model; a classifier's are ignored.
- transformers' `CLIPVisionModelWithProjection` as its `save_pretrained` writes it, config.json without "library";
  preprocessor_config.json, there or in `feature_extractor` beside the folder, may name "image_mean" and "image_std".

Weights: model.safetensors, or parts of it (model-00001-of-00002.safetensors, ...), with or without an index file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from backends import image_openclip, image_timm
from backends.image_openclip import OpenCLIPImageEncoder, OpenCLIPTower
from backends.image_preprocess import CLIP_MEAN, CLIP_STD
from backends.image_timm import TimmImageEncoder, TimmTower
from backends.image_weights import read_weights
from backends.modelscope_settings import read_json
from streaming.codec import ImageEncoder
from streaming.errors import UserError
from streaming.folders import save_folder

_KINDS = {"model": str, "embed_dim": int, "vision_cfg": dict, "quick_gelu": bool, "model_args": dict}
_TOLD = {str: "a name", int: "a whole number", dict: "an object", bool: "true or false"}
_COLOURS = ("mean", "std")
_ABOVE = {"mean": "", "std": " above 0"}
_SETTINGS = {
    "open_clip": ("model", "embed_dim", "vision_cfg", "quick_gelu", *_COLOURS),
    "timm": ("model", "model_args", *_COLOURS),
}


def make(model: str, weights: Path | None) -> ImageEncoder:
    """Entry point `folder`: the encoder in the folder `model`; float32, on the CPU, frozen. weights: None."""
    if weights is not None:
        raise UserError(f"{model} is a folder, which holds its weights itself: leave {weights} out")
    return load_image_encoder(Path(model), torch.float32)


def load_image_encoder(folder: Path, dtype: torch.dtype) -> ImageEncoder:
    """The encoder in a folder, with weights of that type; on the CPU, in eval mode, frozen.

    Raises UserError for a configuration that is missing or makes no sense, and for weights that are missing, pickled,
    truncated, another model's or not finite.
    """
    from backends.modelscope_folder import check_weights

    path = folder / "config.json"
    config = read_json(path)
    if "library" not in config:
        return _transformers(folder, dtype)
    library = config.pop("library")
    if not isinstance(library, str) or library not in _SETTINGS:
        raise UserError(f"{path}: library must be {' or '.join(_SETTINGS)}, not {json.dumps(library)}")
    settings = _checked(path, library, config)
    half = check_weights(folder) == "fp16"
    files = sorted(file for file in folder.glob("*.safetensors") if half or ".fp16" not in file.name)
    if library == "timm":
        tower = TimmTower(**settings)
        return image_timm.load(tower, read_weights(files), folder, dtype)
    return image_openclip.load(_openclip_tower(path, settings), read_weights(files), folder, dtype)


def save_image_encoder(folder: Path, encoder: OpenCLIPImageEncoder | TimmImageEncoder) -> None:
    """Write an encoder's folder, in the type of its weights; whatever the folder held is replaced."""
    if isinstance(encoder, OpenCLIPImageEncoder):
        library, network = "open_clip", encoder.visual
    else:
        library, network = "timm", encoder.network
    told = {name: value for name, value in asdict(encoder.tower).items() if value is not None}
    tensors: dict[str, Tensor] = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}

    def write(target: Path) -> None:
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps({"library": library, **told}, indent=2) + "\n", encoding="utf-8")

    save_folder(folder, write)


def _openclip_tower(path: Path, settings: dict[str, Any]) -> OpenCLIPTower:
    """Of sizes in the configuration, or of a name that open_clip knows."""
    if "embed_dim" in settings and "vision_cfg" in settings:
        return OpenCLIPTower(**settings)
    if "embed_dim" in settings or "vision_cfg" in settings:
        raise UserError(f"{path}: embed_dim and vision_cfg belong together: name both, or none")
    tower = image_openclip.registered(settings["model"], given=set(settings))
    return replace(tower, **settings)


def _checked(path: Path, library: str, config: dict[str, Any]) -> dict[str, Any]:
    known = _SETTINGS[library]
    if unknown := sorted(set(config) - set(known)):
        raise UserError(f"{path}: unknown setting '{unknown[0]}'; an encoder of {library} has {', '.join(known)}")
    if "model" not in config:
        raise UserError(f"{path}: model is missing: name the model of {library}")
    for name, value in config.items():
        if name in _COLOURS:
            config[name] = three_numbers(value, f"{path}: {name} must be three numbers{_ABOVE[name]}", name == "std")
        elif type(value) is not _KINDS[name]:
            raise UserError(f"{path}: {name} must be {_TOLD[_KINDS[name]]}, not {json.dumps(value)}")
    return config


def three_numbers(value: object, complaint: str, positive: bool = False) -> tuple[float, float, float]:
    """The value, if it is a list of three finite numbers. Raises UserError with this complaint if not.

    positive: all must be above 0.
    """
    if isinstance(value, list | tuple) and len(value) == 3:
        if all(isinstance(one, int | float) and not isinstance(one, bool) and isfinite(one) for one in value):
            if not positive or min(value) > 0:
                return (float(value[0]), float(value[1]), float(value[2]))
    raise UserError(complaint)


def _transformers(folder: Path, dtype: torch.dtype) -> ImageEncoder:
    from transformers import CLIPVisionModelWithProjection

    from backends.modelscope_folder import load_part
    from backends.modelscope_image import CLIPImageEncoder

    tower = load_part({"CLIPVisionModelWithProjection": CLIPVisionModelWithProjection}, folder, dtype)
    mean, std = _colours(folder)
    return CLIPImageEncoder(tower, mean=mean, std=std).eval()


def _colours(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of RGB from preprocessor_config.json, there or in `feature_extractor` beside it."""
    places = [place / "preprocessor_config.json" for place in (folder, folder.with_name("feature_extractor"))]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        return CLIP_MEAN, CLIP_STD
    config: Mapping[str, Any] = read_json(path)
    complaint = f"{path}: image_mean and image_std must be three numbers each, image_std above 0"
    return (
        three_numbers(config.get("image_mean", CLIP_MEAN), complaint),
        three_numbers(config.get("image_std", CLIP_STD), complaint, True),
    )
