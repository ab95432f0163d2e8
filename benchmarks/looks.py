"""`python -m benchmarks.looks`: does a clip hold one look, told or untold, and does a memory carry a look on?

The look is what prompts leave open: the pattern on an object, its second colour, its outline. A long video can only
keep one if the first chunk shows one, and shows it in all frames.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import UInt8
from torch import Tensor

from backends.embedded.pool import FPS
from backends.world import HIDDEN_ATTRIBUTES, Scenes, complete_captions, render
from benchmarks.clips import draw_prompts, make_videos
from benchmarks.intervals import Estimate, share
from benchmarks.judged import Referee, appoint, judge_folder, tell, through
from streaming.guidance import ClassifierFree
from streaming.keys import Key
from streaming.loop import chunks_needed, stream
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.model import Model
from streaming.openings import VideoOpening
from streaming.parts import Parts, assemble
from streaming.prompts import PromptSchedule
from streaming.registry import make_long_term, make_short_term, open_model
from streaming.sample import Sampler

Clips = UInt8[Tensor, "clips time 3 rows cols"]
Shares = Mapping[str, Estimate]
"""By attribute."""
NAMED = ("pattern", "second_colour")
"""What a prompt that tells the look names."""


def main(
    model: str = "tiny-modelscope",
    judge: Annotated[
        str | None, typer.Option(help="Model directory that holds judge/; default: the model's own, or the packaged")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="First chunks, each made twice: look told and untold")] = 256,
    going_on: Annotated[int, typer.Option(min=0, help="Renders that are gone on with, with and without APM")] = 96,
    judge_clips: Annotated[int, typer.Option(min=2, help="Renders on which the judge itself is examined")] = 512,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    device: str = "cpu",
    batch: Annotated[int | None, typer.Option(help="Clips made together; default: 128 on a GPU, 16 on a CPU")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON with the figures")] = None,
) -> None:
    """Prints shares of clips with 95 % intervals.

    First the base model alone: in how many first chunks the judge sees the same in both halves, and what the prompt
    told. Then chunks behind 16 frames of a render: in how many the new frames have the render's look.
    """
    where = torch.device(device)
    opened = open_model(model, device=where, dtype=torch.float32)
    defaults = opened.defaults
    way = Sampler(sampler or defaults.sampler, steps or defaults.steps, defaults.eta)
    scale = ClassifierFree(defaults.guidance if guidance is None else guidance)
    referee = appoint(judge_folder(judge, opened.directory), opened.codec, where, clips=judge_clips)
    tell(referee)
    base = assemble(opened, short=NoShortTerm(), long=NoLongTerm(), sampler=way, guidance=scale)
    at_once = batch or (128 if where.type == "cuda" else 16)
    figures: dict[str, dict[str, dict[str, object]]] = {}
    for name, shares in first_chunks(base, referee, prompts, batch=at_once):
        figures[name] = _told(name, shares)
    for name, shares in gone_on(opened, referee, going_on, way, scale) if going_on else ():
        figures[name] = _told(name, shares)
    if output:
        about = {"model": model, "sampler": way.kind, "steps": way.steps, "guidance": scale.scale, "device": device}
        output.write_text(json.dumps(about | {"figures": figures}, indent=1) + "\n")


def first_chunks(parts: Parts, referee: Referee, count: int, *, batch: int) -> Iterable[tuple[str, Shares]]:
    """Renders for comparison, then first chunks whose prompts leave the look untold, and such that tell it."""
    asked, frames = draw_prompts(count, 0, complete=True), referee.judge.config.frames
    scenes = asked.scenes
    renders = through(parts.codec, render(scenes, frames=frames, fps=FPS))
    yield "renders: same in both halves", same_in_halves(renders, referee)
    for name, told in (("untold", False), ("told", True)):
        texts = complete_captions(scenes, looks=told)
        made = torch.stack(list(make_videos(parts, texts, frames, seed=0, batch=batch)))
        yield f"{name}: same in both halves", same_in_halves(made, referee)
        if told:
            yield "told: as told", right(made, scenes, referee, NAMED)


def gone_on(
    model: Model, referee: Referee, count: int, sampler: Sampler, guidance: ClassifierFree
) -> Iterable[tuple[str, Shares]]:
    """What follows a render of one window, the judge's number of frames, with the default memories and without the
    long-term one."""
    asked, frames = draw_prompts(count, 1, complete=True), referee.judge.config.frames
    given = render(asked.scenes, frames=model.codec.pixel_frames(model.backbone.window.frames), fps=FPS)
    for long in dict.fromkeys(("none", model.defaults.long_term)):
        short = make_short_term(model.defaults.short_term, model)
        memories = {"short": short, "long": make_long_term(long, model)}
        parts = assemble(model, **memories, sampler=sampler, guidance=guidance)
        pairs = enumerate(zip(given, asked.texts, strict=True))
        made = torch.stack([_after(parts, *each, frames, Key(0).fold("looks", i)) for i, each in pairs])
        yield f"behind a render, long-term memory {long}", right(made, asked.scenes, referee, tuple(HIDDEN_ATTRIBUTES))


def _after(parts: Parts, given: UInt8[Tensor, "time 3 rows cols"], text: str, frames: int, key: Key) -> Tensor:
    """The frames that follow."""
    opening = VideoOpening(given.float() / 255)
    chunks = chunks_needed(parts, opening, len(given) + frames)
    made = list(stream(parts, [PromptSchedule.fixed(text)], opening, key=key, chunks=chunks))
    return torch.cat([each.frames[0] for each in made])[len(given) :][:frames].mul(255).round().to(torch.uint8)


def same_in_halves(clips: Clips, referee: Referee) -> Shares:
    """Share of clips of whose halves the judge says the same; each is played back and forth, to be long enough."""
    half = clips.shape[1] // 2
    first, last = clips[:, :half], clips[:, half : 2 * half]
    one = referee.ask(torch.cat((first.flip(1), first), dim=1))
    other = referee.ask(torch.cat((last, last.flip(1)), dim=1))
    return {name: share((one[name] == other[name])[:, None]) for name in HIDDEN_ATTRIBUTES if referee.may(name)}


def right(clips: Clips, scenes: Scenes, referee: Referee, names: tuple[str, ...]) -> Shares:
    """Share of clips in which the judge sees the scenes' look."""
    found = referee.ask(clips)
    return {name: share((found[name] == scenes.attribute(name))[:, None]) for name in names if referee.may(name)}


def _told(name: str, shares: Shares) -> dict[str, dict[str, object]]:
    line = "   ".join(f"{attribute} {estimate}" for attribute, estimate in shares.items())
    print(f"{time.strftime('%H:%M:%S')}  {name:46}{line}", flush=True)
    return {attribute: asdict(estimate) for attribute, estimate in shares.items()}


if __name__ == "__main__":
    typer.run(main)
