"""GPU programs for attention over a few tokens, written in Triton; `streaming.short_attention` says when they are used.

Tensors are [batch, tokens, heads, depth], of any strides. A program does one head of one sequence: everything fits into
registers, so nothing but the operands is read and nothing but the result written.
"""
# pyright: reportArgumentType=false, reportCallIssue=false
# Inside a program, Python's syntax means Triton's.

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count


@triton.jit
def _load(at, batch_stride, token_stride, head_stride, batch, head, token, channel, tokens, depth) -> tl.tensor:
    """A head of a sequence [tokens, depth], zeros around it."""
    place = batch * batch_stride + head * head_stride + token[:, None] * token_stride + channel[None, :]
    return tl.load(at + place, mask=(token[:, None] < tokens) & (channel[None, :] < depth), other=0.0)


@triton.jit
def _store(at, what, batch, head, token, channel, tokens, depth, heads) -> None:
    """Into a contiguous [batch, tokens, heads, depth]."""
    place = ((batch * tokens + token[:, None]) * heads + head) * depth + channel[None, :]
    tl.store(at + place, what.to(at.dtype.element_ty), mask=(token[:, None] < tokens) & (channel[None, :] < depth))


@triton.jit
def _shares(
    q, k, scale, bias, head, reader, read, token, tokens, BIASED: tl.constexpr, PRECISION: tl.constexpr
) -> tl.tensor:
    """How much each query reads of each key, float32."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if BIASED:
        place = (head * read + reader[:, None]) * tokens + token[None, :]
        scores += tl.load(bias + place, mask=(reader[:, None] < read) & (token[None, :] < tokens), other=0.0)
    scores = tl.where(token[None, :] < tokens, scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 1)[:, None])
    return shares / tl.sum(shares, 1)[:, None]


@triton.jit
def _forward(
    q, k, v, bias, out, q0, q1, q2, k0, k1, k2, v0, v1, v2, scale, read, tokens, depth, heads, BIASED: tl.constexpr,
    READ: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """One head of one sequence."""
    batch, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0) % heads
    reader, token, channel = tl.arange(0, READ), tl.arange(0, TOKENS), tl.arange(0, DEPTH)
    mine = _load(q, q0, q1, q2, batch, head, reader, channel, read, depth)
    key = _load(k, k0, k1, k2, batch, head, token, channel, tokens, depth)
    value = _load(v, v0, v1, v2, batch, head, token, channel, tokens, depth)
    shares = _shares(mine, key, scale, bias, head, reader, read, token, tokens, BIASED, PRECISION)
    made = tl.dot(shares.to(value.dtype), value, input_precision=PRECISION)
    _store(out, made, batch, head, reader, channel, read, depth, heads)


@triton.jit
def _backward(
    q, k, v, bias, grad, dq, dk, dv, dbias, q0, q1, q2, k0, k1, k2, v0, v1, v2, g0, g1, g2, scale, read, tokens, depth,
    heads, BIASED: tl.constexpr, READ: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """One head of one sequence; the shares are computed anew. All sequences add to `dbias`."""
    batch, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0) % heads
    reader, token, channel = tl.arange(0, READ), tl.arange(0, TOKENS), tl.arange(0, DEPTH)
    mine = _load(q, q0, q1, q2, batch, head, reader, channel, read, depth)
    key = _load(k, k0, k1, k2, batch, head, token, channel, tokens, depth)
    value = _load(v, v0, v1, v2, batch, head, token, channel, tokens, depth)
    given = _load(grad, g0, g1, g2, batch, head, reader, channel, read, depth)
    shares = _shares(mine, key, scale, bias, head, reader, read, token, tokens, BIASED, PRECISION)
    low = shares.to(value.dtype)
    _store(dv, tl.dot(tl.trans(low), given, input_precision=PRECISION), batch, head, token, channel, tokens, depth,
           heads)  # fmt: skip
    of_shares = tl.dot(given, tl.trans(value), input_precision=PRECISION)
    of_scores = shares * (of_shares - tl.sum(shares * of_shares, 1)[:, None])
    if BIASED:
        place = (head * read + reader[:, None]) * tokens + token[None, :]
        tl.atomic_add(dbias + place, of_scores, mask=(reader[:, None] < read) & (token[None, :] < tokens))
    low = (of_scores * scale).to(value.dtype)
    _store(dq, tl.dot(low, key, input_precision=PRECISION), batch, head, reader, channel, read, depth, heads)
    _store(dk, tl.dot(tl.trans(low), mine, input_precision=PRECISION), batch, head, token, channel, tokens, depth,
           heads)  # fmt: skip


@triton_op("streamingt2v::short_attention", mutates_args={})
def short_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attention` of [batch, tokens, heads, depth], on a GPU; bias: float32 [heads, read, tokens], contiguous."""
    queries, keys, values = _rows(queries), _rows(keys), _rows(values)
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    wrap_triton(_forward)[_grid(queries)](
        queries, keys, values, queries if bias is None else bias, out, *_strides(queries, keys, values),
        *_sizes(queries, keys), BIASED=bias is not None, **_tiles(queries, keys),
    )  # fmt: skip
    return out


@triton_op("streamingt2v::short_attention_backward", mutates_args={})
def short_attention_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values and bias; the last is empty without a bias."""
    grad, queries, keys, values = (_rows(x) for x in (grad.to(queries.dtype), queries, keys, values))
    made = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (queries, keys, values)]
    made.append(torch.zeros((0,) if bias is None else bias.shape, dtype=torch.float32, device=queries.device))
    wrap_triton(_backward)[_grid(queries)](
        queries, keys, values, queries if bias is None else bias, grad, *made, *_strides(queries, keys, values, grad),
        *_sizes(queries, keys), BIASED=bias is not None, **_tiles(queries, keys),
    )  # fmt: skip
    return made[0], made[1], made[2], made[3]


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad) -> tuple[Tensor | None, ...]:
    *inputs, bias = ctx.saved_tensors
    *made, of_bias = short_attention_backward(grad, *inputs, bias)
    return *made, None if bias is None else of_bias


short_attention.register_autograd(_gradients, setup_context=_setup)


@register_flop_formula(torch.ops.streamingt2v.short_attention)
def _flops(queries, keys, values, *args, out_shape=None, **kwargs) -> int:
    turned = [(shape[0], shape[2], shape[1], shape[3]) for shape in (queries, keys, values)]
    return sdpa_flop_count(*turned)


def _rows(x: Tensor) -> Tensor:
    """With the channels of a head side by side in memory."""
    return x if x.stride(3) == 1 else x.contiguous()


def _grid(queries: Tensor) -> tuple[int]:
    return (queries.shape[0] * queries.shape[2],)


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(axis) for x in tensors for axis in (0, 1, 2)]


def _sizes(queries: Tensor, keys: Tensor) -> tuple[float, int, int, int, int]:
    _, read, heads, depth = queries.shape
    return depth**-0.5, read, keys.shape[1], depth, heads


def _tiles(queries: Tensor, keys: Tensor) -> dict[str, int | str]:
    """Sizes of the tiles: powers of two from 16 on, as tensor cores want them."""
    read, tokens, depth = (
        max(16, 1 << (n - 1).bit_length()) for n in (queries.shape[1], keys.shape[1], queries.shape[3])
    )
    exact = queries.dtype == torch.float32
    return {"READ": read, "TOKENS": tokens, "DEPTH": depth, "PRECISION": "ieee" if exact else "tf32",
            "num_warps": 1 if read * depth <= 512 else 4}  # fmt: skip
