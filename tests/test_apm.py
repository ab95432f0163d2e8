"""APM: identity before training, the mixing against plain loops, rows without anchor, files and their errors."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from adapters.apm import APM, APMConfig, ContextMixer, apm, new_apm
from streaming.backbone import Guided
from streaming.errors import UserError
from streaming.sites import ContextSite, combine
from tests.adapter_toys import DEPTH, SIZE, TOKENS, WINDOW, ToyImage, toy_call, toy_model, unzero

WITH, WITHOUT = Guided(text=True, anchor=True), Guided(text=True, anchor=False)


def anchors(batch=2, time=1, seed=4):
    return torch.rand(batch, time, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def naive_mix(mixer, text, image):
    """The convolution's channels are tokens; its kernel of 3 slides along the features, zeros outside."""
    joined = torch.cat((text, image), dim=1)
    out = torch.empty_like(text)
    for b in range(text.shape[0]):
        for t in range(text.shape[1]):
            for d in range(text.shape[2]):
                total = mixer.conv.bias[t].clone()
                for k in range(3):
                    if 0 <= d + k - 1 < text.shape[2]:
                        total = total + (mixer.conv.weight[t, :, k] * joined[b, :, d + k - 1]).sum()
                out[b, t, d] = total
    mean, spread = out.mean(-1, keepdim=True), out.var(-1, correction=0, keepdim=True)
    normed = (out - mean) / (spread + 1e-5).sqrt() * mixer.norm.weight + mixer.norm.bias
    return mixer.alpha * torch.sigmoid(mixer.alpha) * normed


@given(tokens=st.integers(1, 4), image_tokens=st.integers(1, 3), depth=st.integers(2, 6), alpha=st.floats(-3, 3))
def test_mixing_equals_plain_loops(tokens, image_tokens, depth, alpha):
    mixer = ContextMixer(ContextSite("x", depth, tokens), image_tokens)
    generator = torch.Generator().manual_seed(tokens * 100 + depth)
    for value in mixer.parameters():
        value.data.copy_(torch.randn(value.shape, generator=generator))
    mixer.alpha.data.fill_(alpha)
    text = torch.randn(2, tokens, depth, generator=generator)
    image = torch.randn(2, image_tokens, depth, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(mixer(text, image), naive_mix(mixer, text, image), rtol=1e-3, atol=1e-4)


def test_mixing_equals_the_published_code_s():
    tensors = load_file(Path(__file__).parent / "parity" / "fixtures" / "st2v_apm_b.safetensors")
    mixer = ContextMixer(ContextSite("x", 1024, 77), 16)
    of_mixer = ("state.conv", "state.alpha")
    weights = {key[6:]: value.float() for key, value in tensors.items() if key.startswith(of_mixer)}
    weights = {key.replace("conv_ln", "norm"): value for key, value in weights.items()}
    mixer.load_state_dict(weights)
    text, image = tensors["in.context"][:, :77], tensors["in.context"][:, 77:]
    with torch.no_grad():
        torch.testing.assert_close(text + mixer(text, image), tensors["out.mixed_context"], rtol=1e-4, atol=1e-4)


def test_untrained_apm_is_the_identity_bit_for_bit():
    model, call = toy_model(), toy_call()
    memory = new_apm(model)
    deltas = memory.deltas(memory.remember(anchors()), call)
    plain = model.backbone(call, {})
    model.backbone.reached.clear()
    assert torch.equal(model.backbone(call, deltas), plain)
    assert model.backbone.reached == [site.name for site in model.backbone.context_sites]


def test_trained_apm_changes_the_output_with_the_anchor():
    model, call = toy_model(), toy_call()
    memory = unzero(new_apm(model))
    outputs = [model.backbone(call, memory.deltas(memory.remember(anchors(seed=seed)), call)) for seed in (4, 4, 5)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], model.backbone(call, {}))


