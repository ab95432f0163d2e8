"""ModelScope's video-to-video model: its sampling of rows, its noise schedule, its checkpoints, its folder."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from backends.embedded import packaged_weights
from backends.modelscope import ModelScope
from backends.modelscope_codec import AutoencoderKLCodec, fitting_tile
from backends.modelscope_convert import ENHANCER, TextToVideo, VideoToVideo
from backends.modelscope_folder import load_scheduler, quiet
from backends.modelscope_keys import diffusers_names, native_names, prefix, read_sizes
from backends.modelscope_settings import load_defaults, load_variant, save_defaults
from backends.modelscope_unet import UNet3DBackbone
from backends.modelscope_v2v import nearest_size, video_to_video
from backends.modelscope_v2v_schedule import save_scheduler, video_to_video_sigmas
from streaming.backbone import Call, Guided, NoiseLevel, Window
from streaming.convert import ConvertOptions, convert
from streaming.enhance import assemble_enhancer
from streaming.errors import UserError
from streaming.keys import Key
from streaming.model import Defaults
from streaming.registry import open_enhancer
from tests.test_model_directories import TEXT, make_tokenizer, make_vae

CPU, OPTIONS = torch.device("cpu"), ConvertOptions(dtype=torch.float32)
FULL = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024, "attention_head_dim": 64}


def blank_unet(levels: int, layers: int, reads: int) -> UNet3DConditionModel:
    """A tiny one, of which the first `reads` levels read text."""
    down = [("CrossAttn" if level < reads else "") + "DownBlock3D" for level in range(levels)]
    return UNet3DConditionModel(
        block_out_channels=(32,) * levels,
        layers_per_block=layers,
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=TEXT["hidden_size"],
        attention_head_dim=8,
    )


def make_unet(levels: int = 2, layers: int = 1, reads: int = 1, seed: int = 0) -> UNet3DConditionModel:
    """Likewise, with weights; none of them is zero."""
    unet = blank_unet(levels, layers, reads)
    for name, value in unet.state_dict().items():
        value.copy_(0.1 * Key(seed).fold(name).normal(*value.shape) + (value.ndim == 1 and name.endswith("weight")))
    return unet.eval().requires_grad_(False)


def native_state(unet: UNet3DConditionModel) -> dict[str, torch.Tensor]:
    """As ModelScope writes it: temporal projections are convolutions."""
    names = native_names(unet.state_dict(), unet.config["layers_per_block"])
    state = {}
    for name, value in unet.state_dict().items():
        is_conv = ("temp_attentions" in name or "transformer_in" in name) and ".proj_" in name and value.ndim == 2
        state[names[name]] = value[:, :, None] if is_conv else value
    return {name: value.contiguous() for name, value in state.items()}


class TestRows:
    def test_published_sizes(self) -> None:
        """90 rows become 46, 24, 13, then 24, 46, 90; columns are halved and doubled."""
        unet = video_to_video(make_unet(levels=4, reads=0))
        rows, cols = [], []

        def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
            rows.append(result.shape[-2])
            cols.append(result.shape[-1])

        for block in (*unet.down_blocks[:3], *unet.up_blocks[:3]):
            (block.downsamplers if block in unet.down_blocks else block.upsamplers)[0].register_forward_hook(note)
        out = unet(torch.zeros(1, 4, 1, 90, 16), 5, torch.zeros(1, 3, 16)).sample
        assert (rows, cols) == ([46, 24, 13, 24, 46, 90], [8, 4, 2, 4, 8, 16])
        assert out.shape[-2:] == (90, 16)

    def test_resampling_against_a_plain_one(self) -> None:
        """Padding by hand, repetition by index."""
        unet = video_to_video(make_unet())
        down, up = unet.down_blocks[0].downsamplers[0], unet.up_blocks[0].upsamplers[0]
        x = Key(1).normal(2, 32, 6, 4)
        padded = torch.zeros(2, 32, 10, 6)
        padded[:, :, 2:8, 1:5] = x
        wanted = torch.nn.functional.conv2d(padded, down.conv.weight, down.conv.bias, stride=2)
        torch.testing.assert_close(down(x), wanted)
        index = torch.tensor([0, 1, 1, 2, 2, 3, 3, 4, 4, 5])
        repeated = x[:, :, index][..., torch.arange(8) // 2]
        wanted = torch.nn.functional.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
        torch.testing.assert_close(up(x, output_size=(12, 8)), wanted)

    def test_names_and_weights_stay(self) -> None:
        before = make_unet().state_dict()
        after = video_to_video(make_unet()).state_dict()
        assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)

    @given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 3))
    def test_nearest_size(self, high: int, wide: int, halvings: int) -> None:
        def comes_back(rows: int) -> bool:
            sizes = [rows]
            for _ in range(halvings):
                sizes.append((sizes[-1] + 1) // 2 + 1)
            back = sizes[-1]
            for _ in range(halvings):
                back = 2 * back - 2
            return back == rows and all(size % 2 == 0 for size in sizes[:-1])

        rows, cols = nearest_size(high, wide, halvings)
        assert comes_back(rows) and cols % 2**halvings == 0 and cols > 0
        best = min(abs(other - high) for other in range(2, 220) if comes_back(other))
        assert abs(rows - high) == best
        assert abs(cols - wide) <= max(2**halvings // 2, 2**halvings - wide)

    def test_the_backbone_says_which_size_fits(self) -> None:
        plain, changed = make_unet(levels=3, reads=0), video_to_video(make_unet(levels=3, reads=0))
        sizes = [UNet3DBackbone(u, tokens=3, window=Window(4, 2)).fitting_size(12, 9) for u in (plain, changed)]
        assert sizes == [(12, 9), nearest_size(12, 9, 2)] and sizes[1] != (12, 9)

    def test_other_sizes_are_refused(self) -> None:
        unet = video_to_video(make_unet(levels=3, reads=0))
        with pytest.raises(
            UserError, match=r"cannot take latents of 9x12: the nearest size that it can is 8x(10|14) \(width x height"
        ):
            unet(torch.zeros(1, 4, 1, 12, 9), 5, torch.zeros(1, 3, 16))


class TestSchedule:
    def test_published_numbers(self) -> None:
        sigmas = video_to_video_sigmas()
        assert sigmas.shape == (1000,) and bool((sigmas[1:] > sigmas[:-1]).all()) and sigmas[-1] == 1
        assert sigmas[599] == pytest.approx(0.97236, abs=5e-6)
        assert math.sqrt(1 - sigmas[599] ** 2) == pytest.approx(0.2335, abs=5e-5)
        assert math.log(1 / sigmas[0] ** 2 - 1) == pytest.approx(15 - 2 * math.log(2), abs=1e-9)

    def test_saved_as_a_scheduler_of_diffusers(self, tmp_path: Path) -> None:
        save_scheduler(tmp_path / "scheduler")
        scheduler = load_scheduler(tmp_path / "scheduler")
        assert isinstance(scheduler, DDIMScheduler) and scheduler.config["prediction_type"] == "v_prediction"
        wanted = torch.from_numpy(1 - video_to_video_sigmas() ** 2).float()
        torch.testing.assert_close(scheduler.alphas_cumprod, wanted, rtol=1e-4, atol=1e-9)
        assert scheduler.alphas_cumprod[-1] == 0


class TestNames:
    def test_all_of_the_published_unet(self) -> None:
        with torch.device("meta"):
            unet = UNet3DConditionModel(**FULL)
        names = native_names(unet.state_dict(), 2)
        assert len(names) == len(set(names.values())) == 1480
        assert {native: name for name, native in names.items()} == diffusers_names(names, 2)
        for ours, native in {
            "time_embedding.linear_2.bias": "time_embed.2.bias",
            "conv_in.weight": "input_blocks.0.0.weight",
            "transformer_in.proj_in.weight": "input_blocks.0.1.proj_in.weight",
            "down_blocks.0.resnets.1.conv2.weight": "input_blocks.2.0.out_layers.3.weight",
            "down_blocks.0.downsamplers.0.conv.bias": "input_blocks.3.op.bias",
            "down_blocks.2.temp_convs.0.conv1.2.weight": "input_blocks.7.0.temopral_conv.conv1.2.weight",
            "down_blocks.3.resnets.1.time_emb_proj.bias": "input_blocks.11.0.emb_layers.1.bias",
            "mid_block.attentions.0.proj_in.bias": "middle_block.1.proj_in.bias",
            "mid_block.temp_convs.1.conv4.3.bias": "middle_block.3.temopral_conv.conv4.3.bias",
            "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
            "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.3.conv.weight",
            "up_blocks.3.temp_attentions.2.norm.weight": "output_blocks.11.2.norm.weight",
            "up_blocks.1.resnets.0.conv_shortcut.weight": "output_blocks.3.0.skip_connection.weight",
            "conv_norm_out.weight": "out.0.weight",
            "conv_out.bias": "out.2.bias",
        }.items():
            assert names[ours] == native
        sizes = read_sizes({names[name]: value for name, value in unet.state_dict().items()})
        with torch.device("meta"):
            again = UNet3DConditionModel(**sizes.config())
        assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in unet.state_dict().items()}

    @pytest.mark.parametrize(("levels", "layers", "reads"), [(1, 1, 0), (1, 2, 1), (2, 3, 1), (3, 2, 3), (4, 1, 3)])
    def test_any_number_of_levels(self, levels: int, layers: int, reads: int) -> None:
        with torch.device("meta"):
            unet = blank_unet(levels, layers, reads)
        names = native_names(unet.state_dict(), layers)
        assert len(set(names.values())) == len(names)
        sizes = read_sizes({names[name]: value for name, value in unet.state_dict().items()})
        found = (len(sizes.channels), sizes.layers, sum(sizes.attention), sizes.head, sizes.depth)
        assert found == (levels, layers, reads, 8, TEXT["hidden_size"])

    def test_names_that_are_none(self) -> None:
        with pytest.raises(ValueError, match="add_embedding.weight is no tensor of a UNet3DConditionModel"):
            native_names(["add_embedding.weight"], 2)
        assert prefix(["time_embedding.linear_1.weight"]) is None
        stable = ["model.diffusion_model.time_embed.0.weight", "model.diffusion_model.middle_block.1.norm.weight"]
        assert prefix(stable) is None, "Stable Diffusion has most of the names, too"
        assert prefix(["a", "module.middle_block.0.temopral_conv.conv1.0.weight"]) == "module."
        assert prefix(["input_blocks.1.0.temopral_conv.conv1.0.weight"]) == ""


@pytest.fixture(scope="module")
def native() -> dict[str, torch.Tensor]:
    return native_state(make_unet())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model in diffusers' format, without an enhancer."""
    with quiet():
        make_vae().save_pretrained(tmp_path / "base/vae")
        make_unet().save_pretrained(tmp_path / "base/unet")
        CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(tmp_path / "base/text_encoder")
        DDIMScheduler().save_pretrained(tmp_path / "base/scheduler")
        make_tokenizer().save_pretrained(tmp_path / "base/tokenizer")
    return tmp_path / "base"


