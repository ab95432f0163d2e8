"""Sizes of Open-Sora's transformers 1.0, 1.1 and 1.2, read from the shapes of their weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from streaming.errors import UserError

Version = Literal["1.0", "1.1", "1.2"]

CHANNELS = 4
"""Latent channels of the autoencoders of all three versions."""
HEAD = 72
"""Channels of an attention head in the published models; 1.0's weights do not tell."""
SQUARE = 512
"""Side of the picture, in pixels, at which 1.1 and 1.2 leave places unscaled (published configurations)."""
LATER = ("x_embedder_cond", "double_blocks.")
"""How names of tensors begin that only Open-Sora 1.3, or 2, has."""
_ADVICE = "give one of 1.0, 1.1 or 1.2, for example hpcai-tech/OpenSora-STDiT-v3"


@final
@dataclass(frozen=True, kw_only=True)
class STDiTConfig:
    """Sizes of a transformer; the same words serve all three versions."""

    width: int
    """Channels of a token (published models: 1152)."""
    depth: int
    """Blocks, in 1.2 pairs of a spatial and a temporal one (28)."""
    heads: int
    """Attention heads (16)."""
    hidden: int
    """Channels inside a block's MLP (4608)."""
    text_depth: int
    """Channels of a text token as the text encoder gives it (4096)."""
    text_tokens: int
    """Length that prompts are padded to (120, 200, 300)."""
    channels: int = CHANNELS
    """Latent channels."""
    outputs: int = 2 * CHANNELS
    """Channels of the prediction: variances, which 1.2 does not use, come after the latent channels."""
    patch: tuple[int, int] = (2, 2)
    """Rows and columns of latent cells that a token stands for."""
    qk_norm: bool = True
    """Whether self-attentions normalise queries and keys (not in 1.0)."""
    square: int = SQUARE
    """Pixels; see `SQUARE`. 1.0 does not have it."""

    def __post_init__(self) -> None:
        """Raises UserError for a width that heads and places cannot share."""
        if self.width % self.heads or self.width % 4:
            raise UserError(f"{self.width} channels cannot be {self.heads} heads and four parts: choose another width")


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """The one size that a transformer 1.0 is made for."""

    frames: int
    """Latent frames (published models: 16)."""
    rows: int
    """Rows of patches (16 at 256 pixels, 32 at 512)."""
    cols: int
    """Columns of patches."""


def version_of(weights: Mapping[str, Tensor], where: object) -> Version:
    """Which transformer the weights belong to, by their names; `where` names them in errors.

    Raises UserError for those of Open-Sora 1.3 and 2, and for what is none of its transformers.
    """
    if later := next((name for name in weights if name.startswith(LATER)), None):
        raise UserError(f"{where} is a transformer of Open-Sora 1.3 or later (it has {later}): {_ADVICE}")
    marks: dict[Version, str] = {
        "1.2": "temporal_blocks.0.attn.qkv.weight",
        "1.1": "blocks.0.scale_shift_table_temporal",
        "1.0": "blocks.0.attn_temp.qkv.weight",
    }
    found: Version | None = next((version for version, mark in marks.items() if mark in weights), None)
    if found is None:
        raise UserError(f"{where} holds no transformer of Open-Sora: {_ADVICE}")
    return found


def read_config(
    weights: Mapping[str, Tensor],
    where: object,
    *,
    heads: int | None = None,
    channels: int = CHANNELS,
    square: int = SQUARE,
) -> STDiTConfig:
    """The sizes that the weights were made with; only their shapes are looked at.

    heads: for those of 1.0, by default one for 72 channels; later versions tell. channels: those of the codec's
    latents. Raises UserError as `version_of`, for a tensor that is missing, and for other heads or latents than said.
    """
    version = version_of(weights, where)
    blocks = "spatial_blocks" if version == "1.2" else "blocks"
    width, taken, *patch = _shape(weights, "x_embedder.proj.weight", 5, where)
    if taken != channels:
        raise UserError(f"{where} takes latents of {taken} channels, as Open-Sora 1.3 does, not {channels}: {_ADVICE}")
    if patch[0] != 1:
        raise UserError(f"{where} joins {patch[0]} latent frames in a token, which no published model does: {_ADVICE}")
    tokens, text_depth = _shape(weights, "y_embedder.y_embedding", 2, where)
    return STDiTConfig(
        width=width,
        depth=sum(name.startswith(f"{blocks}.") and name.endswith(".scale_shift_table") for name in weights),
        heads=_heads(weights, width, version, heads, where),
        hidden=_shape(weights, f"{blocks}.0.mlp.fc1.weight", 2, where)[0],
        text_depth=text_depth,
        text_tokens=tokens,
        channels=channels,
        outputs=_shape(weights, "final_layer.linear.weight", 2, where)[0] // (patch[1] * patch[2]),
        patch=(patch[1], patch[2]),
        qk_norm=f"{blocks}.0.attn.q_norm.weight" in weights,
        square=square,
    )


def _heads(weights: Mapping[str, Tensor], width: int, version: Version, said: int | None, where: object) -> int:
    if version == "1.0" and said is not None:
        return said
    head = HEAD if version == "1.0" else 2 * _shape(weights, "rope.freqs", 1, where)[0]
    if not head or width % head:
        hint = "say how many heads" if version == "1.0" else "the file is damaged"
        raise UserError(f"{where}: {width} channels are no whole heads of {head}: {hint}")
    if said not in (None, width // head):
        raise UserError(f"{where} has {width // head} heads, not {said}: leave that out, the file tells")
    return width // head


def _shape(weights: Mapping[str, Tensor], name: str, axes: int, where: object) -> list[int]:
    if name not in weights or weights[name].ndim != axes:
        told = "has no" if name not in weights else f"has {weights[name].ndim} instead of {axes} axes in"
        raise UserError(f"{where} {told} {name}: it is not a whole transformer of Open-Sora, download it again")
    return list(weights[name].shape)
