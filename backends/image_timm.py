"""timm's models as image encoders: pooled features of any of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backends.image_preprocess import prepare
from backends.image_weights import fill, read_weights
from backends.modelscope_settings import first_line
from streaming.codec import ImageEncoder
from streaming.errors import UserError
from streaming.keys import initial_weights

Colours = tuple[float, float, float]

_SIZES = frozenset(
    "img_size patch_size embed_dim depth depths num_heads mlp_ratio dims width layers channels window_size".split()
)
"""What `TimmTower.model_args` may hold: nothing that names files or places to download from."""


@final
@dataclass(frozen=True, kw_only=True)
class TimmTower:
    """What a model of timm is made of; its weights apart."""

    model: str
    """timm's name, with or without the tag of its weights."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Sizes that differ from those of that name, as `timm.create_model` takes them."""
    mean: Colours | None = None
    """Of RGB in [0, 1]: subtracted. None: what timm knows of the model."""
    std: Colours | None = None
    """Of RGB in [0, 1]: divided by. None: what timm knows of the model."""


@final
class TimmImageEncoder(ImageEncoder):
    """What a model gives its classifier, which is left out: pooled features.

    Images of any size are resized as in `backends.image_preprocess` to the size that the model was made for.
    """

    def __init__(self, network: nn.Module, tower: TimmTower) -> None:
        """network: as `build` makes it from `tower`."""
        super().__init__()
        from timm.data import resolve_data_config

        self.network, self.tower = network, tower
        args = {name: value for name, value in tower.model_args.items() if name == "img_size"}
        config = resolve_data_config(args, model=network)
        self._size = (int(config["input_size"][1]), int(config["input_size"][2]))
        self._mean, self._std = tower.mean or tuple(config["mean"]), tower.std or tuple(config["std"])

    @property
    def width(self) -> int:
        """Features behind the pooling and, where there is one, the head's hidden layer."""
        network: Any = self.network
        return int(getattr(network, "head_hidden_size", None) or network.num_features)

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Features in the type of the images. Raises UserError for a model that gives something else than vectors."""
        pixels = prepare(images, self._size, self._mean, self._std)
        features = self.network(pixels.to(next(self.network.parameters()).dtype))
        if features.shape != (images.shape[0], self.width):
            raise UserError(
                f"timm's {self.tower.model} gives {'x'.join(map(str, features.shape[1:]))} numbers an image, not "
                f"{self.width}: choose a model with pooled features"
            )
        return features.to(images.dtype)


def make(model: str, weights: Path | None) -> ImageEncoder:
    """Entry point `timm`: a name of timm, with or without the tag of its weights; float32, on the CPU, frozen.

    weights: a safetensors or PyTorch file; its classifier is left out. Without one, timm downloads the name's own, or
    takes them from the hub's cache. Raises UserError for an unknown name, for weights that cannot be had, and for those
    of another model.
    """
    check_name(model)
    tower = TimmTower(model=model)
    if weights is not None:
        return load(tower, read_weights([weights]), weights, torch.float32)
    return TimmImageEncoder(_download(model).requires_grad_(False), tower).eval()


def load(tower: TimmTower, weights: Mapping[str, Tensor], where: Path | str, dtype: torch.dtype) -> TimmImageEncoder:
    """The encoder with these weights, a classifier's among them ignored. Raises UserError as `fill` and `build` do."""
    network = fill(lambda: build(tower), _headless(weights, tower), where, dtype)
    return TimmImageEncoder(network, tower).eval()


def build(tower: TimmTower) -> nn.Module:
    """timm's model with random weights and without classifier, nothing downloaded.

    Raises UserError for an unknown name and for sizes that cannot be.
    """
    import timm

    check_name(tower.model)
    if unknown := sorted(set(tower.model_args) - _SIZES):
        raise UserError(
            f"model_args of timm's {tower.model} has '{unknown[0]}': it may hold {', '.join(sorted(_SIZES))}"
        )
    try:
        return timm.create_model(tower.model, pretrained=False, num_classes=0, **tower.model_args)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise UserError(
            f"timm cannot make {tower.model} with these sizes ({first_line(error)}): correct model_args"
        ) from error


def check_name(name: str) -> None:
    """Raises UserError, with names that are close, for a model, or weights of it, that timm does not have."""
    import timm

    stem, _, tag = name.partition(".")
    if not timm.is_model(stem):
        close = get_close_matches(stem, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() tells them"
        raise UserError(f"timm has no model '{name}': {hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{stem}.*")]
        raise UserError(f"timm has no weights '{tag}' of {stem}: there are {', '.join(tags) or 'none'}") from None


def _headless(weights: Mapping[str, Tensor], tower: TimmTower) -> dict[str, Tensor]:
    """Without the tensors of the classifier, which timm's own files have."""
    import timm
    from accelerate import init_empty_weights

    with init_empty_weights(), initial_weights(0):
        without = build(tower).state_dict()
        head = set(timm.create_model(tower.model, pretrained=False, **tower.model_args).state_dict()) - set(without)
    return {name: value for name, value in weights.items() if name not in head}


def _download(model: str) -> nn.Module:
    import timm

    try:
        return timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(
            f"cannot download the weights of timm's {model} ({first_line(error)}): "
            f"download them where there is a network, then say timm:{model}:FILE"
        ) from error
