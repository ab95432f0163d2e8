"""Model folders in diffusers format: round trip, settings, enhancer, and one clear line for whatever is wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from backends.embedded import TinyModelScope
from backends.modelscope import ModelScope
from backends.modelscope_folder import quiet
from backends.modelscope_settings import save_defaults
from streaming.backbone import Call, Guided, Window
from streaming.errors import UserError
from streaming.model import Defaults, Model

CPU, DEPTH, CHANNELS = torch.device("cpu"), 16, 4
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = {
    "vocab_size": 6,
    "hidden_size": DEPTH,
    "intermediate_size": 16,
    "projection_dim": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "projection_dim": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def make_unet(depth: int = DEPTH, channels: int = CHANNELS) -> UNet3DConditionModel:
    return UNet3DConditionModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=depth,
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=CHANNELS,
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "red": 2, "ball": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session")
def parts() -> dict[str, nn.Module]:
    """Frozen, as loaded parts are: PyTorch rounds matrix products otherwise where a weight requires a gradient."""
    torch.manual_seed(0)
    made = {
        "unet": make_unet(),
        "vae": make_vae(),
        "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT)),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)),
    }
    return {name: part.eval().requires_grad_(False) for name, part in made.items()}


@pytest.fixture(scope="session")
def pristine(parts: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with quiet():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        make_unet().save_pretrained(folder / "enhancer" / "unet")
        make_tokenizer().save_pretrained(folder / "tokenizer")
        for place in (folder, folder / "enhancer"):
            DDIMScheduler(prediction_type="v_prediction").save_pretrained(place / "scheduler")
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    return ModelScope().load(folder, device=CPU, dtype=dtype)


def assert_refused(folder: Path, *said: str) -> str:
    """In one line, which says where, and what to do."""
    with pytest.raises(UserError) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert all(some in line for some in said), line
    return line


class TestRoundTrip:
    @torch.no_grad()
    def test_what_was_saved_is_what_computes(self, pristine: Path, parts: dict[str, nn.Module]) -> None:
        model = load(pristine)
        latents, context = torch.randn(1, CHANNELS, 2, 4, 4), torch.randn(1, 6, DEPTH)
        call = Call(latents=latents, time=torch.tensor([9.0]), context=context, guided=(Guided(True, True),))
        expected = parts["unet"](latents, 9, context).sample
        assert torch.equal(model.backbone(call, {}), expected)
        ids = torch.tensor([[2, 3, 0, 0, 0, 0]])
        assert torch.equal(model.text(["red ball"]).tokens, parts["text_encoder"](ids).last_hidden_state)
        frames = torch.rand(1, 2, 3, 8, 8)
        mode = parts["vae"].encode(2 * frames[0] - 1).latent_dist.mode()
        assert torch.allclose(model.codec.encode(frames)[0].transpose(0, 1), 0.18215 * mode, atol=1e-6)
        assert model.image is not None and model.image(frames[0]).shape == (2, 8)

    def test_full_size_defaults_where_the_folder_says_nothing(self, pristine: Path) -> None:
        model = load(pristine)
        assert model.defaults == Defaults(height=256, width=256, fps=8.0, steps=50, guidance=7.5, eta=1.0)
        assert model.backbone.window == Window(16, 8)
        assert (model.name, model.directory) == (str(pristine), pristine)
        assert model.scheduler.config.prediction_type == "v_prediction"
        assert {site.tokens for site in model.backbone.context_sites} == {6}

    def test_everything_is_frozen_and_in_eval_mode(self, pristine: Path) -> None:
        model = load(pristine)
        for part in (model.backbone, model.codec, model.text, model.image):
            assert part is not None and not part.training
            assert not any(parameter.requires_grad for parameter in part.parameters())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_half_precision_shards_load_into_the_asked_type(self, folder: Path, dtype: torch.dtype) -> None:
        shutil.rmtree(folder / "unet")
        with quiet():
            make_unet().half().save_pretrained(folder / "unet", max_shard_size="30KB")
        assert len(list((folder / "unet").glob("*.safetensors"))) > 1
        model = load(folder, dtype)
        assert {p.dtype for part in (model.backbone, model.codec, model.text) for p in part.parameters()} == {dtype}
        assert model.dtype == dtype

    def test_files_named_as_the_fp16_variant(self, folder: Path) -> None:
        (folder / UNET).rename(folder / UNET.replace("model.", "model.fp16."))
        assert load(folder).backbone.feature_sites

    def test_text_encoder_without_projection_and_no_image_encoder(self, folder: Path) -> None:
        shutil.rmtree(folder / "image_encoder")
        shutil.rmtree(folder / "text_encoder")
        with quiet():
            CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(folder / "text_encoder")
        model = load(folder)
        assert model.image is None
        assert model.text(["red"]).tokens.shape == (1, 6, DEPTH)

    @torch.no_grad()
    @pytest.mark.parametrize("place", ["image_encoder", "feature_extractor"])
    def test_colours_of_the_image_encoder(self, folder: Path, place: str) -> None:
        image = torch.full((1, 3, 8, 8), 0.5)
        before = load(folder).image
        (folder / place).mkdir(exist_ok=True)
        path = folder / place / "preprocessor_config.json"
        path.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
        after = load(folder).image
        assert before is not None and after is not None
        assert torch.equal(after(image), after.vision(pixel_values=torch.zeros(1, 3, 8, 8)).image_embeds)
        assert not torch.equal(after(image), before(image))

    def test_loading_says_nothing(self, pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
        load(pristine)
        assert capfd.readouterr() == ("", "")


class TestSettings:
    SETTINGS = Defaults(
        height=64,
        width=32,
        fps=6.0,
        steps=8,
        guidance=3.0,
        eta=0.0,
        sampler="dpm++",
        short_term="cam+inject",
        long_term="none",
    )

    def test_round_trip(self, folder: Path) -> None:
        save_defaults(folder, self.SETTINGS, Window(12, 4))
        model = load(folder)
        assert model.defaults == self.SETTINGS
        assert model.backbone.window == Window(12, 4)

    def test_what_is_left_out_keeps_its_default(self, folder: Path) -> None:
        (folder / "streamingt2v.json").write_text('{"height": 64, "fps": 4}')
        model = load(folder)
        assert model.defaults == Defaults(height=64, width=256, fps=4.0)
        assert model.backbone.window == Window(16, 8)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"hight": 64}', "unknown setting 'hight'; there are height, width, fps, steps"),
            ('{"steps": "many"}', 'steps must be a whole number, not "many"'),
            ('{"steps": true}', "steps must be a whole number, not true"),
            ('{"steps": 0}', "steps is out of range: 0"),
            ('{"fps": NaN}', "fps is out of range: nan"),
            ('{"sampler": 1}', "sampler must be a name, not 1"),
            ('{"overlap": 16}', "an overlap of 16 frames must be smaller than the window of 16"),
            ('{"width": 63}', "63 pixels in streamingt2v.json: height and width must be multiples of 2"),
            ("[1]", "must hold a JSON object, not list"),
            ("{", "streamingt2v.json (Expecting property name"),
        ],
    )
    def test_nonsense_is_named(self, folder: Path, text: str, message: str) -> None:
        (folder / "streamingt2v.json").write_text(text)
        assert_refused(folder, str(folder), message)


class TestEnhancer:
    def test_shares_what_it_has_not(self, folder: Path) -> None:
        save_defaults(folder, replace(TestSettings.SETTINGS, height=64, width=64), Window(16, 8))
        enhancer = ModelScope().enhancer(folder, device=CPU, dtype=torch.float32)
        assert enhancer is not None
        assert (enhancer.defaults.height, enhancer.defaults.width, enhancer.defaults.steps) == (128, 128, 8)
        assert (enhancer.defaults.short_term, enhancer.defaults.long_term) == ("none", "none")
        assert enhancer.backbone.window == Window(24, 8)
        assert enhancer.directory == folder / "enhancer"
        base, own = load(folder).backbone.state_dict(), enhancer.backbone.state_dict()
        assert any(not torch.equal(base[name], own[name]) for name in base)

    def test_its_own_parts_and_settings_come_first(self, folder: Path) -> None:
        with quiet():
            make_vae().save_pretrained(folder / "enhancer" / "vae")
        save_defaults(folder / "enhancer", replace(TestSettings.SETTINGS, height=96, width=96), Window(10, 2))
        enhancer = ModelScope().enhancer(folder, device=CPU, dtype=torch.float32)
        assert enhancer is not None
        assert (enhancer.defaults.height, enhancer.backbone.window) == (96, Window(10, 2))
        saved = load_file(folder / "enhancer" / "vae" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(enhancer.codec.vae.state_dict()[name], saved[name]) for name in saved)

    def test_none_without_its_folder(self, folder: Path) -> None:
        shutil.rmtree(folder / "enhancer")
        assert ModelScope().enhancer(folder, device=CPU, dtype=torch.float32) is None

    def test_broken_enhancer(self, folder: Path) -> None:
        (folder / "enhancer" / "unet" / "config.json").unlink()
        with pytest.raises(UserError, match=r"enhancer/unet/config.json is missing: the model folder is incomplete"):
            ModelScope().enhancer(folder, device=CPU, dtype=torch.float32)


class TestFirstChunk:
    """The unmodified base model beside one that was trained on."""

    @pytest.fixture
    def begun(self, folder: Path) -> Path:
        torch.manual_seed(1)
        with quiet():
            make_unet().save_pretrained(folder / "first_chunk" / "unet")
        return folder

    def test_shares_all_but_the_network(self, begun: Path) -> None:
        model = load(begun)
        first = model.first
        assert first is not None and first.first is None
        for name in ("codec", "text", "image", "scheduler", "defaults", "device", "dtype"):
            assert getattr(first, name) is getattr(model, name), name
        saved = load_file(begun / "first_chunk" / UNET)
        assert all(torch.equal(first.backbone.unet.state_dict()[name], saved[name]) for name in saved)
        assert any(not torch.equal(model.backbone.unet.state_dict()[name], saved[name]) for name in saved)
        assert not first.backbone.training and not any(w.requires_grad for w in first.backbone.parameters())
        assert first.backbone.window == model.backbone.window

    def test_none_without_its_folder(self, folder: Path) -> None:
        assert load(folder).first is None

    def test_its_own_schedule_and_settings(self, begun: Path) -> None:
        with quiet():
            DDIMScheduler(steps_offset=1).save_pretrained(begun / "first_chunk" / "scheduler")
        (begun / "first_chunk" / "streamingt2v.json").write_text('{"sampler": "dpm++", "steps": 7, "guidance": 9}')
        model = load(begun)
        assert model.first is not None and model.first.scheduler.config["prediction_type"] == "epsilon"
        assert model.scheduler.config["prediction_type"] == "v_prediction"
        assert model.first.defaults == replace(model.defaults, sampler="dpm++", steps=7, guidance=9.0)

    @pytest.mark.parametrize("text", ['{"height": 64}', '{"fps": 4}', '{"frames": 24}', '{"long_term": "none"}'])
    def test_what_holds_for_the_whole_video_is_refused(self, begun: Path, text: str) -> None:
        (begun / "first_chunk" / "streamingt2v.json").write_text(text)
        assert_refused(begun, "first_chunk/streamingt2v.json: only steps, guidance, eta and sampler of the first chunk")

    def test_broken(self, begun: Path) -> None:
        (begun / "first_chunk" / UNET).unlink()
        assert_refused(begun, "first_chunk/unet has no weights", "copy it again")

    def test_another_model(self, begun: Path) -> None:
        with quiet():
            make_unet(depth=24).save_pretrained(begun / "first_chunk" / "unet")
        assert_refused(begun, "first_chunk: the UNet reads text of width 24", "different models")


class TestWrongFolders:
    def test_matches(self, pristine: Path, tmp_path: Path) -> None:
        assert ModelScope().matches(pristine)
        assert not ModelScope().matches(tmp_path)
        assert not ModelScope().matches(tmp_path / "absent")
        (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet3DConditionModel"]}')
        assert ModelScope().matches(tmp_path)
        (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
        assert not ModelScope().matches(tmp_path)
        (tmp_path / "model_index.json").write_text("{broken")
        assert not ModelScope().matches(tmp_path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert_refused(tmp_path / "absent", f"no model at {tmp_path / 'absent'}: there is no such folder")
        (tmp_path / "file.ckpt").write_bytes(b"")
        assert_refused(tmp_path / "file.ckpt", "is a file: a model is a folder in diffusers format")
        assert_refused(tmp_path, f"{tmp_path} holds no ModelScope model: it has no unet/config.json")

    def test_nothing_ships_with_the_plugin(self) -> None:
        with pytest.raises(UserError, match="no ModelScope weights ship with this package: name a folder"):
            ModelScope().load(None, device=CPU, dtype=torch.float32)

    @pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler"])
    def test_missing_part(self, folder: Path, part: str) -> None:
        shutil.rmtree(folder / part)
        assert_refused(folder, str(folder / part), "is missing: the model folder is incomplete, copy it again")

    def test_another_unet(self, folder: Path) -> None:
        shutil.rmtree(folder / "unet")
        with quiet():
            UNet2DConditionModel(
                block_out_channels=(32,),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D",),
                up_block_types=("CrossAttnUpBlock2D",),
            ).save_pretrained(folder / "unet")
        assert_refused(
            folder, "config.json describes UNet2DConditionModel; a ModelScope model has UNet3DConditionModel there"
        )

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "image_encoder"])
    def test_truncated_weights(self, folder: Path, part: str) -> None:
        path = next((folder / part).glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-100])
        assert_refused(folder, str(path), "is truncated or no safetensors file", "copy it again")

    def test_no_weights(self, folder: Path) -> None:
        (folder / UNET).unlink()
        assert_refused(folder, "unet has no weights (*.safetensors): the model folder is incomplete, copy it again")

    def test_pickles_are_never_opened(self, folder: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
                return Path.touch, (folder / "executed",)

        (folder / UNET).unlink()
        torch.save(Trap(), folder / "unet" / "diffusion_pytorch_model.bin")
        assert_refused(
            folder, "as a pickle (diffusion_pytorch_model.bin), which is never opened: convert it to safetensors"
        )
        assert not (folder / "executed").exists()

    def test_missing_shard(self, folder: Path) -> None:
        shutil.rmtree(folder / "unet")
        with quiet():
            make_unet().save_pretrained(folder / "unet", max_shard_size="30KB")
        first = min((folder / "unet").glob("*.safetensors"))
        first.unlink()
        assert_refused(folder, f"{first} is missing: the model folder is incomplete, copy it again")

    def test_missing_tensor(self, folder: Path) -> None:
        tensors = load_file(folder / UNET)
        del tensors["conv_in.bias"]
        save_file(tensors, folder / UNET)
        assert_refused(folder, "unet lacks 1 of its weights, conv_in.bias for one: copy the folder again")

    def test_configuration_of_another_size(self, folder: Path) -> None:
        path = folder / "unet" / "config.json"
        path.write_text(path.read_text().replace('"cross_attention_dim": 16', '"cross_attention_dim": 24'))
        line = assert_refused(folder, "cannot load", "config.json and the weights don't fit together", "24")
        assert line.endswith("])): copy the folder again") and "ignore_mismatched" not in line, line

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "image_encoder"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_none(self, folder: Path, part: str, value: float) -> None:
        path = next((folder / part).glob("*.safetensors"))
        tensors = load_file(path)
        name = sorted(tensors)[-1]
        tensors[name].view(-1)[-1] = value
        save_file(tensors, path, metadata={"format": "pt"})
        assert_refused(folder, str(folder / part), "holds NaN or infinite numbers as float32: the file is damaged")

    def test_parts_of_different_models(self, folder: Path) -> None:
        shutil.rmtree(folder / "unet")
        with quiet():
            make_unet(depth=24).save_pretrained(folder / "unet")
        assert_refused(folder, "the UNet reads text of width 24, the text encoder writes 16: they belong to different")
        with quiet():
            make_unet(channels=8).save_pretrained(folder / "unet")
        assert_refused(folder, "the UNet takes 8 and gives 8 latent channels, the autoencoder has 4: they belong to")

    def test_broken_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        assert_refused(folder, "cannot load the tokenizer of", "replace it by an intact copy")

    @pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
    def test_a_tokenizer_with_code_of_its_own(self, folder: Path, file: str) -> None:
        path = folder / "tokenizer" / file
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, "auto_map": {"AutoTokenizer": ["own.Own", None]}}))
        (folder / "tokenizer" / "own.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")
        assert_refused(folder, "wants code of its own to run (auto_map)", "replace the tokenizer by CLIP's")
        assert not (folder / "executed").exists()

    @pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet3DConditionModel", "__name__"])
    def test_unknown_scheduler(self, folder: Path, name: str) -> None:
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name}))
        assert_refused(folder, f"names no scheduler of diffusers: {name}; correct it")

    def test_impossible_scheduler(self, folder: Path) -> None:
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(path.read_text().replace('"beta_schedule": "linear"', '"beta_schedule": "spiral"'))
        assert_refused(folder, "cannot build the scheduler of", "spiral", "correct it")

    def test_colours_that_are_none(self, folder: Path) -> None:
        (folder / "image_encoder" / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
        assert_refused(folder, "preprocessor_config.json: image_mean and image_std must be three numbers each")


class TestEmbedded:
    def test_its_folder_is_its_own(self, pristine: Path) -> None:
        assert not TinyModelScope().matches(pristine)

    def test_loads_the_same_format(self, pristine: Path) -> None:
        model = TinyModelScope().load(pristine, device=CPU, dtype=torch.float32)
        assert model.backbone.feature_sites
        assert TinyModelScope().enhancer(pristine, device=CPU, dtype=torch.float32) is not None

    def test_says_where_weights_should_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("backends.embedded.files", lambda package: tmp_path)
        with pytest.raises(
            UserError, match=r"lacks the embedded model's weights \(.*weights\): install the package again"
        ):
            TinyModelScope().load(None, device=CPU, dtype=torch.float32)

    def test_packaged_weights_are_used_without_a_folder(
        self, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "weights").symlink_to(pristine)
        monkeypatch.setattr("backends.embedded.files", lambda package: tmp_path)
        assert TinyModelScope().load(None, device=CPU, dtype=torch.float32).directory == tmp_path / "weights"
