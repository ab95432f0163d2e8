"""APM, the appearance preservation module: every cross-attention also reads the anchor frame [StreamingT2V §4.2]."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapters.store import adapter_folder, check_sites, load_weights, read_config, write_adapter
from streaming.backbone import Call
from streaming.codec import ImageEncoder
from streaming.errors import UserError
from streaming.memory import LongTermMemory
from streaming.model import Model
from streaming.sites import ContextSite, Deltas
from streaming.types import Frames, Tokens

ImageTokens = Float[Tensor, "batch image_tokens depth"]

KIND = "APM"
IMAGE_TOKENS = 16
GREY = 0.5
"""Value of the image that stands for no anchor: 0 in [-1, 1] (convention of the published code)."""


@final
@dataclass(frozen=True, kw_only=True)
class APMConfig:
    """Sizes of an APM, and the sites that it was made for."""

    sites: tuple[ContextSite, ...]
    """The backbone's context sites, in order; all of one depth."""
    image_width: int
    """Length of an image embedding (published model: 1024)."""
    inner: int
    """Hidden width between embedding and tokens (published model: 1280)."""
    image_tokens: int = IMAGE_TOKENS
    """Tokens that an anchor becomes (k of the paper)."""

    @property
    def depth(self) -> int:
        """Channels of a token."""
        return self.sites[0].depth


@final
@dataclass(frozen=True)
class APMState:
    """What APM knows of the anchor frame."""

    tokens: ImageTokens
    """Image tokens of each video's anchor."""
    none: Float[Tensor, "1 image_tokens depth"]
    """Image tokens of the grey image for rows without anchor."""


@final
class ContextMixer(nn.Module):
    """delta(text) = SiLU(alpha) * LayerNorm(Conv1d([text; image])), alpha = 0 before training.

    The convolution's channels are the token positions; its kernel slides along the features (published code).
    """

    def __init__(self, site: ContextSite, image_tokens: int) -> None:
        """A mixer for one cross-attention."""
        super().__init__()
        self.conv = nn.Conv1d(site.tokens + image_tokens, site.tokens, 3, padding=1)
        self.norm = nn.LayerNorm(site.depth)
        self.alpha = nn.Parameter(torch.zeros(()))

    def mixed(self, text: Tokens, image: ImageTokens) -> Tokens:
        """Text and image tokens, mixed down to as many as there are text tokens."""
        return self.norm(self.conv(torch.cat((text, image), dim=1)))

    def forward(self, text: Tokens, image: ImageTokens) -> Tokens:
        """What to add to the text."""
        return (F.silu(self.alpha) * self.mixed(text, image)).to(text.dtype)

    @torch.no_grad()
    def turn(self) -> None:
        """If the gate has opened downwards, open it upwards, with the norm turned: what comes out stays (within .5 %).

        Downwards SiLU ends at -.278, where its slope is 0: gates that had gone there in training stayed, however much
        more of the anchor was wanted.
        """
        down = self.alpha < 0
        upwards = (1 - 4 * F.silu(self.alpha)).sqrt() - 1  # solves x / 2 + x^2 / 4 = -silu(alpha), nearly silu(x)
        self.alpha.copy_(torch.where(down, upwards, self.alpha))
        for value in (self.norm.weight, self.norm.bias):
            value.copy_(torch.where(down, -value, value))


