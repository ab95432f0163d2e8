"""The tiny Open-Sora: its training at toy size, and the weights that ship."""

from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from backends.embedded_opensora.config import build_defaults, build_transformer, save_transformer
from backends.embedded_opensora.train import flow_batch, flow_times, generated_frames, train_transformer
from backends.opensora_init import begin
from backends.opensora_stdit3 import STDiT3
from streaming.backbone import Backbone
from streaming.conformance import BackboneConformance
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.loop import stream
from streaming.model import Model
from streaming.openings import TextOpening
from streaming.parts import assemble
from streaming.prompts import PromptSchedule
from streaming.registry import make_long_term, make_short_term, open_enhancer, open_model
from streaming.sample import Sampler
from streaming.training import TrainOptions

WEIGHTS = Path(str(files("backends.embedded_opensora"))) / "weights"
GOLDEN = Path(__file__).parent / "data" / "golden_opensora.safetensors"


@cache
def model() -> Model:
    return open_model("tiny-opensora")


class TestTrained(BackboneConformance):
    channels = 16
    high = wide = 4
    text_depth = 192  # the sites hold projected text
    encoder_continues_backbone = False  # the encoder is the first half

    def make(self) -> Backbone:
        return model().backbone


def test_what_ships_is_small_and_holds_no_pickle() -> None:
    found = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in found} == {".json", ".safetensors"}
    assert max(path.stat().st_size for path in found) < 16e6
    assert sum(path.stat().st_size for path in found) < 40e6


def test_it_comes_with_the_enhancer_of_its_world() -> None:
    enhancer, own = open_enhancer("tiny-opensora"), open_enhancer("tiny-modelscope")
    assert (enhancer.defaults.height, enhancer.defaults.width) == (
        2 * model().defaults.height,
        2 * model().defaults.width,
    )
    weights = own.backbone.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in enhancer.backbone.state_dict().items())


def test_its_settings_are_those_of_the_recipe() -> None:
    defaults, window = build_defaults()
    assert (model().defaults, model().backbone.window) == (defaults, window)


@cache
def two_chunks() -> Float[Tensor, "time 3 rows cols"]:
    """A first and a second chunk, few steps, with CAM and APM."""
    short, long = make_short_term("cam+inject", model()), make_long_term("apm", model())
    parts = assemble(model(), short=short, long=long, sampler=Sampler("euler", 4))
    prompt = PromptSchedule.fixed("a big red ball rolls over a green meadow")
    return torch.cat([c.frames[0] for c in stream(parts, prompt, TextOpening(), key=Key(0), chunks=2)])


def test_golden_chunks() -> None:
    """Rounding differs between machines and versions; a changed model, sampler, key or memory differs far more."""
    golden = load_file(GOLDEN)["frames"].float()
    assert two_chunks().shape == (24, 3, 64, 64)
    assert (F.avg_pool2d(two_chunks(), 4) - golden).abs().max() < 0.02


def test_the_golden_chunks_show_what_was_asked_for() -> None:
    frames = two_chunks()
    ground = frames[:, :, -6:].mean(dim=(0, 2, 3))
    assert ground[1] > ground[0] > ground[2]  # meadow
    red = (frames[:, 0] > 0.6) & (frames[:, 1] < 0.3) & (frames[:, 2] < 0.3)
    assert (red.flatten(1).sum(dim=1) > 100).all()  # the ball, in every frame


@pytest.mark.parametrize("short", ["cam+inject", "frame-mask"])
def test_with_a_memory_the_second_chunk_goes_on_where_the_first_ended(short: str) -> None:
    """Without one it begins anew: the very same seed, a much larger jump."""

    def jump(short: str, long: str) -> Float[Tensor, ""]:
        parts = assemble(
            model(),
            short=make_short_term(short, model()),
            long=make_long_term(long, model()),
            sampler=Sampler("euler", 6),
        )
        prompt = PromptSchedule.fixed("a big pink star bounces on a green meadow")
        chunks = [chunk.frames for chunk in stream(parts, prompt, TextOpening(), key=Key(3), chunks=2)]
        return (chunks[1][:, 0] - chunks[0][:, -1]).abs().mean()

    together, apart = jump(short, "apm"), jump("none", "none")
    assert 1.5 * together < apart


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(UserError, match="dragon"):
        model().text(["a red dragon rolls over a green meadow"])


def test_no_text_is_the_empty_prompt() -> None:
    """As in the published weights, y_embedding stands for it."""
    none = model().backbone.net.y_embedder.y_embedding
    torch.testing.assert_close(model().text([""]).tokens[0], none, rtol=1e-2, atol=1e-2)  # kept in float16


