"""CLIP models for the CLIP score: a folder with both towers, the embedded world's among them, and open_clip's."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics.clip import ClipEncoder
from streaming.metrics.described import Plain
from streaming.metrics.fingerprint import file_sha256, tensors_sha256


@final
class FolderCLIP(ClipEncoder):
    """`text_encoder`, `tokenizer` and `image_encoder` of a model folder, both towers with projection (transformers)."""

    def __init__(self, folder: Path, name: str) -> None:
        """name: what the results call it. Raises UserError for parts that are missing or have no projection."""
        from transformers import CLIPTextModelWithProjection

        from backends.image_folder import load_image_encoder
        from backends.modelscope_folder import load_part, load_tokenizer
        from backends.modelscope_text import CLIPTextEncoder

        kinds = {"CLIPTextModelWithProjection": CLIPTextModelWithProjection}
        self._text = CLIPTextEncoder(
            load_part(kinds, folder / "text_encoder", torch.float32), load_tokenizer(folder / "tokenizer")
        ).eval()
        self._image, self._name = load_image_encoder(folder / "image_encoder", torch.float32), name

    @property
    def modules(self) -> tuple[str, ...]:
        """transformers."""
        return ("transformers",)

    def settings(self) -> dict[str, Plain]:
        """The folder's name, and the SHA-256 of both towers' weights as they are in memory."""
        return {"kind": "FolderCLIP", "model": self._name, "sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        towers = {"text": self._text.model, "image": self._image}
        return tensors_sha256(
            {f"{tower}.{name}": value for tower in towers for name, value in towers[tower].state_dict().items()}
        )

    @torch.no_grad()
    def images(self, frames: UInt8[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """As the image encoder resizes and normalises."""
        return self._image(frames.float() / 255)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "batch width"]:
        """Raises UserError for unknown words and prompts that are too long."""
        ids = torch.tensor([self._text.token_ids(prompt) for prompt in prompts])
        return self._text.model(input_ids=ids).text_embeds


@final
class OpenCLIP(ClipEncoder):
    """A whole CLIP of open_clip, weights from a file. Long prompts are cut as its tokenizer does (77 tokens)."""

    def __init__(self, model: str, weights: Path) -> None:
        """Raises UserError for an unknown name and for weights of another model."""
        import open_clip

        from backends.image_openclip import registered
        from backends.image_weights import fill, read_weights

        registered(model, given=("mean", "std", "quick_gelu"))  # raises for unknown names, with those that are close
        self._network: Any = fill(
            lambda: open_clip.create_model(model, pretrained=None, load_weights=False),
            read_weights([weights]), weights, torch.float32,
        )  # fmt: skip
        self._tokenizer = open_clip.get_tokenizer(model)
        self._model, self._weights = model, weights

    @property
    def modules(self) -> tuple[str, ...]:
        """open_clip."""
        return ("open_clip",)

    def settings(self) -> dict[str, Plain]:
        """The model's name, its file's, and the SHA-256 of the file's bytes."""
        told: dict[str, Plain] = {"weights": self._weights.name, "sha256": file_sha256(self._weights)}
        return {"kind": "OpenCLIP", "model": self._model, **told}

    @torch.no_grad()
    def images(self, frames: UInt8[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Resized and normalised as `backends.image_preprocess` does."""
        from backends.image_preprocess import CLIP_MEAN, CLIP_STD, prepare

        visual = self._network.visual
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        mean, std = getattr(visual, "image_mean", None) or CLIP_MEAN, getattr(visual, "image_std", None) or CLIP_STD
        return self._network.encode_image(prepare(frames.float() / 255, size, mean, std))

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "batch width"]:
        """As open_clip tokenizes them."""
        return self._network.encode_text(self._tokenizer(list(prompts)))


def embedded(rest: str) -> ClipEncoder:
    """Entry point `embedded`: the procedural world's own CLIP, which ships with the package."""
    from backends.embedded import packaged_weights

    if rest:
        raise UserError(f"there is one embedded CLIP model: say 'embedded' without ':{rest}'")
    return FolderCLIP(packaged_weights(), "embedded")


def folder(rest: str) -> ClipEncoder:
    """Entry point `folder`: folder:DIR, a model folder with text_encoder, tokenizer and image_encoder."""
    if not Path(rest).is_dir() or not rest:
        raise UserError(f"no CLIP model 'folder:{rest}': there is no such folder; name one, folder:DIR")
    return FolderCLIP(Path(rest), Path(rest).name)


def open_clip(rest: str) -> ClipEncoder:
    """Entry point `open_clip`: open_clip:MODEL:FILE."""
    model, _, file = rest.partition(":")
    if not model or not file:
        raise UserError(f"'open_clip:{rest}' names no model and file: say open_clip:MODEL:FILE, as ViT-B-32:weights.pt")
    if not Path(file).is_file():
        raise UserError(f"no CLIP model 'open_clip:{rest}': there is no file {file} with its weights")
    return OpenCLIP(model, Path(file))
