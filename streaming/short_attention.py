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
    if torch.is_autocast_enabled("cuda"):
        kind = torch.get_autocast_dtype("cuda")
        queries, keys, values = queries.to(kind), keys.to(kind), values.to(kind)
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))
    return short_attention(queries, keys, values, None if bias is None else bias.float().contiguous()).transpose(1, 2)


def is_short(queries: Float[Tensor, "batch heads read depth"], keys: Float[Tensor, "batch heads tokens depth"]) -> bool:
    """Whether a program holds a head of a sequence at once, in a type that tensor cores know."""
    small = max(queries.shape[2], keys.shape[2]) <= LONGEST and queries.shape[3] <= WIDEST
    return small and queries.dtype in (torch.float32, torch.float16, torch.bfloat16)
