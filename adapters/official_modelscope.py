"""What a folder of ModelScope's text-to-video model adds: its tokenizer, and its own UNet for the first chunk.

The published checkpoint's UNet has other spatial weights than ModelScope's: they were trained along with CAM and APM.
The published code makes the first chunk with ModelScope's.
"""

import stat
from pathlib import Path

from adapters.official_sizes import Config, expected
from streaming.convert_place import look
from streaming.errors import UserError
from streaming.weights import Checkpoint, check_floats
from streaming.weights_write import DIFFUSERS, Part, Take

_FILES = tuple(
    f"{DIFFUSERS}{end}"
    for end in (
        ".safetensors",
        ".safetensors.index.json",
        ".bin",
        ".bin.index.json",
        ".fp16.safetensors",
        ".safetensors.index.fp16.json",
        ".fp16.bin",
        ".bin.index.fp16.json",
    )
)
"""Weights of the UNet, the best first: full precision before half. An index lists several files."""


def check_folder(folder: Path) -> None:
    """Raises UserError if what is needed of the folder is not there."""
    if not _is_folder(folder):
        raise UserError(f"--modelscope {folder}: there is no such folder; download the model in diffusers format")
    for needed in ("unet", "tokenizer"):
        if not _is_folder(folder / needed):
            raise UserError(f"--modelscope {folder} has no folder {needed}: give the whole model in diffusers format")
    _weights(folder)


def first_chunk(folder: Path, unet: Config) -> Part:
    """ModelScope's own UNet, as part `first_chunk/unet`; `unet` is the checkpoint's configuration.

    Raises UserError for a damaged file, and for a UNet of other names or shapes.
    """
    source = Checkpoint(_weights(folder))
    wanted = expected("unet", unet, unet)
    found = {name: tuple(value.shape) for name, value in source.meta.items()}
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{source.path} does not fit the checkpoint's UNet ({wrong[0]}{more}): "
            "--modelscope takes the text-to-video model of 1.7 billion parameters in diffusers format"
        )
    check_floats(source, wanted)
    return Part(
        folder="first_chunk/unet", config=unet, source=source, tensors={name: Take(name) for name in source.meta}
    )


def _weights(folder: Path) -> Path:
    for name in _FILES:
        about = look(folder / "unet" / name)
        if about is not None and stat.S_ISREG(about.st_mode):
            return folder / "unet" / name
    raise UserError(f"--modelscope {folder}: {folder / 'unet'} has no weights ({_FILES[0]}): download them")


def _is_folder(path: Path) -> bool:
    about = look(path)
    return about is not None and stat.S_ISDIR(about.st_mode)
