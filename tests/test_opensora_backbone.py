"""Open-Sora 1.2 as a backbone: the contract, CAM and APM on it, what it is told, and half precision."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from backends.opensora_backbone import OpenSora3Backbone, to_patches
from backends.opensora_stdit3 import STDiT3
from streaming.backbone import Backbone, Call, Window
from streaming.conformance import BackboneConformance
from streaming.conformance.probe import plain_call
from streaming.keys import Key, initial_weights
from tests.opensora_networks import SMALL, network


def backbone(depth: int = 4) -> OpenSora3Backbone:
    return OpenSora3Backbone(network("1.2", depth), window=Window(5, 2), fps=8.0, factor=8)


class TestOpenSora3(BackboneConformance):
    high, wide = 5, 7  # neither divides into patches
    text_depth = SMALL.text_depth  # the sites hold projected text
    encoder_continues_backbone = False  # the encoder is the first half

    def make(self) -> Backbone:
        return backbone()


class TestOddDepth(TestOpenSora3):
    def make(self) -> Backbone:
        return backbone(depth=3)


def call(frames: int = 5) -> Call:
    draw = lambda name, *shape: Key(5).fold(name).normal(*shape)  # noqa: E731
    return plain_call(draw("latents", 2, 4, frames, 6, 8), draw("text", 2, 6, SMALL.text_depth), 500.0)


@torch.no_grad()
def test_it_is_the_networks_first_channels_with_the_other_sign() -> None:
    told = dict(fps=torch.full((2,), 8.0), height=torch.full((2,), 48.0), width=torch.full((2,), 64.0))
    velocity = network("1.2")(call().latents, call().time, call().context, **told)
    assert velocity.shape[1] == 8
    assert torch.equal(backbone()(call(), {}), -velocity[:, :4])


@torch.no_grad()
def test_given_frames_are_seen_clean() -> None:
    """What a given frame holds changes the prediction for the others; its time does not."""
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, :2] = False
    given = call().with_(mask=mask, time=torch.full((2, 5), 500.0))
    plain = backbone()(given, {})[:, :, 2:]
    late = given.with_(time=torch.where(mask, 500.0, 900.0))
    assert torch.equal(backbone()(late, {})[:, :, 2:], plain)
    other = given.latents.clone()
    other[:, :, :2] += 1
    assert not torch.equal(backbone()(given.with_(latents=other), {})[:, :, 2:], plain)


def test_sites_are_the_last_half() -> None:
    with torch.device("meta"):
        full = STDiT3(replace(SMALL, width=1152, depth=28, heads=16))
    made = OpenSora3Backbone(full, window=Window(15, 5), fps=24.0, factor=8)
    assert [site.name for site in made.feature_sites] == [f"pair{i}" for i in range(14, 28)]
    assert len(made.context_sites) == 56 and {site.depth for site in made.context_sites} == {1152}
    assert made.window == Window(15, 5)


def test_patches_of_a_condition_are_those_of_the_latents() -> None:
    cells = Key(0).normal(2, 3, 5 * 7, 6)
    cut = to_patches(cells, (5, 7), (2, 2))
    assert cut.shape == (2, 3, 3 * 4, 4 * 6)
    padded = torch.zeros(2, 3, 6, 8, 6)
    padded[:, :, :5, :7] = cells.view(2, 3, 5, 7, 6)
    naive = [padded[:, :, r : r + 2, c : c + 2].flatten(2) for r in range(0, 6, 2) for c in range(0, 8, 2)]
    assert torch.equal(cut, torch.stack(naive, dim=2))
    assert torch.equal(to_patches(cells, (5, 7), (1, 1)), cells)
    assert torch.equal(to_patches(cells, (5, 7), (5, 7)), rearrange(cells, "b t s c -> b t 1 (s c)"))


def test_frequencies_stay_exact_in_half_precision() -> None:
    with initial_weights(0):
        half = OpenSora3Backbone(STDiT3(SMALL), window=Window(5, 2), fps=8.0, factor=8).to(torch.bfloat16)
    encoder = half.feature_encoder()
    for net in (half.net, encoder.net):
        assert net.rope.freqs.dtype == torch.float32
        assert torch.equal(net.rope.freqs, STDiT3(replace(SMALL, depth=1)).rope.freqs)
        assert net.x_embedder.proj.weight.dtype == torch.bfloat16
    low = call().with_(latents=call().latents.bfloat16(), context=call().context.bfloat16())
    assert half(low, {}).dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["backbone", "encoder"])
def test_recomputed_gradients_are_the_same(part: str) -> None:
    def gradients(recompute: bool) -> dict[str, torch.Tensor]:
        with initial_weights(0):
            net = STDiT3(replace(SMALL, depth=2))
        torch.nn.init.normal_(net.final_layer.linear.weight, generator=Key(3).generator())
        made = OpenSora3Backbone(net, window=Window(5, 2), fps=8.0, factor=8)
        module = made if part == "backbone" else made.feature_encoder()
        if recompute:
            module.checkpoint_gradients()
        scale = {site.name: torch.ones((), requires_grad=True) for site in made.context_sites}
        if part == "backbone":
            total = module(call(), {name: (lambda v, s=s: s * v) for name, s in scale.items()}).square().sum()
        else:
            features = module(call(), Key(4).normal(2, 5, 48, module.condition_width))
            total = sum(value.square().sum() for value in features.values())
        total.backward()
        found = {name: value.grad for name, value in module.named_parameters()}
        return found | ({name: s.grad for name, s in scale.items()} if part == "backbone" else {})

    kept, again = gradients(False), gradients(True)
    assert kept.keys() == again.keys() and any(value is not None for value in kept.values())
    for name, value in kept.items():
        assert (value is None) == (again[name] is None), name
        if value is not None:
            torch.testing.assert_close(again[name], value)
