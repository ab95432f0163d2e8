"""open_clip's vision towers as image encoders: any model it has a configuration of, ViT-H-14 by default."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backends.image_preprocess import CLIP_MEAN, CLIP_STD, prepare
from backends.image_weights import fill, read_weights
from backends.modelscope_settings import first_line
from streaming.codec import ImageEncoder
from streaming.errors import UserError

DEFAULT_MODEL = "ViT-H-14"
"""The published APM's, with the weights of `DEFAULT_TAG`; embeddings of 1024 numbers."""
DEFAULT_TAG = "laion2b_s32b_b79k"
"""open_clip's name of those weights."""
PREFIX = "visual."
"""Before the names of the vision tower's tensors in the weights of a whole CLIP."""

Colours = tuple[float, float, float]
_DIFFERING = {
    "mean": "the colours that they want",
    "std": "the colours that they want",
    "quick_gelu": "their activation (quick_gelu)",
}


@final
@dataclass(frozen=True, kw_only=True)
class OpenCLIPTower:
    """What a vision tower of open_clip is made of; its weights apart."""

    model: str
    """open_clip's name; of a tower that it does not know, any."""
    embed_dim: int
    """Length of an embedding."""
    vision_cfg: Mapping[str, Any] = field(default_factory=dict)
    """Sizes, named as in open_clip's model configurations."""
    quick_gelu: bool = False
    """Whether its activation is the sigmoid approximation of GELU, as in OpenAI's models."""
    mean: Colours = CLIP_MEAN
    """Of RGB in [0, 1]: subtracted."""
    std: Colours = CLIP_STD
    """Of RGB in [0, 1]: divided by."""


@final
class OpenCLIPImageEncoder(ImageEncoder):
    """The pooled, projected embedding that CLIP compares with text, before it is normalised.

    This is what the published code gives APM. Images of any size are resized as in `backends.image_preprocess`.
    """

    def __init__(self, visual: nn.Module, tower: OpenCLIPTower) -> None:
        """visual: as `build` makes it from `tower`."""
        super().__init__()
        self.visual, self.tower = visual, tower

    @property
    def width(self) -> int:
        """The projection's (ViT-H-14: 1024)."""
        return self.tower.embed_dim

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Embeddings in the type of the images, not normalised. Raises UserError if the tower gives something else."""
        pixels = prepare(images, _size(self.visual), self.tower.mean, self.tower.std)
        made = self.visual(pixels.to(next(self.visual.parameters()).dtype))
        if made.shape != (images.shape[0], self.width):
            raise UserError(
                f"open_clip's {self.tower.model} gives {'x'.join(map(str, made.shape[1:]))} numbers an image, not "
                f"{self.width}: choose a tower that pools and projects, or correct vision_cfg"
            )
        return made.to(images.dtype)


def make(model: str, weights: Path | None) -> ImageEncoder:
    """Entry point `open_clip`: NAME or NAME@TAG of open_clip, "" for ViT-H-14; float32, on the CPU, frozen.

    weights: a safetensors or PyTorch file of the whole CLIP or of its vision tower alone (TAG must be named as well if
    the model's weights differ in colours or activation); without one, TAG's are downloaded, or taken from the hub's
    cache. Raises UserError for an unknown name or tag, for weights that cannot be had, and for those of another model.
    """
    name, _, tag = (model or DEFAULT_MODEL).partition("@")
    if name == DEFAULT_MODEL and weights is None:
        tag = tag or DEFAULT_TAG
    asks = not tag and weights is None  # `_download` does
    tower = registered(name, tag, given=_DIFFERING if asks else ())
    path = weights if weights is not None else _download(name, tag)
    return load(tower, read_weights([path], PREFIX), path, torch.float32)


def load(
    tower: OpenCLIPTower, weights: Mapping[str, Tensor], where: Path | str, dtype: torch.dtype
) -> OpenCLIPImageEncoder:
    """The encoder with weights of its vision tower alone. Raises UserError as `image_weights.fill` and `build` do."""
    return OpenCLIPImageEncoder(fill(lambda: build(tower), weights, where, dtype), tower).eval()


def registered(name: str, tag: str = "", *, given: Collection[str] = ()) -> OpenCLIPTower:
    """The tower of an open_clip model, with the colours and the activation of its pretrained weights `tag` (or of all).

    given: of "mean", "std" and "quick_gelu", what is known otherwise and need not be told by the weights.

    Raises UserError for an unknown name or tag, and without tag if its weights differ in these.
    """
    import open_clip

    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise UserError(f"open_clip has no model '{name}': {_close(name, open_clip.list_models())}")
    return OpenCLIPTower(
        model=name,
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        **_told(name, tag, config.get("quick_gelu", False), given),
    )


def build(tower: OpenCLIPTower) -> nn.Module:
    """open_clip's vision tower with random weights, nothing downloaded. Raises UserError for sizes that cannot be."""
    from accelerate import init_empty_weights
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    # a tower of timm would bring its own weights along; some give patch tokens beside the pooled embedding
    safe = {**tower.vision_cfg, "timm_model_pretrained": False, "output_tokens": False}
    try:
        config = CLIPVisionCfg(**safe)
        if config.timm_model_name:  # timm's models compute with their weights while they are made
            _check_timm(config.timm_model_name)
            return _build_vision_tower(tower.embed_dim, config, tower.quick_gelu)
        with init_empty_weights():
            return _build_vision_tower(tower.embed_dim, config, tower.quick_gelu)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise UserError(
            f"open_clip cannot make {tower.model} with these sizes ({first_line(error)}): correct vision_cfg"
        ) from error


def _check_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):  # also refuses timm's names of places to download from
        raise UserError(f"timm has no model '{name}', which vision_cfg names: correct timm_model_name")


def _told(name: str, tag: str, quick_gelu: bool, given: Collection[str]) -> dict[str, Any]:
    """What the weights say of the tower. Many were trained with another activation than the model's configuration."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise UserError(f"open_clip has no weights '{tag}' of {name}: {_close(tag, tags)}")
    told: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD, "quick_gelu": quick_gelu}
    known = [get_pretrained_cfg(name, each) for each in ([tag] if tag else tags)]
    for what in sorted(set(told) - set(given)):
        found = {_plain(each.get(what) if each.get(what) is not None else told[what]) for each in known}
        if len(found) > 1:
            raise UserError(
                f"the weights of {name} differ in {_DIFFERING[what]}: say which they are, {name}@TAG "
                f"(in a config.json: mean, std and quick_gelu); {_all(tags)}"
            )
        told[what] = found.pop() if found else told[what]
    return told


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _download(name: str, tag: str) -> Path:
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    if not tag:
        raise UserError(
            f"open_clip:{name} needs weights: open_clip:{name}:FILE or open_clip:{name}@TAG to download them; "
            + _all(list_pretrained_tags_by_model(name))
        )
    try:
        return Path(download_pretrained(get_pretrained_cfg(name, tag)))
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(
            f"cannot download the weights {tag} of {name} ({first_line(error)}): "
            f"download them where there is a network, then say open_clip:{name}:FILE"
        ) from error


def _close(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else _all(known)


def _all(known: list[str]) -> str:
    return f"there are {', '.join(known)}" if known else "there are none"


def _size(visual: nn.Module) -> tuple[int, int]:
    """Rows and columns of the images that a tower takes."""
    size: Any = visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)
