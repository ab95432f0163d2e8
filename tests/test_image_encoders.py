"""Image encoders: preprocessing of the anchor, open_clip's and timm's towers, their folders, and --image-encoder."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import open_clip
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from adapters.apm import apm
from adapters.train import train_memories
from backends import image_openclip, image_timm
from backends.image_folder import load_image_encoder, save_image_encoder
from backends.image_openclip import OpenCLIPImageEncoder, OpenCLIPTower, registered
from backends.image_preprocess import CLIP_MEAN, CLIP_STD, prepare, resize
from backends.image_timm import TimmImageEncoder, TimmTower
from backends.image_weights import read_weights
from streaming.backbone import Call
from streaming.checkpoint import Checkpoint
from streaming.codec import ImageEncoder
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.memory import LongTermMemory
from streaming.model import Model
from streaming.registry import image_encoder_spec, open_model, with_image_encoder
from streaming.sites import Deltas
from streaming.training import TrainOptions
from streaming.types import Frames
from tests.adapter_toys import toy_model
from tests.cli_toys import PLUGINS, register, run, same

VISION = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TOWER = OpenCLIPTower(model="tiny", embed_dim=12, vision_cfg=VISION)
SMALL = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
TIMM = TimmTower(model="vit_tiny_patch16_224", model_args=SMALL)


def images(*shape: int, seed: int = 0) -> Tensor:
    return Key(seed).normal(*shape).sigmoid()


def naive_resize(batch: Tensor, rows: int, cols: int) -> Tensor:
    """Blur and bicubic interpolation pixel by pixel, one axis after the other, in float64."""
    out = 2 * batch.double() - 1
    shrinks = batch.shape[-2] > rows or batch.shape[-1] > cols
    for axis, size in ((-2, rows), (-1, cols)):
        if shrinks:
            out = naive_blur(out, axis, size)
    for axis, size in ((-2, rows), (-1, cols)):
        out = naive_bicubic(out, axis, size)
    return (out + 1) / 2


def naive_blur(batch: Tensor, axis: int, size: int) -> Tensor:
    lines, length = batch.movedim(axis, 0), batch.shape[axis]
    sigma = max((length / size - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3))
    reach = (taps + (taps % 2 == 0)) // 2 if length > 1 else 0
    weights = torch.tensor([-(k**2) / (2 * sigma**2) for k in range(-reach, reach + 1)], dtype=torch.float64).exp()

    def at(index: int) -> Tensor:
        return lines[abs(index) if index < length else 2 * (length - 1) - index]

    blurred = [sum(w * at(i + k - reach) for k, w in enumerate(weights)) / weights.sum() for i in range(length)]
    return torch.stack(blurred).movedim(0, axis)


def naive_bicubic(batch: Tensor, axis: int, size: int) -> Tensor:
    """Keys' kernel with a = -0.75; the first and last pixels of both images lie on each other."""
    lines, length = batch.movedim(axis, 0), batch.shape[axis]

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    made = []
    for i in range(size):
        place = i * (length - 1) / (size - 1) if size > 1 else 0.0
        near = int(place)
        made.append(sum(kernel(place - k) * lines[min(max(k, 0), length - 1)] for k in range(near - 1, near + 3)))
    return torch.stack(made).movedim(0, axis)


