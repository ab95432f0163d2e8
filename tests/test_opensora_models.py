"""Open-Sora's transformers: published names and sizes, what is refused, sites, masks, padding, one graph."""

import subprocess
import sys
from dataclasses import replace
from math import cos, sin
from pathlib import Path

import pytest
import torch

from backends.opensora_config import Grid, STDiTConfig, read_config
from backends.opensora_places import Rope, scaled_table, table
from backends.opensora_stdit import STDiT, tables
from backends.opensora_stdit2 import STDiT2
from backends.opensora_stdit3 import STDiT3
from backends.opensora_weights import load_stdit
from streaming.errors import UserError
from tests.opensora_networks import SMALL, VERSIONS, inputs, network
from tests.parity.fixture import Fixture

FIXTURES = Path(__file__).parent / "parity" / "fixtures"
PUBLISHED = STDiTConfig(width=1152, depth=28, heads=16, hidden=4608, text_depth=4096, text_tokens=300)
FULL = {
    "1.0": (759_620_768, 550, lambda: STDiT(_published(120, False), Grid(frames=16, rows=16, cols=16))),
    "1.1": (767_452_100, 707, lambda: STDiT2(_published(200))),
    "1.2": (1_207_643_972, 973, lambda: STDiT3(_published(300))),
}


def _published(tokens, qk_norm=True):
    return replace(PUBLISHED, text_tokens=tokens, qk_norm=qk_norm)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def close(found, expected, by=2e-5):
    torch.testing.assert_close(found, expected, rtol=by, atol=by)


def test_published_sizes(version):
    """Parameters (as published, with the frequencies of rotations) and tensors, and back to the sizes."""
    count, tensors, make = FULL[version]
    with torch.device("meta"):
        full = make()
    state = full.state_dict()
    turning = state["rope.freqs"].numel() if "rope.freqs" in state else 0
    assert sum(value.numel() for value in full.parameters()) + turning == count
    assert len(state) == tensors
    assert read_config(state, "x") == full.config


def weights(version):
    return dict(network(version).state_dict())


def test_weights_load_strictly_without_renaming(version):
    made, given = network(version), inputs(version)
    heads = SMALL.heads if version == "1.0" else None
    loaded = load_stdit(made.state_dict(), "x", heads=heads)
    assert loaded.config == made.config and not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    assert torch.equal(loaded(**given), made(**given))
    for damaged, told in (
        ({k: v for k, v in weights(version).items() if "t_block.1.bias" not in k}, "1 are missing, t_block.1.bias for"),
        (weights(version) | {"x_embedder.more": torch.ones(1)}, "1 do not belong there, x_embedder.more for one"),
        (weights(version) | {"t_block.1.bias": torch.ones(3)}, r"t_block.1.bias is 3 there, the model takes 288"),
    ):
        with pytest.raises(UserError, match=told):
            load_stdit(damaged, "FILE", heads=heads)


def test_frequencies_stay_exact_in_half_precision():
    for version in ("1.1", "1.2"):
        loaded = load_stdit(weights(version), "x", torch.bfloat16)
        assert torch.equal(loaded.rope.freqs, network(version).rope.freqs)
        assert loaded.t_block[1].weight.dtype == torch.bfloat16
        given = inputs(version)
        found = loaded(**given)
        assert found.dtype == torch.float32  # the latents'
        assert (found - network(version)(**given)).abs().mean() < 0.1 * found.abs().mean()


def refused(weights, told, **options):
    with pytest.raises(UserError, match=told) as error:
        load_stdit(weights, "FILE", **options)
    assert str(error.value).startswith("FILE")


def test_other_models_are_refused():
    advice = "give one of 1.0, 1.1 or 1.2, for example hpcai-tech/OpenSora-STDiT-v3"
    later = weights("1.2") | {"x_embedder_cond.proj.weight": torch.ones(1)}
    refused(later, rf"is a transformer of Open-Sora 1.3 or later \(it has x_embedder_cond.proj.weight\): {advice}")
    refused({"double_blocks.0.x": torch.ones(1)}, rf"1.3 or later \(it has double_blocks.0.x\): {advice}")
    refused({"conv.weight": torch.ones(1)}, f"holds no transformer of Open-Sora: {advice}")
    wide = weights("1.2") | {"x_embedder.proj.weight": torch.ones(48, 16, 1, 2, 2)}
    refused(wide, f"takes latents of 16 channels, as Open-Sora 1.3 does, not 4: {advice}")
    deep = weights("1.2") | {"x_embedder.proj.weight": torch.ones(48, 4, 2, 2, 2)}
    refused(deep, f"joins 2 latent frames in a token, which no published model does: {advice}")


def test_damaged_files_are_refused():
    whole = weights("1.2")
    for name in ("rope.freqs", "final_layer.linear.weight", "y_embedder.y_embedding", "x_embedder.proj.weight"):
        refused({k: v for k, v in whole.items() if k != name}, f"has no {name}: it is not a whole transformer")
    flat = whole | {"x_embedder.proj.weight": torch.ones(48, 16)}
    refused(flat, "has 2 instead of 5 axes in x_embedder.proj.weight: it is not a whole transformer of Open-Sora")
    refused(whole | {"rope.freqs": torch.ones(7)}, "48 channels are no whole heads of 14: the file is damaged")
    refused(weights("1.0"), "48 channels are no whole heads of 72: say how many heads")
    refused(weights("1.2"), "has 4 heads, not 3: leave that out, the file tells", heads=3)


