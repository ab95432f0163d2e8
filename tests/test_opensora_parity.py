"""The parity handler of Open-Sora's transformers: rearranged published numbers are met, wrong ones are told."""

from pathlib import Path

import pytest
import torch

from tests.opensora_networks import SMALL, inputs, network
from tests.parity.fixture import Fixture
from tests.parity.registry import handler_of
from tests.parity_synthesis import changed, met, synthesise, write

FIXTURES = Path(__file__).parent / "parity" / "fixtures"
FILES = ("opensora_v10_a", "opensora_v11_a", "opensora_v12_a")
BATCHED = ("in.x", "in.timestep", "in.y", "in.x_mask")
SHARED = ("in.mask", "in.fps", "in.height", "in.width", "in.ar", "in.num_frames")


@pytest.fixture(params=FILES)
def published(request):
    return Fixture(FIXTURES / f"{request.param}.safetensors")


def rewrite(folder, fixture, **tensors):
    kept = {name: value for name, value in fixture.tensors.items() if not name.startswith("aux.")}
    return write(folder / f"{fixture.name[:-1]}x.safetensors", kept | tensors, fixture.meta)


def each(fixture, change, names):
    return {k: change(v) for k, v in fixture.tensors.items() if k in names or (k.startswith("out") and "out" in names)}


def test_guidance_batches(tmp_path, published):
    """Text masks and numbers of n rows serve 2 n rows: row b has those of b mod n."""
    met(rewrite(tmp_path, published, **each(published, lambda v: torch.cat((v, v)), (*BATCHED, "out"))))
    turned = each(published, lambda v: torch.cat((v, v.flip(0))), (*BATCHED, "out"))
    with pytest.raises(AssertionError, match="out: differs"):  # rows 2 and 3 would need masks 1 and 0
        met(rewrite(tmp_path, published, **turned))


@pytest.mark.parametrize("row", [0, 1])
def test_single_rows(tmp_path, published, row):
    met(rewrite(tmp_path, published, **each(published, lambda v: v[row : row + 1], (*BATCHED, *SHARED, "out"))))


def test_wrong_numbers_are_told(tmp_path, published):
    for name in [name for name in published.tensors if name.startswith("out")]:
        with pytest.raises(AssertionError, match=f"{name}: differs"):
            met(changed(rewrite(tmp_path, published), name, 1e-3))
    for name in ("in.mask", "in.timestep", "state.blocks.1.attn.proj.bias", "state.rope.freqs"):
        if name in published.tensors:
            with pytest.raises(AssertionError, match="out: differs"):
                met(rewrite(tmp_path, published, **{name: published.tensors[name] // 2 + 1}))
    with pytest.raises(AssertionError, match="tensors that the handler does not know: in.more"):
        met(rewrite(tmp_path, published, **{"in.more": torch.ones(1)}))


def test_masks_of_frames(tmp_path):
    """If all frames are generated, the mask changes nothing; in 1.0 there is none."""
    everything = torch.ones(2, 5, dtype=torch.bool)
    for name in FILES[1:]:
        fixture = Fixture(FIXTURES / f"{name}.safetensors")
        out = fixture.tensors.get("out_noxmask", fixture.tensors["out"])
        met(rewrite(tmp_path, fixture, **{"in.x_mask": everything, "out": out, "out_noxmask": out}))
    first = Fixture(FIXTURES / "opensora_v10_a.safetensors")
    with pytest.raises(AssertionError, match="opensora_v10_x: a mask of frames for Open-Sora 1.0, which has none"):
        met(rewrite(tmp_path, first, **{"in.x_mask": everything[:, :4]}))


def stored(version, **given):
    state = {f"state.{name}": value for name, value in network(version).state_dict().items()}
    names = {"latents": "x", "time": "timestep", "text": "y", "text_mask": "mask", "generated": "x_mask",
             "aspect": "ar"}  # fmt: skip
    tensors = {f"in.{names.get(name, name)}": value for name, value in (inputs(version) | given).items()}
    return state | tensors | {"in.y": tensors["in.y"][:, None]}


@pytest.mark.parametrize(("version", "size"), [("1.0", (6, 8)), ("1.1", (5, 9)), ("1.2", (7, 8)), ("1.2", (3, 11))])
def test_other_sizes(tmp_path, version, size):
    """Other depths, MLPs and odd latents; 1.0 gives latents back that were filled up to its size."""
    latents = torch.ones(2, 4, 3, *size) * torch.arange(size[1])
    tensors = stored(version, latents=latents[..., : size[0] - (version == "1.0"), :])
    tensors["out"] = torch.empty(2, 8, 3, *size)
    config = {"hidden_size": 48, "depth": SMALL.depth, "num_heads": 4, "input_sq_size": 512}
    path = synthesise(tmp_path / f"opensora_v{version.replace('.', '')}_x.safetensors", tensors, {"config": config})
    met(path)
    assert Fixture(path).tensors["out"].abs().max() > 0.1
    for wrong, told in (({"depth": 3}, "its config tells"), ({"skip_y_embedder": True}, "with skip_y_embedder is not")):
        with pytest.raises(AssertionError, match=told):
            met(write(path, Fixture(path).tensors, {"config": config | wrong}))
    with pytest.raises(AssertionError, match=f"the weights are those of Open-Sora {version}"):
        other = tmp_path / f"opensora_v{'11' if version != '1.1' else '12'}_x.safetensors"
        met(write(other, Fixture(path).tensors, {"config": config}))


def test_files_that_are_no_models():
    """Samplers and autoencoders have handlers of their own; others are told to hold no transformer."""
    model = handler_of("opensora_v12_b")
    assert model is not None and model is handler_of("opensora_v10_q") is handler_of("opensora_v11_c")
    for name in ("opensora_v12_rflow", "opensora_v10_iddpm", "opensora_v12_vae_temporal"):
        assert handler_of(name) not in (None, model)


def test_files_without_weights(tmp_path):
    path = write(tmp_path / "opensora_v12_x.safetensors", {"out": torch.ones(1)}, {"config": {}})
    with pytest.raises(AssertionError, match="opensora_v12_x holds no transformer of Open-Sora"):
        met(path)