def test_tokens_are_those_of_the_mean_embedding():
    memory = unzero(new_apm(toy_model()))
    frames = anchors(batch=2, time=3)
    embeddings = torch.stack([memory.borrowed[0](frames[:, i]) for i in range(3)])
    hidden = F.silu(F.linear(embeddings.mean(dim=0), memory.proj_in.weight, memory.proj_in.bias))
    plain = F.linear(hidden, memory.proj_out.weight, memory.proj_out.bias)
    tokens = memory.remember(frames).tokens
    assert tokens.shape == (2, 16, DEPTH)
    torch.testing.assert_close(tokens.flatten(1), plain, rtol=1e-5, atol=1e-6)  # token by token, then channels


@given(rows=st.lists(st.booleans(), min_size=1, max_size=3), videos=st.integers(1, 2))
def test_rows_without_anchor_read_the_grey_image(rows, videos):
    """Row-major: all videos of the first row, then of the second."""
    memory = unzero(new_apm(toy_model()))
    state = memory.remember(anchors(videos))
    grey = memory.remember(torch.full((1, 1, 3, SIZE, SIZE), 0.5)).tokens
    call = toy_call(len(rows) * videos, guided=tuple(WITH if row else WITHOUT for row in rows for _ in range(videos)))
    name, mixer = memory.config.sites[1].name, memory.mixers[1]
    delta = memory.deltas(state, call)[name](call.context)
    for index, (row, video) in enumerate((row, video) for row in rows for video in range(videos)):
        image = state.tokens[video : video + 1] if row else grey
        expected = mixer(call.context[index : index + 1], image)
        torch.testing.assert_close(delta[index : index + 1], expected, rtol=1e-4, atol=1e-6)


def test_one_anchor_serves_a_batch_of_videos():
    memory = unzero(new_apm(toy_model()))
    one = anchors(1)
    call = toy_call(4)
    shared = memory.deltas(memory.remember(one), call)["up.text"](call.context)
    each = memory.deltas(memory.remember(one.repeat(2, 1, 1, 1, 1)), call)["up.text"](call.context)
    torch.testing.assert_close(shared, each, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="3 rows cannot share the anchors of 2 videos evenly"):
        memory.deltas(memory.remember(anchors(2)), toy_call(3))


def test_gradients_reach_every_parameter_but_not_the_image_encoder():
    model, call = toy_model(), toy_call()
    memory = unzero(new_apm(model))
    model.backbone(call, memory.deltas(memory.remember(anchors()), call)).square().mean().backward()
    assert not [name for name, value in memory.named_parameters() if value.grad is None or not value.grad.any()]
    assert not any("project" in name for name in memory.state_dict())


def test_at_zero_only_the_gates_learn():
    """So the first step opens them, and what lies behind follows."""
    model, call = toy_model(), toy_call()
    memory = new_apm(model)
    model.backbone(call, memory.deltas(memory.remember(anchors()), call)).square().mean().backward()
    assert {name.split(".")[-1] for name, value in memory.named_parameters() if value.grad.any()} == {"alpha"}


