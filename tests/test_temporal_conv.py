"""Faster layouts: what they compute is what plain convolutions compute."""

import pytest
import torch
from diffusers import UNet3DConditionModel
from torch import nn

from backends.modelscope_unet import UNet3DBackbone
from backends.temporal_conv import TemporalConv, flatten_temporal, is_temporal
from streaming.backbone import Call, Guided, Window
from streaming.keys import Key, initial_weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("span", [1, 3])
def test_a_convolution_along_time_with_its_gradients(span, bias):
    with initial_weights(0):
        conv = nn.Conv3d(4, 6, (span, 1, 1), padding=(span // 2, 0, 0), bias=bias)
    flat, x = TemporalConv(conv), Key(0).normal(2, 4, 5, 3, 2)
    found = []
    for module in (conv, flat):
        leaf = x.clone().requires_grad_(True)
        y = module(leaf)
        y.square().sum().backward()
        found.append((y, leaf.grad, *(value.grad.clone() for value in module.parameters())))
        module.zero_grad()
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("conv", [nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, (3, 1, 1), stride=(2, 1, 1))])
def test_other_convolutions_are_left_alone(conv):
    model = nn.Sequential(conv)
    flatten_temporal(model)
    assert not is_temporal(conv) and model[0] is conv


def test_an_optimized_unet_is_the_same_network():
    with initial_weights(0):
        unet = UNet3DConditionModel(
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            attention_head_dim=8,
            cross_attention_dim=16,
        )
    for name, value in unet.named_parameters():  # the last temporal convolutions are zero when they are made
        nn.init.normal_(value, std=0.1) if "temp_conv" in name and value.ndim == 5 else None
    backbone = UNet3DBackbone(unet.eval(), tokens=3, window=Window(4, 2))
    encoder = backbone.feature_encoder().eval()
    key = Key(1)
    call = Call(
        latents=key.fold("x").normal(1, 4, 4, 8, 8),
        time=torch.tensor([500.0]),
        context=key.fold("text").normal(1, 3, 16),
        guided=(Guided(text=True, anchor=True),),
    )
    condition = key.fold("condition").normal(1, 4, 64, 32)
    with torch.no_grad():
        plain, features = backbone(call, {}), encoder(call, condition)
        shapes = {name: value.shape for name, value in backbone.state_dict().items()}
        backbone.optimize()
        encoder.optimize()
        assert sum(isinstance(module, TemporalConv) for module in backbone.modules()) > 8
        assert {name: value.shape for name, value in backbone.state_dict().items()} == shapes
        torch.testing.assert_close(backbone(call, {}), plain, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder(call, condition), features, rtol=1e-4, atol=1e-4)
