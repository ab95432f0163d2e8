"""The model that ships: what it is made of, and a golden chunk."""

from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from backends.embedded.judge import Judge
from backends.world import VOCABULARY, canonical_captions, sample_scenes
from streaming.errors import UserError
from streaming.keys import Key
from streaming.loop import stream
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.model import Model
from streaming.openings import TextOpening
from streaming.parts import assemble
from streaming.prompts import PromptSchedule
from streaming.registry import make_long_term, make_short_term, open_model
from streaming.sample import Sampler

WEIGHTS = Path(str(files("backends.embedded"))) / "weights"
GOLDEN = Path(__file__).parent / "data" / "golden_chunks.safetensors"


@cache
def model() -> Model:
    return open_model("tiny-modelscope")


def two_chunks(*, memories: bool, seed: int = 0) -> Float[Tensor, "time 3 rows cols"]:
    """A first and a second chunk, few steps."""
    short = make_short_term("cam+inject", model()) if memories else NoShortTerm()
    long = make_long_term("apm", model()) if memories else NoLongTerm()
    parts = assemble(model(), short=short, long=long, sampler=Sampler("dpm++", 4, 0.0))
    prompt = PromptSchedule.fixed("a big red ball rolls over a green meadow")
    return torch.cat([c.frames[0] for c in stream(parts, prompt, TextOpening(), key=Key(seed), chunks=2)])


@cache
def remembered() -> Float[Tensor, "time 3 rows cols"]:
    return two_chunks(memories=True)


def coarse(frames: Float[Tensor, "time 3 rows cols"]) -> Float[Tensor, "time 3 16 16"]:
    return F.avg_pool2d(frames, 4)


def test_what_ships_is_small_and_holds_no_pickle() -> None:
    found = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in found} == {".json", ".safetensors"}
    assert max(path.stat().st_size for path in found) < 16e6
    assert sum(path.stat().st_size for path in found) < 60e6


def test_golden_chunks() -> None:
    """Rounding differs between machines and versions; a changed model, sampler, key or memory differs far more."""
    golden = load_file(GOLDEN)["frames"].float()
    assert remembered().shape == (24, 3, 64, 64)
    assert (coarse(remembered()) - golden).abs().max() < 0.02


def test_the_golden_chunks_show_what_was_asked_for() -> None:
    frames = remembered()
    ground = frames[:, :, -6:].mean(dim=(0, 2, 3))
    assert ground[1] > ground[0] > ground[2]  # meadow
    red = (frames[:, 0] > 0.6) & (frames[:, 1] < 0.3) & (frames[:, 2] < 0.3)
    assert (red.flatten(1).sum(dim=1) > 100).all()  # the ball, in every frame


def test_with_the_memories_the_second_chunk_goes_on_where_the_first_ended() -> None:
    """Without them it begins anew: the very same seed, several times the jump of the sky, where nothing rolls."""

    def jump(frames: Float[Tensor, "time 3 rows cols"]) -> Float[Tensor, ""]:
        return (frames[16] - frames[15])[:, :24].abs().mean()

    assert 3 * jump(remembered()) < jump(two_chunks(memories=False))


def test_the_judge_reads_real_clips() -> None:
    from backends.world import render

    scenes = sample_scenes(48, Key(1).generator())
    told = Judge.load(WEIGHTS / "judge").eval().classify(render(scenes).float() / 255)
    for name, answers in told.items():
        assert (answers == scenes.attribute(name)).float().mean() >= 0.95, name


def test_every_word_of_the_world_is_known() -> None:
    assert model().text(canonical_captions(sample_scenes(16, Key(2).generator()))).tokens.isfinite().all()
    assert set(VOCABULARY) <= set(model().text.vocabulary or ())


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(UserError, match="dragon"):
        model().text(["a red dragon rolls over a green meadow"])