class TestPreprocessing:
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
    def test_equals_the_naive_reference(self, rows: int, cols: int, high: int, wide: int) -> None:
        batch = images(1, 3, rows, cols)
        wanted = batch.double() if (rows, cols) == (high, wide) else naive_resize(batch, high, wide)
        assert torch.allclose(resize(batch, (high, wide)).double(), wanted, atol=1e-5)

    def test_an_image_of_the_right_size_stays(self) -> None:
        batch = images(2, 3, 16, 12)
        assert resize(batch, (16, 12)) is batch

    @pytest.mark.parametrize("size", [(256, 256), (298, 224), (100, 64), (240, 298)])
    def test_no_blur_while_it_changes_nothing(self, size: tuple[int, int]) -> None:
        batch = images(1, 3, *size)
        squeezed = functional.interpolate(2 * batch - 1, (224, 224), mode="bicubic", align_corners=True)
        assert torch.equal(resize(batch, (224, 224)), (squeezed + 1) / 2)

    def test_the_blur_that_is_left_out_is_the_identity_to_float32(self) -> None:
        batch = images(1, 3, 64, 64)
        spike = torch.zeros(1, 3, 64, 64)
        spike[..., 32, 32] = 1
        for some in (batch.double(), spike.double()):
            assert torch.allclose(naive_blur(some, -1, 48), some, atol=3.1e-8, rtol=0)
        assert not torch.allclose(naive_blur(spike.double(), -1, 40), spike.double(), atol=3.1e-8, rtol=0)

    def test_one_axis_may_be_blurred_alone(self) -> None:
        stripes = torch.zeros(1, 3, 16, 128)
        stripes[..., ::2] = 1
        lying = stripes.transpose(2, 3)
        assert (resize(stripes, (16, 16)) - 0.5).abs().max() < 0.02
        assert torch.allclose(resize(lying, (16, 16)), resize(stripes, (16, 16)).transpose(2, 3), atol=1e-6)

    @given(st.floats(0, 1, width=32), st.integers(1, 50), st.integers(1, 50))
    def test_a_plain_image_stays_plain(self, value: float, rows: int, cols: int) -> None:
        assert torch.allclose(resize(torch.full((1, 3, rows, cols), value), (7, 5)), torch.tensor(value), atol=1e-6)

    def test_a_fine_checkerboard_becomes_grey(self) -> None:
        board = (torch.arange(128)[:, None] + torch.arange(128)).remainder(2).float().expand(1, 3, -1, -1)
        assert (resize(board, (16, 16)) - 0.5).abs().max() < 1e-3
        plain = functional.interpolate(board, (16, 16), mode="bicubic", align_corners=True)
        assert (plain - 0.5).abs().max() > 0.3, "the example would be grey without a blur, too"

    def test_nothing_is_clamped(self) -> None:
        edge = torch.zeros(1, 3, 12, 12)
        edge[..., 6:] = 1
        assert resize(edge, (16, 16)).min() < 0 and resize(edge, (16, 16)).max() > 1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_colours_are_normalised_in_float32(self, dtype: torch.dtype) -> None:
        batch = images(1, 3, 8, 8).to(dtype)
        normal = prepare(batch, (8, 8), CLIP_MEAN, CLIP_STD)
        assert normal.dtype == torch.float32
        back = normal * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
        assert torch.allclose(back, batch.float(), atol=1e-6)


def openclip_encoder(tower: OpenCLIPTower = TOWER) -> OpenCLIPImageEncoder:
    with initial_weights(3):
        config: Any = dict(tower.vision_cfg)
        heads = config["width"] // config.pop("head_width")
        visual = open_clip.model.VisionTransformer(
            **config, heads=heads, mlp_ratio=4.0, output_dim=tower.embed_dim,
            act_layer=open_clip.transformer.QuickGELU if tower.quick_gelu else torch.nn.GELU,
        )  # fmt: skip
    return OpenCLIPImageEncoder(visual.eval(), tower)


def timm_encoder(tower: TimmTower = TIMM) -> TimmImageEncoder:
    with initial_weights(4):
        return TimmImageEncoder(image_timm.build(tower).eval(), tower)


