"""The loop on whole models: a UNet and a transformer, with CAM and APM."""

import pytest
import torch

from adapters.apm import new_apm
from adapters.cam import new_cam
from backends.toy_dit import ToyDiTBackend
from backends.toy_unet import ToyUNetBackend
from streaming.anchor import OnPromptChange
from streaming.checkpoint import Checkpoint
from streaming.injection import Injection
from streaming.keys import Key
from streaming.loop import chunk_lengths, stream
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.openings import TextOpening, VideoOpening
from streaming.parts import assemble
from streaming.prompts import PromptSchedule
from tests.toys import BALL, OPENINGS, video


def stirred(module, seed):
    """The module with small numbers in all weights that training moves away from zero."""
    for name, weight in module.named_parameters():
        with torch.no_grad():
            weight.add_(0.1 * Key(seed).fold(name).normal(*weight.shape).to(weight))
    return module


def short_memory(kind, model):
    """Made from a key, as torch's layers start from the global generator."""
    if kind in ("none", "inject"):
        return Injection(NoShortTerm()) if kind == "inject" else NoShortTerm()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_cam(model) if kind == "new cam" else Injection(stirred(new_cam(model), 1))


def long_memory(kind, model):
    if kind == "none":
        return NoLongTerm()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_apm(model) if kind == "new apm" else stirred(new_apm(model), 2)


def assembled(name, dtype=torch.float32, short="none", long="none", **changes):
    backend = {"unet": ToyUNetBackend, "dit": ToyDiTBackend}[name]()
    model = backend.load(None, device=torch.device("cpu"), dtype=dtype)
    return assemble(model, short=short_memory(short, model), long=long_memory(long, model), **changes)


@pytest.mark.parametrize("name", ["unet", "dit"])
@pytest.mark.parametrize("opening", OPENINGS)
def test_the_toy_backends_stream_and_resume(name, opening, tmp_path):
    """A UNet with v-prediction and DDIM, a transformer with a flow, Euler and masked text."""
    prompts = PromptSchedule.of({0: "a red ball", 11: "a green cube rolls"})
    frames = VideoOpening(Key(3).normal(9, 3, 20, 20).sigmoid()) if opening == "video" else OPENINGS[opening]

    def go(chunks, resume=None):
        parts = assembled(name, short="cam", long="apm", anchors=OnPromptChange())
        return list(stream(parts, prompts, frames, key=Key(1), chunks=chunks, resume=resume))

    whole = go(4)
    parts = assembled(name)
    first, later = chunk_lengths(parts, frames)
    assert [chunk.frames.shape[1] for chunk in whole] == [first, later, later, later]
    assert all(chunk.frames.shape[2:] == (3, parts.height, parts.width) for chunk in whole)
    assert len({chunk.frames.mean().item() for chunk in whole}) == 4
    whole[1].checkpoint.save(tmp_path / "state")
    for resumed, unbroken in zip(go(4, Checkpoint.load(tmp_path / "state")), whole[2:], strict=True):
        assert torch.equal(resumed.frames, unbroken.frames)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_untrained_memories_leave_the_base_model_as_it_is(name):
    bare = list(stream(assembled(name), BALL, TextOpening(), key=Key(2), chunks=3))
    adapted = list(stream(assembled(name, short="new cam", long="new apm"), BALL, TextOpening(), key=Key(2), chunks=3))
    for one, other in zip(bare, adapted, strict=True):
        assert torch.equal(one.frames, other.frames)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_batch_of_a_toy_backend_equals_runs_of_its_own(name):
    schedules, keys = [BALL, PromptSchedule.fixed("a much longer prompt than that")], [Key(5), Key(6)]
    parts = assembled(name, short="cam", long="apm")
    batch = video(list(stream(parts, schedules, TextOpening(), key=keys, chunks=3)))
    for b, (schedule, key) in enumerate(zip(schedules, keys, strict=True)):
        alone = video(list(stream(parts, schedule, TextOpening(), key=key, chunks=3)))
        torch.testing.assert_close(batch[b : b + 1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_toy_backends_run_in_bfloat16(name):
    chunks = list(stream(assembled(name, torch.bfloat16, "cam", "apm"), BALL, TextOpening(), key=Key(2), chunks=2))
    exact = list(stream(assembled(name, torch.float32, "cam", "apm"), BALL, TextOpening(), key=Key(2), chunks=2))
    assert (video(chunks) - video(exact)).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_each_memory_that_has_learnt_something_changes_later_chunks_only(name):
    def go(**memories):
        return list(stream(assembled(name, **memories), BALL, TextOpening(), key=Key(2), chunks=3))

    bare = go()
    for memories in ({"short": "inject"}, {"short": "cam"}, {"long": "apm"}):
        first, *later = go(**memories)
        assert torch.equal(first.frames, bare[0].frames)
        assert not any(torch.equal(a.frames, b.frames) for a, b in zip(later, bare[1:], strict=True))
