"""ModelScope text-to-video: any folder in diffusers format, full size or tiny, as a base model.

- DIR/unet, vae, text_encoder, tokenizer, scheduler: as diffusers' `save_pretrained` writes them;
- DIR/image_encoder: what APM sees the anchor frame with, optional, see `backends.image_folder`;
- DIR/first_chunk/unet, scheduler, streamingt2v.json: the unmodified base model, which makes the first chunk, optional;
  for a folder whose unet was trained on (as the published one was). Without a scheduler it has DIR's; its settings may
  differ in steps, guidance, eta and sampler;
- DIR/streamingt2v.json: settings, optional, see `backends.modelscope_settings`;
- DIR/enhancer/unet, scheduler, streamingt2v.json: video-to-video model of stage 3, optional; with vae, text_encoder and
  tokenizer of its own if they differ from DIR's.
"""

from dataclasses import replace
from pathlib import Path
from typing import final

import torch

from backends.modelscope_settings import FILE, MODELSCOPE, MODELSCOPE_WINDOW, load_defaults, read_json
from streaming.backbone import Window
from streaming.errors import UserError
from streaming.model import Backend, Defaults, Model

_ENHANCER_WINDOW = Window(frames=24, overlap=8)
"""[StreamingT2V §4.3]."""


@final
class ModelScope(Backend):
    """The family of `diffusers.UNet3DConditionModel`."""

    def describe(self) -> str:
        """For `streamingt2v models`."""
        return "ModelScope text-to-video (UNet3DConditionModel): any folder in diffusers format"

    def matches(self, directory: Path) -> bool:
        """Whether unet/config.json, or model_index.json for a folder without it, names the UNet's class."""
        return _unet_class(directory) == "UNet3DConditionModel"

    def load(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """The base model in the folder, frozen, in eval mode. Raises UserError as `Backend.load` says."""
        folder = _checked(directory)
        defaults, window = load_defaults(folder, MODELSCOPE, MODELSCOPE_WINDOW)
        from backends.modelscope_parts import load_first, load_model

        model = load_model([folder], defaults, window, device, dtype)
        if not (folder / "first_chunk").is_dir():
            return model
        return replace(
            model, first=load_first(folder / "first_chunk", model, _first_settings(folder, defaults, window))
        )

    def enhancer(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model | None:
        """The model in the folder's `enhancer`, None if it has none; by default it doubles the base model's frames."""
        folder = _checked(directory)
        if not (folder / "enhancer").is_dir():
            return None
        base, _ = load_defaults(folder, MODELSCOPE, MODELSCOPE_WINDOW)
        twice = replace(base, height=2 * base.height, width=2 * base.width, short_term="none", long_term="none")
        defaults, window = load_defaults(folder / "enhancer", twice, _ENHANCER_WINDOW)
        from backends.modelscope_parts import load_model

        return load_model([folder / "enhancer", folder], defaults, window, device, dtype)


def _first_settings(folder: Path, base: Defaults, window: Window) -> Defaults:
    """Of the first chunk's network. Raises UserError if they say something else about the whole video."""
    found, frames = load_defaults(folder / "first_chunk", base, window)
    own = {name: getattr(base, name) for name in ("steps", "guidance", "eta", "sampler")}
    if (replace(found, **own), frames) != (base, window):
        raise UserError(
            f"{folder / 'first_chunk' / FILE}: only steps, guidance, eta and sampler of the first chunk can differ "
            f"from those in {folder / FILE}: leave the others out"
        )
    return found


def _unet_class(directory: Path) -> str | None:
    try:
        if (directory / "unet" / "config.json").exists():
            return read_json(directory / "unet" / "config.json").get("_class_name")
        return str(read_json(directory / "model_index.json").get("unet", ["", ""])[-1])
    except (UserError, TypeError, IndexError):
        return None


def _checked(directory: Path | None) -> Path:
    if directory is None:
        raise UserError("no ModelScope weights ship with this package: name a folder in diffusers format (--model DIR)")
    if not directory.exists():
        raise UserError(f"no model at {directory}: there is no such folder")
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: a model is a folder in diffusers format")
    if not (directory / "unet" / "config.json").exists():
        raise UserError(f"{directory} holds no ModelScope model: it has no unet/config.json")
    return directory
