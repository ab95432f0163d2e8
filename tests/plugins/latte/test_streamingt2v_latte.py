"""The plugin's own tests, as in its author's repository: beside the suite, what is particular to this network."""

import json
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel
from streamingt2v_latte import TOKENS, LatteBackbone, LatteBackend

from streaming import Backbone, Key, Model, UserError
from streaming.conformance import BackboneConformance


def latte() -> Model:
    return LatteBackend().load(None, device=torch.device("cpu"), dtype=torch.float32)


class TestLatte(BackboneConformance):
    channels = 4
    text_depth = 24  # its sites hold a projection of the text
    encoder_continues_backbone = False  # the encoder is the first half, the sites are in the second

    def make(self) -> Backbone:
        return latte().backbone


def test_without_deltas_it_is_the_stock_network() -> None:
    backbone, call = latte().backbone, TestLatte().call()
    assert isinstance(backbone, LatteBackbone)
    stock: Any = LatteTransformer3DModel.from_config(backbone.net.config)
    stock.load_state_dict(backbone.net.state_dict())
    with torch.no_grad():
        expected = stock(call.latents, call.time, call.context, return_dict=False)[0]
        assert torch.equal(backbone(call, {}), expected[:, :4])


def test_masked_text_is_as_good_as_none() -> None:
    backbone, call = latte().backbone, TestLatte().call(rows=2)
    mask = torch.arange(TOKENS) < torch.tensor([[7], [90]])
    with torch.no_grad():
        masked = backbone(call.with_(context_mask=mask), {})
        for row, length in enumerate((7, 90)):
            cut = TestLatte().call(rows=2).context[row : row + 1, :length]
            alone = call.with_(latents=call.latents[row : row + 1], time=call.time[:1], context=cut)
            torch.testing.assert_close(masked[row : row + 1], backbone(alone, {}), rtol=1e-5, atol=1e-5)
    encoded = latte().text(["", "a red ball"])
    assert encoded.mask is not None and encoded.mask.sum(1).tolist() == [1, 11]


def test_every_weight_of_the_encoder_is_trained() -> None:
    encoder, call = latte().backbone.feature_encoder(), TestLatte().call(frames=4)
    features = encoder(call, Key(1).normal(2, 4, 64, encoder.condition_width))
    torch.cat([(Key(2).normal(*value.shape) * value).flatten() for value in features.values()]).sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in encoder.parameters())


def test_the_encoder_is_the_first_half() -> None:
    """Its features are what the backbone's own first blocks give, while the condition is zero."""
    backbone, call, seen = latte().backbone, TestLatte().call(), []
    encoder = backbone.feature_encoder().eval()
    assert isinstance(backbone, LatteBackbone)
    for block in backbone.net.temporal_transformer_blocks:
        block.register_forward_hook(lambda block, args, output: seen.append(output.unflatten(0, (2, -1))))
    with torch.no_grad():
        backbone(call, {})
        features = encoder(call, torch.zeros(2, 8, 64, encoder.condition_width))
    for expected, feature in zip(seen, features.values(), strict=False):
        assert torch.equal(feature, expected.transpose(1, 2))


def test_a_cell_of_the_condition_reaches_its_own_patch() -> None:
    encoder: Any = latte().backbone.feature_encoder().eval()
    call, seen = TestLatte().call(rows=1, frames=4), []
    encoder.net.transformer_blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    condition = torch.zeros(1, 4, 64, encoder.condition_width)
    with torch.no_grad():
        encoder(call, condition)
        condition[0, 2, 3 * 8 + 5] = 1.0  # frame 2, row 3, column 5: patch (1, 2) of 4 x 4
        encoder(call, condition)
    changed = (seen[0] != seen[1]).any(dim=2).nonzero().tolist()
    assert changed == [[2, 1 * 4 + 2]]


def test_a_hooked_network_is_not_copied() -> None:
    from copy import deepcopy

    with pytest.raises(TypeError, match="cannot pickle '_Current' object"):
        deepcopy(latte().backbone)


def test_what_latte_cannot_do_is_told() -> None:
    model, call = latte(), TestLatte().call()
    with pytest.raises(ValueError, match="one time for all frames"):
        model.backbone(call.with_(time=call.time[:, None].expand(-1, 8)), {})
    assert model.backbone.fitting_size(9, 1) == (8, 2)
    with pytest.raises(UserError, match="a prompt of 122 tokens: Latte reads 120, shorten it"):
        model.text(["x" * 121])


def test_pixels_become_latents_and_come_back() -> None:
    codec = latte().codec
    frames = Key(0).normal(2, 3, 3, 16, 24).sigmoid()
    with torch.no_grad():
        latents = codec.encode(frames)
        assert latents.shape == (2, 4, 3, 4, 6)
        assert torch.allclose(codec.encode(frames[1:, 1:2]), latents[1:, :, 1:2], atol=1e-6)
        back = codec.decode(latents)
    assert back.shape == frames.shape and 0 <= float(back.min()) and float(back.max()) <= 1
    assert float(back.std()) > 0


def test_a_folder_of_diffusers_is_the_same_model(tmp_path, monkeypatch) -> None:
    from streamingt2v_latte import _random

    _random().save_pretrained(tmp_path / "whole")
    backend = LatteBackend()
    assert backend.matches(tmp_path / "whole") and not backend.matches(tmp_path)
    read = backend.load(tmp_path / "whole", device=torch.device("cpu"), dtype=torch.float32)
    call = TestLatte().call()
    with torch.no_grad():
        assert torch.equal(read.backbone(call, {}), latte().backbone(call, {}))
        assert torch.equal(read.text(["a red ball"]).tokens, latte().text(["a red ball"]).tokens)
    assert read.defaults == latte().defaults

    index = tmp_path / "whole" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": ["diffusers", "AutoencoderKLNever"]}))
    with pytest.raises(UserError, match=r"whole is no whole Latte pipeline \(.*\): get it again"):
        backend.load(tmp_path / "whole", device=torch.device("cpu"), dtype=torch.float32)


def test_weights_that_are_no_numbers(tmp_path, monkeypatch) -> None:
    import streamingt2v_latte

    broken = streamingt2v_latte._random()
    broken.vae.decoder.conv_out.weight.data[0, 0] = float("nan")
    monkeypatch.setattr(streamingt2v_latte, "_read", lambda directory: broken)
    with pytest.raises(UserError, match="has weights that are NaN or infinite: get it again"):
        LatteBackend().load(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