class TestOpenCLIP:
    @pytest.mark.parametrize("quick", [False, True])
    def test_is_what_open_clip_encodes(self, quick: bool, tmp_path: Path) -> None:
        """`encode_image` of the whole CLIP, whose weights are given as one file."""
        text = {"context_length": 4, "vocab_size": 9, "width": 16, "heads": 2, "layers": 1}
        with initial_weights(1):
            clip = open_clip.CLIP(12, {**VISION}, text, quick_gelu=quick).eval()  # pyright: ignore
        save_file(clip.state_dict(), tmp_path / "clip.safetensors")
        tower = replace(TOWER, quick_gelu=quick)
        encoder = image_openclip.load(
            tower, read_weights([tmp_path / "clip.safetensors"], "visual."), "there", torch.float32
        )
        batch = images(2, 3, 16, 16)
        normal = prepare(batch, (16, 16), CLIP_MEAN, CLIP_STD)
        assert torch.allclose(encoder(batch), clip.encode_image(normal), atol=1e-6)
        assert encoder.width == 12 and not encoder.training
        assert not any(value.requires_grad for value in encoder.parameters())

    def test_images_of_any_size_and_type(self) -> None:
        encoder = openclip_encoder()
        for rows, cols in ((16, 16), (64, 48), (5, 9)):
            assert encoder(images(2, 3, rows, cols)).shape == (2, 12)
        half = openclip_encoder().to(torch.bfloat16)
        assert half(images(1, 3, 20, 20)).dtype == torch.float32
        assert torch.allclose(half(images(1, 3, 20, 20)), encoder(images(1, 3, 20, 20)), atol=0.1)

    def test_the_default_is_the_published_code_s(self) -> None:
        tower = registered("ViT-H-14", "laion2b_s32b_b79k")
        assert (tower.embed_dim, tower.mean, tower.std) == (1024, CLIP_MEAN, CLIP_STD)
        visual = image_openclip.build(tower)
        assert sum(value.numel() for value in visual.parameters()) == 632_076_800
        assert all(value.is_meta for value in visual.parameters()), "a skeleton: no 2.5 GB of random numbers"

    def test_colours_are_those_of_the_weights(self) -> None:
        assert registered("ViT-B-16-SigLIP").mean == (0.5, 0.5, 0.5)
        assert registered("ViT-L-14", "openai").mean == CLIP_MEAN
        with pytest.raises(UserError, match="the weights of ViT-L-14 differ in the colours .* ViT-L-14@TAG"):
            registered("ViT-L-14")

    def test_the_activation_is_that_of_the_weights(self) -> None:
        """Not that of the model's configuration: OpenAI's were trained with another one than LAION's."""
        assert registered("ViT-B-32", "openai").quick_gelu
        assert not registered("ViT-B-32", "laion2b_s34b_b79k").quick_gelu
        assert registered("ViT-B-32-quickgelu").quick_gelu
        assert not registered("ViT-B-32", given=["quick_gelu"]).quick_gelu
        with pytest.raises(UserError, match="ViT-B-32 differ in their activation .* ViT-B-32@TAG .* openai, "):
            registered("ViT-B-32")
        taught = image_openclip.build(registered("ViT-B-32", "openai"))
        assert any("QuickGELU" in type(layer).__name__ for layer in taught.modules())

    def test_a_file_does_not_tell_the_activation(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="ViT-B-32 differ in their activation"):
            image_openclip.make("ViT-B-32", tmp_path / "some.safetensors")

    def test_a_tower_that_does_not_pool(self) -> None:
        tower = replace(TOWER, vision_cfg={**VISION, "pool_type": "none"})
        encoder = OpenCLIPImageEncoder(image_openclip.build(tower).to_empty(device="cpu"), tower)
        with pytest.raises(
            UserError, match="open_clip's tiny gives 5x12 numbers an image, not 12: choose a tower that"
        ):
            encoder(images(2, 3, 16, 16))

    @pytest.mark.parametrize(
        "model, told",
        [
            ("ViT-H14", "open_clip has no model 'ViT-H14': did you mean ViT-H-14"),
            ("ViT-H-14@laion2b", "open_clip has no weights 'laion2b' of ViT-H-14: did you mean laion2b_s32b_b79k"),
            ("ViT-B-32", "open_clip:ViT-B-32 needs weights: open_clip:ViT-B-32:FILE or open_clip:ViT-B-32@TAG"),
            ("local-dir:/etc", "open_clip has no model 'local-dir:/etc'"),
            ("hf-hub:some/one", "open_clip has no model 'hf-hub:some/one'"),
        ],
    )
    def test_names_that_cannot_be(self, model: str, told: str) -> None:
        with pytest.raises(UserError, match=told):
            image_openclip.make(model, None)

    @pytest.mark.parametrize("model", ["", "ViT-H-14@laion2b_s32b_b79k"])
    def test_weights_that_cannot_be_downloaded(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(config: dict[str, Any]) -> str:
            assert config["hf_hub"].startswith("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
            raise OSError("no network here. And more words")

        monkeypatch.setattr("open_clip.pretrained.download_pretrained", offline)
        told = (
            r"cannot download the weights laion2b_s32b_b79k of ViT-H-14 \(no network here\): "
            "download them where there is a network, then say open_clip:ViT-H-14:FILE"
        )
        with pytest.raises(UserError, match=told):
            image_openclip.make(model, None)

    def test_weights_are_those_of_the_tag(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "small.safetensors"
        save_file(openclip_encoder().visual.state_dict(), path)
        monkeypatch.setattr(
            image_openclip, "registered", lambda name, tag, given: replace(TOWER, model=f"{name} {tag}")
        )
        monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda config: str(path))
        encoder = image_openclip.make("ViT-B-32@laion2b_s34b_b79k", None)
        assert isinstance(encoder, OpenCLIPImageEncoder) and encoder.tower.model == "ViT-B-32 laion2b_s34b_b79k"
        assert torch.allclose(encoder(images(1, 3, 16, 16)), openclip_encoder()(images(1, 3, 16, 16)), atol=1e-6)


class TestTimm:
    def test_is_what_timm_gives_its_classifier(self, tmp_path: Path) -> None:
        with initial_weights(5):
            whole = timm.create_model("test_resnet", num_classes=7).eval()
        save_file(whole.state_dict(), tmp_path / "whole.safetensors")
        encoder = image_timm.make("test_resnet", tmp_path / "whole.safetensors")
        config = timm.data.resolve_model_data_config(whole)
        size, batch = config["input_size"][1:], images(2, 3, 50, 70)
        pixels = prepare(batch, size, config["mean"], config["std"])
        wanted: Any = whole
        assert torch.allclose(encoder(batch), wanted.forward_head(wanted.forward_features(pixels), pre_logits=True))
        assert encoder.width == encoder(batch).shape[1] and not encoder.training

    @pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
    def test_width_is_what_comes_out(self, name: str) -> None:
        encoder = timm_encoder(TimmTower(model=name))
        assert encoder(images(1, 3, 40, 40)).shape == (1, encoder.width)

    def test_sizes_and_colours_may_differ(self) -> None:
        plain, other = timm_encoder(), timm_encoder(replace(TIMM, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)))
        assert plain.width == 32
        batch = images(1, 3, 32, 32)
        wanted = prepare(batch, (32, 32), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
        assert torch.equal(other(batch), other.network(wanted)) and not torch.equal(other(batch), plain(batch))

    def test_half_precision(self) -> None:
        assert timm_encoder().to(torch.bfloat16)(images(1, 3, 40, 40)).dtype == torch.float32

    @pytest.mark.parametrize(
        "model, told",
        [
            ("vit_tiny_patch16_225", "timm has no model 'vit_tiny_patch16_225': did you mean vit_tiny_patch16_224"),
            ("xqzw", r"timm has no model 'xqzw': timm.list_models\(\) tells them"),
            ("resnet18.nope", "timm has no weights 'nope' of resnet18: there are a1_in1k"),
            ("hf_hub:some/one", "timm has no model 'hf_hub:some/one'"),
            ("local-dir:/etc", "timm has no model 'local-dir:/etc'"),
        ],
    )
    def test_names_that_cannot_be(self, model: str, told: str) -> None:
        with pytest.raises(UserError, match=told):
            image_timm.make(model, None)

    def test_weights_that_cannot_be_downloaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(name: str, **options: object) -> None:
            raise OSError("no network here")

        monkeypatch.setattr("timm.create_model", offline)
        with pytest.raises(UserError, match=r"cannot download .* test_vit \(no network here\): .* timm:test_vit:FILE"):
            image_timm.make("test_vit", None)

    def test_features_that_are_maps(self) -> None:
        tower = TimmTower(model="test_resnet")
        network: Any = image_timm.build(tower)
        network.reset_classifier(0, "")
        with pytest.raises(UserError, match="test_resnet gives .*x.* numbers an image, not .*pooled features"):
            TimmImageEncoder(network.eval(), tower)(images(1, 3, 20, 20))


KINDS = {"open_clip": openclip_encoder, "timm": timm_encoder}


@pytest.fixture(params=sorted(KINDS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An encoder's folder."""
    save_image_encoder(tmp_path / "image_encoder", KINDS[request.param]())
    return tmp_path / "image_encoder"


def change(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({name: v for name, v in config.items() if v is not None}))


def refused(folder: Path, told: str) -> None:
    with pytest.raises(UserError) as error:
        load_image_encoder(folder, torch.float32)
    assert told in str(error.value) and "\n" not in str(error.value)


class TestFolder:
    def test_comes_back_as_it_was(self, saved: Path) -> None:
        loaded, batch = load_image_encoder(saved, torch.float32), images(2, 3, 50, 40)
        encoder = KINDS[json.loads((saved / "config.json").read_text())["library"]]()
        assert type(loaded) is type(encoder) and loaded.width == encoder.width
        assert torch.allclose(loaded(batch), encoder(batch), atol=1e-6)
        assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
        half = load_image_encoder(saved, torch.bfloat16)
        assert {value.dtype for value in half.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize("index", [False, True])
    def test_in_parts(self, saved: Path, index: bool) -> None:
        whole = load_image_encoder(saved, torch.float32)
        tensors = load_file(saved / "model.safetensors")
        (saved / "model.safetensors").unlink()
        names, files = list(tensors), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        for file, half in zip(files, halves, strict=True):
            save_file({name: tensors[name] for name in half}, saved / file)
        if index:
            placed = {name: file for file, half in zip(files, halves, strict=True) for name in half}
            (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
        assert torch.equal(load_image_encoder(saved, torch.float32)(images(1, 3, 9, 9)), whole(images(1, 3, 9, 9)))
        (saved / files[1]).unlink()
        refused(saved, f"{files[1]} is missing" if index else "are missing")

    def test_a_registered_name_needs_no_sizes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(
            open_clip.factory._MODEL_CONFIGS, "Tiny", {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": {}}
        )
        save_image_encoder(tmp_path / "here", openclip_encoder())
        (tmp_path / "here" / "config.json").write_text('{"library": "open_clip", "model": "Tiny", "std": [1, 1, 1]}')
        loaded = load_image_encoder(tmp_path / "here", torch.float32)
        assert isinstance(loaded, OpenCLIPImageEncoder)
        assert (loaded.tower.mean, loaded.tower.std) == (CLIP_MEAN, (1.0, 1.0, 1.0))

    @pytest.mark.parametrize(
        "settings, told",
        [
            ({"library": "clip"}, 'config.json: library must be open_clip or timm, not "clip"'),
            ({"model": None}, "config.json: model is missing: name the model of "),
            ({"model": 3}, "config.json: model must be a name, not 3"),
            ({"pretrained": True}, "config.json: unknown setting 'pretrained'; an encoder of "),
            ({"mean": [0.5]}, "config.json: mean must be three numbers"),
            ({"std": [True, 1, 1]}, "config.json: std must be three numbers above 0"),
            ({"std": [0.5, 0, 0.5]}, "config.json: std must be three numbers above 0"),
            ({"mean": [0.5, float("nan"), 0.5]}, "config.json: mean must be three numbers"),
            ({"library": ["open_clip"]}, 'config.json: library must be open_clip or timm, not ["open_clip"]'),
        ],
    )
    def test_configurations_that_make_no_sense(self, saved: Path, settings: dict[str, Any], told: str) -> None:
        change(saved, **settings)
        refused(saved, told)

    @pytest.mark.parametrize(
        "settings, told",
        [
            ({"embed_dim": None}, "embed_dim and vision_cfg belong together: name both, or none"),
            ({"embed_dim": True}, "embed_dim must be a whole number, not true"),
            ({"embed_dim": 13}, "does not fit: proj is 32x12 there, the model takes 32x13"),
            ({"vision_cfg": {**VISION, "layers": 3}}, "are missing, transformer.resblocks.2."),
            ({"vision_cfg": {**VISION, "layers": 1}}, "do not belong there, transformer.resblocks.1."),
            ({"vision_cfg": {**VISION, "wings": 2}}, "open_clip cannot make tiny with these sizes"),
            ({"vision_cfg": {**VISION, "head_width": 0}}, "open_clip cannot make tiny with these sizes"),
            ({"vision_cfg": {"timm_model_name": "hf_hub:some/one"}}, "timm has no model 'hf_hub:some/one'"),
            ({"model": "ViT-Q", "embed_dim": None, "vision_cfg": None}, "open_clip has no model 'ViT-Q'"),
        ],
    )
    def test_open_clip_towers_that_cannot_be(self, tmp_path: Path, settings: dict[str, Any], told: str) -> None:
        save_image_encoder(tmp_path / "here", openclip_encoder())
        change(tmp_path / "here", **settings)
        refused(tmp_path / "here", told)

    @pytest.mark.parametrize(
        "settings, told",
        [
            ({"model": "vit_teeny"}, "timm has no model 'vit_teeny'"),
            (
                {"model_args": {"checkpoint_path": "/etc/passwd"}},
                "model_args of timm's vit_tiny_patch16_224 has 'check",
            ),
            ({"model_args": {**SMALL, "num_heads": 5}}, "timm cannot make vit_tiny_patch16_224 with these sizes"),
            ({"model_args": {**SMALL, "embed_dim": 48}}, "does not fit: "),
        ],
    )
    def test_timm_models_that_cannot_be(self, tmp_path: Path, settings: dict[str, Any], told: str) -> None:
        save_image_encoder(tmp_path / "here", timm_encoder())
        change(tmp_path / "here", **settings)
        refused(tmp_path / "here", told)

    def test_weights_that_are_damaged(self, saved: Path) -> None:
        path = saved / "model.safetensors"
        whole, tensors = path.read_bytes(), load_file(path)
        name = next(iter(tensors))
        save_file({**tensors, name: tensors[name] * float("nan")}, path)
        refused(saved, f"{name} holds NaN or infinite numbers as float32: the file is damaged")
        save_file({each: value for each, value in tensors.items() if each != name}, path)
        refused(saved, f"the weights in {saved} are not this model's: 1 are missing, {name} for one")
        save_file({**tensors, "stranger": torch.ones(1)}, path)
        refused(saved, "1 do not belong there, stranger for one")
        path.write_bytes(whole[: len(whole) // 2])
        refused(saved, "model.safetensors is truncated or no safetensors file")
        path.unlink()
        refused(saved, "has no weights (*.safetensors)")
        torch.save(tensors, saved / "pytorch_model.bin")
        refused(saved, "holds its weights as a pickle (pytorch_model.bin), which is never opened")

    def test_numbers_too_large_for_half_precision(self, saved: Path) -> None:
        tensors = load_file(saved / "model.safetensors")
        name = next(iter(tensors))
        save_file({**tensors, name: tensors[name] + 1e6}, saved / "model.safetensors")
        with pytest.raises(UserError, match="NaN or infinite numbers as float16: .*needs another --dtype"):
            load_image_encoder(saved, torch.float16)

    def test_torch_files_hold_numbers_only(self, tmp_path: Path) -> None:
        tensors = {f"module.{name}": value for name, value in openclip_encoder().visual.state_dict().items()}
        torch.save({"state_dict": tensors}, tmp_path / "numbers.pt")
        assert set(read_weights([tmp_path / "numbers.pt"], "visual.")) == set(openclip_encoder().visual.state_dict())
        torch.save({"state_dict": {"a": Trap()}}, tmp_path / "trap.pt")
        with pytest.raises(UserError, match="trap.pt holds more than numbers"):
            read_weights([tmp_path / "trap.pt"])

    def test_torch_s_generator_is_left_alone(self, saved: Path) -> None:
        before = torch.get_rng_state()
        load_image_encoder(saved, torch.float32)
        assert torch.equal(torch.get_rng_state(), before)


class Trap:
    """Would end the tests if it were unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return exit, (1,)


@final
class Brightness(ImageEncoder):
    """Twice the mean, `share` of it the top half's."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(share))

    @property
    def width(self) -> int:
        return 1

    def forward(self, images: Frames) -> Tensor:
        top, all_of_it = images[..., : images.shape[-2] // 2, :].mean((1, 2, 3)), images.mean((1, 2, 3))
        return 2 * (self.share * top + (1 - self.share) * all_of_it)[:, None]


def brightness(model: str, weights: Path | None) -> Brightness:
    return Brightness(float(model))


def broken(model: str, weights: Path | None) -> Brightness:
    raise RuntimeError("out of order")


@final
class Seeing(LongTermMemory[Tensor]):
    """Adds the anchor's embedding to every text token."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert model.image is not None
        self.borrowed = (model.image,)
        self.sites = [site.name for site in model.backbone.context_sites]

    def remember(self, anchor: Frames) -> Tensor:
        return self.borrowed[0](anchor[:, 0])[:, 0]

    def deltas(self, state: Tensor, call: Call) -> Deltas:
        rows = state.repeat(len(call.guided) // len(state)).view(-1, 1, 1)
        return {name: lambda value: 4 * rows.expand_as(value) for name in self.sites}


def seeing(model: Model, weights: Path | None) -> Seeing:
    return Seeing(model)


ENCODERS = {
    "bright": "tests.test_image_encoders:brightness",
    "broken": "tests.test_image_encoders:broken",
    "folder": "backends.image_folder:make",
    "open_clip": "backends.image_openclip:make",
    "timm": "backends.image_timm:make",
}


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    long = {**PLUGINS["streaming.long_term_memories"], "seeing": "tests.test_image_encoders:seeing"}
    register(monkeypatch, {**PLUGINS, "streaming.long_term_memories": long, "streaming.image_encoders": ENCODERS})
    monkeypatch.chdir(tmp_path)
    yield


@pytest.mark.usefixtures("plugins")
class TestRegistry:
    def test_what_a_spec_means(self, tmp_path: Path) -> None:
        (tmp_path / "some").mkdir()
        (tmp_path / "timm").mkdir()
        file = tmp_path / "a:b.safetensors"
        file.touch()
        assert image_encoder_spec("some") == ("folder", "some", None)
        assert image_encoder_spec("timm") == ("timm", "", None), "a library's name comes first"
        assert image_encoder_spec("./timm") == ("folder", "./timm", None)
        assert image_encoder_spec("open_clip") == ("open_clip", "", None)
        assert image_encoder_spec("open_clip:ViT-H-14@tag") == ("open_clip", "ViT-H-14@tag", None)
        assert image_encoder_spec(f"timm:resnet18:{file}") == ("timm", "resnet18", file)

    @pytest.mark.parametrize(
        "spec, told",
        [
            ("", "no image encoder '': there is no such folder, and '' is no library"),
            ("clip:ViT", "'clip' is no library; name a folder with its config.json, or LIBRARY:MODEL:FILE, the library "
             "one of bright, broken, open_clip, timm$"),
            ("folder:somewhere", "'folder' is no library"),
            ("timm:resnet18:no.safetensors", "there is no file no.safetensors with its weights"),
        ],
    )  # fmt: skip
    def test_specs_that_cannot_be(self, spec: str, told: str) -> None:
        with pytest.raises(UserError, match=told):
            image_encoder_spec(spec)

    def test_the_model_gets_it_in_its_own_type(self, saved: Path) -> None:
        model = open_model("tiny-modelscope", dtype=torch.bfloat16)
        other = with_image_encoder(model, str(saved))
        assert other.image is not None and other.image is not model.image and other.backbone is model.backbone
        assert {value.dtype for value in other.image.parameters()} == {torch.bfloat16}

    def test_a_plugin_that_fails(self) -> None:
        with pytest.raises(UserError, match="the plugin 'broken' .* does not work: RuntimeError: out of order"):
            with_image_encoder(open_model("tiny-modelscope"), "broken:x")


def test_an_apm_is_trained_with_the_encoder_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = {"toys": "tests.adapter_toys:ToyClips"}
    register(monkeypatch, {**PLUGINS, "streaming.image_encoders": ENCODERS, "streaming.datasets": datasets})
    monkeypatch.setattr("adapters.train.open_model", lambda name: toy_model())
    save_image_encoder(tmp_path / "seer", openclip_encoder())
    options = TrainOptions(
        work=tmp_path, device="cpu", toy=True, steps=1, dataset="toys", image_encoder=str(tmp_path / "seer")
    )
    train_memories(options)
    assert json.loads((tmp_path / "apm" / "config.json").read_text())["image_width"] == TOWER.embed_dim
    model = toy_model(tmp_path)
    with pytest.raises(UserError, match="reads image embeddings of 12 numbers, this model's image encoder gives"):
        apm(model, None)
    trained = apm(with_image_encoder(model, str(tmp_path / "seer")), None)
    assert isinstance(trained.borrowed[0], OpenCLIPImageEncoder)
    assert not any(name.startswith("borrowed") for name in trained.state_dict())


def make_video(output: str, *options: object) -> int:
    return run("generate", "a ball", "--frames", 9, "--steps", 2, "--long-term", "seeing", "--output", output, *options)


@pytest.mark.usefixtures("plugins")
class TestCommandLine:
    def test_decides_what_the_memory_sees(self) -> None:
        assert make_video("one.mp4", "--image-encoder", "bright:0.2") == 0
        assert make_video("two.mp4", "--image-encoder", "bright:0.2") == 0
        assert make_video("three.mp4", "--image-encoder", "bright:0.9") == 0
        assert same(Path("one.mp4"), Path("two.mp4")) and not same(Path("one.mp4"), Path("three.mp4"))
        settings = [Checkpoint.load(Path(f"{name}.mp4.checkpoint")).settings for name in ("one", "two", "three")]
        told = [each["image encoder"] for each in settings]
        assert told[0].startswith("Brightness ") and told[0] == told[1] != told[2]

    def test_cannot_change_when_a_video_is_continued(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert make_video("one.mp4", "--image-encoder", "bright:0.2") == 0
        capfd.readouterr()
        goes_on = ("generate", "--resume", "one.mp4.checkpoint", "--frames", 14)
        assert run(*goes_on, "--image-encoder", "bright:0.9") == 2
        assert "--image-encoder cannot change when a video is continued: it was 'bright:0.2'" in capfd.readouterr().err
        assert run(*goes_on) == 0

    def test_other_weights_under_the_same_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(globals(), "brightness", lambda model, weights: Brightness(0.2))
        assert make_video("one.mp4", "--image-encoder", "bright:x") == 0
        monkeypatch.setitem(globals(), "brightness", lambda model, weights: Brightness(0.7))
        assert run("generate", "--resume", "one.mp4.checkpoint", "--frames", 14) == 2
        assert "image encoder" in capfd.readouterr().err

    @pytest.mark.parametrize("spec", ["clip:ViT", "timm:resnet18:no.safetensors", ""])
    def test_what_is_wrong_is_known_before_a_model_is_loaded(
        self, spec: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert make_video("one.mp4", "--image-encoder", spec) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: no image encoder '") and "loading" not in error
        assert not Path("one.mp4").exists()

    def test_wrong_weights_leave_nothing_behind(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors")
        assert make_video("one.mp4", "--image-encoder", "timm:test_vit:odd.safetensors") == 2
        assert "the weights in odd.safetensors are not this model's" in capfd.readouterr().err
        assert not Path("one.mp4").exists() and not Path("one.mp4.checkpoint").exists()

    def test_training_of_parts_that_see_no_anchor(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run("train", "cam", "--work", "work", "--image-encoder", "bright:1") == 2
        line = "cam sees no anchor frame: leave --image-encoder out, it is for apm, append and memories"
        assert line in capfd.readouterr().err
        assert not Path("work").exists()
