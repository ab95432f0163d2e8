"""Other people's checkpoint files, made into model folders: the contract of the plugins that know their names.

A converter is an entry point of the group `streaming.converters`, called without arguments. `convert` finds the one
that knows a file and gives it an empty folder, which takes its place whole or not at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from streaming.convert_place import check_place, look, write_list
from streaming.errors import UserError
from streaming.folders import save_folder
from streaming.registry import load_all

if TYPE_CHECKING:
    import torch

CONVERTERS = "streaming.converters"
"""Entry point group."""
SHARD_BYTES = 2_000_000_000
"""Largest weight file."""

Report = Callable[[str, int, int], object]
"""Called after each weight file: its name, bytes written so far, bytes in all."""


def _silent(name: str, done: int, total: int) -> None:
    pass


@final
@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What the user may choose."""

    dtype: "torch.dtype"
    """Of the floating-point tensors that are written."""
    modelscope: Path | None = None
    """A folder of the ModelScope text-to-video model in diffusers format, for what a checkpoint lacks."""
    shard_bytes: int = SHARD_BYTES
    """Largest weight file, unless a single tensor is larger."""
    report: Report = _silent
    """Told of progress."""


class Converter(ABC):
    """A plugin of the group `streaming.converters`: knows one kind of checkpoint. `streaming.weights` has its tools."""

    @abstractmethod
    def describe(self) -> str:
        """A few words about the file, for lists: "StreamingT2V (streaming_t2v.ckpt)"."""

    @abstractmethod
    def matches(self, source: Path) -> bool:
        """Whether this file, or folder, is of this kind, be it damaged: some names that only this kind has will do.

        Raises UserError, as `streaming.weights.Checkpoint` does, for a file that can't be read.
        """

    @abstractmethod
    def place(self, directory: Path) -> Path:
        """The folder that is written when the user names `directory`: it, or for a part of a model one inside it."""

    @abstractmethod
    def convert(self, source: Path, target: Path, options: ConvertOptions) -> None:
        """Writes into `target`, an empty folder that is moved to its place afterwards.

        Raises UserError, listing the first few and the count, for names that are missing or belong nowhere; for
        shapes that don't fit together, for NaN, and for too little room on the disk.
        """


def convert(source: Path, directory: Path, options: ConvertOptions, *, overwrite: bool = False) -> Path:
    """Make a model folder of a checkpoint; the folder that was written.

    overwrite: replaces a folder that holds nothing but what earlier conversions wrote (an enhancer in it, too). Raises
    UserError for what `Converter.convert` does, for a source that no converter or more than one knows, and for a place
    that is taken or can't be written; then nothing is left behind and what was there is as it was.
    """
    converter = find_converter(source)
    place = converter.place(directory)
    check_place(place, directory, options.modelscope, overwrite)

    def write(target: Path) -> None:
        converter.convert(source, target, options)
        write_list(target)

    new: list[Path] = []
    try:
        new = _missing(place.absolute())
        save_folder(place, write)
    except OSError as error:
        _remove_empty(new)
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {place} ({reason}): make room or choose another folder") from error
    except BaseException:
        _remove_empty(new)
        raise
    return place


def find_converter(source: Path) -> Converter:
    """The converter that knows a file; plugins that can't be imported are skipped with a warning.

    Raises UserError if the file can't be read, or if none or more than one knows it.
    """
    if look(source) is None:
        raise UserError(f"there is no file {source}: give the path of a checkpoint")
    known: dict[str, Converter] = {name: plugin() for name, plugin in load_all(CONVERTERS).working.items()}
    begins = "" if source.is_dir() else _beginning(source)
    matching = [name for name, converter in known.items() if converter.matches(source)]
    if len(matching) > 1:
        raise UserError(f"more than one converter knows {source}: {', '.join(matching)}; uninstall all but one")
    if not matching:
        kinds = "; ".join(converter.describe() for converter in known.values())
        told = "is a folder" if source.is_dir() else f"is a checkpoint of another kind of model (it holds {begins})"
        raise UserError(f"{source} {told}: give a file of one of these: {kinds}")
    return known[matching[0]]


def _beginning(source: Path) -> str:
    from streaming.weights import Checkpoint

    meta = Checkpoint(source).meta
    names = ", ".join(list(meta)[:2])
    return f"{names} and {len(meta) - 2} more tensors" if len(meta) > 2 else names


def _missing(folder: Path) -> list[Path]:
    """The folders above this one that are not there yet, innermost first."""
    return [parent for parent in folder.parents if not parent.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
