"""Attention over a few tokens, as along the frames of a window: one small GPU program for each head of each sequence.

Flash-attention kernels work in tiles of 64 tokens and more. Video models attend along 16 frames at tens of thousands
of positions at once, where such tiles are mostly empty: attention was 43 % of a small U-Net's training step (one H200).
"""

import os
from importlib.util import find_spec
from shutil import which

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LONGEST = 64
"""Tokens up to which the programs are used."""
WIDEST = 128
"""Channels of a head up to which they are used."""


def _can_build() -> bool:
    """Whether there is what Triton needs: an NVIDIA GPU, and a C compiler for the code that launches programs."""
    compiler = "CC" in os.environ or any(which(name) for name in ("cc", "gcc", "clang"))
    gpu = torch.cuda.is_available() and torch.version.hip is None
    return gpu and compiler and find_spec("triton") is not None


if _can_build():
    from streaming.short_attention_programs import short_attention
else:
    short_attention = None


def attention(
    queries: Float[Tensor, "batch heads read depth"],
    keys: Float[Tensor, "batch heads tokens depth"],
    values: Float[Tensor, "batch heads tokens depth"],
    bias: Float[Tensor, "heads read tokens"] | None = None,
) -> Float[Tensor, "batch heads read depth"]:
    """What `scaled_dot_product_attention` gives, up to rounding; like it, it follows autocast.

    bias: added to the scores. On a GPU, few and narrow tokens go through our programs, everything else through PyTorch.
    """
    if short_attention is None or not queries.is_cuda or not is_short(queries, keys):
        mask = None if bias is None else bias.to(queries.dtype)
        return F.scaled_dot_product_attention(queries, keys, values, mask)
    if bias is not None:
        queries, keys = as_channels(queries, keys, bias)
        sizes = values.shape[3], queries.shape[3] - values.shape[3]
        empty = values.new_zeros(*values.shape[:3], sizes[1])  # padding and slicing don't compile everywhere (2.11)
        return attention(queries, keys, torch.cat([values, empty], dim=3)).split(sizes, dim=3)[0]
    if torch.is_autocast_enabled("cuda"):
        kind = torch.get_autocast_dtype("cuda")
        queries, keys, values = queries.to(kind), keys.to(kind), values.to(kind)
    return short_attention(*(x.transpose(1, 2) for x in (queries, keys, values))).transpose(1, 2)


def as_channels(
    queries: Float[Tensor, "batch heads read depth"],
    keys: Float[Tensor, "batch heads tokens depth"],
    bias: Float[Tensor, "heads read tokens"],
) -> tuple[Float[Tensor, "batch heads read wider"], Float[Tensor, "batch heads tokens wider"]]:
    """Queries and keys whose scaled products are those of the given ones plus the bias.

    A channel more for each key: 1 in that key, in the queries what the bias says of it. Spares the programs a second
    kind of gradient.
    """
    batch, tokens, depth = len(queries), keys.shape[2], queries.shape[3]
    scale = (depth + tokens) ** 0.5
    told = (scale * bias).to(queries.dtype).expand(batch, -1, -1, -1)
    own = torch.eye(tokens, dtype=keys.dtype, device=keys.device).expand(batch, keys.shape[1], -1, -1)
    return torch.cat([queries * (scale * depth**-0.5), told], dim=3), torch.cat([keys, own], dim=3)


def is_short(queries: Float[Tensor, "batch heads read depth"], keys: Float[Tensor, "batch heads tokens depth"]) -> bool:
    """Whether a program holds a head of a sequence at once, in a type that tensor cores know."""
    small = max(queries.shape[2], keys.shape[2]) <= LONGEST and queries.shape[3] <= WIDEST
    return small and queries.dtype in (torch.float32, torch.float16, torch.bfloat16)
