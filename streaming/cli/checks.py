"""What an option may be. Everything is checked before a model is loaded; each refusal says what to change."""

import math
import os
import re
import tempfile
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from streaming.errors import UserError
from streaming.prompts import PromptSchedule

if TYPE_CHECKING:
    import torch

MOST_FRAMES = 1_000_000
"""Frames of a video; more is taken for a typing error."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


def schedule(prompt: str, later: Iterable[str], frames: int, offset: int = 0) -> PromptSchedule:
    """PROMPT and the `--prompt-at FRAME:TEXT`s; `offset` frames come before those that they count."""
    if not prompt.strip():
        raise UserError(
            'the prompt is empty: say what is to be seen, for example "a red ball rolls over a green meadow"'
        )
    prompts = {0: prompt}
    for text in later:
        frame, line = _prompt_at(text)
        if frame >= frames:
            raise UserError(
                f"--prompt-at {frame}: the video has {frames} frames, so choose an earlier one or more --frames"
            )
        if frame + offset in prompts:
            raise UserError(f"two prompts at frame {frame}: keep one of them")
        prompts[frame + offset] = line
    return PromptSchedule.of(prompts)


def _prompt_at(text: str) -> tuple[int, str]:
    found = re.fullmatch(r"\s*(\d{1,9})\s*:(.*)", text, re.DOTALL)
    if not found:
        raise UserError(
            f"--prompt-at '{text}' is not FRAME:TEXT: write for example --prompt-at '80:the ball rolls back'"
        )
    if not found[2].strip():
        raise UserError(f"--prompt-at {found[1]} has no text: write --prompt-at '{found[1]}:TEXT'")
    return int(found[1]), found[2].strip()


def whole(option: str, value: int, low: int, high: int) -> None:
    """A whole number within limits."""
    if not low <= value <= high:
        raise UserError(f"{option} {value}: choose a number from {low} to {high}")


def number(option: str, value: float, low: float, high: float, above: bool = False) -> None:
    """A finite number within limits; `above`: larger than `low`."""
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        limits = f"above {low:g}, at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise UserError(f"{option} {value:g}: choose a number {limits}")


def choice(option: str, value: str, choices: Iterable[str]) -> None:
    """One of several words."""
    known = list(choices)
    if value not in known:
        close = get_close_matches(value, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{option} '{value}': {hint}choose one of {', '.join(known)}")


def output(path: Path, overwrite: bool) -> None:
    """A file that can be written and replaces nothing unasked."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file in it, for example {path / 'video.mp4'}")
    if path.suffix.lower() != ".mp4":
        raise UserError(f"--output {path}: only mp4 is written, so let the name end in .mp4")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: choose another --output, or replace it with --overwrite")
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"--output {path}: there is no folder {folder}, make it first or choose another place")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"--output {path} cannot be written: it is read-only, choose another place")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"--output {path}: the folder {folder} cannot be written ({reason}), choose another place"
        ) from error


def slug(prompt: str) -> str:
    """A file name made of a prompt's words."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")
    return (words[:60].rstrip("-_") or "video") + ".mp4"


def plugin(group: str, name: str) -> None:
    """A registered name; imports the plugin to see that it works."""
    from streaming.registry import load

    load(group, name)


def model(name: str) -> None:
    """A registered base model, or a folder (whether it holds a model is seen when it is loaded)."""
    from streaming.registry import BACKBONES, discover

    if name not in discover(BACKBONES) and not Path(name).is_dir():
        plugin(BACKBONES, name)


def device(name: str) -> "torch.device":
    """auto: the GPU if there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device '{name}': choose auto, cpu, cuda or cuda:NUMBER")
    found = torch.device(name)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name} is not there ({_gpus()}): choose auto or cpu; see streamingt2v doctor")
    return found


def _gpus() -> str:
    import torch

    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA"
    count = torch.cuda.device_count()
    return f"torch sees {count} CUDA device{'s' * (count > 1)}" if count else "torch sees no CUDA device"


def dtype(name: str, where: "torch.device") -> "torch.dtype":
    """auto: float16 on a GPU, float32 elsewhere. Warns of half precision on a CPU."""
    import torch

    choice("--dtype", name, DTYPES)
    if name == "auto":
        return torch.float16 if where.type == "cuda" else torch.float32
    if where.type == "cpu" and name != "float32":
        from streaming.cli.progress import note

        note(f"warning: {name} on a CPU is many times slower than float32: leave --dtype out")
    return getattr(torch, name)
