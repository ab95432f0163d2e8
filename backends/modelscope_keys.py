"""ModelScope's own names of its UNet's tensors, and diffusers' names of the same ones.

ModelScope's networks (`UNetSD` of text-to-video, `Vid2VidSDUNet` of video-to-video) number their blocks straight
through: `input_blocks`, `middle_block`, `output_blocks`; diffusers sorts them by level and kind. Names are facts of the
published checkpoints, spelling mistakes included ("temopral").
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from streaming.errors import UserError

HEADS_IN = 8
"""Heads of the temporal transformer behind the first convolution, in both libraries."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "transformer_in": "input_blocks.0.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_WITHIN = {"resnets": "0", "temp_convs": "0.temopral_conv", "attentions": "1", "temp_attentions": "2"}
"""Places inside one of ModelScope's blocks."""
_MIDDLE = {
    "resnets.0": "0",
    "temp_convs.0": "0.temopral_conv",
    "attentions.0": "1",
    "temp_attentions.0": "2",
    "resnets.1": "3",
    "temp_convs.1": "3.temopral_conv",
}
_OWN = re.compile(r"(|.*\.)(?:input_blocks\.\d+\.\d+|middle_block\.\d+|output_blocks\.\d+\.\d+)\.temopral_conv\.")
"""How names begin that tell a native checkpoint, whatever is put before all names."""


@final
@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the names and shapes of a native checkpoint say of its network."""

    taken: int
    """Latent channels that go in."""
    given: int
    """Latent channels that come out."""
    channels: tuple[int, ...]
    """Of each level, the finest first."""
    layers: int
    """Residual blocks of a level on the way down; one more on the way up."""
    attention: tuple[bool, ...]
    """Whether a level reads the text."""
    depth: int
    """Width of the text's tokens."""
    head: int
    """Channels of an attention head."""

    def config(self) -> dict[str, Any]:
        """Arguments of `diffusers.UNet3DConditionModel`."""
        return {
            "in_channels": self.taken,
            "out_channels": self.given,
            "block_out_channels": list(self.channels),
            "layers_per_block": self.layers,
            "down_block_types": ["CrossAttnDownBlock3D" if reads else "DownBlock3D" for reads in self.attention],
            "up_block_types": ["CrossAttnUpBlock3D" if reads else "UpBlock3D" for reads in self.attention[::-1]],
            "cross_attention_dim": self.depth,
            "attention_head_dim": self.head,
        }


def native_names(names: Iterable[str], layers: int) -> dict[str, str]:
    """ModelScope's name for each of diffusers' names of one UNet; no two are the same.

    names: all tensors of a `UNet3DConditionModel`; layers: its `layers_per_block`. Raises ValueError for a name that
    belongs to no such UNet.
    """
    names = list(names)
    reads = {".".join(name.split(".")[:2]) for name in names if ".attentions." in name}
    return {name: _native(name, layers, reads) for name in names}


def diffusers_names(names: Iterable[str], layers: int) -> dict[str, str]:
    """The other way round: for the same diffusers names, theirs by ModelScope's name."""
    return {native: name for name, native in native_names(names, layers).items()}


def prefix(names: Iterable[str]) -> str | None:
    """What a native checkpoint puts before every name (mostly nothing); None if these are no native names.

    Only ModelScope spells its temporal convolutions so; Stable Diffusion's UNets have many of the other names.
    """
    found = [match[1] for name in names if (match := _OWN.match(name))]
    return min(found, key=len) if found else None


def read_sizes(meta: Mapping[str, Tensor]) -> Sizes:
    """Sizes of the network whose tensors, by native names without prefix, are given (on any device).

    Raises UserError if a name or shape is missing or makes no sense.
    """
    try:
        return _sizes({name: tuple(value.shape) for name, value in meta.items()})
    except (KeyError, IndexError, ZeroDivisionError, ValueError) as error:
        what = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else "its shapes don't fit together"
        raise UserError(f"this is no whole UNet of ModelScope's ({what}): give the published file") from error


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
    blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
    downs = [i for i in range(1, blocks) if f"input_blocks.{i}.op.weight" in shapes]
    layers = (downs[0] if downs else blocks) - 1
    firsts = range(1, blocks, layers + 1)
    attention = tuple(f"input_blocks.{i}.1.norm.weight" in shapes for i in firsts)
    found = Sizes(
        taken=shapes["input_blocks.0.0.weight"][1],
        given=shapes["out.2.weight"][0],
        channels=tuple(shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0] for i in firsts),
        layers=layers,
        attention=attention,
        depth=shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        head=shapes["input_blocks.0.1.proj_in.weight"][0] // HEADS_IN,
    )
    if not all((found.taken, found.given, *found.channels, found.layers, found.depth, found.head)):
        raise ValueError("an empty tensor")
    return found


def _native(name: str, layers: int, reads: set[str]) -> str:
    parts = name.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        where, rest = _block(parts, layers, reads)
    elif parts[0] == "mid_block" and ".".join(parts[1:3]) in _MIDDLE:
        where, rest = "middle_block." + _MIDDLE[".".join(parts[1:3])], parts[3:]
    else:
        return _end(name)
    if "resnets" in parts:
        rest = [_RESNET[rest[0]], *rest[1:]]
    return ".".join([where, *rest])


def _block(parts: Sequence[str], layers: int, reads: set[str]) -> tuple[str, Sequence[str]]:
    """The native place of a module in a down or up block, and the rest of the name."""
    level, kind, index = int(parts[1]), parts[2], int(parts[3])
    begin = level * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{begin + layers + 1}.op", parts[5:]
    if kind == "upsamplers":
        last = 3 if ".".join(parts[:2]) in reads else 1
        return f"output_blocks.{begin + layers}.{last}", parts[4:]
    if parts[0] == "down_blocks":
        return f"input_blocks.{1 + begin + index}.{_WITHIN[kind]}", parts[4:]
    return f"output_blocks.{begin + index}.{_WITHIN[kind]}", parts[4:]


def _end(name: str) -> str:
    for ours, native in _ENDS.items():
        if name.startswith(ours + "."):
            return native + name.removeprefix(ours)
    raise ValueError(f"{name} is no tensor of a UNet3DConditionModel")
