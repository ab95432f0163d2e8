"""What a short-term memory brings to the denoiser, in decibels."""

from typing import final

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from adapters.clips import decode, encode
from backends.world import complete_captions, render, sample_scenes
from benchmarks import known_frames
from streaming.backbone import Call, Guided, NoiseLevel
from streaming.keys import Key
from streaming.memory import NoShortTerm, ShortTermMemory, Tail
from streaming.model import Model
from streaming.noising import Diffusion
from streaming.registry import make_short_term, open_model
from streaming.sites import Deltas


@final
class Brightness(ShortTermMemory[Tail]):
    """Adds at each feature site how bright the remembered frames and latents are."""

    def remember(self, tail: Tail) -> Tail:
        """As told."""
        return tail

    def deltas(self, state: Tail, call: Call) -> Deltas:
        """The sum of both means, the same everywhere."""
        mean = state.frames.mean(dim=(1, 2, 3, 4)) + state.latents.mean(dim=(1, 2, 3, 4))
        return {"skip": lambda value: mean.view(-1, 1, 1, 1).expand_as(value)}


def one_by_one(model: Model, share: float, groups: list[list[int]]) -> Tensor:
    """Squared errors [clip, frame] of the toy UNet's predictions with `Brightness`, by formulas written out."""
    kept = model.scheduler.alphas_cumprod[int(share * 1000)].float()
    scenes = sample_scenes(sum(map(len, groups)), Key(0).fold("known frames").generator())
    start = 20 * torch.rand(len(scenes), generator=Key(0).fold("start").generator())
    errors = []
    for group in groups:
        noise = Key(1).fold("rows", group[0]).normal(len(group), 3, 8, 8, 8)
        for k, clip in enumerate(group):
            scene = scenes[clip : clip + 1]
            video = render(scene, frames=8, start=start[clip : clip + 1], fps=8.0, size=32)
            clean = encode(model.codec, video)
            truth = decode(model.codec, clean)
            noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise[[k]]
            brightness = truth[:, :4].float().mean() / 255 + clean[:, :, :4].mean()
            call = Call(
                latents=noisy, time=torch.tensor([float(int(share * 1000))]), guided=(Guided(text=True, anchor=True),),
                context=model.text(complete_captions(scene)).tokens,
            )  # fmt: skip
            velocity = model.backbone(call, {"skip": lambda value, b=brightness: b.expand_as(value)})
            made = decode(model.codec, kept.sqrt() * noisy - (1 - kept).sqrt() * velocity)
            errors.append((made.float() - truth.float()).square().mean(dim=(0, 2, 3, 4)))
    return torch.stack(errors)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.999, 0.5])
def test_a_memory_acts_on_the_prediction(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_frames, "AT_ONCE", 2)
    model = open_model("toy-unet")
    found = known_frames.predicted_errors(model, Brightness(), share, 3)
    torch.testing.assert_close(found, one_by_one(model, share, [[0, 1], [2]]).mean(dim=0), rtol=1e-3, atol=0.1)
    without = known_frames.predicted_errors(model, NoShortTerm(), share, 3)
    assert ((found - without).abs() > 0.1 * without).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample", "flow"])
def test_a_right_prediction_stands_for_the_clean_video(kind: str, masked: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler() if kind == "flow" else DDIMScheduler(prediction_type=kind)
    diffusion, clean, noise = Diffusion(scheduler), Key(0).normal(2, 4, 3, 2, 2), Key(1).normal(2, 4, 3, 2, 2)
    time, one, none = torch.full((2,), 600.0), torch.ones(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1)
    level = NoiseLevel(*(float(diffusion.noised(a, b, time)[0]) for a, b in ((one, none), (none, one))))
    noisy, target = diffusion.noised(clean, noise, time), diffusion.target(clean, noise, time).clone()
    mask = torch.tensor([[False, True, True]] * 2) if masked else None
    if masked:
        noisy[:, :, :1], target[:, :, :1] = clean[:, :, :1], 7.0  # what is given is not predicted
    call = Call(
        latents=noisy, time=time, context=torch.zeros(2, 1, 1), guided=(Guided(text=True, anchor=True),) * 2,
        mask=mask, level=level,
    )  # fmt: skip
    torch.testing.assert_close(known_frames.predicted(diffusion, call, target), clean, atol=1e-4, rtol=1e-4)


def test_decibels() -> None:
    assert known_frames.decibels(torch.tensor([25.5**2, 25.5**2])) == "20.0"
    assert known_frames.decibels(torch.zeros(2)) == "given"


@pytest.mark.parametrize("model", ["toy-unet", "toy-dit"])
def test_every_level_of_every_memory(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    known_frames.main(model, ["none", "inject"], clips=2, device="cpu")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{model}, 2 clips of renders") and len(lines) == 2 * len(known_frames.SHARES)
    assert len({line.split()[0] for line in lines}) == 2


def test_which_frames_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    known_frames.main("toy-dit", ["frame-mask"], clips=2, device="cpu")
    first, line, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("decibels of the predicted frames: remembered, first new, last")
    model = open_model("toy-dit")
    errors = known_frames.predicted_errors(model, make_short_term("frame-mask", model), known_frames.SHARES[0], 2)
    overlap = model.codec.pixel_frames(model.backbone.window.overlap)
    assert (errors[:overlap] == 0).all() and (errors[overlap:] > 0).all()
    new, last = (known_frames.decibels(errors[frame : frame + 1]) for frame in (overlap, len(errors) - 1))
    assert line.split() == ["frame-mask", "noise", "level", "0.999:", "given", new, last] and new != last


def test_a_memory_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(known_frames, "make_short_term", lambda name, model: made.append(name) or NoShortTerm())
    known_frames.main("toy-unet", ["one", "other"], clips=1, device="cpu")
    assert made == ["one", "other"]
