"""How diffusers' attention modules attend: through `streaming.short_attention` wherever it is plain attention."""

from typing import final

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from streaming.short_attention import attention


@final
class ShortAttentionProcessor:
    """Computes what diffusers' `AttnProcessor2_0` does; masks and image-like inputs are left to that one."""

    def __init__(self) -> None:
        self._usual = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [batch, tokens, width], encoder_hidden_states [batch, others, depth]; diffusers' names."""
        if attention_mask is not None or temb is not None or hidden_states.ndim != 3 or not _is_plain(attn):
            return self._usual(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        linears = (attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source)
        heads = (linear(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for linear, x in linears)  # pyright: ignore
        read = attention(*heads).transpose(1, 2).flatten(2)
        project, drop = attn.to_out  # pyright: ignore[reportGeneralTypeIssues]
        return drop(project(read))


def shorten_attention(model: nn.Module) -> None:
    """Lets a model's attention modules attend this way, except those whose processor somebody has exchanged."""
    for module in model.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.set_processor(ShortAttentionProcessor())  # pyright: ignore[reportArgumentType]


def _is_plain(attn: Attention) -> bool:
    """No norms of its own, no residual connection, no scaling."""
    norms = attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross or None
    return norms == (None,) * 5 and not attn.residual_connection and attn.rescale_output_factor == 1
