"""`streamingt2v convert`: a checkpoint with all published names becomes a model that generates; what it refuses."""

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

import streaming
from adapters.official import StreamingT2V, to_official_state
from adapters.official_names import PARTS, ignored
from backends.modelscope_folder import quiet
from streaming.convert import Converter, ConvertOptions, convert
from streaming.errors import UserError
from streaming.weights import Checkpoint
from streaming.weights_write import Part, Take, shard_names, shards, write_parts
from tests.cli_toys import register, run
from tests.official_toys import published, small

OPTIONS = ConvertOptions(dtype=torch.float32)
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return small()


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Lightning saves it."""
    path = tmp_path_factory.mktemp("published") / "streaming_t2v.ckpt"
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(5), "exp_avg_sq": torch.zeros(5)}}
    torch.save({"epoch": 1, "state_dict": state, "optimizer_states": [{"state": moments, "param_groups": []}]}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted, in small shards."""
    target = tmp_path_factory.mktemp("models") / "made" / "st2v"
    options = ConvertOptions(dtype=torch.float32, shard_bytes=1_000_000)
    assert convert(checkpoint, target, options) == target
    return target


def tensors(folder: Path) -> dict[str, Tensor]:
    """All weight files of a folder."""
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def kept(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not ignored(name)}


@pytest.fixture(scope="module")
def model(folder: Path) -> streaming.Model:
    return streaming.open_model(str(folder))


