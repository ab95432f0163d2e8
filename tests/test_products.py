"""Linear layers as convolutions: the same numbers, only where they may."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from backends.toy_dit import ToyDiTBackend
from streaming import products
from streaming.backbone import Call, Guided
from streaming.keys import Key
from streaming.products import FastProducts, linear
from streaming.rows import evaluate, unconditioned
from tests.test_toy_backends import load

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
FEW = 1000


@pytest.fixture(autouse=True, scope="module")
def small_products() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LEAST", FEW)
        yield


@given(st.sampled_from([(256,), (2, 256), (3, 5, 64), (2, 3)]), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_the_same_as_a_product_in_float64(rows: tuple[int, ...], inputs: int, outputs: int, biased: bool) -> None:
    x, weight = Key(0).normal(*rows, inputs), Key(1).normal(outputs, inputs)
    bias = Key(2).normal(outputs) if biased else None
    with torch.inference_mode():
        made = linear(x, weight, bias)
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert made.dtype == torch.float32 and made.is_contiguous()
    torch.testing.assert_close(made, wanted.float(), atol=2e-5, rtol=1e-5)


def test_inputs_that_do_not_lie_side_by_side() -> None:
    x, weight = Key(0).normal(2, 24, 300), Key(1).normal(7, 24)
    with torch.inference_mode():
        torch.testing.assert_close(
            linear(x.transpose(1, 2), weight), (x.mT.double() @ weight.double().mT).float(), atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("reason", ["gradients", "few rows", "another type"])
def test_torch_decides_elsewhere(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"{reason}: not the convolution's affair")

    monkeypatch.setattr(torch, "mkldnn_convolution", refuse)
    dtype = torch.float64 if reason == "another type" else torch.float32
    layer = nn.Linear(8, 6, dtype=dtype)
    x = Key(0).normal(FEW // 48 if reason == "few rows" else FEW, 8).to(dtype)
    wanted = functional.linear(x, layer.weight, layer.bias)
    with torch.set_grad_enabled(reason == "gradients"), FastProducts():
        made = layer(x)
    assert torch.equal(made, wanted) and made.requires_grad == (reason == "gradients")


@pytest.mark.parametrize("helps", [True, False])
def test_a_denoiser_is_evaluated_with_it_where_that_helps(helps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    convolution = torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *args: used.append(args) or convolution(*args))
    monkeypatch.setattr(products, "worthwhile", lambda: helps)
    model = load(ToyDiTBackend())
    latents = Key(0).normal(2, model.codec.channels, 8, 16, 16)
    words = model.text(["a red ball", "a ball"])
    call = Call(
        latents=latents,
        time=torch.full((2,), 500.0),
        context=words.tokens,
        context_mask=words.mask,
        guided=(Guided(True, True),) * 2,
    )
    with torch.inference_mode():
        made = evaluate(model.backbone, unconditioned, call)
        assert (len(used) > 3) == helps
        count = len(used)
        torch.testing.assert_close(made, model.backbone(call, {}), atol=1e-5, rtol=1e-5)
        assert len(used) == count  # and nowhere else


def test_where_it_helps() -> None:
    assert products.worthwhile() <= torch.backends.mkldnn.is_available()
    assert products.worthwhile() <= ("AuthenticAMD" in products._processor())
    assert type(products.fast_products(torch.device("meta"))) is not FastProducts
