"""The tiny Open-Sora that ships with the package, and what trained it."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, final

from backends.embedded import packaged_weights as shared_weights
from streaming.errors import UserError
from streaming.model import Backend, Model

if TYPE_CHECKING:
    import torch


@final
class TinyOpenSora(Backend):
    """Open-Sora 1.2's classes at toy size, trained on the procedural world: 64x64 pixels, 8 frames a second.

    Autoencoder and judge are those of the tiny ModelScope, and so is the enhancer, which takes any small video of the
    procedural world.
    """

    def describe(self) -> str:
        """For `streamingt2v models`."""
        return "the embedded tiny diffusion transformer (64x64, procedural world): runs on a laptop, no download"

    def matches(self, directory: Path) -> bool:
        """Never: its folder is its own; the same format anywhere else is `OpenSora`'s."""
        return False

    def load(self, directory: Path | None, *, device: "torch.device", dtype: "torch.dtype") -> Model:
        """The packaged model, or one of the same format in `directory`. Raises UserError if it isn't there."""
        from backends.opensora_parts import load_open_sora

        folders = [packaged_weights() if directory is None else directory, shared_weights()]
        return load_open_sora(folders, device=device, dtype=dtype)

    def enhancer(self, directory: Path | None, *, device: "torch.device", dtype: "torch.dtype") -> Model | None:
        """The tiny ModelScope's."""
        from backends.embedded import TinyModelScope

        return TinyModelScope().enhancer(None, device=device, dtype=dtype)


def packaged_weights() -> Path:
    """The folder with the packaged weights. Raises UserError if this installation lacks them."""
    folder = Path(str(files("backends.embedded_opensora"))) / "weights"
    if not (folder / "transformer").is_dir():
        raise UserError(f"this installation lacks the tiny Open-Sora's weights ({folder}): install the package again")
    return folder
