"""Open-Sora's folders: what is loaded from where, settings and windows, and one clear line for whatever is wrong."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from adapters.clips import ClipBatches
from adapters.recipe import cam_recipe
from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_folder import quiet
from backends.modelscope_text import CLIPTextEncoder
from backends.opensora import OpenSora, tensor_names
from backends.opensora_backbone import OpenSora3Backbone
from backends.opensora_backbone1 import OpenSora1Backbone, OpenSora2Backbone
from backends.opensora_codec import OpenSoraCodec
from backends.opensora_parts import load_open_sora
from backends.opensora_rflow import flow_shift
from backends.opensora_text import AESTHETICS, T5TextEncoder
from streaming.backbone import Window
from streaming.errors import UserError
from streaming.frame_mask import FrameMask
from streaming.guidance import ClassifierFree
from streaming.keys import Key
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.model import Defaults
from streaming.parts import assemble
from streaming.registry import open_model
from streaming.rows import encode_rows
from streaming.sample import Sampler
from tests.adapter_toys import ToyClips
from tests.cli_toys import register
from tests.opensora_folders import (
    DEPTH,
    GRID,
    TOKENS,
    TRANSFORMER,
    build,
    build_shared,
    noise,
    save,
    settings,
    t5,
    transformer,
    write_json,
)
from tests.opensora_networks import VERSIONS
from tests.test_opensora_codec import autoencoder, published

CPU = torch.device("cpu")
BACKBONES = {"1.0": OpenSora1Backbone, "1.1": OpenSora2Backbone, "1.2": OpenSora3Backbone}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("opensora")
    return {version: build(root / version, version) for version in VERSIONS}


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def copied(pristine, tmp_path):
    return lambda version: Path(shutil.copytree(pristine[version], tmp_path / "model"))


def load(folder, dtype=torch.float32):
    return OpenSora().load(folder, device=CPU, dtype=dtype)


def refused(folder, *said):
    with pytest.raises(UserError) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line
    assert all(some in line for some in said), line


def unlike_settings(folder, **said):
    write_json(folder / "streamingt2v.json", said)
    return load(folder)


class TestLoading:
    @torch.no_grad()
    def test_what_was_saved_is_what_computes(self, pristine, version):
        model, net = load(pristine[version]), transformer(version)
        assert type(model.backbone) is BACKBONES[version]
        found = model.backbone.net.state_dict()
        assert found.keys() == net.state_dict().keys()
        assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())
        assert model.backbone.net.config == net.config
        frames = noise(1, 5, 3, 12, 16).sigmoid()
        spatial = AutoencoderKLCodec(autoencoder())
        codec = {"1.2": OpenSoraCodec, "1.0": AutoencoderKLCodec, "1.1": AutoencoderKLCodec}[version]
        assert type(model.codec) is codec
        inner = model.codec.spatial if version == "1.2" else model.codec
        torch.testing.assert_close(inner.encode(frames), spatial.encode(frames))
        states = t5()(input_ids=torch.tensor([[3, 4, 1]])).last_hidden_state
        suffix = 3 if version == "1.2" else 0
        made = model.text(["a red"])
        assert isinstance(model.text, T5TextEncoder) and made.tokens.shape == (1, TOKENS, DEPTH)
        assert int(made.mask.sum()) == 3 + suffix
        if not suffix:
            torch.testing.assert_close(made.tokens[0, :3], states[0])
        assert torch.equal(model.text([""]).tokens[0], net.y_embedder.y_embedding)
        assert (model.name, model.directory, model.image) == (str(pristine[version]), pristine[version], None)

    def test_everything_is_frozen_and_in_eval_mode(self, pristine, version):
        model = load(pristine[version])
        for part in (model.backbone, model.codec, model.text):
            assert not part.training and not any(value.requires_grad for value in part.parameters())

    def test_half_precision(self, pristine, version):
        model = load(pristine[version], torch.bfloat16)
        kinds = {value.dtype for part in (model.backbone, model.codec, model.text) for value in part.parameters()}
        assert kinds == {torch.bfloat16} and model.dtype == torch.bfloat16
        assert model.text([""]).tokens.dtype == torch.bfloat16
        if version != "1.0":
            rope = model.backbone.net.rope.freqs
            assert rope.dtype == torch.float32 and torch.equal(rope, transformer(version).rope.freqs)

    @torch.no_grad()
    def test_no_text_is_y_embedding_under_the_prompts_mask(self, pristine):
        model = load(pristine["1.2"])
        rows = encode_rows(model.text, ClassifierFree(7.0), ["a ball"], "", CPU, torch.float32)
        assert torch.equal(rows.tokens[0], transformer("1.2").y_embedder.y_embedding)
        assert rows.mask.sum(-1).tolist() == [6, 6]

    def test_shards_in_half_precision(self, copied):
        folder = copied("1.2")
        (folder / TRANSFORMER).unlink()
        half = [(name, value.half()) for name, value in transformer("1.2").state_dict().items()]
        for i in range(3):
            save(dict(half[i::3]), folder / "transformer" / f"some-{i + 1}-of-3.safetensors", torch.float16)
        found = load(folder).backbone.net
        assert found.t_block[1].weight.dtype == torch.float32
        assert torch.equal(found.t_block[1].weight, dict(half)["t_block.1.weight"].float())

    def test_t5_with_its_decoder(self, copied):
        folder = copied("1.1")
        path = folder / "text_encoder" / "config.json"
        write_json(path, json.loads(path.read_text()) | {"architectures": ["T5ForConditionalGeneration"]})
        weights = folder / "text_encoder" / "model.safetensors"
        more = {"decoder.final_layer_norm.weight": torch.ones(4), "lm_head.weight": torch.ones(4)}
        save_file(load_file(weights) | more, weights, {"format": "pt"})
        assert isinstance(load(folder).text, T5TextEncoder)

    def test_autoencoder_in_shards(self, copied):
        folder = copied("1.2")
        state = load_file(folder / "vae" / "model.safetensors")
        (folder / "vae" / "model.safetensors").unlink()
        names = list(state)
        placed = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
        for file in set(placed.values()):
            save({name: state[name] for name in names if placed[name] == file}, folder / "vae" / file)
        write_json(folder / "vae" / "model.safetensors.index.json", {"weight_map": placed})
        found = published(load(folder).codec)
        assert all(torch.equal(found[name], state[name]) for name in names)


class TestSharedParts:
    @pytest.fixture
    def folders(self, tmp_path):
        return list(build_shared(tmp_path / "own", tmp_path / "other"))

    def test_each_part_is_the_first_folders_that_has_it(self, folders):
        model = load_open_sora(folders, device=CPU, dtype=torch.float32)
        assert isinstance(model.text, CLIPTextEncoder) and isinstance(model.codec, AutoencoderKLCodec)
        assert isinstance(model.backbone, OpenSora3Backbone) and model.backbone.window == Window(4, 2)
        assert (model.name, model.directory) == (str(folders[0]), folders[0])
        with quiet():
            AutoencoderKL(**{**autoencoder().config, "scaling_factor": 0.5}).save_pretrained(folders[0] / "vae")
        again = load_open_sora(folders, device=CPU, dtype=torch.float32)
        assert again.codec.vae.config["scaling_factor"] == 0.5

    def test_settings_and_scheduler_are_not_shared(self, folders):
        DDIMScheduler().save_pretrained(folders[1] / "scheduler")
        settings(folders[1], frames=99, fps=1.0)
        model = load_open_sora(folders, device=CPU, dtype=torch.float32)
        assert (model.backbone.window, model.defaults.fps) == (Window(4, 2), 24.0)
        assert isinstance(model.scheduler, FlowMatchEulerDiscreteScheduler)

    def test_latents_that_are_frames_count_in_the_schedule(self, folders):
        model = load_open_sora(folders, device=CPU, dtype=torch.float32)
        assert math.isclose(model.scheduler.config.shift, math.sqrt(12 * 16 / 512**2 * 4))

    def test_a_part_that_is_nowhere_belongs_to_the_first(self, folders):
        shutil.rmtree(folders[1] / "vae")
        with pytest.raises(UserError, match="own/vae is missing: put the vae there, for 1.2 the file of hpcai-tech"):
            load_open_sora(folders, device=CPU, dtype=torch.float32)

    @torch.no_grad()
    def test_clip_reads_the_empty_prompt_for_no_text(self, folders):
        model = load_open_sora(folders, device=CPU, dtype=torch.float32)
        rows = encode_rows(model.text, ClassifierFree(7.0), ["red ball"], "", CPU, torch.float32)
        assert torch.equal(rows.tokens, model.text(["", "red ball"]).tokens) and rows.mask is None


class TestSettings:
    def test_what_the_versions_were_published_with(self, copied, version):
        folder = copied(version)
        (folder / "streamingt2v.json").unlink()
        model = load(folder)
        size = (12, 16) if version == "1.0" else (240, 424)  # 1.0's tables of places: 3x4 patches of 4 pixels
        published = {
            "1.0": (Defaults(height=12, width=16, fps=8.0, steps=100, guidance=7.0), Window(4, 2)),
            "1.1": (Defaults(height=240, width=424, fps=8.0, steps=100, guidance=7.0), Window(16, 8)),
            "1.2": (
                Defaults(height=240, width=424, fps=24.0, steps=30, guidance=7.0, sampler="euler"),
                Window(15, 5),
            ),
        }
        assert (model.defaults, model.backbone.window) == published[version]
        assert (model.defaults.short_term, model.defaults.long_term) == ("cam", "apm")
        if version == "1.2":
            assert model.backbone.fps == 24.0 and model.scheduler.config.shift == flow_shift(*size, 51)
        else:
            config = model.scheduler.config
            levels = (config.num_train_timesteps, config.beta_start, config.beta_end, config.beta_schedule)
            assert levels == (1000, 1e-4, 0.02, "linear") and not config.clip_sample
            assert config.prediction_type == "epsilon" and model.schedule(8, 8).config == config

    def test_of_a_folder(self, copied):
        folder = copied("1.1")
        model = load(folder)
        assert (model.defaults.height, model.defaults.width, model.defaults.steps) == (12, 14, 2)
        assert (model.defaults.guidance, model.defaults.fps) == (7.0, 8.0)
        assert (model.backbone.window, model.backbone.clip.fps) == (Window(4, 2), 8.0)
        other = unlike_settings(folder, frames=10, fps=12)
        assert (other.backbone.window, other.backbone.clip.fps) == (Window(10, 5), 12.0)

    @pytest.mark.parametrize(
        ("version", "said", "told"),
        [
            ("1.2", {"frames": 16}, "a window of 16 frames with an overlap of 17 is impossible, because this model "
             "codes video in pieces of 17 frames: the nearest is 34 with 17"),
            ("1.2", {"frames": 17}, "the nearest is 34 with 17"),
            ("1.2", {"frames": 2, "overlap": 1}, "the nearest is 34 with 17"),
            ("1.2", {"frames": 16, "overlap": 17}, "the nearest is 34 with 17"),
            ("1.2", {"overlap": 16}, "a window of 51 frames with an overlap of 16 is impossible"),
            ("1.2", {"frames": 51, "overlap": 26}, "the nearest is 51 with 34"),
            ("1.1", {"frames": 8, "overlap": 8}, "the nearest is 9 with 8"),
            ("1.0", {"frames": 4, "overlap": 4}, "the nearest is 4 with 3"),  # and not 5, more than it was made for
            ("1.0", {"frames": 5}, "a window of 5 frames: this model was made for 4, choose no more"),
            ("1.0", {"height": 24}, "this model cannot make 16x24: the nearest size that it can is 16x12"),
            ("1.2", {"width": 15}, "frames of 240x15 pixels: height and width must be multiples of 2"),
            ("1.2", {"hight": 64}, "unknown setting 'hight'; there are height, width, fps, steps"),
            ("1.1", {"variant": "video-to-video"}, "variant is a setting of ModelScope's models: leave it out"),
        ],
    )  # fmt: skip
    def test_nonsense_is_named(self, copied, version, said, told):
        folder = copied(version)
        write_json(folder / "streamingt2v.json", said)
        refused(folder, f"{folder / 'streamingt2v.json'}: ", told)

    def test_a_window_longer_than_1_0(self, copied):
        folder = copied("1.0")
        with pytest.raises(UserError, match="a window of 5 frames: this model was made for 4, choose no more"):
            unlike_settings(folder, frames=5)
        assert unlike_settings(folder, frames=3).backbone.window == Window(3, 1)
        assert GRID.frames == 4

    def test_windows_of_whole_pieces(self, copied):
        folder = copied("1.2")
        assert unlike_settings(folder, overlap=34).backbone.window == Window(15, 10)
        assert unlike_settings(folder, frames=34).backbone.window == Window(10, 5)
        assert unlike_settings(folder, frames=17, overlap=0).backbone.window == Window(5, 0)


def assembled(model, **changes):
    return assemble(model, short=NoShortTerm(), long=NoLongTerm(), **changes)


class TestSchedule:
    @pytest.mark.parametrize(("height", "width"), [(12, 14), (24, 20), (480, 848)])
    def test_depends_on_the_size(self, pristine, height, width):
        model = load(pristine["1.2"])
        parts = assembled(model, height=height, width=width)
        assert parts.scheduler.config.shift == flow_shift(height, width, 34)
        shift = math.sqrt(height * width / 512**2) * math.sqrt(10)  # latents
        _, plan = Sampler("euler", 4).plan(parts.scheduler)
        assert [step.time for step in plan] == pytest.approx(
            [1000 * shift * t / (1 + (shift - 1) * t) for t in (1, 0.75, 0.5, 0.25)], rel=1e-5
        )
        assert (parts.scheduler is model.scheduler) == ((height, width) == (12, 14))

    def test_of_the_folder_serves_all_sizes(self, copied):
        folder = copied("1.2")
        FlowMatchEulerDiscreteScheduler(shift=1.25).save_pretrained(folder / "scheduler")
        model = load(folder)
        assert model.scheduler.config.shift == 1.25 and model.schedule is None
        assert assembled(model, height=48, width=48).scheduler is model.scheduler

    def test_1_0_works_at_one_size(self, pristine):
        with pytest.raises(UserError, match="this model cannot make 20x12: the nearest size that it can is 16x12"):
            assembled(load(pristine["1.0"]), width=20)


class TestRefusals:
    def test_no_folder(self, tmp_path):
        with pytest.raises(UserError, match="no published Open-Sora weights ship with this package: name their folder"):
            load(None)
        refused(tmp_path / "nowhere", "no model at", "there is no such folder")
        (tmp_path / "file").write_text("")
        refused(tmp_path / "file", "is a file: a model is a folder")
        refused(tmp_path, f"{tmp_path / 'transformer'} is missing: put the transformer there")

    @pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
    def test_missing_parts(self, copied, part):
        folder = copied("1.2")
        shutil.rmtree(folder / part)
        refused(folder, f"{folder / part} is missing: put the {part} there, ")

    def test_no_weights_or_pickled_ones(self, copied):
        folder = copied("1.2")
        (folder / TRANSFORMER).rename(folder / "transformer" / "model.pth")
        refused(folder, "holds its weights as a pickle (model.pth), which is never opened")
        (folder / "transformer" / "model.pth").unlink()
        refused(folder, "has no weights (*.safetensors)")

    @pytest.mark.parametrize("file", [TRANSFORMER, "vae/model.safetensors", "text_encoder/model.safetensors"])
    def test_truncated_files(self, copied, file):
        folder = copied("1.2")
        (folder / file).write_bytes((folder / file).read_bytes()[:-100])
        refused(folder, f"{folder / file} is truncated")
        assert OpenSora().matches(folder)

    @pytest.mark.parametrize(
        ("file", "name"),
        [(TRANSFORMER, "t_block.1.bias"), ("vae/model.safetensors", "temporal_vae.encoder.norm1.bias")],
    )
    def test_numbers_that_are_none(self, copied, file, name):
        folder = copied("1.2")
        state = load_file(folder / file)
        save(state | {name: torch.full_like(state[name], torch.nan)}, folder / file)
        refused(folder, f"{name} holds NaN or infinite numbers as float32")

    def test_weights_of_another_model(self, copied):
        folder = copied("1.2")
        state = load_file(folder / TRANSFORMER)
        save({name: value for name, value in state.items() if name != "t_block.1.bias"}, folder / TRANSFORMER)
        refused(folder, TRANSFORMER, "1 are missing, t_block.1.bias for one")
        save(state | {"x_embedder_cond.proj.weight": torch.ones(1)}, folder / TRANSFORMER)
        refused(folder, "is a transformer of Open-Sora 1.3 or later (it has x_embedder_cond.proj.weight): give one of")
        save(state | {"x_embedder.proj.weight": torch.ones(48, 16, 1, 2, 2)}, folder / TRANSFORMER)
        refused(folder, "takes latents of 16 channels, as Open-Sora 1.3 does, not 4")

    def test_a_tensor_in_two_files(self, copied):
        folder = copied("1.2")
        shutil.copy(folder / TRANSFORMER, folder / "transformer" / "ema.safetensors")
        refused(folder, "both in ema.safetensors and model.safetensors: take one of the files out")

    def test_parts_of_different_models(self, copied, pristine):
        folder = copied("1.1")
        shutil.rmtree(folder / "vae")
        shutil.copytree(pristine["1.2"] / "vae", folder / "vae")
        refused(folder, "is Open-Sora 1.1, the autoencoder 1.2's: give for 1.2 the file of hpcai-tech/OpenSora-VAE")
        shutil.rmtree(folder)
        folder = copied("1.2")
        with quiet():
            t5(width=16).save_pretrained(folder / "text_encoder")
        refused(folder, "reads 10 text tokens of width 32, the text encoder writes 10 of 16: they belong to different")
        write_json(folder / "text_encoder" / "config.json", {"architectures": ["BertModel"]})
        refused(folder, "describes BertModel: Open-Sora reads T5EncoderModel or T5ForConditionalGeneration or CLIPText")

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            ({"norm_num_groups": 0}, "norm_num_groups must be a whole number above 0, not 0"),
            ({"norm_num_groups": "2"}, "norm_num_groups must be a whole number above 0, not 2"),
            ({}, "2 channels of the temporal autoencoder do not split into 32 groups"),
        ],
    )
    def test_groups_of_the_autoencoder(self, copied, said, told):
        folder = copied("1.2")
        write_json(folder / "vae" / "config.json", said)
        refused(folder, str(folder / "vae"), told)

    def test_a_tokenizer_that_needs_more_packages(self, copied, monkeypatch):
        folder = copied("1.0")
        (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
        monkeypatch.setattr("backends.opensora_parts.is_sentencepiece_available", lambda: False)
        refused(
            folder, "tokenizer has no tokenizer.json: add one (such as google-t5/t5-small's), or make its spiece.model"
        )
        monkeypatch.setattr("backends.opensora_parts.is_sentencepiece_available", lambda: True)
        monkeypatch.setattr("backends.opensora_parts.is_protobuf_available", lambda: True)
        refused(folder, "cannot load the tokenizer of")

    def test_more_files_than_the_autoencoders(self, copied):
        folder = copied("1.2")
        save({"more": torch.ones(1)}, folder / "vae" / "more.safetensors")
        refused(folder, "vae holds 2 safetensors files: leave only the autoencoder's there")

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            (None, "48 channels are no whole heads of 72: say how many heads"),
            ({"num_heads": 0}, "num_heads must be a whole number above 0, not 0"),
            ({"num_heads": 5}, "48 channels cannot be 5 heads"),
        ],
    )
    def test_heads_of_1_0(self, copied, said, told):
        folder = copied("1.0")
        path = folder / "transformer" / "config.json"
        path.unlink()
        if said is not None:
            write_json(path, said)
        with pytest.raises(UserError, match=told):
            load(folder)


class TestRegistry:
    PLUGINS = {
        "streaming.backbones": {
            "modelscope": "backends.modelscope:ModelScope",
            "opensora": "backends.opensora:OpenSora",
            "toy-dit": "backends.toy_dit:ToyDiTBackend",
        }
    }

    def test_open_model_finds_the_plugin(self, pristine, version, monkeypatch):
        register(monkeypatch, self.PLUGINS)
        model = open_model(str(pristine[version]))
        assert isinstance(model.backbone, BACKBONES[version]) and model.name == str(pristine[version])

    def test_later_versions_reach_the_refusal(self, copied, monkeypatch):
        register(monkeypatch, self.PLUGINS)
        folder = copied("1.2")
        later = {"x_embedder_cond.proj.weight": torch.ones(1), "spatial_blocks.0.attn.q.weight": torch.ones(1)}
        save(later, folder / TRANSFORMER)
        with pytest.raises(UserError, match="is a transformer of Open-Sora 1.3 or later"):
            open_model(str(folder))

    def test_open_sora_2_a_flat_folder_and_a_pickle_are_told_what_to_do(self, copied, tmp_path, monkeypatch):
        register(monkeypatch, self.PLUGINS)
        folder = copied("1.2")
        (folder / TRANSFORMER).rename(tmp_path / "model.safetensors")
        with pytest.raises(UserError, match="holds the transformer's file itself: put it into a folder 'transformer'"):
            open_model(str(tmp_path))
        (folder / "transformer" / "model.pth").write_bytes(b"pickled")
        with pytest.raises(UserError, match="holds its weights as a pickle .model.pth., which is never opened"):
            open_model(str(folder))
        save({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, folder / TRANSFORMER)
        with pytest.raises(UserError, match="is a transformer of Open-Sora 1.3 or later"):
            open_model(str(folder))

    def test_without_overlap_there_is_no_memory(self, copied):
        model = unlike_settings(copied("1.2"), frames=17, overlap=0)
        with pytest.raises(UserError, match="do not overlap, so there is nothing for a short-term memory to remember"):
            assemble(model, short=FrameMask(), long=NoLongTerm())
        assembled(model)

    def test_what_it_does_not_know(self, tmp_path):
        assert not OpenSora().matches(tmp_path)
        save({"transformer_blocks.0.attn1.to_q.weight": torch.ones(1)}, tmp_path / TRANSFORMER)
        assert not OpenSora().matches(tmp_path)
        for content in (b"", b"\xff" * 16, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{"):
            (tmp_path / TRANSFORMER).write_bytes(content)
            assert not OpenSora().matches(tmp_path) and tensor_names(tmp_path / "transformer") == []

    def test_names_are_those_in_the_files(self, pristine):
        names = tensor_names(pristine["1.2"] / "transformer")
        assert set(names) == set(transformer("1.2").state_dict())
        assert len(OpenSora().describe().splitlines()) == 1


def test_training_of_memories_reads_no_text_as_far_as_the_prompt(pristine):
    """As sampling does: y_embedding under the mask of the prompt in whose place it stands."""
    model = load(pristine["1.2"])
    square = replace(model, defaults=replace(model.defaults, height=12, width=12))
    recipe = replace(cam_recipe(toy=True), text_dropout=1.0)
    batches = ClipBatches(square, ToyClips(), recipe, batch=2, name="t")
    nothing = batches.nothing(CPU)
    assert torch.equal(nothing["text"], transformer("1.2").y_embedder.y_embedding[None].half())
    mask = torch.arange(TOKENS) < torch.tensor([[2], [5]])
    latents, text = Key(0).normal(2, model.codec.channels, 15, 6, 6), Key(1).normal(2, *nothing["text"].shape[1:])
    clips = {"latents": latents.half(), "text": text.half(), "text_mask": mask}
    batch = batches.noised(clips, nothing, torch.Generator().manual_seed(0))
    assert torch.equal(batch.context, nothing["text"].float().expand_as(batch.context))
    assert torch.equal(batch.context_mask, mask)
    assert AESTHETICS.endswith("6.5.")
