"""CAM: identity before training, the merger against plain loops, shapes, files and their errors."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import adapters.store
from adapters.cam import CAM, CAMConfig, cam, cam_with_injection, first_frames, new_cam, tile
from adapters.condition import ConditionEncoder
from adapters.merger import Merger
from streaming.backbone import Guided
from streaming.errors import UserError
from streaming.sites import FeatureSite
from tests.adapter_toys import CHANNELS, WIDTH, WINDOW, ToyBackbone, toy_call, toy_model, toy_tail, unzero


def naive_merger(merger, features, memory):
    """One attention at a time, from the formula."""
    batch, frames, positions, width = features.shape
    groups, size = merger.norm.num_groups, width // merger.norm.num_groups
    normed = torch.empty_like(features)
    for b in range(batch):
        for g in range(groups):
            part = features[b, :, :, g * size : (g + 1) * size]
            normed[b, :, :, g * size : (g + 1) * size] = (part - part.mean()) / (part.var(correction=0) + 1e-6).sqrt()
    normed = normed * merger.norm.weight + merger.norm.bias
    out = torch.empty_like(features)
    d = merger.head_dim
    for b in range(batch):
        for p in range(positions):
            q = merger.to_q(merger.proj_in(normed[b, :, p]))
            k, v = merger.to_k(memory[b, :, p]), merger.to_v(memory[b, :, p])
            heads = []
            for h in range(width // d):
                part = slice(h * d, (h + 1) * d)
                heads.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(d), dim=-1) @ v[:, part])
            out[b, :, p] = merger.proj_out(merger.to_out(torch.cat(heads, dim=-1)))
    return out


@given(batch=st.integers(1, 2), frames=st.integers(1, 5), span=st.integers(1, 4), positions=st.integers(1, 4))
def test_merger_equals_naive_attention(batch, frames, span, positions):
    merger = unzero(Merger(16, 4, norm_groups=8))
    generator = torch.Generator().manual_seed(frames * 7 + span)
    features = 3 * torch.randn(batch, frames, positions, 16, generator=generator) + 1
    memory = torch.randn(batch, span, positions, 16, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(
            merger(features, memory), naive_merger(merger, features, memory), rtol=1e-4, atol=1e-4
        )


def test_merger_keeps_faint_features_faint():
    """Variances as small as what GroupNorm adds to them: its 1e-6, a convention of the published code, tells."""
    merger, generator = unzero(Merger(16, 4, norm_groups=8)), torch.Generator().manual_seed(0)
    features = 1e-3 * torch.randn(1, 3, 4, 16, generator=generator)
    memory = torch.randn(1, 2, 4, 16, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(
            merger(features, memory), naive_merger(merger, features, memory), rtol=1e-4, atol=1e-5
        )


DATA = Path(__file__).parent / "parity" / "fixtures"


def published(name):
    """Inputs, outputs and weights of the published code (tests/parity/fixtures)."""
    tensors = load_file(DATA / f"{name}.safetensors")
    return tensors, {key[6:]: value.float() for key, value in tensors.items() if key.startswith("state.")}


def to_features(maps):
    return maps.flatten(3).transpose(2, 3)


def test_merger_equals_the_published_code_s():
    tensors, weights = published("st2v_merger_a")
    merger = Merger(64, 64)
    for old, new in (("temporal_transformer.", ""), ("attention.", ""), ("to_out.0", "to_out")):
        weights = {name.replace(old, new): value for name, value in weights.items()}
    merger.load_state_dict(weights)
    features, memory = to_features(tensors["in.sample"]), to_features(tensors["in.conditioning"])
    with torch.no_grad():
        merged = features + merger(features, memory)
    torch.testing.assert_close(merged, to_features(tensors["out.sample"]), rtol=1e-4, atol=1e-4)


def test_condition_encoder_equals_the_published_code_s():
    tensors, weights = published("st2v_cond_embedding_b")
    encoder = ConditionEncoder(3, (8, 16, 24, 32), 64, shrink=True)
    encoder.load_state_dict(weights)
    with torch.no_grad():
        encoded = encoder(tensors["in.image"].unflatten(0, (2, 2)).transpose(1, 2))
    expected = to_features(tensors["out.embedding"].unflatten(0, (2, 2)))
    torch.testing.assert_close(encoded, expected, rtol=1e-4, atol=1e-4)


def test_merger_keeps_the_type_of_the_features():
    merger = unzero(Merger(16, 8))
    assert (
        merger(torch.randn(1, 2, 3, 16, dtype=torch.float16).float(), torch.randn(1, 2, 3, 16)).dtype == torch.float32
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert merger(torch.randn(1, 2, 3, 16), torch.randn(1, 2, 3, 16)).dtype == torch.float32


def test_merger_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="20 channels are no multiple of heads of 16"):
        Merger(20, 16)


@pytest.mark.parametrize("condition", ["pixels", "latents"])
def test_untrained_cam_is_the_identity_bit_for_bit(condition):
    model, call = toy_model(), toy_call()
    memory = new_cam(model, condition=condition)
    deltas = memory.deltas(memory.remember(toy_tail()), call)
    plain = model.backbone(call, {})
    model.backbone.reached.clear()
    assert torch.equal(model.backbone(call, deltas), plain)
    assert sorted(model.backbone.reached) == sorted(site.name for site in model.backbone.feature_sites)


@pytest.mark.parametrize("condition", ["pixels", "latents"])
def test_trained_cam_changes_the_output_and_reads_what_it_says(condition):
    model, call, tail = toy_model(), toy_call(), toy_tail()
    memory = unzero(new_cam(model, condition=condition)).eval()
    plain = model.backbone(call, {})

    def output(tail):
        return model.backbone(call, memory.deltas(memory.remember(tail), call))

    other = toy_tail(seed=9)
    assert not torch.allclose(output(tail), plain)
    swapped = {"pixels": type(tail)(other.frames, tail.latents), "latents": type(tail)(tail.frames, other.latents)}
    for read, changed in swapped.items():
        assert torch.equal(output(changed), output(tail)) == (read != condition)


def test_cam_sees_only_the_first_frames_of_the_chunk():
    """Frames behind the overlap meet the memory as queries only."""
    model, call = toy_model(), toy_call()
    memory = unzero(new_cam(model)).eval()
    state = memory.remember(toy_tail())
    later = call.latents.clone()
    later[:, :, WINDOW.overlap :] += 1
    value = torch.randn(2, WINDOW.frames, 16, WIDTH)
    first = memory.deltas(state, call)["skip.0"](value)
    assert torch.equal(memory.deltas(state, call.with_(latents=later))["skip.0"](value), first)
    earlier = call.latents.clone()
    earlier[:, :, 0] += 1
    assert not torch.equal(memory.deltas(state, call.with_(latents=earlier))["skip.0"](value), first)


@pytest.mark.parametrize("videos", [1, 2])
def test_guidance_rows_share_the_memory_row_major(videos):
    model, rows = toy_model(), 4
    memory = unzero(new_cam(model)).eval()
    tail, call = toy_tail(videos), toy_call(rows, guided=(Guided(text=False, anchor=False),) * rows)
    together = model.backbone(call, memory.deltas(memory.remember(tail), call))
    for row in range(rows):
        one = call.with_(
            latents=call.latents[row : row + 1],
            time=call.time[row : row + 1],
            context=call.context[row : row + 1],
            guided=call.guided[:1],
        )
        video = row % videos
        alone = type(tail)(tail.frames[video : video + 1], tail.latents[video : video + 1])
        expected = model.backbone(one, memory.deltas(memory.remember(alone), one))
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-4, atol=1e-5)


def test_rows_that_videos_cannot_share_are_refused():
    with pytest.raises(ValueError, match="3 rows cannot share the memory of 2 videos evenly"):
        tile(torch.zeros(2, 2, 16, WIDTH), toy_call(3))


def test_first_frames_cuts_whatever_has_frames():
    call = toy_call().with_(
        time=torch.zeros(2, WINDOW.frames),
        mask=torch.ones(2, WINDOW.frames, dtype=torch.bool),
        start=torch.zeros(2, CHANNELS, WINDOW.frames, 4, 4),
    )
    cut = first_frames(call, 2)
    assert (cut.latents.shape[2], cut.time.shape, cut.mask.shape, cut.start.shape[2]) == (2, (2, 2), (2, 2), 2)


def test_gradients_reach_every_parameter():
    model, call = toy_model(), toy_call()
    memory = unzero(new_cam(model))
    model.backbone(call, memory.deltas(memory.remember(toy_tail()), call)).square().mean().backward()
    silent = [name for name, value in memory.named_parameters() if value.grad is None or not value.grad.any()]
    # A bias before a softmax over keys would have none; there is none before it here.
    assert not silent


def test_condition_encoder_halves_once_a_stage():
    encoder = unzero(ConditionEncoder(3, (2, 4, 6), 8, shrink=True))
    assert encoder(torch.rand(2, 3, 5, 16, 24)).shape == (2, 5, 4 * 6, 8)
    still = unzero(ConditionEncoder(4, (4, 6), 8, shrink=False))
    assert still(torch.rand(2, 4, 5, 4, 6)).shape == (2, 5, 4 * 6, 8)


def test_condition_encoder_equals_its_layers_frame_by_frame():
    encoder = unzero(ConditionEncoder(3, (2, 4), 8, shrink=True))
    video = torch.rand(1, 3, 4, 6, 6)
    for frame in range(4):
        hidden = F.silu(encoder.conv_in(video[:, :, frame]))
        for block in encoder.blocks:
            hidden = F.silu(block(hidden))
        plain = encoder.conv_out(hidden)[0]
        encoded = encoder(video)[0, frame]
        for position in range(9):
            torch.testing.assert_close(encoded[position], plain[:, position // 3, position % 3], rtol=1e-5, atol=1e-6)


def test_sizes_fit_the_backbone():
    config = CAMConfig.fitting(ToyBackbone(), toy_model().codec)
    assert (config.channels, len(config.widths), config.head_dim) == (3, 3, WIDTH)  # two stages for a factor of 4
    assert CAMConfig.fitting(ToyBackbone(), toy_model().codec, condition="latents").channels == CHANNELS


def test_pixels_need_a_codec_that_does_not_pack_time():
    model = toy_model(packs=3)
    with pytest.raises(UserError, match="packs frames in time.*choose latents"):
        new_cam(model, condition="pixels")
    assert new_cam(model).config.condition == new_cam(model, condition="latents").config.condition == "latents"
    assert new_cam(toy_model()).config.condition == "pixels"


def saved(tmp_path, model=None):
    memory = unzero(new_cam(model or toy_model()))
    memory.save(tmp_path / "cam")
    return memory


def test_round_trip(tmp_path):
    memory, model, call = saved(tmp_path), toy_model(tmp_path), toy_call()
    again = cam(model, None)
    assert not again.training and not any(value.requires_grad for value in again.parameters())
    assert again.config == memory.config
    for name, value in again.state_dict().items():
        assert torch.equal(value, memory.state_dict()[name].half().float())
    injected = cam_with_injection(model, tmp_path / "cam")
    state, plain = injected.remember(toy_tail()), again.remember(toy_tail())
    for name, delta in injected.deltas(state, call).items():
        value = torch.randn(2, WINDOW.frames, 16, WIDTH if name == "skip.0" else 2 * WIDTH)
        assert torch.equal(delta(value), again.deltas(plain, call)[name](value))


def test_weights_come_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters.store, "PART_BYTES", 4000)
    memory = saved(tmp_path)
    parts = sorted((tmp_path / "cam").glob("*.safetensors"))
    assert len(parts) > 2 and parts[0].name == f"model-00001-of-{len(parts):05d}.safetensors"
    for part in parts:
        values = load_file(part)
        assert len(values) == 1 or sum(value.nbytes for value in values.values()) <= 4000
    assert torch.equal(
        cam(toy_model(tmp_path), None).state_dict()["condition.conv_in.weight"],
        memory.state_dict()["condition.conv_in.weight"].half().float(),
    )
    monkeypatch.undo()
    memory.save(tmp_path / "cam")
    assert [path.name for path in (tmp_path / "cam").glob("*.safetensors")] == ["model.safetensors"]
    assert not list((tmp_path / "cam").glob(".*"))


def test_an_interrupted_save_leaves_the_old_parts_together(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters.store, "PART_BYTES", 4000)
    memory = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cam").iterdir()}
    written = []

    def full_disk(tensors, path, **more):
        if len(written) == 2:
            raise OSError("no space left")
        written.append(path)
        save_file(tensors, path, **more)

    monkeypatch.setattr(adapters.store, "save_file", full_disk)
    for value in memory.parameters():
        value.data += 1
    with pytest.raises(OSError, match="no space left"):
        memory.save(tmp_path / "cam")
    assert len(written) == 2 and {path.name: path.read_bytes() for path in (tmp_path / "cam").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["cam"]


def test_other_people_s_files_are_not_replaced(tmp_path):
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        UserError, match=r"thesis\.txt is no part of an adapter: move it away, or save to another folder"
    ):
        saved(tmp_path)
    with pytest.raises(UserError, match=r"thesis\.txt is no part of an adapter"):
        new_cam(toy_model()).save(tmp_path / "cam" / "thesis.txt")
    assert (tmp_path / "cam" / "thesis.txt").read_text() == "years of work"


def test_no_trained_cam(tmp_path):
    with pytest.raises(
        UserError, match=r"no trained cam: this model comes without one; train it with `streamingt2v train"
    ):
        cam(toy_model(), None)
    with pytest.raises(UserError, match=r"no trained cam: there is none in .*missing"):
        cam(toy_model(), tmp_path / "missing")


def edit(folder, **changes):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **changes}))


DAMAGE = {
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]),
        r"model\.safetensors is truncated or no safetensors file \(.*train or download it again",
    ),
    "foreign": (
        lambda f: save_file({"x": torch.zeros(2)}, f / "model.safetensors"),
        r"do not fit its config\.json \(.* is missing\)",
    ),
    "extra": (
        lambda f: save_file(
            {**load_file(f / "model.safetensors"), "stranger": torch.zeros(1)}, f / "model.safetensors"
        ),
        r"\(stranger does not belong there\)",
    ),
    "nan": (
        lambda f: save_file(
            {name: value * float("nan") for name, value in load_file(f / "model.safetensors").items()},
            f / "model.safetensors",
        ),
        "holds NaN or infinite values",
    ),
    "gone": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "no json": (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not an adapter's"),
    "other class": (lambda f: edit(f, **{"class": "APM"}), r"holds a APM, not a CAM: give another folder"),
    "unknown setting": (lambda f: edit(f, colour=1), r"settings that this version does not know: colour"),
    "narrow": (lambda f: edit(f, widths=[4, 8, 8]), r"do not fit this base model \(condition\..*there, .*here\)"),
    "fewer settings": (lambda f: (f / "config.json").write_text('{"class": "CAM"}'), r"is damaged or too old"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_told_in_one_line(tmp_path, damage):
    saved(tmp_path)
    harm, message = DAMAGE[damage]
    harm(tmp_path / "cam")
    with pytest.raises(UserError, match=message) as caught:
        cam(toy_model(tmp_path), None)
    assert "\n" not in str(caught.value)


def test_another_backbone_is_told_site_by_site(tmp_path):
    saved(tmp_path)
    sites = [{"name": "skip.0", "width": 8}, {"name": "middle", "width": 32}, {"name": "skip.9", "width": 8}]
    edit(tmp_path / "cam", sites=sites)
    with pytest.raises(UserError) as caught:
        cam(toy_model(tmp_path), None)
    assert (
        "trained for another base model (skip.0: 8 wide there, 16 wide here; skip.9: 8 wide there, none here)"
        in str(caught.value)
    )
    edit(tmp_path / "cam", sites=[{"name": "middle", "width": 32}, {"name": "skip.0", "width": 16}])
    with pytest.raises(UserError, match="the same sites in another order"):
        cam(toy_model(tmp_path), None)


def test_weights_that_overflow_are_not_written(tmp_path):
    memory = new_cam(toy_model())
    memory.mergers[0].proj_in.weight.data.fill_(1e6)
    with pytest.raises(UserError, match=r"mergers\.0\.proj_in\.weight for .* holds NaN or infinite values"):
        memory.save(tmp_path / "cam")


def test_on_modelscope_s_unet():
    diffusers = pytest.importorskip("diffusers")
    from backends.modelscope_unet import UNet3DBackbone

    unet = diffusers.UNet3DConditionModel(
        sample_size=8, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=12, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    backbone = UNet3DBackbone(unet.eval(), tokens=5, window=WINDOW).eval()
    config = CAMConfig.fitting(backbone, toy_model().codec)
    assert config.sites[-1] == FeatureSite("mid_block", 64) and config.head_dim == 32
    memory, call, tail = CAM(config, backbone.feature_encoder()).eval(), toy_call(), toy_tail()
    with torch.no_grad():
        plain = backbone(call, {})
        deltas = memory.deltas(memory.remember(tail), call)
        assert torch.equal(backbone(call, deltas), plain)
        counts = dict.fromkeys(deltas, 0)

        def counted(name, delta):
            def count(value):
                counts[name] += 1
                return delta(value)

            return count

        unzero(memory)
        deltas = memory.deltas(memory.remember(tail), call)
        moved = backbone(call, {name: counted(name, delta) for name, delta in deltas.items()})
    assert set(counts.values()) == {1} and not torch.allclose(moved, plain)
    backbone(call, memory.deltas(memory.remember(tail), call)).square().mean().backward()
    assert all(value.grad is not None and value.grad.any() for value in memory.mergers.parameters())
    assert all(value.grad is not None for value in memory.parameters())
