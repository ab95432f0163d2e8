"""Given frames by a mask: which frames, which values, whose rows; then the loop, with and without CAM."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import streaming
from adapters.cam import CAM, cam_with_frame_mask, new_cam
from backends.toy_dit import ToyDiTBackend
from backends.toy_unet import ToyUNetBackend
from streaming.backbone import Call, Guided, NoiseLevel
from streaming.checkpoint import Checkpoint
from streaming.errors import UserError
from streaming.frame_mask import FrameMask
from streaming.guidance import ClassifierFree, TextThenAnchor
from streaming.injection import Injection
from streaming.keys import Key
from streaming.loop import Chunk
from streaming.memory import NoLongTerm, NoShortTerm, ShortTermMemory, Tail
from streaming.model import Model
from streaming.openings import TextOpening
from streaming.parts import Parts, assemble
from streaming.prompts import PromptSchedule
from streaming.registry import make_short_term
from streaming.sample import Sampler
from streaming.sites import Deltas
from tests import cli_toys, toys
from tests.adapter_toys import seeded, unzero
from tests.toys import BALL, TailMean, toy, video


def make_call(rows: int, frames: int, **changes: object) -> Call:
    call = Call(
        latents=Key(1).normal(rows, 2, frames, 2, 3),
        time=torch.arange(rows) + 400.0,
        context=torch.zeros(rows, 2, 3),
        guided=(Guided(True, True),) * rows,
    )
    return call.with_(**changes)


def tail(videos: int, overlap: int) -> Tail:
    return Tail(torch.zeros(videos, overlap, 3, 8, 12), Key(3).normal(videos, 2, overlap, 2, 3))


def rewritten(memory: FrameMask, of: Tail, call: Call) -> Call:
    return memory.rewrite(memory.remember(of), call)


def naive(of: Tail, call: Call) -> tuple[Tensor, Tensor]:
    """Latents and mask, frame by frame."""
    videos, overlap = of.latents.shape[0], of.latents.shape[2]
    latents, mask = call.latents.clone(), torch.ones(call.latents.shape[0], call.latents.shape[2], dtype=torch.bool)
    for row in range(mask.shape[0]):
        for frame in range(mask.shape[1]):
            if frame < overlap:
                latents[row, :, frame] = of.latents[row % videos, :, frame]
                mask[row, frame] = False
            elif call.mask is not None:
                mask[row, frame] = call.mask[row, frame]
    return latents, mask


@given(
    videos=st.integers(1, 3),
    parts=st.integers(1, 3),
    size=st.integers(1, 6).flatmap(lambda frames: st.tuples(st.just(frames), st.integers(0, frames - 1))),
    masked=st.booleans(),
)
def test_it_is_what_frame_by_frame_gives(videos: int, parts: int, size: tuple[int, int], masked: bool) -> None:
    (frames, overlap), rows = size, videos * parts
    earlier = Key(4).normal(rows, frames) > 0
    call, known = make_call(rows, frames, mask=earlier if masked else None), tail(videos, overlap)
    kept = call.latents.clone(), earlier.clone()
    seen = rewritten(FrameMask(), known, call)
    latents, mask = naive(known, call)
    assert torch.equal(seen.latents, latents) and seen.mask is not None and torch.equal(seen.mask, mask)
    assert seen.with_(latents=call.latents, mask=call.mask) == call  # nothing else is touched
    assert torch.equal(call.latents, kept[0]) and torch.equal(earlier, kept[1])


def test_rows_that_videos_do_not_share_evenly_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        rewritten(FrameMask(), tail(2, 2), make_call(3, 4))


def test_noise_levels_do_not_matter() -> None:
    call = make_call(2, 4)
    sampling = call.with_(level=NoiseLevel(0.6, 0.8), start=Key(2).normal(2, 2, 4, 2, 3))
    plain, noisy = (rewritten(FrameMask(), tail(1, 2), each) for each in (call, sampling))
    assert torch.equal(plain.latents, noisy.latents) and torch.equal(plain.mask, noisy.mask)


def test_gradients_pass_the_frames_that_are_not_given() -> None:
    call = make_call(2, 4)
    call.latents.requires_grad_(True)
    rewritten(FrameMask(), tail(2, 3), call).latents.sum().backward()
    frames = call.latents.grad.sum((0, 1, 3, 4))
    assert frames.tolist() == [0, 0, 0, 2 * 2 * 2 * 3]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_the_sampler_holds_in_the_overlap_is_not_seen(wrong: float) -> None:
    call = make_call(2, 4)
    call.latents[:, :, :2] = wrong
    seen = rewritten(FrameMask(), tail(1, 2), call)
    assert bool(torch.isfinite(seen.latents).all())


def test_the_denoisers_type_is_kept() -> None:
    half = make_call(2, 4).with_(latents=make_call(2, 4).latents.bfloat16())
    seen = rewritten(FrameMask(), tail(1, 2), half)
    assert seen.latents.dtype == torch.bfloat16
    assert torch.equal(seen.latents[:1, :, :2], tail(1, 2).latents.bfloat16())


def test_it_is_put_around_another_memory() -> None:
    plain, around = TailMean(), FrameMask(TailMean())
    known, call = tail(2, 2), make_call(4, 4, level=NoiseLevel(0.6, 0.8), start=Key(2).normal(4, 2, 4, 2, 3))
    value = Key(5).normal(4, 4, 6, 2)
    delta = around.deltas(around.remember(known), call)["mid"](value)
    assert torch.equal(delta, plain.deltas(plain.remember(known), call)["mid"](value))
    assert FrameMask().deltas(FrameMask().remember(known), call) == {}
    twice = rewritten(FrameMask(Injection(NoShortTerm())), known, call)  # injection would show them noisy
    assert torch.equal(twice.latents, rewritten(FrameMask(), known, call).latents)


@final
class LastGiven(ShortTermMemory[Tensor]):
    """Gives the last frame too: the same one again."""

    def remember(self, tail: Tail) -> Tensor:
        return tail.latents[:, :, -1]

    def deltas(self, state: Tensor, call: Call) -> Deltas:
        return {}

    def rewrite(self, state: Tensor, call: Call) -> Call:
        latents, mask = call.latents.clone(), torch.ones(call.latents.shape[0], call.latents.shape[2], dtype=torch.bool)
        latents[:, :, -1], mask[:, -1] = state, False
        return call.with_(latents=latents, mask=mask)


def test_what_the_other_memory_rewrites_stays() -> None:
    known = tail(2, 2)
    seen = rewritten(FrameMask(LastGiven()), known, make_call(2, 5))
    assert torch.equal(seen.latents[:, :, -1], known.latents[:, :, -1])
    assert torch.equal(seen.latents[:, :, :2], known.latents)
    assert seen.mask is not None and seen.mask.tolist() == [[False, False, True, True, False]] * 2


@pytest.mark.parametrize("kind", ["ddim", "dpm++", "dpm++sde"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_for_given_frames_do_not_matter(kind: str, dtype: torch.dtype) -> None:
    """The overlap's latents drift along in the sampler; however far, nothing of them comes out."""

    def made(drift: float) -> Tensor:
        kit = toy(short=FrameMask(TailMean()), sampler=Sampler(kind, 4), dtype=dtype)
        kit.backbone.to(dtype)
        kit.backbone.register_forward_hook(partial(drifting, drift))
        return video(toys.run(kit, 4))

    def drifting(drift: float, module: object, arguments: tuple, prediction: Tensor) -> Tensor:
        mask = arguments[0].mask
        return prediction if mask is None else torch.where(mask[:, None, :, None, None], prediction, drift)

    assert torch.equal(made(0.0), made(3e4))


