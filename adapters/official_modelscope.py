"""What a folder of ModelScope's text-to-video model adds: its tokenizer, and its own UNet for the first chunk.

The published checkpoint's UNet has other spatial weights than ModelScope's: they were trained along with CAM and APM.
The published code makes the first chunk with ModelScope's.
"""

from pathlib import Path

from adapters.official_sizes import Config, expected
from streaming.errors import UserError
from streaming.weights import DIFFUSERS, Checkpoint, Part, Take

_FILES = tuple(f"{DIFFUSERS}{end}" for end in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin"))
"""Weights of the UNet, the best first."""


def check_folder(folder: Path) -> None:
    """Raises UserError if what is needed of the folder is not there."""
    if not folder.is_dir():
        raise UserError(f"--modelscope {folder}: there is no such folder; download the model in diffusers format")
    for needed in ("unet", "tokenizer"):
        if not (folder / needed).is_dir():
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
    return Part(
        folder="first_chunk/unet", config=unet, source=source, tensors={name: Take(name) for name in source.meta}
    )


def _weights(folder: Path) -> Path:
    for name in _FILES:
        if (folder / "unet" / name).is_file():
            return folder / "unet" / name
    raise UserError(f"--modelscope {folder}: {folder / 'unet'} has no weights ({_FILES[0]}): download them")