class TestFolder:
    def test_converting_back_gives_the_same_state_dict(self, folder: Path, state: dict[str, Tensor]) -> None:
        back = to_official_state({part: tensors(folder / part) for part in PARTS})
        assert len(back) == 3401 and same(back, kept(state))

    def test_what_is_loaded_is_bit_equal(self, model: Any, state: dict[str, Tensor]) -> None:
        short, long = streaming.make_short_term("cam", model), streaming.make_long_term("apm", model)
        loaded = {
            "unet": model.backbone.unet,
            "cam": short,
            "apm": long,
            "vae": model.codec.vae,
            "text_encoder": model.text.model,
            "image_encoder": model.image.visual,
        }
        assert same(to_official_state({part: each.state_dict() for part, each in loaded.items()}), kept(state))

    def test_it_generates(self, model: Any) -> None:
        short, long = streaming.make_short_term("cam", model), streaming.make_long_term("apm", model)
        parts = streaming.assemble(
            model, short=short, long=long, sampler=streaming.Sampler("ddim", 2), height=32, width=32
        )
        prompts = streaming.PromptSchedule.of({0: "a red ball, rolling over a green meadow"})
        chunks = [
            chunk.frames
            for chunk in streaming.stream(parts, prompts, streaming.TextOpening(), key=streaming.Key(0), chunks=2)
        ]
        assert [chunk.shape[1] for chunk in chunks] == [16, 8]
        assert all(torch.isfinite(chunk).all() and chunk.std() > 0 for chunk in chunks)

    def test_settings_are_the_published_ones(self, model: Any) -> None:
        defaults, window = model.defaults, model.backbone.window
        assert (defaults.height, defaults.width, defaults.fps, defaults.steps) == (256, 256, 8.0, 50)
        assert (defaults.guidance, defaults.eta, window.frames, window.overlap) == (7.5, 1.0, 16, 8)
        scheduler = model.scheduler
        scheduler.set_timesteps(50)
        assert scheduler.timesteps[:2].tolist() == [981, 961] and scheduler.timesteps[-1] == 1
        assert float(scheduler.final_alpha_cumprod) == float(scheduler.alphas_cumprod[0])
        assert scheduler.config["prediction_type"] == "epsilon" and not scheduler.config["clip_sample"]

    def test_shards_are_small_and_listed(self, folder: Path) -> None:
        files = sorted((folder / "unet").glob("*.safetensors"))
        assert len(files) > 3 and all(path.stat().st_size < 1_300_000 for path in files)
        index = json.loads((folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
        placed = {name: path.name for path in files for name in load_file(path)}
        assert index["weight_map"] == placed
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors(folder / "unet").values())
        assert set(json.loads((folder / "cam" / "config.json").read_text())["weights"].values()) == {
            path.name for path in (folder / "cam").glob("*.safetensors")
        }

    def test_diffusers_and_transformers_read_it_themselves(self, folder: Path, state: dict[str, Tensor]) -> None:
        from diffusers import TextToVideoSDPipeline

        with quiet():
            pipeline: Any = TextToVideoSDPipeline.from_pretrained(str(folder), local_files_only=True)
        weight = state["base_model.conv_out.weight"]
        assert torch.equal(pipeline.unet.conv_out.weight, weight) and pipeline.tokenizer.pad_token_id == 0

    def test_others_may_read_the_files(self, folder: Path) -> None:
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*"))
        assert all(path.stat().st_mode & 0o011 for path in folder.rglob("*") if path.is_dir())
        assert [path.name for path in folder.parent.iterdir()] == ["st2v"]


class TestTokenizer:
    PROMPTS = (
        "a red ball rolls over a green meadow",
        "A Cat, sitting on the table; it's 42 o'clock.",
        "",
        "  many   spaces\n and lines ",
        "Überraschung über Zürich — naïve café, 日本の桜 🌸",
        "two astronauts' dog's hyper-realistic (cinematic) 4K x_y",
    )

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_it_spells_as_open_clip_does(self, folder: Path, prompt: str) -> None:
        import open_clip

        ours = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        theirs = open_clip.get_tokenizer("ViT-H-14")([prompt])[0].tolist()
        assert ours(prompt, padding="max_length", max_length=77)["input_ids"] == theirs

    def test_an_exclamation_mark_is_padding(self, folder: Path) -> None:
        """As transformers reads ModelScope's own tokenizer, too."""
        ours = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        assert ours("wow!")["input_ids"] == [49406, 2781, 0, 49407]
        assert (ours.pad_token, ours.pad_token_id, len(ours), ours.model_max_length) == ("!", 0, 49408, 77)


class TestSources:
    @pytest.mark.parametrize("kind", ["safetensors", "bare and old names"])
    def test_other_forms_of_the_file(self, kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
        source = tmp_path / "weights"
        if kind == "safetensors":
            save_file(state, source)
        else:
            torch.save(aged(state), source)
        convert(source, tmp_path / "made", OPTIONS)
        assert same(to_official_state({part: tensors(tmp_path / "made" / part) for part in PARTS}), kept(state))

    def test_half_precision(self, checkpoint: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        options = ConvertOptions(dtype=torch.float16, report=lambda *what: told.append(what))
        convert(checkpoint, tmp_path / "made", options)
        back = to_official_state({part: tensors(tmp_path / "made" / part) for part in PARTS})
        assert same(back, {name: value.half() for name, value in kept(state).items()})
        total = sum(2 * value.numel() for value in kept(state).values())
        assert told[-1] == ("image_encoder/model.safetensors", total, total) and told[0][0] == UNET
        assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_types_of_numbers(self, dtype: torch.dtype, tmp_path: Path) -> None:
        values = {"a": torch.randn(3, 5), "b": torch.arange(7), "c": torch.tensor(True), "d": torch.zeros(0, 2)}
        save_file(values, tmp_path / "some")
        takes = {name: Take(name) for name in values}
        part = Part(folder="", config={"x": 1}, source=Checkpoint(tmp_path / "some"), tensors=takes, stem="model")
        (tmp_path / "made").mkdir()
        write_parts(tmp_path / "made", [part], ConvertOptions(dtype=dtype))
        assert same(load_file(tmp_path / "made" / "model.safetensors"), {**values, "a": values["a"].to(dtype)})
        assert json.loads((tmp_path / "made" / "config.json").read_text()) == {"x": 1}

    def test_modelscopes_own_parts(
        self, checkpoint: Path, folder: Path, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        theirs = modelscope(tmp_path / "ms", folder)
        target = tmp_path / "made"
        assert run("convert", checkpoint, target, "--modelscope", theirs, "--dtype", "float32") == 0
        own = {name: value + 1 for name, value in tensors(folder / "unet").items()}
        assert same(tensors(target / "first_chunk" / "unet"), own)
        merges = (target / "tokenizer/merges.txt").read_text()
        assert merges == (theirs / "tokenizer/merges.txt").read_text() and "theirs" in merges
        assert sorted(path.name for path in (target / "tokenizer").iterdir()) == [
            "merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json",
        ]  # fmt: skip
        first = streaming.open_model(str(target)).first
        assert first is not None and same(dict(first.backbone.state_dict()), {f"unet.{n}": v for n, v in own.items()})

    def test_modelscopes_pickle(self, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
        theirs = modelscope(tmp_path / "ms", folder)
        values = load_file(theirs / UNET)
        (theirs / UNET).unlink()
        torch.save(values, (theirs / UNET).with_suffix(".bin"))
        convert(checkpoint, tmp_path / "made", ConvertOptions(dtype=torch.float32, modelscope=theirs))
        assert same(tensors(tmp_path / "made" / "first_chunk" / "unet"), values)

    def test_modelscopes_shards(self, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
        """Of several weights the ones in full precision are taken, sharded or not."""
        theirs = modelscope(tmp_path / "ms", folder)
        values = load_file(theirs / UNET)
        (theirs / UNET).unlink()
        save_file(
            {name: value.half() for name, value in values.items()}, (theirs / UNET).with_suffix(".fp16.safetensors")
        )
        names, stem = list(values), "diffusion_pytorch_model"
        placed = {name: f"{stem}-{i // 800 + 1:05d}-of-00002.safetensors" for i, name in enumerate(names)}
        for file in set(placed.values()):
            save_file({name: values[name] for name in names if placed[name] == file}, theirs / "unet" / file)
        index = theirs / "unet" / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": placed}))
        options = ConvertOptions(dtype=torch.float32, modelscope=theirs)
        convert(checkpoint, tmp_path / "made", options)
        assert same(tensors(tmp_path / "made" / "first_chunk" / "unet"), values)
        (theirs / "unet" / placed[names[-1]]).unlink()
        with pytest.raises(UserError, match="there is no file .*00002-of-00002.safetensors"):
            convert(checkpoint, tmp_path / "other", options)
        index.write_text(json.dumps({"weight_map": {**placed, names[-1]: "../x"}}))
        with pytest.raises(UserError, match="is no index of weight files"):
            convert(checkpoint, tmp_path / "other", options)

    def test_a_small_vocabulary_has_no_tokenizer(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        words = "text_encoder.text_model.embeddings.token_embedding.weight"
        save_file({**state, words: state[words][:100].clone()}, tmp_path / "some.safetensors")
        with pytest.warns(UserWarning, match="no tokenizer was written: the text encoder knows 100 tokens, CLIP's"):
            convert(tmp_path / "some.safetensors", tmp_path / "made", OPTIONS)
        assert not (tmp_path / "made" / "tokenizer").exists()


def aged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and shapes of old diffusers, old positions and masks, transformers 5."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    made: dict[str, Tensor] = {"text_encoder.embeddings.position_ids": torch.arange(77)[None]}
    made["image_encoder.model.attn_mask"] = torch.zeros(77, 77)
    for name, value in state.items():
        if name.startswith("vae.") and ".attentions." in name:
            for today, before in old.items():
                if f".{today}." in name:
                    name, value = name.replace(today, before), value if value.ndim == 1 else value[:, :, None, None]
        made[name.replace("text_encoder.text_model.", "text_encoder.")] = value
    return made


def modelscope(target: Path, folder: Path) -> Path:
    """The part of ModelScope's folder that counts, with another UNet and tokenizer."""
    (target / "unet").mkdir(parents=True)
    own = {name: value + 1 for name, value in tensors(folder / "unet").items()}
    save_file(own, target / UNET)
    shutil.copytree(folder / "tokenizer", target / "tokenizer")
    (target / "tokenizer" / "note.txt").write_text("not a tokenizer's file")
    merges = target / "tokenizer" / "merges.txt"
    merges.write_text(merges.read_text().replace("#version: 0.2", "#version: theirs"))
    return target


def _own_code(tokenizer: Path) -> None:
    """As on the hub: classes in a file beside, which transformers would offer to run."""
    path = tokenizer / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    (tokenizer / "own.py").write_text("raise SystemExit('code was run')")


def _more_words(tokenizer: Path) -> None:
    words = json.loads((tokenizer / "vocab.json").read_text())
    (tokenizer / "vocab.json").write_text(json.dumps({**words, "qqzz": len(words), "qqzy": len(words) + 1}))


def _quantised(unet: Path) -> None:
    values = load_file(unet)
    save_file({**values, "conv_out.bias": values["conv_out.bias"].to(torch.int8)}, unet)


@final
class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@final
class Harmless:
    """Not known to PyTorch's restricted reader."""


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command is refused with, after progress if there was any."""
    capsys.readouterr()
    assert run("convert", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    told = [line for line in lines if not re.match(r"\S+\.safetensors: [\d.]+ of [\d.]+ GB", line)]
    assert len(told) == 1 and told[0].startswith("error: ")
    return told[0]


class TestRefusals:
    """Exit code 2, one line, and nothing left behind."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        return tmp_path / "new" / "made"

    @pytest.fixture(autouse=True)
    def nothing_left(self, target: Path) -> Any:
        yield
        assert not target.parent.exists()

    def test_a_malicious_pickle_is_not_run(
        self, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trace = tmp_path / "trace"
        torch.save({"state_dict": {"x": torch.zeros(1)}, "hook": Evil(trace)}, tmp_path / "evil.ckpt")
        line = refusal(capsys, tmp_path / "evil.ckpt", target)
        assert "evil.ckpt holds more than numbers (posix.system), which is never run" in line
        (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Evil(trace)))
        line = refusal(capsys, tmp_path / "bare.ckpt", target)
        assert "bare.ckpt is no checkpoint: it is a pickle by itself" in line and "never opened" in line
        assert not trace.exists()

    def test_unknown_classes_are_not_run(
        self, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({"state_dict": {}, "hyper_parameters": Harmless()}, tmp_path / "some.ckpt")
        assert "holds more than numbers (tests.test_convert.Harmless)" in refusal(
            capsys, tmp_path / "some.ckpt", target
        )

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
    @pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
    def test_truncated(
        self, share: float, kind: str, target: Path, checkpoint: Path, folder: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        whole = checkpoint if kind == "ckpt" else folder / "image_encoder" / "model.safetensors"
        data = whole.read_bytes()
        (tmp_path / "some").write_bytes(data[: int(share * len(data))])
        said = "is truncated or damaged" if share else "the file is empty"
        assert said in refusal(capsys, tmp_path / "some", target)

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (
                ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight", "c", "d"],
                "(it holds model.diffusion_model.input_blocks.0.0.weight, first_stage_model.encoder.conv_in.weight and "
                "2 more tensors): give a file of one of these: ",
            ),
            (["model.layers.0.self_attn.q_proj.weight"], "is a checkpoint of another kind of model"),
        ],
    )
    def test_of_another_model(
        self, names: list[str], said: str, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({"state_dict": {name: torch.zeros(2) for name in names}}, tmp_path / "some.ckpt")
        line = refusal(capsys, tmp_path / "some.ckpt", target)
        assert said in line and "StreamingT2V's streaming_t2v.ckpt" in line

    @pytest.mark.parametrize("content", [[torch.zeros(3)], torch.zeros(3), {"state_dict": {}}, {"x": "y"}])
    def test_without_names(
        self, content: Any, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save(content, tmp_path / "some.ckpt")
        assert "holds no tensors by name" in refusal(capsys, tmp_path / "some.ckpt", target)

    def test_no_checkpoint_at_all(self, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "there is no file" in refusal(capsys, tmp_path / "none.ckpt", target)
        assert "is a folder: give a file of one of these" in refusal(capsys, tmp_path, target)
        (tmp_path / "page.ckpt").write_text("<!doctype html><title>Not found</title>")
        assert "is neither of PyTorch's nor of safetensors' format" in refusal(capsys, tmp_path / "page.ckpt", target)
        (tmp_path / "lfs.ckpt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
        assert "it is a pointer of Git LFS" in refusal(capsys, tmp_path / "lfs.ckpt", target)

    def test_missing_names_and_nan(
        self, target: Path, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_file({name: value for name, value in state.items() if "resampler" not in name}, tmp_path / "some")
        assert "some: 4 tensors are missing, resampler.context_embedding." in refusal(capsys, tmp_path / "some", target)
        bias = "vae.decoder.conv_out.bias"
        save_file({**state, bias: torch.full((3,), float("nan"))}, tmp_path / "some")
        assert f"some: {bias} holds NaN or infinite numbers" in refusal(capsys, tmp_path / "some", target)
        save_file({**state, bias: torch.full((3,), 1e6)}, tmp_path / "some")
        line = refusal(capsys, tmp_path / "some", target, "--dtype", "float16")
        assert f"{bias} holds numbers too large for float16: choose --dtype float32" in line

    def test_too_little_room(
        self, target: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        usage = type(shutil.disk_usage("/"))
        monkeypatch.setattr("streaming.weights_write.shutil.disk_usage", lambda path: usage(10**12, 10**12, 10**8))
        line = refusal(capsys, checkpoint, target)
        assert "112.1 MB are needed at" in line and "100.0 MB are free: make room" in line
        monkeypatch.setattr("streaming.weights_write._SPARE", 10**9)
        monkeypatch.setattr(
            "streaming.weights_write.shutil.disk_usage", lambda path: usage(10**12, 10**12, 10**9 + 10**7)
        )
        assert "1.1 GB are needed at" in (line := refusal(capsys, checkpoint, target)) and "1.0 GB are free" in line

    def test_a_disk_that_fills_up(
        self, target: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        written: list[Tensor] = []

        def put(file: Any, value: Tensor) -> None:
            written.append(value)
            if len(written) > 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("streaming.weights_write._put", put)
        line = refusal(capsys, checkpoint, target)
        assert "(no space left on device): make room or choose another folder" in line

    def test_stopped(
        self, target: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def stop(*told: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("streaming.cli.convert._Progress.tell", stop)
        assert run("convert", checkpoint, target) == 130
        assert capsys.readouterr().err.strip() == f"stopped: nothing was written, {target} is as it was"

    @pytest.mark.parametrize("kind", ["sparse", "complex", "meta", "whole"])
    def test_other_kinds_of_numbers(
        self, kind: str, target: Path, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = "vae.decoder.conv_out.bias"
        made = {
            "sparse": (torch.zeros(3).to_sparse(), "is stored as sparse_coo: give a file of plain"),
            "complex": (torch.zeros(3, dtype=torch.complex64), "is of type complex64: give a file of plain"),
            "meta": (torch.zeros(3, device="meta"), "has a shape but no numbers: give a file of plain"),
            "whole": (torch.zeros(3, dtype=torch.int8), "of type int8 should be of floating-point numbers"),
        }
        torch.save({**state, name: made[kind][0]}, tmp_path / "some.ckpt")
        assert f"some.ckpt: {name} {made[kind][1]}" in refusal(capsys, tmp_path / "some.ckpt", target)

    def test_paths_that_cannot_be(
        self, target: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        long = tmp_path / ("n" * 300)
        for source in (tmp_path / "loop", long, long / "x"):
            assert f"cannot read {source} (" in refusal(capsys, source, target)
        for place in (tmp_path / "loop", tmp_path / "loop" / "made", long, long / "x"):
            assert f"cannot write {place} (" in refusal(capsys, checkpoint, place)
        assert f"cannot read --modelscope {tmp_path / 'loop'} (" in refusal(
            capsys, checkpoint, target, "--modelscope", tmp_path / "loop"
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda ms: shutil.rmtree(ms), "there is no such folder; download the model in diffusers format"),
            (lambda ms: shutil.rmtree(ms / "tokenizer"), "has no folder tokenizer: give the whole model"),
            (lambda ms: (ms / UNET).unlink(), "has no weights (diffusion_pytorch_model.safetensors): download them"),
            (lambda ms: save_file({"x": torch.zeros(1)}, ms / UNET), "does not fit the checkpoint's UNet (conv_in."),
            (lambda ms: (ms / UNET).write_bytes(b"PK\x03\x04"), "is truncated or damaged"),
            (lambda ms: [path.unlink() for path in (ms / "tokenizer").iterdir()], "cannot load the tokenizer of"),
            (lambda ms: (ms / "tokenizer/vocab.json").write_text("{"), "cannot load the tokenizer of"),
            (lambda ms: _own_code(ms / "tokenizer"), "wants code of its own to run (auto_map), which is never done"),
            (lambda ms: _more_words(ms / "tokenizer"), "has 49410 tokens, the checkpoint's text encoder knows 49408"),
            (lambda ms: _quantised(ms / UNET), "conv_out.bias of type int8 should be of floating-point numbers"),
        ],
    )
    def test_another_modelscope(
        self, change: Callable[[Path], object], said: str, target: Path, checkpoint: Path, folder: Path,
        tmp_path: Path, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        theirs = modelscope(tmp_path / "ms", folder)
        change(theirs)
        assert said in refusal(capsys, checkpoint, target, "--modelscope", theirs)

    def test_dtype(self, target: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = refusal(capsys, checkpoint, target, "--dtype", "float61")
        assert "--dtype 'float61': did you mean float16?" in line


@final
class Plain(Converter):
    """Knows everything; writes into a folder of the directory."""

    def describe(self) -> str:
        return "anything"

    def matches(self, source: Path) -> bool:
        return True

    def place(self, directory: Path) -> Path:
        return directory / "enhancer"

    def convert(self, source: Path, target: Path, options: ConvertOptions) -> None:
        (target / "note.txt").write_text(str(options.dtype))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions that take no time."""
    register(monkeypatch, {"streaming.converters": {"plain": "tests.test_convert:Plain"}})


def earlier(checkpoint: Path, folder: Path) -> None:
    """An earlier conversion, in half precision."""
    convert(checkpoint, folder / "made", ConvertOptions(dtype=torch.float16))


def whole(target: Path) -> None:
    """A folder with the part in it."""
    (target / "enhancer").mkdir()
    for path in (target / "note.txt", target / "enhancer" / "note.txt"):
        path.write_text("a note of another size")


@pytest.mark.usefixtures("plain")
class TestPlaces:
    def test_what_is_there_is_only_replaced_if_asked(
        self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        earlier(checkpoint, tmp_path)
        line = refusal(capsys, checkpoint, tmp_path / "made")
        assert "enhancer exists already: choose another folder, or replace it with --overwrite" in line
        assert run("convert", checkpoint, tmp_path / "made", "--overwrite") == 0
        assert (tmp_path / "made" / "enhancer" / "note.txt").read_text() == "torch.float32"

    def test_an_empty_folder_will_do(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "made" / "enhancer").mkdir(parents=True)
        assert run("convert", checkpoint, tmp_path / "made") == 0

    def test_a_part_of_a_model_leaves_the_others_alone(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "model_index.json").touch()
        assert convert(checkpoint, tmp_path / "made", OPTIONS) == tmp_path / "made" / "enhancer"
        assert (tmp_path / "made" / "model_index.json").exists()

    def test_what_is_not_a_conversions_is_never_deleted(
        self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "made" / "enhancer" / "notes").mkdir(parents=True)
        (tmp_path / "made" / "enhancer" / "thesis.tex").write_text("words")
        line = refusal(capsys, checkpoint, tmp_path / "made", "--overwrite")
        assert "holds notes and 1 more, which no conversion wrote and --overwrite would delete: move it away" in line
        assert (tmp_path / "made" / "enhancer" / "thesis.tex").read_text() == "words"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda made: (made / "enhancer/thesis.tex").touch(), "holds thesis.tex, which no conversion wrote"),
            (lambda made: (made / "enhancer/note.txt").write_text("mine"), "holds note.txt, which no"),
            (lambda made: (made / "enhancer/notes").mkdir(), "holds notes, which no"),
            (lambda made: (made / "enhancer/link").symlink_to(made), "holds link, which no"),
            (lambda made: (made / "enhancer/converted.json").unlink(), "holds note.txt, which no"),
            (
                lambda made: (made / "enhancer/converted.json").write_text("{}"),
                "holds converted.json and 1 more, which",
            ),
            (lambda made: (made / "enhancer/converted.json").write_text("["), "holds converted.json and 1 more, which"),
        ],
    )
    def test_what_came_later_is_never_deleted(
        self, change: Callable[[Path], object], said: str, checkpoint: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        earlier(checkpoint, tmp_path)
        change(tmp_path / "made")
        before = sorted(path.name for path in tmp_path.rglob("*"))
        assert said in refusal(capsys, checkpoint, tmp_path / "made", "--overwrite")
        assert sorted(path.name for path in tmp_path.rglob("*")) == before

    def test_a_folder_of_several_conversions_can_be_replaced(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A part that was added later is listed in itself; one that was replaced later may have another size."""
        monkeypatch.setattr(Plain, "place", lambda self, directory: directory)
        monkeypatch.setattr(Plain, "convert", lambda self, source, target, options: whole(target))
        convert(checkpoint, tmp_path / "made", OPTIONS)
        monkeypatch.undo()
        register(monkeypatch, {"streaming.converters": {"plain": "tests.test_convert:Plain"}})
        convert(checkpoint, tmp_path / "made", OPTIONS, overwrite=True)
        monkeypatch.setattr(Plain, "place", lambda self, directory: directory)
        convert(checkpoint, tmp_path / "made", OPTIONS, overwrite=True)
        assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["converted.json", "note.txt"]

    def test_modelscopes_folder_is_kept(
        self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        earlier(checkpoint, tmp_path)
        made = tmp_path / "made"
        for other in (made / "enhancer", made / "enhancer" / "deep", made, tmp_path / "made" / ".." / "made"):
            line = refusal(capsys, checkpoint, made, "--modelscope", other, "--overwrite")
            assert "name two folders, neither within the other" in line

    def test_folders_that_cannot_be_moved(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "made" / "enhancer" / "deep").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "made" / "enhancer" / "deep")
        line = refusal(capsys, checkpoint, tmp_path / "made", "--overwrite")
        assert "enhancer is, or holds, the current folder and can't be replaced: name a folder inside" in line
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("streaming.convert_place.os.path.ismount", lambda path: True)
        line = refusal(capsys, checkpoint, tmp_path / "made")
        assert "enhancer is where a disk is mounted and can't be replaced" in line

    def test_a_file(self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "enhancer").write_text("x")
        assert "enhancer is a file: name a folder" in refusal(capsys, checkpoint, tmp_path / "made", "--overwrite")
        line = refusal(capsys, checkpoint, tmp_path / "made" / "enhancer" / "inside")
        assert "cannot write" in line and "choose another folder" in line

    def test_the_old_folder_stays_if_the_new_one_fails(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        earlier(checkpoint, tmp_path)
        monkeypatch.setattr(Plain, "convert", lambda *told: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(checkpoint, tmp_path / "made", OPTIONS, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["made"]
        assert (tmp_path / "made" / "enhancer" / "note.txt").read_text() == "torch.float16"


class TestPlugins:
    def test_two_that_know_one_file(self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plugins = {"plain": "tests.test_convert:Plain", "streamingt2v": "adapters.official:StreamingT2V"}
        register(monkeypatch, {"streaming.converters": plugins})
        with pytest.raises(UserError, match="more than one converter knows .*: plain, streamingt2v"):
            convert(checkpoint, tmp_path / "made", OPTIONS)

    def test_one_that_is_broken_is_skipped(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plugins = {"broken": "tests.nothing:Nothing", "plain": "tests.test_convert:Plain"}
        register(monkeypatch, {"streaming.converters": plugins})
        with pytest.warns(UserWarning, match="the plugin 'broken'"):
            convert(checkpoint, tmp_path / "made", OPTIONS)

    def test_it_matches_only_its_own(self, checkpoint: Path, folder: Path) -> None:
        assert StreamingT2V().matches(checkpoint)
        assert not StreamingT2V().matches(folder)
        assert not StreamingT2V().matches(folder / "image_encoder" / "model.safetensors")


class TestPieces:
    @given(sizes=st.lists(st.integers(0, 30), max_size=12), limit=st.integers(1, 40))
    def test_shards(self, sizes: list[int], limit: int) -> None:
        named = {str(i): size for i, size in enumerate(sizes)}
        groups = shards(named, limit)
        assert [name for group in groups for name in group] == list(named)
        assert all(len(group) == 1 or sum(named[name] for name in group) <= limit for group in groups if group)
        full = [sum(named[name] for name in group) for group in groups]
        assert all(one + named[after[0]] > limit for one, after in zip(full, groups[1:], strict=False))

    def test_their_names(self) -> None:
        assert shard_names("model", 1) == ["model.safetensors"]
        assert shard_names("model", 2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]

    @pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
    def test_reading_in_breaths(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("streaming.weights._BREATH", 10)
        values = {str(i): torch.full((i + 1,), float(i)) for i in range(9)}
        torch.save(values, tmp_path / "some") if kind == "ckpt" else save_file(values, tmp_path / "some")
        checkpoint = Checkpoint(tmp_path / "some")
        assert {name: value.shape for name, value in checkpoint.meta.items()} == {
            name: value.shape for name, value in values.items()
        }
        names = list(values)[::-2]
        for name, value in zip(names, checkpoint.read(names), strict=True):
            assert torch.equal(value, values[name])

    def test_headers_are_aligned_and_whole(self, folder: Path) -> None:
        for path in folder.rglob("*.safetensors"):
            length = int.from_bytes(path.read_bytes()[:8], "little")
            assert length % 8 == 0
            with safe_open(path, "pt") as file:
                assert file.metadata() == {"format": "pt"}

    def test_the_list_of_names_is_the_published_one(self) -> None:
        assert len(published()) == 3407
        assert sum(torch.Size(shape).numel() for shape in published().values()) == 3_232_602_140