# The loop on the toy transformer


def model() -> Model:
    return ToyDiTBackend().load(None, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CAM for the toy transformer that does something."""
    folder = tmp_path_factory.mktemp("memories") / "cam"
    memory = seeded(lambda: new_cam(model()))
    assert isinstance(memory, CAM)
    unzero(memory).save(folder)
    return folder


def parts(name: str, weights: Path, **changes: object) -> Parts:
    made = model()
    return assemble(made, short=make_short_term(name, made, weights), long=NoLongTerm(), **changes)


def rolled(parts: Parts, chunks: int = 3, resume: Checkpoint | None = None) -> list[Chunk]:
    return list(streaming.stream(parts, BALL, TextOpening(), key=Key(2), chunks=chunks, resume=resume))


@pytest.mark.parametrize("name", ["frame-mask", "cam+frame-mask"])
@pytest.mark.parametrize("guidance", [ClassifierFree(2.0), TextThenAnchor()], ids=["two rows", "three rows"])
def test_the_denoiser_is_given_the_end_of_the_chunk_before(
    name: str, guidance: streaming.Guidance, weights: Path
) -> None:
    kit, calls = parts(name, weights, guidance=guidance), []
    kit.backbone.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[0]))
    chunks = rolled(kit)
    steps, overlap = kit.sampler.steps, kit.backbone.window.overlap
    assert len(calls) == 3 * steps and all(call.mask is None for call in calls[:steps])
    for before, chunk in zip(chunks, (calls[steps : 2 * steps], calls[2 * steps :]), strict=False):
        known = before.checkpoint.tail.latents
        for call in chunk:
            assert torch.equal(call.latents[:, :, :overlap], known.expand(len(guidance.rows), -1, -1, -1, -1))
            assert not call.mask[:, :overlap].any() and call.mask[:, overlap:].all()


def test_cam_sees_clean_frames_and_the_mask(weights: Path) -> None:
    kit, calls = parts("cam+frame-mask", weights), []
    kit.short.inner.encoder.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[0]))
    first = rolled(kit, 2)[0]
    assert len(calls) == kit.sampler.steps
    for call in calls:
        known = first.checkpoint.tail.latents.expand(2, -1, -1, -1, -1)
        assert torch.equal(call.latents, known) and not call.mask.any()


def test_a_cam_that_was_trained_with_the_mask_is_preferred(weights: Path, tmp_path: Path) -> None:
    kit = parts("cam+frame-mask", weights)
    base = replace(model(), directory=tmp_path)
    with pytest.raises(UserError, match="no trained cam"):
        cam_with_frame_mask(base, None)
    shutil.copytree(weights, tmp_path / "cam+frame-mask")
    found = cam_with_frame_mask(base, None).inner.state_dict()
    for name, value in kit.short.inner.state_dict().items():
        assert torch.equal(found[name], value)


def test_frame_mask_and_cam_are_independent_switches(weights: Path) -> None:
    made = {name: rolled(parts(name, weights)) for name in ("none", "frame-mask", "cam", "cam+frame-mask", "inject")}
    for name, (first, *later) in made.items():
        assert torch.equal(first.frames, made["none"][0].frames)
        assert all(bool(torch.isfinite(chunk.frames).all()) for chunk in later)
        for other in made.keys() - {name}:
            assert not any(torch.equal(a.frames, b.frames) for a, b in zip(later, made[other][1:], strict=True))


@pytest.mark.parametrize("name", ["frame-mask", "cam+frame-mask"])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(name: str, weights: Path, tmp_path: Path) -> None:
    whole = rolled(parts(name, weights), 4)
    whole[1].checkpoint.save(tmp_path / "state")
    rest = rolled(parts(name, weights), 4, Checkpoint.load(tmp_path / "state"))
    assert len(rest) == 2
    for resumed, unbroken in zip(rest, whole[2:], strict=True):
        assert torch.equal(resumed.frames, unbroken.frames)
        assert torch.equal(resumed.checkpoint.tail.latents, unbroken.checkpoint.tail.latents)
    with pytest.raises(UserError, match="another short-term memory: it was 'FrameMask.*, now it is 'NoShortTerm'"):
        rolled(parts("none", weights), 4, Checkpoint.load(tmp_path / "state"))


@pytest.mark.parametrize("name", ["frame-mask", "cam+frame-mask"])
def test_a_batch_equals_runs_of_its_own(name: str, weights: Path) -> None:
    kit, schedules, keys = parts(name, weights), [BALL, PromptSchedule.fixed("a much longer prompt")], [Key(5), Key(6)]
    batch = video(list(streaming.stream(kit, schedules, TextOpening(), key=keys, chunks=3)))
    for b, (schedule, key) in enumerate(zip(schedules, keys, strict=True)):
        alone = video(list(streaming.stream(kit, schedule, TextOpening(), key=key, chunks=3)))
        torch.testing.assert_close(batch[b : b + 1], alone, rtol=1e-3, atol=1e-3)


# Who takes given frames


def test_the_package_exports_it() -> None:
    assert streaming.FrameMask is FrameMask
    assert isinstance(make_short_term("frame-mask", model()), FrameMask)


@pytest.mark.parametrize(("name", "instead"), [("frame-mask", "inject"), ("cam+frame-mask", "cam+inject")])
def test_a_model_without_given_frames_is_refused(name: str, instead: str) -> None:
    unet = replace(ToyUNetBackend().load(None, device=torch.device("cpu"), dtype=torch.float32), name="my-unet")
    with pytest.raises(UserError) as told:
        make_short_term(name, unet)
    assert str(told.value) == (
        "the model 'my-unet' generates all frames, it cannot be given known ones by a frame mask: "
        f"choose the short-term memory {instead}"
    )


PLUGINS = {
    **cli_toys.PLUGINS,
    "streaming.backbones": {
        "toy-unet": "backends.toy_unet:ToyUNetBackend",
        "toy-dit": "backends.toy_dit:ToyDiTBackend",
    },
    "streaming.short_term_memories": {
        "none": "streaming.memory:no_short_term",
        "frame-mask": "streaming.frame_mask:frame_mask",
        "cam+frame-mask": "adapters.cam:cam_with_frame_mask",
    },
}


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cli_toys.register(monkeypatch, PLUGINS)
    monkeypatch.chdir(tmp_path)


def test_on_the_command_line(command_line: None) -> None:
    asked = ("generate", "a red ball", "--model", "toy-dit", "--frames", 13)
    assert cli_toys.run(*asked, "--output", "plain.mp4") == 0
    assert cli_toys.run(*asked, "--output", "given.mp4", "--short-term", "frame-mask") == 0
    assert cli_toys.frames_of(Path("given.mp4")).shape[1] == 13
    assert not cli_toys.same(Path("plain.mp4"), Path("given.mp4"))


@pytest.mark.parametrize(("name", "instead"), [("frame-mask", "inject"), ("cam+frame-mask", "cam+inject")])
def test_refused_on_the_command_line(
    name: str, instead: str, command_line: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli_toys.run("generate", "a red ball", "--model", "toy-unet", "--short-term", name) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.endswith(
        "the model 'toy-unet' generates all frames, it cannot be given known ones by a frame mask: "
        f"choose the short-term memory {instead}"
    )
    assert not list(Path().iterdir())
