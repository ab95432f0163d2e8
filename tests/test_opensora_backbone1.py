"""Open-Sora 1.0 and 1.1 as backbones: the contract, CAM and APM on them, what they are told, recomputed gradients."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.apm import new_apm
from adapters.cam import new_cam
from backends.opensora_backbone1 import Clip, OpenSora1Backbone, OpenSora2Backbone
from backends.opensora_config import Grid
from backends.opensora_stdit import STDiT
from backends.opensora_stdit2 import STDiT2
from backends.toy_dit import CHANNELS, DEPTH, TOKENS, ToyDiTBackend
from streaming.backbone import Backbone, Call, Guided, Window
from streaming.conformance import BackboneConformance, LongTermMemoryConformance, ShortTermMemoryConformance
from streaming.conformance.one_graph import check_one_graph
from streaming.conformance.probe import plain_call, unzeroed
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.memory import Tail
from streaming.model import Model
from streaming.sites import Deltas, combine
from tests.opensora_networks import SMALL, drawn

CONFIG = replace(SMALL, text_depth=DEPTH, text_tokens=TOKENS, channels=CHANNELS, outputs=2 * CHANNELS)
WINDOW, FACTOR = Window(frames=4, overlap=2), 2
VERSIONS = ("1.0", "1.1")
KEY = Key(7)


def new_network(version: str, depth: int = 4) -> STDiT | STDiT2:
    """1.0 takes 5 frames, one more than the window, of 8x6 cells."""
    config = replace(CONFIG, depth=depth, qk_norm=version != "1.0")
    with initial_weights(0):
        if version == "1.0":
            return drawn(STDiT(config, Grid(frames=5, rows=4, cols=3), space_scale=0.5))
        return drawn(STDiT2(config))


network = cache(new_network)


def around(net: STDiT | STDiT2) -> OpenSora1Backbone | OpenSora2Backbone:
    if isinstance(net, STDiT):
        return OpenSora1Backbone(net, window=WINDOW)
    return OpenSora2Backbone(net, window=WINDOW, fps=8.0, factor=FACTOR, pixel_frames=lambda latent: 3 * latent)


def backbone(version: str, depth: int = 4) -> OpenSora1Backbone | OpenSora2Backbone:
    return around(network(version, depth))


def model(version: str, depth: int = 4) -> Model:
    """The toy DiT's parts around the network."""
    toy = ToyDiTBackend().load(None, device=torch.device("cpu"), dtype=torch.float32)
    return replace(toy, backbone=backbone(version, depth), defaults=replace(toy.defaults, height=16, width=12))


def memory(model: Model, new: Callable[[Model], nn.Module]) -> nn.Module:
    with initial_weights(0):
        return new(model)


def call(frames: int = 4, wide: int = 6) -> Call:
    latents, text = KEY.fold("latents").normal(2, CHANNELS, frames, 8, wide), KEY.fold("text").normal(2, TOKENS, DEPTH)
    mask = torch.arange(TOKENS) < torch.tensor([[TOKENS], [3]])
    return plain_call(latents, text, 500.0).with_(context_mask=mask)


class OnOpenSora(BackboneConformance):
    channels = CHANNELS
    high, wide = 8, 6
    text_depth = DEPTH
    encoder_continues_backbone = False  # it is the first half, the sites are in the second


class TestOpenSora1(OnOpenSora):
    def make(self) -> Backbone:
        return backbone("1.0", depth=3)


class TestOpenSora2(OnOpenSora):
    high, wide = 5, 7  # neither divides into patches

    def make(self) -> Backbone:
        return backbone("1.1", depth=3)


class TestCAMOnOpenSora1(ShortTermMemoryConformance):
    def model(self) -> Model:
        return model("1.0")

    def memory(self, model: Model) -> nn.Module:
        return memory(model, new_cam)


class TestCAMOnOpenSora2(ShortTermMemoryConformance):
    def model(self) -> Model:
        return model("1.1")

    def memory(self, model: Model) -> nn.Module:
        return memory(model, new_cam)


class TestAPMOnOpenSora1(LongTermMemoryConformance):
    def model(self) -> Model:
        return model("1.0")

    def memory(self, model: Model) -> nn.Module:
        return memory(model, new_apm)


class TestAPMOnOpenSora2(LongTermMemoryConformance):
    def model(self) -> Model:
        return model("1.1")

    def memory(self, model: Model) -> nn.Module:
        return memory(model, new_apm)


class Remembering(nn.Module):
    """A backbone with a CAM and an APM that do something; both run for each call."""

    def __init__(self, version: str, depth: int = 4) -> None:
        super().__init__()
        toy = model(version, depth)
        self.backbone = toy.backbone
        self.feature_sites, self.context_sites = self.backbone.feature_sites, self.backbone.context_sites
        self.input_site = self.backbone.input_site
        self.cam, self.apm = (unzeroed(memory(toy, new), KEY).eval() for new in (new_cam, new_apm))
        frames = KEY.fold("frames").normal(2, WINDOW.overlap, 3, 16, 12).sigmoid()
        self.tail, self.anchor = Tail(frames, toy.codec.encode(frames)), frames[:, :1]

    def deltas(self, call: Call) -> Deltas:
        return combine(
            self.cam.deltas(self.cam.remember(self.tail), call), self.apm.deltas(self.apm.remember(self.anchor), call)
        )

    def forward(self, call: Call, deltas: Deltas) -> Tensor:
        return self.backbone(call, combine(deltas, self.deltas(call)))