@given(alpha=st.floats(-8, 8), seed=st.integers(0, 99))
def test_turned_gates_let_the_same_through(alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    mixer = ContextMixer(ContextSite("site", 6, 4), 3)
    with torch.no_grad():
        for value in mixer.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
        mixer.alpha.fill_(alpha)
    text, image = torch.randn(2, 4, 6, generator=generator), torch.randn(2, 3, 6, generator=generator)
    before, norm, down = mixer(text, image), mixer.norm.weight.clone(), bool(mixer.alpha < 0)
    mixer.turn()
    after = mixer(text, image)
    assert mixer.alpha >= 0 and torch.equal(mixer.norm.weight, -norm if down else norm)
    torch.testing.assert_close(after, before, rtol=0.01, atol=2e-3)
    mixer.turn()
    assert torch.equal(mixer(text, image), after)


def test_gates_that_would_open_downwards_open_all_the_same():
    """What is to be let through is five times what SiLU reaches below zero, and the other way round."""
    mixer = ContextMixer(ContextSite("site", 8, 4), 2)
    generator = torch.Generator().manual_seed(0)
    text, image = torch.randn(3, 4, 8, generator=generator), torch.randn(3, 2, 8, generator=generator)
    wanted = -1.4 * mixer.mixed(text, image).detach()
    mixer.conv.requires_grad_(False)
    optimizer = torch.optim.Adam([mixer.alpha], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (mixer(text, image) - wanted).square().mean().backward()
        optimizer.step()
        mixer.turn()
    assert mixer.alpha > 1 and (mixer.norm.weight < 0).all()
    assert (mixer(text, image) - wanted).abs().max() < 0.1


def test_backbones_of_several_depths_are_refused():
    sites = (ContextSite("a", 4, 3), ContextSite("b", 8, 3))
    with pytest.raises(UserError, match="text of one depth"):
        APM(APMConfig(sites=sites, image_width=6, inner=4), ToyImage())


def test_hidden_widths():
    """The published model's for its embedding, a quarter more than the embedding for small ones."""
    assert new_apm(toy_model(image=ToyImage(1024))).config.inner == 1280
    assert new_apm(toy_model(image=ToyImage(192))).config.inner == 240


def test_round_trip(tmp_path):
    memory, call = unzero(new_apm(toy_model())), toy_call()
    memory.save(tmp_path / "apm")
    again = apm(toy_model(tmp_path), None)
    assert again.config == memory.config and not any(value.requires_grad for value in again.parameters())
    for name, value in again.state_dict().items():
        assert torch.equal(value, memory.state_dict()[name].half().float())
    state = again.remember(anchors())
    assert set(again.deltas(state, call)) == {"down.text", "up.text"}


def test_a_model_without_image_encoder_cannot_have_it(tmp_path):
    from dataclasses import replace

    with pytest.raises(UserError, match="toy has no image encoder, which APM needs: choose another long-term memory"):
        new_apm(replace(toy_model(), image=None))


def test_another_image_encoder_or_text_length_is_told(tmp_path):
    new_apm(toy_model()).save(tmp_path / "apm")
    with pytest.raises(UserError, match="reads image embeddings of 6 numbers, this model's image encoder gives 9"):
        apm(toy_model(tmp_path, image=ToyImage(9)), None)
    path = tmp_path / "apm" / "config.json"
    about = json.loads(path.read_text())
    about["sites"][0]["tokens"] = 77
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match=rf"down\.text: 77 tokens of {DEPTH} there, {TOKENS} tokens of {DEPTH} here"):
        apm(toy_model(tmp_path), None)


def test_beside_cam_both_are_heard():
    from adapters.cam import new_cam
    from tests.adapter_toys import toy_tail

    model, call = toy_model(), toy_call()
    short, long = unzero(new_cam(model)).eval(), unzero(new_apm(model))
    of_short = short.deltas(short.remember(toy_tail()), call)
    of_long = long.deltas(long.remember(anchors()), call)
    model.backbone.reached.clear()
    both = model.backbone(call, combine(of_short, of_long))
    assert sorted(model.backbone.reached) == sorted({**of_short, **of_long})
    assert both.shape[2] == WINDOW.frames
    for alone in (of_short, of_long):
        assert not torch.allclose(both, model.backbone(call, alone))


def test_on_modelscope_s_unet():
    from diffusers import UNet3DConditionModel

    from backends.modelscope_unet import UNet3DBackbone

    unet = UNet3DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=DEPTH, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    backbone = UNet3DBackbone(unet.eval(), tokens=TOKENS, window=WINDOW).eval()
    memory = APM(APMConfig(sites=backbone.context_sites, image_width=6, inner=4), ToyImage())
    call = toy_call(guided=(WITHOUT, WITH))
    with torch.no_grad():
        plain = backbone(call, {})
        assert torch.equal(backbone(call, memory.deltas(memory.remember(anchors()), call)), plain)
    unzero(memory)
    moved = backbone(call, memory.deltas(memory.remember(anchors(1)), call))
    assert not torch.allclose(moved, plain)
    moved.square().mean().backward()
    # A convolution's bias is one number per text token, the same for all features: the norm over the features behind it
    # takes it away, and its gradient is 0 but for rounding.
    learning = [each for each in memory.named_parameters() if not each[0].endswith("conv.bias")]
    assert not [name for name, value in learning if value.grad is None or not value.grad.any()]
