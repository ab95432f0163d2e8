"""ModelScope's own checkpoints of its UNets, made into what `ModelScope` loads.

The text-to-video UNet and the video-to-video one have the same 1480 names and shapes: which one a file holds is told
by configuration.json beside it, its own name or its folder's.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from backends.modelscope_keys import Sizes, native_names, prefix, read_sizes
from backends.modelscope_settings import FILE, VIDEO_TO_VIDEO
from streaming.convert import Converter, ConvertOptions
from streaming.errors import UserError
from streaming.model import Defaults
from streaming.sample_sde import TRAILING_SDE
from streaming.weights import Checkpoint, check_floats
from streaming.weights_write import Part, Take, write_json, write_parts

Kind = Literal["text-to-video", "video-to-video"]

ENHANCER = Defaults(
    height=720,
    width=720,
    canvas_height=720,
    canvas_width=1280,
    fps=8.0,
    steps=30,
    guidance=7.5,
    rescale=0.2,
    strength=0.6,
    sampler=TRAILING_SDE,
    short_term="none",
    long_term="none",
)
"""Settings of the published enhancer: 720x720 in the middle of 1280x720 [facts of the published code]."""
_WINDOW = {"frames": 24, "overlap": 8}
_TO = r"[-_ ]?(2|to)[-_ ]?(v|vid|video)"
_WORDS: dict[Kind, str] = {"text-to-video": "(t|txt|text)" + _TO, "video-to-video": "(v|vid|video)" + _TO}
_LISTED = 3


@final
class VideoToVideo(Converter):
    """The enhancer's UNet, with its noise schedule and settings, as the folder's `enhancer`."""

    def describe(self) -> str:
        """For lists."""
        return "ModelScope's Video-to-Video UNet (name with 'video-to-video' or 'v2v' in it)"

    def matches(self, source: Path) -> bool:
        """Whether it holds a UNet by native names, of the video-to-video model."""
        return _kind(source) == "video-to-video"

    def place(self, directory: Path) -> Path:
        """`enhancer` in it."""
        return directory / "enhancer"

    def convert(self, source: Path, target: Path, options: ConvertOptions) -> None:
        """What `ModelScope.enhancer` loads."""
        from backends.modelscope_v2v_schedule import save_scheduler

        _check_options(options)
        write_parts(target, [unet_part(Checkpoint(source), "unet")], options)
        save_scheduler(target / "scheduler")
        write_json(target / FILE, {**asdict(ENHANCER), **_WINDOW, "variant": VIDEO_TO_VIDEO})


@final
class TextToVideo(Converter):
    """The base model's UNet, as the folder's `unet`; the other parts have to be there in diffusers' format.

    In a folder of StreamingT2V, whose UNet was trained on, it is the one of the first chunk.
    """

    def describe(self) -> str:
        """For lists."""
        return "ModelScope's text-to-video UNet (name with 'text2video' or 't2v' in it)"

    def matches(self, source: Path) -> bool:
        """Whether it holds a UNet by native names, of the text-to-video model."""
        return _kind(source) == "text-to-video"

    def place(self, directory: Path) -> Path:
        """`unet` in it, or `first_chunk/unet` if there is a CAM beside the former."""
        try:
            whole = (directory / "cam").is_dir() and (directory / "unet").is_dir()
        except OSError:  # told when the place is looked at
            whole = False
        return directory / "first_chunk" / "unet" if whole else directory / "unet"

    def convert(self, source: Path, target: Path, options: ConvertOptions) -> None:
        """A folder that `diffusers.UNet3DConditionModel` loads."""
        _check_options(options)
        write_parts(target, [unet_part(Checkpoint(source), "")], options)


def unet_part(source: Checkpoint, folder: str) -> Part:
    """A native checkpoint's UNet as diffusers wants it, for `streaming.weights.write_parts`.

    Raises UserError if tensors are missing or belong nowhere (the first few are listed), or don't fit together.
    """
    before = prefix(source.meta) or ""
    names = {name.removeprefix(before): name for name in source.meta if name.startswith(before)}
    try:
        sizes = read_sizes({short: source.meta[name] for short, name in names.items()})
        wanted = _shapes(sizes)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from error
    native = native_names(wanted, sizes.layers)
    missing = [before + short for short in native.values() if short not in names]
    foreign = set(source.meta) - {names[short] for short in native.values() if short in names}
    _refuse(source.path, _listed(missing, "missing"), _listed(sorted(foreign), "foreign"))
    check_floats(source, source.meta)
    takes = {ours: Take(names[short], partial(_fit, wanted[ours])) for ours, short in native.items()}
    wrong = [take.name for ours, take in takes.items() if not _fits(wanted[ours], source.meta[take.name])]
    _refuse(source.path, _listed(wrong, "of shapes that do not fit the others"))
    config = {"_class_name": "UNet3DConditionModel", **sizes.config()}
    return Part(folder=folder, config=config, source=source, tensors=takes)


def _shapes(sizes: Sizes) -> Mapping[str, torch.Size]:
    """diffusers' tensors of such a UNet; nothing is computed. Raises UserError for sizes that make no sense."""
    from diffusers import UNet3DConditionModel

    try:
        with torch.device("meta"):
            unet = UNet3DConditionModel(**sizes.config())
    except (ValueError, RuntimeError, ZeroDivisionError, TypeError) as error:
        raise UserError(f"its sizes make no sense ({' '.join(str(error).split())[:160]}): download it again") from error
    return {name: value.shape for name, value in unet.state_dict().items()}


def _fit(shape: torch.Size, value: Tensor) -> Tensor:
    """Projections of the temporal transformers are convolutions [out, in, 1] there, matrices [out, in] here."""
    return value.reshape(shape)


def _fits(shape: torch.Size, value: Tensor) -> bool:
    return tuple(value.shape) in (tuple(shape), (*shape, 1), (*shape, 1, 1))


def _listed(names: list[str], what: str) -> str:
    """How many there are, and the first few; "" if there are none."""
    listed = ", ".join(names[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
    count = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
    return f"{count} {what} ({listed})" if names else ""


def _refuse(path: Path, *told: str) -> None:
    if found := [each for each in told if each]:
        raise UserError(f"{path}: {' and '.join(found)}: give the published file")


def _check_options(options: ConvertOptions) -> None:
    if options.modelscope is not None:
        raise UserError("--modelscope is for StreamingT2V's checkpoint only: leave it out for ModelScope's own UNets")


def _kind(source: Path) -> Kind | None:
    """Which UNet a file holds; None: no native one. Raises UserError if nothing tells which."""
    if not source.is_file() or prefix(Checkpoint(source).meta) is None:
        return None
    kinds = _told(source)
    if len(kinds) != 1:
        raise UserError(
            f"{source}: text-to-video and video-to-video have the same names of tensors: put text2video or video2video "
            "into the name of the file"
        )
    return kinds.pop()


def _told(source: Path) -> set[Kind]:
    """What the names say, the file's before its configuration's before its folder's."""
    for text in (source.name, _task(source.parent / "configuration.json"), source.absolute().parent.name):
        kinds: set[Kind] = {kind for kind, words in _WORDS.items() if _has(words, text)}
        if kinds:
            return kinds
    return set()


def _has(words: str, text: str) -> bool:
    """Whether the words stand alone: "t2v" is not in "streamingt2v"."""
    return re.search(rf"(?<![a-z]){words}(?![a-z])", text.lower()) is not None


def _task(path: Path) -> str:
    """The task that ModelScope's configuration.json names; "" if there is none."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return str(content["task"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
