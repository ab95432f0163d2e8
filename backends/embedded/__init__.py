"""The tiny base model that ships with the package, and everything that trained it."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, final

from streaming.errors import UserError
from streaming.model import Backend, Model

if TYPE_CHECKING:
    import torch


@final
class TinyModelScope(Backend):
    """ModelScope's classes at toy size, trained on the procedural world: 64x64 pixels, 8 frames a second."""

    def describe(self) -> str:
        """For `streamingt2v models`."""
        return "the embedded tiny model (64x64, procedural world): runs on a laptop, no download"

    def matches(self, directory: Path) -> bool:
        """Never: its folder is its own; the same format anywhere else is `ModelScope`'s."""
        return False

    def load(self, directory: Path | None, *, device: "torch.device", dtype: "torch.dtype") -> Model:
        """The packaged model, or one of the same format in `directory`. Raises UserError if it isn't there."""
        from backends.modelscope import ModelScope

        return ModelScope().load(directory or packaged_weights(), device=device, dtype=dtype)

    def enhancer(self, directory: Path | None, *, device: "torch.device", dtype: "torch.dtype") -> Model | None:
        """Its enhancer 64x64 -> 128x128; None if there is none."""
        from backends.modelscope import ModelScope

        return ModelScope().enhancer(directory or packaged_weights(), device=device, dtype=dtype)


def packaged_weights() -> Path:
    """The folder with the packaged weights. Raises UserError if this installation lacks them."""
    folder = Path(str(files("backends.embedded"))) / "weights"
    if not (folder / "unet").is_dir():
        raise UserError(f"this installation lacks the embedded model's weights ({folder}): install the package again")
    return folder
