"""timm's attention modules, attending through `streaming.short_attention`; parameters and results are timm's."""

from typing import final

from einops import rearrange
from jaxtyping import Float
from timm.layers.attention import Attention, AttentionRope
from timm.layers.norm import RmsNorm
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor

from streaming.short_attention import attention

Sequences = Float[Tensor, "sequences tokens width"]


@final
class ShortAttention(Attention):
    """Self-attention; queries and keys may be normalised."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__(width, heads, qkv_bias=True, qk_norm=qk_norm, norm_layer=RmsNorm)

    def forward(self, x: Sequences) -> Sequences:
        """What the tokens read of each other; no masks."""
        q, k, v = rearrange(self.qkv(x), "b t (three n d) -> three b n t d", three=3, n=self.num_heads)
        read = attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(rearrange(read, "b n t d -> b t (n d)"))


@final
class ShortAttentionRope(AttentionRope):
    """Self-attention whose queries and keys may be normalised, then are rotated, neighbouring channels in pairs."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__(
            width, heads, num_prefix_tokens=0, qk_norm=qk_norm, norm_layer=RmsNorm, rotate_half=False
        )  # fmt: skip

    def forward(self, x: Sequences, rope: Float[Tensor, "tokens turns"]) -> Sequences:
        """What the tokens read of each other; `rope`: sines, then cosines of the tokens' turns."""
        assert self.qkv is not None  # timm's other way: three matrices
        q, k, v = rearrange(self.qkv(x), "b t (three n d) -> three b n t d", three=3, n=self.num_heads)
        q, k = (apply_rot_embed_cat(y, rope).type_as(v) for y in (self.q_norm(q), self.k_norm(k)))
        return self.proj(rearrange(attention(q, k, v), "b n t d -> b t (n d)"))