class WithMemories:
    """1.1 with both, where given frames are told to CAM's encoder, too."""

    def make(self) -> nn.Module:
        return Remembering("1.1", depth=2)

    def call(self) -> Call:
        return call().with_(mask=torch.arange(4)[None].expand(2, 4) > 0)


def test_it_compiles_to_one_graph_with_both_memories():
    check_one_graph(WithMemories())


def told(version: str, frames: float) -> dict[str, Tensor]:
    """What 1.1 is told of two clips of 8x6 cells, two pixels each."""
    values = {"fps": 8.0, "height": 16.0, "width": 12.0, "aspect": 16 / 12, "num_frames": frames}
    return {} if version == "1.0" else {name: torch.full((2,), value) for name, value in values.items()}


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_it_is_the_networks_first_channels(version):
    made = call()
    whole = network(version)(made.latents, made.time, made.context, text_mask=made.context_mask, **told(version, 12.0))
    assert whole.shape[1] == 2 * CHANNELS
    assert torch.equal(backbone(version)(made, {}), whole[:, :CHANNELS])
    assert not torch.equal(backbone(version)(made.with_(context_mask=None), {}), whole[:, :CHANNELS])


@torch.no_grad()
def test_what_a_clip_is_told():
    clip = Clip(fps=24.0, factor=8, pixel_frames=lambda latent: 17 * latent // 5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    size = torch.zeros(3, 4, 5, 30, 53)
    given = clip(plain_call(size, torch.zeros(3, 1, 1), 0.0).with_(mask=mask))
    assert given.pop("generated") is mask
    expected = {"fps": 24.0, "height": 240.0, "width": 424.0, "aspect": 240 / 424, "num_frames": 17.0}
    assert given.keys() == expected.keys()
    for name, value in given.items():
        torch.testing.assert_close(value, torch.full((3,), expected[name]))


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_the_encoder_is_the_first_half_with_the_condition_on_its_tokens(version):
    """Also for fewer frames than the window's; the condition of a patch is its cells', side by side."""
    made, net, encoder = call(frames=2), network(version), backbone(version).feature_encoder()
    assert encoder.condition_width == 48 // 4
    condition = KEY.fold("condition").normal(2, 2, 8 * 6, 12)
    prepared = net.prepare(made.latents, made.time, made.context, text_mask=made.context_mask, **told(version, 6.0))
    cells = condition.view(2, 2, 8, 6, 12)
    patches = [cells[:, :, r : r + 2, c : c + 2].flatten(2) for r in range(0, 8, 2) for c in range(0, 6, 2)]
    x, expected = prepared.tokens + torch.stack(patches, dim=2), []
    for i in range(2):
        x = net.block(i, x, prepared)
        expected.append(x)
    found = encoder(made, condition)
    assert list(found) == ["block2", "block3"]
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("version", "depth"), [("1.0", 28), ("1.1", 28), ("1.0", 5)])
def test_sites_are_the_last_half(version, depth):
    config = replace(CONFIG, width=1152, heads=16, depth=depth)
    with torch.device("meta"):
        net = STDiT(config, Grid(frames=16, rows=16, cols=16)) if version == "1.0" else STDiT2(config)
    made = (
        OpenSora1Backbone(net, window=Window(16, 8))
        if version == "1.0"
        else OpenSora2Backbone(net, window=Window(16, 8), fps=8.0, factor=8, pixel_frames=int)
    )
    assert [site.name for site in made.feature_sites] == [f"block{i}" for i in range(depth)][-(depth // 2) :]
    assert [site.name for site in made.context_sites] == [f"block{i}.text" for i in range(depth)]
    assert {site.depth for site in made.context_sites} == {site.width for site in made.feature_sites} == {1152}
    assert made.window == Window(16, 8)


def test_the_encoder_saves_what_it_trains():
    """Under the network's names; tables of places and frequencies, which half precision would round, are the net's."""
    for version in VERSIONS:
        encoder, net = backbone(version).feature_encoder(), network(version)
        own = {name.removeprefix("net."): value for name, value in encoder.state_dict().items()}
        known = dict(net.named_parameters())
        left = {name for name in known if name.startswith(("final_layer.", "blocks.2.", "blocks.3."))}
        assert own.keys() == known.keys() - left and left
        assert all(torch.equal(value, known[name]) for name, value in own.items())
        fixed = {name.removeprefix("net."): value for name, value in encoder.named_buffers()}
        assert fixed.keys() == ({"pos_embed", "pos_embed_temporal"} if version == "1.0" else {"rope.freqs"})
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in fixed.items())
        assert encoder.training and all(value.requires_grad for value in encoder.parameters())


@torch.no_grad()
def test_1_0_has_one_size_and_no_given_frames():
    made = backbone("1.0")
    assert made.fitting_size(32, 32) == made.fitting_size(8, 6) == (8, 6)
    with pytest.raises(UserError, match="latents of 4 frames, 8x8: this Open-Sora 1.0 was made for 5 frames, 8x6"):
        made(call(wide=8), {})
    with pytest.raises(UserError, match="a window of 6 frames: this Open-Sora 1.0 was made for 5, choose no more"):
        OpenSora1Backbone(network("1.0"), window=Window(6, 2))
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(made(call().with_(mask=everything), {}), made(call(), {}))
    given = call().with_(mask=torch.arange(4)[None].expand(2, 4) > 0)
    condition = torch.zeros(2, 4, 48, 12)
    for run in (lambda: made(given, {}), lambda: made.feature_encoder()(given, condition)):
        with pytest.raises(ValueError, match="Open-Sora 1.0 generates all frames; it has no mask for given ones"):
            run()
    assert not made.takes_given_frames and backbone("1.1").takes_given_frames
    assert backbone("1.1").fitting_size(5, 7) == (5, 7)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_frames_may_have_times_of_their_own(version):
    made, plain = backbone(version), call()
    spread = plain.time[:, None].expand(2, 4).contiguous()
    torch.testing.assert_close(made(plain.with_(time=spread), {}), made(plain, {}))
    spread[:, 0] = 3.0
    assert not torch.allclose(made(plain.with_(time=spread), {}), made(plain, {}), atol=1e-3)


@torch.no_grad()
def test_1_1_sees_given_frames_clean():
    """What a given frame holds changes the prediction for the others; its time does not."""
    made, mask = backbone("1.1"), torch.arange(4)[None].expand(2, 4) > 1
    given = call().with_(mask=mask, time=torch.where(mask, 500.0, 900.0))
    plain = made(given.with_(time=torch.full((2, 4), 500.0)), {})[:, :, 2:]
    torch.testing.assert_close(made(given, {})[:, :, 2:], plain)
    other = given.latents + F.pad(torch.ones(2, 1, 2, 1, 1), (0, 0, 0, 0, 0, 2))
    assert not torch.allclose(made(given.with_(latents=other), {})[:, :, 2:], plain, atol=1e-3)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_half_precision(version):
    made = around(new_network(version))
    exact, made = made(call(), {}), made.to(torch.bfloat16)
    found = made(call(), {})
    assert found.dtype == torch.float32  # the latents'
    assert (found - exact).abs().mean() < 0.1 * exact.abs().mean()
    features = made.feature_encoder()(call(), torch.zeros(2, 4, 48, 12))
    assert {value.dtype for value in features.values()} == {torch.bfloat16}


def gradients(version: str, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Those of both memories' weights, and how often a block ran."""
    whole = Remembering(version)
    whole.backbone = around(new_network(version))
    if recompute:
        whole.backbone.checkpoint_gradients()
        whole.cam.encoder.checkpoint_gradients()
    ran: list[nn.Module] = []
    for part in (whole.backbone, whole.cam.encoder):
        for block in part.net.blocks:
            block.register_forward_pre_hook(lambda module, args: ran.append(module))
    prediction = whole(call(), {})
    (prediction * KEY.fold("loss").normal(*prediction.shape)).sum().backward()
    trained = {**dict(whole.cam.named_parameters()), **dict(whole.apm.named_parameters())}
    return {name: value.grad for name, value in trained.items()}, len(ran)


@pytest.mark.parametrize("version", VERSIONS)
def test_recomputed_gradients_are_the_same(version):
    (kept, once), (again, twice) = gradients(version, False), gradients(version, True)
    assert (once, twice) == (4 + 2, 2 * (4 + 2))
    assert all(value is not None and bool(value.any()) for name, value in kept.items() if name.endswith("alpha"))
    assert sum(value is not None for value in kept.values()) > 100
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        assert (value is None) == (again[name] is None), name
        if value is not None:
            torch.testing.assert_close(again[name], value)


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_computed_twice_without_gradients(version):
    made = Remembering(version)
    made.cam.encoder.checkpoint_gradients()
    ran: list[nn.Module] = []
    made.cam.encoder.net.blocks[0].register_forward_pre_hook(lambda module, args: ran.append(module))
    with torch.no_grad():
        made.deltas(call())
    assert len(ran) == 1


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_untrained_memories_together_change_no_bit(version):
    made = Remembering(version)
    made.cam, made.apm = (memory(model(version), new).eval() for new in (new_cam, new_apm))
    assert torch.equal(made(call(), {}), made.backbone(call(), {}))
    anchored = call().with_(guided=(Guided(text=False, anchor=False), Guided(text=True, anchor=True)))
    assert torch.equal(made(anchored, {}), made.backbone(anchored, {}))