class TestConverters:
    @pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "prefixed"])
    def test_video_to_video(self, form: str, native: dict[str, torch.Tensor], folder: Path, tmp_path: Path) -> None:
        file = tmp_path / ("v2v.safetensors" if form == "safetensors" else "video2video_model.pth")
        if form == "safetensors":
            save_file(native, file)
        elif form == "prefixed":
            torch.save({f"module.{name}": value for name, value in native.items()}, file)
        else:
            torch.save({"state_dict": native, "step": 35000} if form == "nested" else native, file)
        assert convert(file, folder, OPTIONS) == folder / "enhancer"
        model = open_enhancer(str(folder))
        assert model.defaults == ENHANCER and model.backbone.window == Window(24, 8)
        call = Call(
            latents=Key(0).normal(1, 4, 2, 6, 4),
            time=torch.tensor([599.0]),
            context=Key(1).normal(1, 6, 16),
            guided=(Guided(text=True, anchor=False),),
            level=NoiseLevel(0.2335, 0.97236),
        )
        with torch.no_grad():
            wanted = video_to_video(make_unet())(call.latents, 599, call.context).sample
            other = make_unet()(call.latents, 599, call.context).sample
            found = model.backbone(call, {})
        torch.testing.assert_close(found, wanted)
        assert not torch.allclose(found, other, atol=1e-3), "diffusers' own resampling differs"

    def test_text_to_video(self, native: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save(native, tmp_path / "text2video_pytorch_model.pth")
        assert convert(tmp_path / "text2video_pytorch_model.pth", tmp_path / "m", OPTIONS) == tmp_path / "m/unet"
        with quiet():
            unet = UNet3DConditionModel.from_pretrained(tmp_path / "m/unet")
        wanted = make_unet().state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in unet.state_dict().items())
        with pytest.raises(UserError, match="exists already: choose another folder, or replace it with --overwrite"):
            convert(tmp_path / "text2video_pytorch_model.pth", tmp_path / "m", OPTIONS)
        convert(tmp_path / "text2video_pytorch_model.pth", tmp_path / "m", OPTIONS, overwrite=True)

    def test_text_to_video_in_a_folder_of_streamingt2v(
        self, native: dict[str, torch.Tensor], folder: Path, tmp_path: Path
    ) -> None:
        """The UNet that was trained on stays; ModelScope's own is for the first chunk."""
        (folder / "cam").mkdir()
        before = (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
        torch.save(native, tmp_path / "text2video.pth")
        assert convert(tmp_path / "text2video.pth", folder, OPTIONS, overwrite=True) == folder / "first_chunk/unet"
        assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == before
        model = ModelScope().load(folder, device=CPU, dtype=torch.float32)
        assert model.first is not None

    def test_a_unet_that_no_conversion_wrote_is_kept(
        self, native: dict[str, torch.Tensor], folder: Path, tmp_path: Path
    ) -> None:
        torch.save(native, tmp_path / "text2video.pth")
        with pytest.raises(UserError, match="holds config.json and 1 more, which no conversion wrote and --overwrite"):
            convert(tmp_path / "text2video.pth", folder, OPTIONS, overwrite=True)

    @pytest.mark.parametrize("name", ["v2v.pth", "t2v.pth"])
    def test_no_use_for_a_modelscope_folder(
        self, name: str, native: dict[str, torch.Tensor], folder: Path, tmp_path: Path
    ) -> None:
        torch.save(native, tmp_path / name)
        options = ConvertOptions(dtype=torch.float32, modelscope=folder)
        with pytest.raises(UserError, match="--modelscope is for StreamingT2V's checkpoint only: leave it out"):
            convert(tmp_path / name, tmp_path / "m", options)
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize(
        ("name", "task", "parent", "kind"),
        [
            ("text2video_pytorch_model.pth", None, "x", TextToVideo),
            ("ms-t2v.pth", None, "Video-to-Video", TextToVideo),
            ("non_ema_0035000.pth", "video-to-video", "x", VideoToVideo),
            ("non_ema_0035000.pth", "text-to-video-synthesis", "x", TextToVideo),
            ("non_ema_0035000.pth", None, "MS-Vid2Vid-XL", VideoToVideo),
            ("unet.pth", "video-to-video", "text-to-video-ms", VideoToVideo),
        ],
    )
    def test_which_of_the_two(
        self, name: str, task: str | None, parent: str, kind: type, native: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        file = tmp_path / parent / name
        file.parent.mkdir()
        name = "input_blocks.1.0.temopral_conv.conv1.0.weight"
        torch.save({name: native[name]}, file)
        if task:
            (file.parent / "configuration.json").write_text(json.dumps({"task": task}))
        assert [each().matches(file) for each in (TextToVideo, VideoToVideo)] == [
            kind is TextToVideo,
            kind is VideoToVideo,
        ]

    def test_a_file_that_may_be_either(self, native: dict[str, torch.Tensor], tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        torch.save(native, tmp_path / "x/streamingt2v.pth")
        with pytest.raises(
            UserError, match="have the same names of tensors: put text2video or video2video into the name"
        ):
            convert(tmp_path / "x/streamingt2v.pth", tmp_path / "m", OPTIONS)
        assert not (tmp_path / "m").exists()

    def test_files_that_do_not_fit(self, native: dict[str, torch.Tensor], tmp_path: Path) -> None:
        file = tmp_path / "v2v.pth"

        def refused(state: object, line: str) -> None:
            torch.save(state, file)
            with pytest.raises(UserError, match=line) as caught:
                convert(file, tmp_path / "m", OPTIONS)
            assert str(file) in str(caught.value) and not (tmp_path / "m").exists()

        few = {name: value for name, value in native.items() if not name.startswith("out")}
        refused(few, "this is no whole UNet of ModelScope's .it lacks out.2.weight.: give the published file")
        less = {name: value for name, value in native.items() if ".conv1." not in name}
        refused(
            less, r"32 tensors are missing \(input_blocks.1.0.temopral_conv.conv1.0.weight, .*\.\.\.\): give the pub"
        )
        renamed = {{"out.0.bias": "out.9.bias"}.get(name, name): value for name, value in native.items()}
        refused(renamed, r"1 tensor is missing \(out.0.bias\) and 1 tensor is foreign \(out.9.bias\): give")
        refused({**native, "out.0.bias": native["out.0.bias"].int()}, "out.0.bias of type int32 should be of floating")
        more = {**native, "VideoControlNet.input_hint_block.0.weight": torch.ones(2)}
        refused(more, r"1 tensor is foreign \(VideoControlNet.input_hint_block.0.weight\): give")
        wrong = {**native, "out.0.bias": torch.ones(5)}
        refused(wrong, r"1 tensor is of shapes that do not fit the others \(out.0.bias\)")
        refused({**native, "out.0.bias": native["out.0.bias"] / 0}, "out.0.bias holds NaN or infinite numbers")
        refused({**native, "input_blocks.0.1.proj_in.weight": torch.ones(3, 32, 1)}, "its shapes don't fit together")

    def test_a_pickle_with_code_in_it(self, native: dict[str, torch.Tensor], tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, tuple[Path]]:
                return Path.touch, (tmp_path / "executed",)

        torch.save({**native, "trap": Trap()}, tmp_path / "v2v.pth")
        with pytest.raises(UserError, match="holds more than numbers .*, which is never run"):
            convert(tmp_path / "v2v.pth", tmp_path / "m", OPTIONS)
        assert not (tmp_path / "executed").exists() and not (tmp_path / "m").exists()


class TestFolder:
    def test_an_unknown_variant(self, tmp_path: Path) -> None:
        save_defaults(tmp_path, ENHANCER, Window(24, 8), "upside-down")
        with pytest.raises(UserError, match='unknown variant "upside-down"; leave it out, or write "video-to-video"'):
            load_variant(tmp_path)

    def test_half_a_canvas(self, tmp_path: Path) -> None:
        (tmp_path / "streamingt2v.json").write_text('{"canvas_width": 1280}')
        with pytest.raises(UserError, match="canvas_height and canvas_width must be given together"):
            load_defaults(tmp_path, Defaults(height=64, width=64, fps=8.0), Window(8, 4))

    def test_settings_come_back(self, tmp_path: Path) -> None:
        save_defaults(tmp_path, ENHANCER, Window(24, 8), "video-to-video")
        assert load_variant(tmp_path) == "video-to-video"
        family = Defaults(height=8, width=8, fps=1.0)
        assert load_defaults(tmp_path, family, Window(2, 1)) == (ENHANCER, Window(24, 8))

    def test_the_enhancer_that_comes_of_it(self, native: dict[str, torch.Tensor], folder: Path, tmp_path: Path) -> None:
        torch.save(native, tmp_path / "v2v.pth")
        convert(tmp_path / "v2v.pth", folder, OPTIONS)
        model = ModelScope().enhancer(folder, device=CPU, dtype=torch.float32)
        assert model is not None
        for preset in ("paper", "official"):
            enhancer = assemble_enhancer(model, preset=preset)
            assert enhancer.seen == (720, 1280) and enhancer.made == (
                (720, 1280) if preset == "official" else (720, 720)
            )
            assert (enhancer.sampler.steps, enhancer.strength) == (30, 0.6)
            assert (enhancer.guidance.scale, enhancer.guidance.rescale) == (7.5, 0.2)
            assert enhancer.sampler.published_start == (preset == "official")
            with pytest.raises(UserError, match=r"cannot make \d+x\d+: the nearest size that it can is \d+x\d+$"):
                replace(enhancer, canvas=None, height=15 * model.codec.factor, width=16 * model.codec.factor)


class TestTiles:
    @staticmethod
    def make(tile: bool | None, size: int = 64) -> AutoencoderKLCodec:
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=1,
            mid_block_add_attention=False,
        )
        for name, value in vae.state_dict().items():
            value.copy_(0.1 * Key(0).fold(name).normal(*value.shape) + (value.ndim == 1 and name.endswith("weight")))
        return AutoencoderKLCodec(vae.eval().requires_grad_(False), tile=tile, tile_size=size)

    @staticmethod
    def largest(codec: AutoencoderKLCodec, part: str) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        module = getattr(codec.vae, part)
        module.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
        return shapes

    def test_large_frames_are_coded_one_by_one_in_tiles(self) -> None:
        codec = self.make(None, 512)
        encoded, decoded = self.largest(codec, "encoder"), self.largest(codec, "decoder")
        frames = torch.zeros(1, 2, 3, 520, 776)
        assert codec.decode(codec.encode(frames)).shape == frames.shape
        assert all(shape[0] == 1 for shape in encoded + decoded) and len(encoded) == len(decoded) > 2
        assert max(math.prod(shape[-2:]) for shape in encoded) < 640 * 640

    def test_small_frames_and_the_switch(self) -> None:
        codec = self.make(None)
        decoded = self.largest(codec, "decoder")
        codec.decode(torch.zeros(1, 4, 2, 128, 128))
        assert [shape[0] for shape in decoded] == [2], "512x512 is not large yet"
        codec.tile = False
        codec.decode(torch.zeros(1, 4, 2, 132, 132))
        assert [(shape[0], shape[-1]) for shape in decoded[1:]] == [(1, 132), (1, 132)], "whole, but one by one"
        codec.tile = True
        codec.decode(torch.zeros(1, 4, 1, 32, 32))
        assert len(decoded) > 4

    def test_tiles_are_nearly_as_the_whole(self) -> None:
        """With the embedded autoencoder and tiles far smaller than the default ones (whose frames agree to 43 dB)."""
        frames = torch.nn.functional.interpolate(Key(2).normal(1, 3, 9, 12).sigmoid(), (144, 192), mode="bicubic")
        frames = frames.clamp(0, 1)[None]
        codec = AutoencoderKLCodec(AutoencoderKL.from_pretrained(packaged_weights() / "vae"), tile_size=96).eval()
        results = []
        for tile in (False, True):
            codec.tile = tile
            with torch.no_grad():
                results.append((codec.encode(frames), codec.decode(results[0][0] if results else codec.encode(frames))))
        (latents, shown), (tiled_latents, tiled) = results
        assert not torch.equal(shown, tiled) and not torch.equal(latents, tiled_latents)
        assert float((latents - tiled_latents).std() / latents.std()) < 0.2
        assert float((shown - tiled).square().mean()) < 10**-2.5

    @given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 16, 64]))
    def test_fitting_tile(self, high: int, wide: int, tile: int) -> None:
        side = fitting_tile(high, wide, tile)
        assert side % 4 == 0 and 3 * tile <= 4 * side and 4 * side <= 5 * tile

    def test_no_sliver_at_720p(self) -> None:
        side = fitting_tile(90, 160, 64)
        lasts = [length - max(range(0, length, side * 3 // 4)) for length in (90, 160)]
        assert min(lasts) > side / 3
