"""What a short-term memory brings to the denoiser, in decibels."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from benchmarks import known_frames
from streaming.backbone import Call, Guided, NoiseLevel
from streaming.keys import Key
from streaming.noising import Diffusion


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