def test_it_trains_stops_and_goes_on(tmp_path: Path) -> None:
    def options(steps: int) -> TrainOptions:
        return TrainOptions(work=tmp_path, toy=True, device="cpu", batch=2, steps=steps)

    train_transformer(options(2))
    trained = open_model(str(tmp_path))
    assert trained.backbone.net.config == build_transformer(192, 16, toy=True)
    assert trained.defaults == build_defaults()[0]
    before = load_file(tmp_path / "transformer" / "model.safetensors")
    train_transformer(options(4))
    after = load_file(tmp_path / "transformer" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "logs" / "transformer.report.json").is_file()


def test_what_it_does_not_take_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='trains on "procedural-world" only'):
        train_transformer(TrainOptions(work=tmp_path, toy=True, dataset="films"))
    with pytest.raises(UserError, match="no gradient checkpointing"):
        train_transformer(TrainOptions(work=tmp_path, toy=True, checkpoint_gradients=True))


@given(st.integers(1, 64), st.integers(0, 99))
def test_times_spread_over_the_whole_trajectory(n: int, seed: int) -> None:
    times = flow_times(n, torch.Generator().manual_seed(seed))
    assert times.shape == (n,) and bool((times > 0).all()) and bool((times < 1000).all())
    assert bool((times.diff() > 0).all())


@given(st.integers(0, 99))
def test_given_frames_are_the_first_and_never_all(seed: int) -> None:
    generated = generated_frames(64, 16, torch.Generator().manual_seed(seed))
    assert bool(generated[:, -1].all())
    assert bool((generated.int().diff(dim=1) >= 0).all())


def test_a_batch_gives_what_the_loss_needs() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {"latents": Key(0).normal(64, 3, 16, 2, 2).half(), "text": Key(1).normal(64, 2, 5, 7).half()}
    batch = flow_batch(drawn, Key(2).normal(1, 5, 7), generator)
    share = (batch["time"] / 1000).view(-1, 1, 1, 1, 1)
    given_frames = ~batch["generated"][:, None, :, None, None]
    mixed = (1 - share) * batch["clean"] + share * batch["noise"]
    assert torch.equal(torch.where(given_frames, 0, batch["noisy"]), torch.where(given_frames, 0, mixed))
    far = ((batch["noisy"] - batch["clean"]) * given_frames).std()
    assert 0 < far < 0.15
    clips = drawn["text"].float()
    kinds = [
        (batch["text"] == value).flatten(1).all(dim=1) for value in (Key(2).normal(1, 5, 7), clips[:, 0], clips[:, 1])
    ]
    assert bool((kinds[0] | kinds[1] | kinds[2]).all()) and all(int(kind.sum()) for kind in kinds)


def test_it_begins_as_a_model_of_single_pictures() -> None:
    """Temporal blocks add nothing yet, the frame rate says nothing, the flow is 0."""
    with initial_weights(0):
        net = begin(STDiT3(build_transformer(7, 3, toy=True)))
    x = Key(0).normal(1, 2, 4, 32)
    prepared = net.prepare(
        Key(1).normal(1, 3, 2, 2, 2),
        torch.tensor([500.0]),
        Key(2).normal(1, 24, 7),
        fps=torch.tensor([8.0]),
        height=torch.tensor([16.0]),
        width=torch.tensor([16.0]),
    )
    after = net.temporal_blocks[0](x, prepared.modulation, prepared.text, None, prepared.rope)
    assert torch.equal(after, x)
    assert not torch.equal(net.spatial_blocks[0](x, prepared.modulation, prepared.text, None, None), x)
    assert not net.final_layer.linear.weight.any() and not net.fps_embedder.mlp[2].weight.any()


def test_files_are_split_and_rotations_stay_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.embedded_opensora.config.PART_BYTES", 60_000)
    with initial_weights(0):
        net = STDiT3(build_transformer(7, 3, toy=True))
    save_transformer(net, tmp_path / "transformer")
    found = sorted((tmp_path / "transformer").iterdir())
    assert len(found) > 1 and all(path.stat().st_size < 80_000 for path in found)
    tensors = {name: value for path in found for name, value in load_file(path).items()}
    assert torch.equal(tensors.pop("rope.freqs"), net.rope.freqs)
    state = net.state_dict()
    assert all(torch.equal(value, state[name].half()) for name, value in tensors.items())
    assert set(tensors) | {"rope.freqs"} == set(state)
