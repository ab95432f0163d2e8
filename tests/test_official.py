"""The published checkpoint's 3407 names: a bijection with full-size networks, pieces of it, old names, refusals."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from adapters.apm import APM, APMConfig
from adapters.cam import CAM, CAMConfig
from adapters.official import to_official_state, to_our_state
from adapters.official_names import (
    PARTS,
    Layout,
    ignored,
    merger_to_official,
    merger_to_ours,
    mixer_to_official,
    mixer_to_ours,
    modern,
    pick,
    to_official,
    to_ours,
)
from adapters.official_place import PUBLISHED, fitting_configs, place_tensors
from adapters.official_sizes import axes
from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_unet import UNet3DBackbone
from streaming.backbone import Window
from streaming.codec import ImageEncoder
from streaming.errors import UserError
from streaming.weights import Checkpoint
from tests.official_toys import published, small

COUNTS = {"unet": 1480, "cam": 825, "apm": 84, "vae": 248, "text_encoder": 372, "image_encoder": 392}
LEFTOVERS = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
             "ln_final.bias")  # fmt: skip
QUERY = "vae.encoder.mid_block.attentions.0.to_q.weight"


@final
class Blind(ImageEncoder):
    """Only as wide as ViT-H-14's embeddings."""

    @property
    def width(self) -> int:
        return 1024

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """The full-size networks as their libraries and this one make them from the published settings, without numbers."""
    with torch.device("meta"):
        unet = UNet3DConditionModel(
            sample_size=32,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=64,
            cross_attention_dim=1024,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        backbone, codec = UNet3DBackbone(unet, tokens=77, window=Window(16, 8)), AutoencoderKLCodec(vae)
        text = CLIPTextConfig(
            vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
        )
        sizes: Any = open_clip.get_model_config("ViT-H-14")
        return {
            "unet": unet,
            "cam": CAM(CAMConfig.fitting(backbone, codec, widths=(32, 96, 256, 512)), backbone.feature_encoder()),
            "apm": APM(APMConfig(sites=backbone.context_sites, image_width=1024, inner=1280), Blind()),
            "vae": vae,
            "text_encoder": CLIPTextModel(text),
            "image_encoder": _build_vision_tower(sizes["embed_dim"], CLIPVisionCfg(**sizes["vision_cfg"])),
        }


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


class TestBijection:
    def test_every_name_and_shape_of_full_size_networks(self, networks: dict[str, nn.Module]) -> None:
        theirs = to_official_state({part: network.state_dict() for part, network in networks.items()})
        assert shapes(theirs) == {name: shape for name, shape in published().items() if not ignored(name)}
        assert len(theirs) == 3401 and len(published()) == 3407

    def test_and_back(self, networks: dict[str, nn.Module]) -> None:
        state = {name: torch.empty(shape, device="meta") for name, shape in published().items()}
        for part, network in networks.items():
            ours = {name.removeprefix("text_model."): value for name, value in network.state_dict().items()}
            assert shapes(to_our_state(part, state)) == shapes(ours)

    def test_counts_and_the_six_that_nothing_computes_with(self) -> None:
        kept = [name for name in published() if not ignored(name)]
        places = [to_ours(name, PUBLISHED) for name in kept]
        assert None not in places and len(set(places)) == len(kept)
        assert Counter(place[0] for place in places if place) == COUNTS
        assert {name for name in published() if ignored(name)} == {f"image_encoder.model.{name}" for name in LEFTOVERS}
        assert ignored("text_encoder.text_model.embeddings.position_ids")
        assert ignored("text_encoder.embeddings.position_ids")
        assert ignored("image_encoder.model.attn_mask")

    def test_what_is_wanted_whatever_the_sizes_is_what_is_published(self) -> None:
        assert Counter({part: len(found) for part, found in axes().items()}) == COUNTS
        there = {to_official(part, name, PUBLISHED) for part, found in axes().items() for name in found}
        assert there == {name for name in published() if not ignored(name)}

    def test_sites_are_in_the_order_in_which_a_unet_is_evaluated(self, networks: dict[str, nn.Module]) -> None:
        apm: Any = networks["apm"]
        assert tuple(site.name for site in apm.config.sites) == PUBLISHED.attentions
        assert Layout.of(published()) == PUBLISHED

    def test_configurations_are_read_off_the_shapes(self, networks: dict[str, nn.Module], tmp_path: Path) -> None:
        meta: Any = object.__new__(Checkpoint)
        meta.path = tmp_path
        meta.meta = {name: torch.empty(shape, device="meta") for name, shape in published().items()}
        configs = fitting_configs(meta, place_tensors(meta))
        built: Any = networks
        for part in ("unet", "vae"):
            default = {name: value for name, value in built[part].config.items() if not name.startswith("_")}
            given = {name: value for name, value in configs[part].items() if name not in ("_class_name", "sample_size")}
            assert {name: _tuple(default[name]) for name in given} == {name: _tuple(given[name]) for name in given}
        for part in ("cam", "apm"):
            settings = {name: value for name, value in configs[part].items() if name != "class"}
            sites = [vars(site) for site in built[part].config.sites]
            assert {**vars(built[part].config), "sites": sites} == {**settings, "sites": list(settings["sites"])}
        text = built["text_encoder"].config.to_dict()
        same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        assert all(configs["text_encoder"][name] == text[name] for name in same)
        assert configs["text_encoder"]["hidden_act"] == "gelu"
        sizes: Any = open_clip.get_model_config("ViT-H-14")
        assert configs["image_encoder"]["embed_dim"] == sizes["embed_dim"]
        assert configs["image_encoder"]["vision_cfg"] == {**sizes["vision_cfg"], "mlp_ratio": 4.0}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class TestPieces:
    """The map serves single networks, other depths and other widths."""

    @given(skips=st.integers(1, 20), levels=st.integers(1, 6), layers=st.integers(1, 12))
    def test_any_depth(self, skips: int, levels: int, layers: int) -> None:
        sites = [f"down_blocks.{i}.attentions.{j}" for i in range(levels) for j in range(layers)]
        sites += ["mid_block.attentions.0"]
        sites += [f"up_blocks.{i}.attentions.{j}" for i in range(levels) for j in range(layers + 1)]
        layout = Layout(skips=skips, attentions=tuple(sites))
        ours = [f"mergers.{i}.to_out.weight" for i in range(skips + 1)]
        theirs = [to_official("cam", name, layout) for name in ours]
        begin, end = "base_model.cross_attention_merger_", ".temporal_transformer.attention.to_out.0.weight"
        assert theirs == [f"{begin}down_blocks.{i}{end}" for i in range(skips)] + [f"{begin}mid_block{end}"]
        mixers = [to_official("apm", f"mixers.{i}.alpha", layout) for i in range(len(sites))]
        assert mixers == [f"base_model.{site}.transformer_blocks.0.attn2.alpha" for site in sites]
        shuffled = sorted(theirs + mixers)
        assert Layout.of(shuffled) == layout
        assert pick("cam", shuffled) == dict(zip(ours, theirs, strict=True))

    def test_a_piece_of_the_state_dict(self) -> None:
        state = {name: value for name, value in small().items() if name.startswith("unet.")}
        ours = to_our_state("cam", state)
        assert len(ours) == 682 and not to_our_state("unet", state)
        assert torch.equal(ours["condition.conv_in.weight"], state["unet.controlnet_cond_embedding.conv_in.weight"])
        assert torch.equal(ours["encoder.conv_in.bias"], state["unet.conv_in.bias"])

    def test_inside_a_merger_and_a_mixer(self) -> None:
        theirs = ["norm.bias", "proj_in.weight", "attention.to_q.weight", "attention.to_out.0.bias", "proj_out.bias"]
        theirs = [f"temporal_transformer.{name}" for name in theirs]
        ours = ["norm.bias", "proj_in.weight", "to_q.weight", "to_out.bias", "proj_out.bias"]
        assert [merger_to_ours(name) for name in theirs] == ours
        assert [merger_to_official(name) for name in ours] == theirs
        assert [mixer_to_ours(name) for name in ("conv.weight", "conv_ln.bias", "alpha")] == [
            "conv.weight", "norm.bias", "alpha"]  # fmt: skip
        assert [mixer_to_official(name) for name in ("conv.weight", "norm.bias", "alpha")] == [
            "conv.weight", "conv_ln.bias", "alpha"]  # fmt: skip

    @pytest.mark.parametrize(
        ("part", "name"),
        [
            ("cam", "mergers.13.norm.bias"),
            ("cam", "heads.0.weight"),
            ("apm", "mixers.16.alpha"),
            ("apm", "mixers.x.alpha"),
            ("unet", "cross_attention_merger_mid_block.temporal_transformer.norm.bias"),
        ],
    )
    def test_names_of_ours_that_have_no_published_one(self, part: str, name: str) -> None:
        with pytest.raises(KeyError, match="the published checkpoint has no"):
            to_official(part, name, PUBLISHED)


class TestOldNames:
    def test_of_the_autoencoder_and_the_text_tower(self) -> None:
        old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
        for name, today in old.items():
            begin = "vae.decoder.mid_block.attentions.0."
            assert modern(f"{begin}{name}.bias") == f"{begin}{today}.bias"
        assert modern("text_encoder.encoder.layers.3.mlp.fc1.bias") == (
            "text_encoder.text_model.encoder.layers.3.mlp.fc1.bias"
        )
        assert all(modern(name) == name for name in published())

    def test_a_matrix_kept_as_a_convolution(self) -> None:
        value = torch.randn(6, 6)
        state = {QUERY.replace("to_q", "query"): value[:, :, None, None]}
        assert torch.equal(to_our_state("vae", state)["encoder.mid_block.attentions.0.to_q.weight"], value)


class TestRefusals:
    """One line that says how many and which."""

    def refusal(self, state: dict[str, Tensor], folder: Path) -> str:
        save_file(state, folder / "some.safetensors")
        checkpoint = Checkpoint(folder / "some.safetensors")
        with pytest.raises(UserError) as caught:
            fitting_configs(checkpoint, place_tensors(checkpoint))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("part", PARTS)
    def test_missing(self, part: str, tmp_path: Path) -> None:
        theirs = sorted(pick(part, published()).values())
        state = small()
        for name in theirs[:5]:
            del state[name]
        line = self.refusal(state, tmp_path)
        assert "5 tensors are missing, " in line and " and 2 more: download it again" in line
        assert sum(name in line for name in theirs[:5]) == 3

    def test_a_whole_network_missing(self, tmp_path: Path) -> None:
        state = {name: value for name, value in small().items() if not name.startswith("vae.")}
        assert "248 tensors are missing, vae." in self.refusal(state, tmp_path)

    def test_the_last_layer_missing(self, tmp_path: Path) -> None:
        state = {name: value for name, value in small().items() if ".encoder.layers.22." not in name}
        assert "16 tensors are missing, text_encoder.text_model.encoder.layers.22." in self.refusal(state, tmp_path)

    @pytest.mark.parametrize(
        "name",
        ["base_model.extra.weight", "lpips.weight", "unet.controlnet_mid_block.weight",
         "image_encoder.model.transformer.resblocks.0.ln_1.weight",
         "base_model.cross_attention_merger_down_blocks.12.temporal_transformer.norm.bias"],
    )  # fmt: skip
    def test_foreign(self, name: str, tmp_path: Path) -> None:
        line = self.refusal({**small(), name: torch.zeros(3)}, tmp_path)
        assert f": 1 tensor is foreign or double, {name}: is it of another version of StreamingT2V?" in line

    def test_double(self, tmp_path: Path) -> None:
        line = self.refusal({**small(), QUERY.replace("to_q", "query"): torch.zeros(24, 24)}, tmp_path)
        assert f"1 tensor is foreign or double, {QUERY}: " in line

    @pytest.mark.parametrize(
        ("name", "shape", "said"),
        [
            ("base_model.conv_norm_out.bias", (9,), "1 tensor is of shapes that do not fit the others, "
             "base_model.conv_norm_out.bias is 9, not 8: download it again"),
            ("base_model.mid_block.attentions.0.transformer_blocks.0.attn2.alpha", (2,), "1 tensor is of no possible "
             "shape, base_model.mid_block.attentions.0.transformer_blocks.0.attn2.alpha is 2, not a single number: "),
            ("resampler.context_embedding.0.weight", (12, 17), "the image encoder's width and APM's do not fit"),
            ("base_model.conv_in.weight", (), "base_model.conv_in.weight is a single number, not of 4 axes: download"),
            ("base_model.conv_in.weight", (0, 4, 3, 3), "base_model.conv_in.weight is 0x4x3x3, not of 4 axes"),
            ("unet.controlnet_cond_embedding.conv_in.bias", (3,), "controlnet_cond_embedding.conv_in.bias is 3, not 4"),
            ("vae.post_quant_conv.weight", (5, 5, 1, 1), "of shapes that do not fit the others, vae."),
        ],
    )  # fmt: skip
    def test_shapes(self, name: str, shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
        assert said in self.refusal({**small(), name: torch.zeros(shape)}, tmp_path)

    def test_a_renamed_tensor(self, tmp_path: Path) -> None:
        """What is missing and what is left over are told together."""
        state = small()
        state["vae.spare.weight"] = state.pop(QUERY)
        line = self.refusal(state, tmp_path)
        assert f": 1 tensor is missing, {QUERY}; and 1 tensor is foreign or double, vae.spare.weight: is it of" in line

    def test_mergers_of_another_width_than_the_unets_sites(self, tmp_path: Path) -> None:
        state = small()
        begin = "base_model.cross_attention_merger_down_blocks.0.temporal_transformer."
        for name, value in state.items():
            if name.startswith(begin):  # a merger that fits itself, but not the 8 channels there
                state[name] = torch.zeros([16 if size == 8 else size for size in value.shape])
        line = self.refusal(state, tmp_path)
        assert ": 11 tensors are of shapes that do not fit the others, base_model.cross_attention_merger_down_" in line
        assert f"{begin}attention.to_out.0.weight is 16x16, not 8x8 and 8 more: download it again" in line

    def test_whole_numbers(self, tmp_path: Path) -> None:
        line = self.refusal({**small(), QUERY: torch.zeros(16, 16, dtype=torch.int8)}, tmp_path)
        assert f"{QUERY} of type int8 should be of floating-point numbers: give the file as it was published" in line


class TestStrictness:
    """Names that belong nowhere are never passed over in silence."""

    @pytest.mark.parametrize(
        ("part", "name"),
        [("unet", "nonsense.weight"), ("vae", "text_model.encoder.conv_in.bias"), ("decoder", "conv_in.weight")],
    )
    def test_to_official(self, part: str, name: str) -> None:
        with pytest.raises(KeyError, match=f"the published checkpoint has no {part}: {name}"):
            to_official_state({part: {name: torch.zeros(1)}})

    @pytest.mark.parametrize("name", ["lpips.weight", "vae.nonsense.weight", "base_model.down_blocks.0.weight"])
    def test_to_ours(self, name: str) -> None:
        with pytest.raises(KeyError, match=f"StreamingT2V has no tensor {name}"):
            to_our_state("cam", {name: torch.zeros(1)})

    def test_an_unknown_part(self) -> None:
        with pytest.raises(KeyError, match="StreamingT2V has no part decoder: there are unet, cam, apm"):
            to_our_state("decoder", {})