@final
class APM(LongTermMemory[APMState]):
    """Image embedding of the anchor -> MLP -> image tokens -> mixed into the text of every cross-attention.

    The image encoder is only borrowed: it is neither trained nor saved with the module.
    """

    def __init__(self, config: APMConfig, image: ImageEncoder) -> None:
        """image: the encoder whose embeddings the MLP reads; already where it is to compute."""
        super().__init__()
        if len({site.depth for site in config.sites}) != 1:
            raise UserError("APM needs cross-attentions that read text of one depth; this backbone has several")
        self.config = config
        self.borrowed = (image,)  # in a tuple, lest its weights become ours
        self.proj_in = nn.Linear(config.image_width, config.inner)
        self.proj_out = nn.Linear(config.inner, config.image_tokens * config.depth)
        self.mixers = nn.ModuleList(ContextMixer(site, config.image_tokens) for site in config.sites)

    def tokens(self, embedding: Float[Tensor, "batch image_width"]) -> ImageTokens:
        """Image tokens of image embeddings."""
        hidden = F.silu(self.proj_in(embedding.to(self.proj_in.weight.dtype)))
        return self.proj_out(hidden).unflatten(1, (self.config.image_tokens, self.config.depth))

    def open_upwards(self) -> None:
        """For the first steps of training: gates go where they can open further; frozen ones stay."""
        for mixer in self.mixers:
            assert isinstance(mixer, ContextMixer)
            if mixer.alpha.requires_grad:
                mixer.turn()

    def embed(self, anchor: Frames) -> Float[Tensor, "batch image_width"]:
        """Embeddings of the anchors' frames, averaged over time."""
        return embed(self.borrowed[0], anchor)

    def known(self, embedding: Float[Tensor, "batch image_width"]) -> APMState:
        """The state for rows that all have an anchor, of which there are embeddings already."""
        tokens = self.tokens(embedding)
        return APMState(tokens, tokens[:1])

    def remember(self, anchor: Frames) -> APMState:
        """Tokens of the anchor and of the grey image that stands for none."""
        embedding, none = self.embed(anchor), self.embed(torch.full_like(anchor[:1, :1], GREY))
        return APMState(self.tokens(embedding), self.tokens(none))

    def deltas(self, state: APMState, call: Call) -> Deltas:
        """One mixer a site; rows without `guided.anchor` get the tokens of the grey image."""
        image = row_tokens(state, call)
        return {
            site.name: lambda text, mixer=mixer: mixer(text, image)
            for site, mixer in zip(self.config.sites, self.mixers, strict=True)
        }

    def save(self, folder: Path) -> None:
        """Write config.json and weights (fp16 safetensors, in parts under 15 MB)."""
        write_adapter(folder, KIND, self.config, self.state_dict())


def embed(image: nn.Module, anchor: Frames) -> Float[Tensor, "batch image_width"]:
    """Embeddings of the anchors' frames, averaged over time."""
    return image(anchor.flatten(0, 1)).unflatten(0, anchor.shape[:2]).mean(dim=1)


def row_tokens(state: APMState, call: Call) -> ImageTokens:
    """The image tokens of each row of the call, whose guidance rows are row-major."""
    rows, batch = len(call.guided), state.tokens.shape[0]
    if rows % batch:
        raise ValueError(f"{rows} rows cannot share the anchors of {batch} videos evenly")
    anchored = [row.anchor for row in call.guided]
    image = state.tokens.repeat(rows // batch, 1, 1)
    if all(anchored):
        return image
    each = zip(image.unbind(), anchored, strict=True)
    return torch.stack([tokens if there else state.none[0] for tokens, there in each])


def new_apm(model: Model) -> APM:
    """An untrained APM for a model: the hidden width is 5/4 of the embedding's, 256 at most for small models.

    Raises UserError if the model has no image encoder.
    """
    image = image_of(model)
    config = APMConfig(sites=model.backbone.context_sites, image_width=image.width, inner=inner_width(image.width))
    return APM(config, image).to(model.device)


def inner_width(image_width: int) -> int:
    """Hidden width between an embedding and its tokens (1280 is the published model's)."""
    return 1280 if image_width == 1024 else min(256, 5 * image_width // 4)


def apm(model: Model, weights: Path | None) -> APM:
    """Entry point `apm`: the trained APM in the folder `weights`, by default `apm` beside the model's parts.

    Raises UserError if there is none, if it belongs to another backbone, or if its files are damaged.
    """
    folder = adapter_folder(model, weights, "apm")
    config = read_config(folder, KIND, APMConfig)
    check_sites(folder, config.sites, model.backbone.context_sites)
    if config.image_width != image_of(model).width:
        raise UserError(
            f"the APM in {folder} reads image embeddings of {config.image_width} numbers, "
            f"this model's image encoder gives {image_of(model).width}: train another APM for this model"
        )
    loaded = APM(config, image_of(model))
    load_weights(folder, loaded)
    return loaded.to(model.device, model.dtype).eval().requires_grad_(False)


def image_of(model: Model) -> ImageEncoder:
    """The model's image encoder. Raises UserError if it has none."""
    if model.image is None:
        raise UserError(
            f"{model.name} has no image encoder, which APM needs: choose another long-term memory, or none, or name an "
            "encoder with --image-encoder (the published APM's is open_clip:ViT-H-14:FILE, with the weights "
            "laion2b_s32b_b79k)"
        )
    return model.image
