"""`python -m benchmarks.known_frames`: how much of the last frames a short-term memory brings to the denoiser.

One evaluation each at several noise levels, on renders: noised at that level, the clip's first frames remembered. At
the noisiest level the noisy video says next to nothing, so what the prediction has of the clip beyond that of the base
model alone came through the memory. A memory that cannot give the frames back that it is shown cannot place the next
ones. Frames that are given to the model (a frame mask) are not predicted: "given".
"""

import math
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float
from torch import Tensor

from adapters.clips import decode, encode
from backends.world import complete_captions, render, sample_scenes
from streaming.backbone import Call, Guided, NoiseLevel
from streaming.keys import Key
from streaming.memory import ShortTermMemory, Tail
from streaming.model import Model
from streaming.noising import Diffusion
from streaming.registry import make_short_term, open_model
from streaming.sample_sde import clean_video
from streaming.types import Latents

SHARES = (0.999, 0.95, 0.85, 0.7, 0.5, 0.25)
"""Of the noise schedule."""
AT_ONCE = 16
"""Clips in one evaluation."""


def main(
    model: str = "tiny-modelscope",
    memories: Annotated[list[str] | None, typer.Option("--memory", help="Short-term memories to ask")] = None,
    clips: Annotated[int, typer.Option(min=1)] = 32,
    device: str = "cpu",
) -> None:
    """Prints peak signal-to-noise ratios of the predicted clean frames, as pixels, in decibels."""
    opened = open_model(model, device=torch.device(device), dtype=torch.float32)
    if opened.defaults.height != opened.defaults.width:
        raise typer.BadParameter(f"{model} makes oblong frames; renders are square", param_hint="--model")
    window, codec = opened.backbone.window, opened.codec
    overlap, last = codec.pixel_frames(window.overlap), codec.pixel_frames(window.frames) - 1
    frames = {"remembered": slice(0, overlap), "first new": slice(overlap, overlap + 1), "last": slice(last, last + 1)}
    print(f"{model}, {clips} clips of renders; decibels of the predicted frames: {', '.join(frames)}")
    for name in memories or ["none", "cam"]:
        short = make_short_term(name, opened)
        for share in SHARES:
            errors = predicted_errors(opened, short, share, clips)
            told = "  ".join(f"{decibels(errors[part]):>5}" for part in frames.values())
            print(f"{name:16} noise level {share:5.3f}:  {told}", flush=True)


@torch.inference_mode()
def predicted_errors(model: Model, short: ShortTermMemory[Any], share: float, clips: int) -> Float[Tensor, " frames"]:
    """Mean squared error of the predicted clean video against the clip after the autoencoder, for each pixel frame.

    share: noise level, of the schedule.
    """
    diffusion, codec = Diffusion(model.scheduler), model.codec
    scenes = sample_scenes(clips, Key(0).fold("known frames").generator(), split="train").to(model.device)
    start = (20 * torch.rand(clips, generator=Key(0).fold("start").generator())).to(model.device)
    window, total = model.backbone.window, 0.0
    for rows in torch.arange(clips).split(AT_ONCE):
        some, begin = scenes[rows.to(model.device)], start[rows.to(model.device)]
        video = render(some, frames=codec.pixel_frames(window.frames), start=begin, fps=model.defaults.fps,
                       size=model.defaults.height)  # fmt: skip
        clean = encode(codec, video)
        truth, n = decode(codec, clean), len(rows)
        time = torch.full((n,), share * diffusion.steps, device=model.device)
        time = time if diffusion.kind == "flow" else time.floor()
        one, nothing = torch.ones(n, 1, 1, 1, 1, device=model.device), torch.zeros(n, 1, 1, 1, 1, device=model.device)
        signal, noise = diffusion.noised(one, nothing, time), diffusion.noised(nothing, one, time)
        level = NoiseLevel(float(signal[0]), float(noise[0]))
        drawn = Key(1).fold("rows", int(rows[0])).normal(*clean.shape).to(model.device)
        text = model.text(complete_captions(some.to("cpu")))
        call = Call(
            latents=diffusion.noised(clean, drawn, time),
            time=time,
            context=text.tokens,
            guided=(Guided(text=True, anchor=True),) * n,
            context_mask=text.mask,
            level=level,
            start=drawn,
        )
        known = truth[:, : codec.pixel_frames(window.overlap)].float() / 255
        state = short.remember(Tail(known, clean[:, :, : window.overlap]))
        call = short.rewrite(state, call)
        prediction = model.backbone(call, short.deltas(state, call)).float()
        made = decode(codec, predicted(diffusion, call, prediction))
        error = (made.float() - truth.float()).square().mean(dim=(2, 3, 4))  # clip, pixel frame
        total = total + error.sum(dim=0)
    return total / clips


def predicted(diffusion: Diffusion, call: Call, prediction: Latents) -> Latents:
    """The clean latents that a prediction stands for; frames that are given to the model are what they are."""
    level = call.level
    assert level is not None
    if diffusion.kind == "flow":
        clean = call.latents - level.noise * prediction
    else:
        clean = clean_video(diffusion.kind, prediction, call.latents, level)
    return clean if call.mask is None else torch.where(call.mask[:, None, :, None, None] == 0, call.latents, clean)


def decibels(error: Float[Tensor, " frames"]) -> str:
    """Of a mean squared error in levels of 0 to 255; "given" where there is none."""
    mean = float(error.mean())
    return f"{10 * math.log10(255**2 / mean):.1f}" if mean > 0 else "given"


if __name__ == "__main__":
    typer.run(main)
