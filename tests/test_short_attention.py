"""Attention over a few tokens: our GPU programs and what stands in for them compute what PyTorch computes."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from timm.layers.attention import Attention as TimmAttention
from timm.layers.attention import AttentionRope
from timm.layers.norm import RmsNorm

from backends.diffusers_attention import ShortAttentionProcessor, shorten_attention
from backends.timm_attention import ShortAttention, ShortAttentionRope
from streaming.keys import Key, initial_weights
from streaming.short_attention import LONGEST, WIDEST, attention, is_short

INTERPRETED = """
import torch, torch.nn.functional as F
from streaming import short_attention_programs as programs

def check(batch, heads, read, tokens, depth, biased):
    made = torch.Generator().manual_seed(depth)
    shapes = (batch, read, heads, depth), (batch, tokens, heads, depth), (batch, tokens, heads, depth)
    q, k, v = inputs = [torch.randn(*shape, generator=made, requires_grad=True) for shape in shapes]
    bias = torch.randn(heads, read, tokens, generator=made, requires_grad=True)
    mask = bias if biased else None
    wanted = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs), mask).transpose(1, 2)
    grad = torch.randn(wanted.shape, generator=made)
    inputs += [bias] if biased else []
    gradients = torch.autograd.grad(wanted, inputs, grad)
    out, found, of_bias = torch.empty_like(q), [torch.empty_like(x) for x in (q, k, v)], torch.zeros_like(bias)
    tiles = {name: value for name, value in programs._tiles(q, k).items() if name != "num_warps"} | {"BIASED": biased}
    with torch.no_grad():
        sizes = programs._sizes(q, k)
        programs._forward[programs._grid(q)](q, k, v, bias, out, *programs._strides(q, k, v), *sizes, **tiles)
        programs._backward[programs._grid(q)](
            q, k, v, bias, grad, *found, of_bias, *programs._strides(q, k, v, grad), *sizes, **tiles
        )
    torch.testing.assert_close([out, *found, *([of_bias] if biased else [])], [wanted, *gradients])

for biased in (False, True):
    check(3, 2, 16, 16, 16, biased)
    check(2, 3, 15, 5, 72, biased)
    check(1, 2, 7, 24, 8, biased)
print("same")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="this PyTorch comes without Triton")
def test_the_programs_and_their_gradients_interpreted():
    found = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert found.stdout.strip() == "same", found.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(512, 8, 16, 16, 16), (64, 16, 15, 5, 72), (64, 4, 16, 8, 64), (64, 8, 64, 24, 16)])
def test_the_programs_on_a_gpu(shape, biased, compiled):
    batch, heads, read, tokens, depth = shape
    sizes = (batch, heads, read, depth), (batch, heads, tokens, depth), (batch, heads, tokens, depth)
    sizes += ((heads, read, tokens),) if biased else ()
    inputs = [Key(n).normal(*size).cuda().requires_grad_(True) for n, size in enumerate(sizes)]
    run = torch.compile(attention, dynamic=False) if compiled else attention
    for kind, close in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        found, wanted = run(*(x.to(kind) for x in inputs)), F.scaled_dot_product_attention(*inputs)
        assert found.dtype == kind
        torch.testing.assert_close(found.float(), wanted, atol=close, rtol=close)
        gradients = [torch.autograd.grad(out.float().square().sum(), inputs) for out in (found, wanted)]
        torch.testing.assert_close(*gradients, atol=4 * close, rtol=4 * close)


def test_without_a_gpu_it_is_pytorchs_own():
    q, k, v = (Key(n).normal(2, 3, 16, 8) for n in range(3))
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("read, tokens, depth, short", [
    (16, 8, 64, True), (LONGEST, LONGEST, WIDEST, True), (LONGEST + 1, 8, 16, False), (16, LONGEST + 1, 16, False),
    (16, 16, WIDEST + 1, False),
])  # fmt: skip
def test_what_is_short(read, tokens, depth, short):
    assert is_short(torch.empty(1, 1, read, depth), torch.empty(1, 1, tokens, depth)) == short


@pytest.mark.parametrize("cross", [None, 12])
@pytest.mark.parametrize("options", [{}, {"qk_norm": "layer_norm"}, {"residual_connection": True}])
def test_diffusers_attention_is_the_same_module(cross, options):
    with initial_weights(0):
        module = Attention(16, cross, heads=2, dim_head=8, **options)
    x, other = Key(0).normal(2, 6, 16), None if cross is None else Key(1).normal(2, 5, cross)
    wanted = module(x, other)
    shorten_attention(module)
    assert type(module.processor) is ShortAttentionProcessor
    assert torch.equal(module(x, other), wanted)


def test_masks_and_maps_go_the_usual_way():
    with initial_weights(0):
        module = Attention(16, heads=2, dim_head=8)
    x, maps, mask = Key(0).normal(2, 6, 16), Key(1).normal(2, 16, 2, 3), torch.zeros(2, 1, 6)
    mask[..., 3:] = -1e4
    wanted = module(maps), module(x, attention_mask=mask)
    shorten_attention(module)
    assert torch.equal(module(maps), wanted[0]) and torch.equal(module(x, attention_mask=mask), wanted[1])
    assert not torch.equal(module(x), wanted[1])


def test_an_exchanged_processor_stays():
    class Mine(AttnProcessor2_0):
        pass

    module = Attention(16, heads=2, dim_head=8, processor=Mine())
    shorten_attention(module)
    assert type(module.processor) is Mine


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_timms_attention_is_the_same_module(normed, turned):
    options = {"qkv_bias": True, "qk_norm": normed, "norm_layer": RmsNorm}
    with initial_weights(0):
        if turned:
            timms = AttentionRope(16, 2, num_prefix_tokens=0, rotate_half=False, **options)
        else:
            timms = TimmAttention(16, 2, **options)
    ours = (ShortAttentionRope if turned else ShortAttention)(16, 2, qk_norm=normed)
    ours.load_state_dict(timms.state_dict())
    x, rope = Key(0).normal(3, 5, 16), Key(1).normal(5, 16)
    arguments = (x, rope) if turned else (x,)
    torch.testing.assert_close(ours(*arguments), timms(*arguments), atol=1e-6, rtol=1e-6)