def test_the_tables_of_the_first_version():
    """They tell the size, whatever the scale, and may be added to checkpoints without them."""
    whole = weights("1.0")
    bare = {name: value for name, value in whole.items() if not name.startswith("pos_embed")}
    refused(bare, "has no pos_embed and pos_embed_temporal, so its size is unknown: give the published", heads=4)
    for grid in (Grid(frames=2, rows=3, cols=5), Grid(frames=1, rows=1, cols=4), Grid(frames=3, rows=4, cols=1)):
        for scale in (0.25, 1.0):
            more = tables(grid, 48, space_scale=scale, time_scale=2 / 3)
            found = load_stdit(bare | more, "x", heads=4)
            assert found.grid == grid
            assert torch.equal(found.pos_embed, more["pos_embed"])
    refused(
        bare | {"pos_embed": torch.full((1, 6, 48), torch.nan), "pos_embed_temporal": torch.ones(1, 3, 48)},
        "pos_embed holds NaN or infinite numbers",
        heads=4,
    )
    refused(whole | {"pos_embed": torch.ones(6, 48)}, "has no pos_embed and pos_embed_temporal", heads=4)
    original = Fixture(FIXTURES / "opensora_v10_a.safetensors").state()
    made = tables(Grid(frames=4, rows=4, cols=4), 48, space_scale=0.5, time_scale=1.0)
    for name, value in made.items():
        close(value, original[name], 1e-6)


def test_the_first_version_is_of_one_size():
    net, given = network("1.0"), inputs("1.0")
    for shape in ((2, 4, 3, 6, 10), (2, 4, 4, 6, 8), (2, 4, 3, 9, 8)):
        with pytest.raises(UserError, match=r"latents of .*: this Open-Sora 1.0 was made for 3 frames, 6x8"):
            net(**given | {"latents": torch.zeros(shape)})
    assert net(**given | {"latents": torch.zeros(2, 4, 2, 5, 7)}).shape == (2, 8, 2, 5, 7)


def test_widths_that_cannot_be():
    with pytest.raises(UserError, match="50 channels cannot be 4 heads and four parts: choose another width"):
        replace(SMALL, width=50)


def test_sites(version):
    """The last half of the blocks or pairs, and every cross-attention; with none named, nothing changes."""
    with torch.device("meta"):
        full = FULL[version][2]()
    kind = "pair" if version == "1.2" else "block"
    assert [site.name for site in full.feature_sites] == [f"{kind}{i}" for i in range(14, 28)]
    assert {site.width for site in full.feature_sites} == {1152}
    assert len(full.context_sites) == (56 if version == "1.2" else 28)
    assert {(site.depth, site.tokens) for site in full.context_sites} == {(1152, full.config.text_tokens)}
    net, given = network(version), inputs(version)
    plain = net(**given)
    assert torch.equal(net(**given, deltas={}), plain)
    zero = {site.name: torch.zeros_like for site in (*net.feature_sites, *net.context_sites)}
    assert torch.equal(net(**given, deltas=zero), plain)
    with pytest.raises(KeyError, match=f"no such site: mid; this backbone has (patches, )?{kind}2, {kind}3, "):
        net(**given, deltas={"mid": torch.zeros_like})


def test_each_site_is_reached_once_in_order_and_counts(version):
    net, given = network(version), inputs(version)
    plain, calls = net(**given), []
    frames, positions = given["latents"].shape[2], 12

    def delta(name, value):
        calls.append(name)
        expected = (2, 6, 48) if name.endswith(".text") else (2, frames, positions, 48)
        assert value.shape == expected
        return value.flip(-1)

    sites = (*net.feature_sites, *net.context_sites)
    for site in sites:
        changed = net(**given, deltas={site.name: lambda value, name=site.name: delta(name, value)})
        assert (changed - plain).abs().max() > 1e-3, site.name
    assert calls == [site.name for site in sites]
    calls.clear()
    net(**given, deltas={site.name: lambda value, name=site.name: delta(name, value) for site in sites})
    assert sorted(calls) == sorted(site.name for site in sites)
    features, contexts = ([s for s in calls if s.endswith(".text") == text] for text in (False, True))
    assert features == [site.name for site in net.feature_sites]
    assert contexts == [site.name for site in net.context_sites]


