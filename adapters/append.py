"""Image tokens appended to the text, a rival of APM: longer text in every cross-attention, no mixing, no gates."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from adapters.apm import GREY, IMAGE_TOKENS, APMState, ImageTokens, embed, image_of, inner_width, row_tokens
from adapters.store import adapter_folder, load_weights, read_config, write_adapter
from streaming.backbone import Call
from streaming.codec import ImageEncoder
from streaming.errors import UserError
from streaming.memory import LongTermMemory
from streaming.model import Model
from streaming.sites import Deltas
from streaming.types import Frames

KIND = "Append"


@final
@dataclass(frozen=True, kw_only=True)
class AppendConfig:
    """Sizes of the projection."""

    depth: int
    """Channels of a text token as the base model takes it."""
    image_width: int
    """Length of an image embedding."""
    inner: int
    """Hidden width between embedding and tokens, as APM's."""
    image_tokens: int = IMAGE_TOKENS
    """Tokens that an anchor becomes."""


@final
class Append(LongTermMemory[APMState]):
    """Image embedding of the anchor -> MLP -> image tokens, behind the text tokens of every cross-attention.

    It is what APM would be without its mixing layers and gates: the ablation "image tokens only". The image tokens
    share the attention's softmax with the text, so that even untrained they take weight from the words: unlike APM,
    it changes the base model from the first step on.
    """

    def __init__(self, config: AppendConfig, image: ImageEncoder) -> None:
        """image: the encoder whose embeddings the MLP reads; already where it is to compute."""
        super().__init__()
        self.config = config
        self.borrowed = (image,)  # in a tuple, lest its weights become ours
        self.proj_in = nn.Linear(config.image_width, config.inner)
        self.proj_out = nn.Linear(config.inner, config.image_tokens * config.depth)

    def tokens(self, embedding: Float[torch.Tensor, "batch image_width"]) -> ImageTokens:
        """Image tokens of image embeddings."""
        hidden = F.silu(self.proj_in(embedding.to(self.proj_in.weight.dtype)))
        return self.proj_out(hidden).unflatten(1, (self.config.image_tokens, self.config.depth))

    def known(self, embedding: Float[torch.Tensor, "batch image_width"]) -> APMState:
        """The state for rows that all have an anchor, of which there are embeddings already."""
        tokens = self.tokens(embedding)
        return APMState(tokens, tokens[:1])

    def remember(self, anchor: Frames) -> APMState:
        """Tokens of the anchor and of the grey image that stands for none."""
        image = self.borrowed[0]
        none = embed(image, torch.full_like(anchor[:1, :1], GREY))
        return APMState(self.tokens(embed(image, anchor)), self.tokens(none))

    def deltas(self, state: APMState, call: Call) -> Deltas:
        """None: all is in the text."""
        return {}

    def rewrite(self, state: APMState, call: Call) -> Call:
        """The call with the image tokens of each row behind its text; all of them are to be read."""
        image = row_tokens(state, call).to(call.context.dtype)
        mask = call.context_mask
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(image.shape[:2])), dim=1)
        return call.with_(context=torch.cat((call.context, image), dim=1), context_mask=mask)

    def save(self, folder: Path) -> None:
        """Write config.json and weights (fp16 safetensors)."""
        write_adapter(folder, KIND, self.config, self.state_dict())


def new_append(model: Model) -> Append:
    """An untrained one for a model, as wide as APM's projection. Raises UserError if the model has no image encoder."""
    image = image_of(model)
    config = AppendConfig(depth=_depth(model), image_width=image.width, inner=inner_width(image.width))
    return Append(config, image).to(model.device)


def append(model: Model, weights: Path | None) -> Append:
    """Entry point `append`: the trained one in the folder `weights`, by default `append` beside the model's parts.

    Raises UserError if there is none, if it belongs to another text or image encoder, or if its files are damaged.
    """
    folder = adapter_folder(model, weights, "append")
    config, image = read_config(folder, KIND, AppendConfig), image_of(model)
    here = _depth(model), image.width
    if (config.depth, config.image_width) != here:
        raise UserError(
            f"the projection in {folder} makes text tokens of {config.depth} numbers from image embeddings of "
            f"{config.image_width}, this model's encoders give {here[0]} and {here[1]}: train another "
            "one for this model"
        )
    loaded = Append(config, image)
    load_weights(folder, loaded)
    return loaded.to(model.device, model.dtype).eval().requires_grad_(False)


def _depth(model: Model) -> int:
    """Channels of the text encoder's tokens; cross-attentions may read a projection of them."""
    with torch.no_grad():
        return model.text([""]).tokens.shape[2]
