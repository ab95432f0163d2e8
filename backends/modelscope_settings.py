"""The JSON files of a model folder; among them streamingt2v.json, the settings that it was made for."""

import json
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from streaming.backbone import Window
from streaming.errors import UserError
from streaming.model import Defaults

FILE = "streamingt2v.json"
"""Beside the folder's model_index.json: the fields of `Defaults`, and `frames` and `overlap` of the window."""

MODELSCOPE = Defaults(height=256, width=256, fps=8.0)
"""Of the full-size model [StreamingT2V §A; facts of the published code]: DDIM, 50 steps, eta 1, guidance 7.5."""
MODELSCOPE_WINDOW = Window(frames=16, overlap=8)
"""Its window."""

VIDEO_TO_VIDEO = "video-to-video"
"""The `variant` of ModelScope's enhancer, see `backends.modelscope_v2v`; "": diffusers' UNet as it is."""
_VARIANTS = ("", VIDEO_TO_VIDEO)
_MAY_BE_ZERO = ("overlap", "guidance", "eta", "rescale", "canvas_height", "canvas_width")

_KINDS = {int: "a whole number", float: "a number", str: "a name"}


def save_defaults(directory: Path, defaults: Defaults, window: Window, variant: str = "") -> None:
    """Writes streamingt2v.json, which `load_defaults` and `load_variant` read, into a model folder."""
    content = {**asdict(defaults), "frames": window.frames, "overlap": window.overlap}
    content |= {"variant": variant} if variant else {}
    (directory / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_defaults(directory: Path, family: Defaults, window: Window) -> tuple[Defaults, Window]:
    """The folder's settings; what its file does not say, or if there is none, the family's.

    Raises UserError as `load_settings`, and for an overlap that is no smaller than the window.
    """
    defaults, said = load_settings(directory, family)
    frames, overlap = said.get("frames", window.frames), said.get("overlap", window.overlap)
    if overlap >= frames:
        raise UserError(
            f"{directory / FILE}: an overlap of {overlap} frames must be smaller than the window of {frames}"
        )
    return defaults, Window(frames, overlap)


def load_settings(directory: Path, family: Defaults) -> tuple[Defaults, dict[str, int]]:
    """The folder's settings, what its file does not say the family's; and `frames` and `overlap` if it says them.

    Raises UserError for an unknown setting and for a value of the wrong kind or out of range.
    """
    path = directory / FILE
    if not path.exists():
        return family, {}
    known = {**asdict(family), "frames": 0, "overlap": 0, "variant": ""}
    found = _checked(path, read_json(path), known)
    window = {name: int(found.pop(name)) for name in ("frames", "overlap") if name in found}
    merged = asdict(family) | {name: value for name, value in found.items() if name != "variant"}
    if (merged["canvas_height"] == 0) != (merged["canvas_width"] == 0):
        raise UserError(f"{path}: canvas_height and canvas_width must be given together")
    return Defaults(**merged), window


def load_variant(directory: Path) -> str:
    """What is changed in the folder's UNet: `VIDEO_TO_VIDEO`, or nothing (""). Raises UserError for another word."""
    path = directory / FILE
    variant = read_json(path).get("variant", "") if path.exists() else ""
    if variant not in _VARIANTS:
        raise UserError(f'{path}: unknown variant {json.dumps(variant)}; leave it out, or write "{VIDEO_TO_VIDEO}"')
    return variant


def _checked(path: Path, found: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise UserError(f"{path}: unknown setting '{unknown[0]}'; there are {', '.join(known)}")
    return {name: _value(path, name, value, type(known[name])) for name, value in found.items()}


def _value(path: Path, name: str, value: Any, kind: type) -> Any:
    """The value, as its kind; whole numbers count as decimal ones. All but `_MAY_BE_ZERO` are above 0."""
    if not isinstance(value, int | float if kind is float else kind) or isinstance(value, bool):
        raise UserError(f"{path}: {name} must be {_KINDS[kind]}, not {json.dumps(value)}")
    lowest = 0 if name in _MAY_BE_ZERO else 1e-9
    if kind is not str and not lowest <= value < 1e6:
        raise UserError(f"{path}: {name} is out of range: {value}")
    return kind(value)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if it is missing, unreadable or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the model folder is incomplete, copy it again") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path} ({first_line(error)}): replace it by an intact copy") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def first_line(error: BaseException) -> str:
    """The first sentence of what an exception says, or its first words: what libraries add is for developers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return shorten(lines[0].split(". ")[0].rstrip("."), 200, placeholder=" ...")