@pytest.mark.parametrize(("name", "site", "published"), [
    ("v10", "block1", "block1"), ("v11", "block1", "block1"), ("v12", "pair1", "temporal1"),
])  # fmt: skip
def test_features_are_the_published_ones(name, site, published):
    """At the sites, a delta sees what the published code has there: the stream, and the projected text."""
    fixture = Fixture(FIXTURES / f"opensora_{name}_a.safetensors")
    net = load_stdit(fixture.state(), name, heads=4 if name == "v10" else None)
    seen = {}
    deltas = {
        each: lambda value, each=each: torch.zeros_like(seen.setdefault(each, value))
        for each in (site, net.context_sites[-1].name)
    }
    tensors = fixture.tensors
    given = {"fps": "fps", "height": "height", "width": "width", "aspect": "ar", "num_frames": "num_frames"}
    given = {k: tensors[f"in.{v}"] for k, v in given.items() if f"in.{v}" in tensors}
    given = {k: v for k, v in given.items() if name == "v11" or k in ("fps", "height", "width")}
    if "in.x_mask" in tensors:
        given["generated"] = tensors["in.x_mask"]
    net(
        tensors["in.x"], tensors["in.timestep"].float(), tensors["in.y"][:, 0],
        text_mask=tensors["in.mask"].bool(), deltas=deltas, **given,
    )  # fmt: skip
    close(seen[site].flatten(1, 2), tensors[f"aux.{published}"])
    close(seen[net.context_sites[-1].name], tensors["aux.y"][:, 0])


def row(given, i):
    return {name: value[i : i + 1] for name, value in given.items()}


def test_rows_know_nothing_of_each_other(version):
    net, given = network(version), inputs(version)
    both = net(**given)
    for i in range(2):
        close(net(**row(given, i)), both[i : i + 1])


def test_masked_text_is_not_read(version):
    """What stands behind the mask does not matter; a masked text is the shorter text."""
    net, given = network(version), inputs(version)
    plain = net(**given)
    noisy = torch.where(given["text_mask"][..., None], given["text"], 100.0)
    close(net(**given | {"text": noisy}), plain)
    for i, length in enumerate(given["text_mask"].sum(dim=1).tolist()):
        short = row(given, i) | {"text": given["text"][i : i + 1, :length]}
        short.pop("text_mask")
        close(net(**short), plain[i : i + 1])
    unmasked = {name: value for name, value in given.items() if name != "text_mask"}
    assert (net(**unmasked) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_given_frames_are_at_time_zero(version):
    """Elsewhere the prediction is that for a time of each frame; on given frames nobody reads it."""
    net, given = network(version), inputs(version)
    mask = given.pop("generated")
    plain, masked = net(**given), net(**given, generated=mask)
    each = torch.where(mask, given["time"][:, None], 0.0)
    by_time = net(**given | {"time": each})
    shown = mask[:, None, :, None, None].expand_as(masked)
    if version == "1.2":
        close(masked[shown], by_time[shown])
    assert (masked[shown] - plain[shown]).abs().max() > 1e-3
    close(net(**given, generated=torch.ones_like(mask)), plain)
    assert (net(**given, generated=~mask)[shown] - masked[shown]).abs().max() > 1e-3


def test_one_time_is_that_of_every_frame(version):
    net, given = network(version), inputs(version)
    close(net(**given | {"time": given["time"][:, None].expand(-1, 3)}), net(**given))


def test_odd_sizes_are_filled_up_with_zeros(version):
    net, given = network(version), inputs(version)
    latents = given["latents"][..., :5, :7]
    filled = torch.nn.functional.pad(latents, (0, 1, 0, 1))
    found = net(**given | {"latents": latents})
    assert found.shape == (2, 8, 3, 5, 7)
    assert torch.equal(found, net(**given | {"latents": filled})[..., :5, :7])


def test_gradients_reach_a_delta_through_the_frozen_network(version):
    net, given = network(version), inputs(version)
    sites = (*net.feature_sites, *net.context_sites)
    scales = {site.name: torch.zeros((), requires_grad=True) for site in sites}
    with torch.enable_grad():
        net(
            **given, deltas={name: lambda v, s=s: s * v.detach() for name, s in scales.items()}
        ).square().sum().backward()
    assert all(scale.grad is not None and scale.grad.abs() > 0 for scale in scales.values())


def test_places_by_hand():
    """Columns before rows, sines before cosines, frequencies from 1 downwards."""
    found = table(torch.tensor([0.0, 2.0, 3.5]), torch.tensor([1.0, 7.0]), 8)
    expected = [
        [f(place * rate) for place in (c, r) for f in (sin, cos) for rate in (1, 0.01)]
        for r in (0, 2, 3.5)
        for c in (1, 7)
    ]
    close(found, torch.tensor(expected), 1e-6)
    scaled = scaled_table(3, 2, torch.tensor(256.0), 512, 8)  # base = round(sqrt(6)) = 2
    close(scaled, table(torch.arange(3) * 2 * 2 / 3, torch.arange(2) * 2.0, 8), 1e-6)


def test_rotations_by_hand():
    rope = Rope(6)
    rates = [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)]
    expected = [[f(t * rates[i // 2]) for f in (sin, cos) for i in range(6)] for t in range(4)]
    close(rope(4), torch.tensor(expected), 1e-6)


def test_one_graph():
    """With deltas at every site, masks of text and frames, an odd size; compiled in a process without shape checks."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "tests.opensora_networks"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.stdout.split("\n")[:2] == ["1.0: 1 graph", "1.2: 1 graph"], done.stderr
