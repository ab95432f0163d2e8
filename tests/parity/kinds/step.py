"""One guided step of DDIM, with both memories."""

import torch
from torch import Tensor

from adapters.apm import APMState
from streaming.memory import LongTermMemory
from streaming.sample import Step
from tests.parity.chunk import NOISE, Pipeline, channel_major, like, to_unit
from tests.parity.fixture import Fixture
from tests.parity.registry import handles


@handles("st2v_step_*")
def step(fixture: Fixture) -> None:
    """Image tokens of the anchor (or given ones), both rows of the prediction, the guided one, and the next latents."""
    latents = fixture.read(r"in\.latents|in\.sample")
    pipeline, batch = Pipeline(fixture), len(latents)
    frames = to_unit(fixture.read(r"in\.cond_frames")).unflatten(0, (batch, -1))
    long, state = _anchor(fixture, pipeline, batch)
    denoise = pipeline.denoiser(latents, pipeline.memories(frames, long, state))
    solver, steps = pipeline.sampler.plan(pipeline.scheduler)
    now, then = _place(fixture, steps)
    prediction = denoise(latents, now)
    noise = torch.zeros_like(latents) if not pipeline.sampler.eta and not fixture.find(NOISE) else fixture.read(NOISE)
    noise = channel_major(noise, batch)
    after = pipeline.sampler._advance(solver, prediction, latents, now, then, lambda index: noise)
    free, bound = denoise.rows[0].chunk(2)
    found = {"noise_pred": prediction, "noise_pred_uncond": free, "noise_pred_text": bound, "prev_latents": after}
    for name, value in found.items():
        if f"out.{name}" in fixture.tensors:
            fixture.check(f"out.{name}", like(value, fixture.tensors[f"out.{name}"]))


def _anchor(fixture: Fixture, pipeline: Pipeline, batch: int) -> tuple[LongTermMemory[APMState], APMState]:
    """APM and its state; embeddings and tokens are compared on the way."""
    if fixture.find(r"in\.image_tokens"):
        long = pipeline.given_tokens(fixture.read(r"in\.image_tokens"))
        state = long.state
    else:
        long, state = pipeline.apm, None
    if fixture.find(r"in\.anchor\w*"):
        anchor = to_unit(fixture.read(r"in\.anchor\w*")).unflatten(0, (batch, -1))
        grey = anchor.new_full(anchor[:1, :1].shape, 0.5)
        for row, images in (("cond", anchor), ("uncond", grey)):
            embedding = pipeline.image(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(dim=1)
            fixture.check(f"out.clip_embed_{row}", _rows(fixture, f"out.clip_embed_{row}", embedding))
        state = state or pipeline.apm.remember(anchor)
    if state is None:
        return fixture.give_up("neither in.image_tokens nor in.anchor_frame")

    none = state.none.expand_as(state.tokens)
    fixture.check("out.image_tokens", torch.cat([none, state.tokens]))
    return long, state


def _rows(fixture: Fixture, name: str, embedding: Tensor) -> Tensor:
    """One row for each that is expected."""
    expected = fixture.tensors.get(name)
    return embedding if expected is None else embedding.expand(len(expected), -1)


def _place(fixture: Fixture, steps: list[Step]) -> tuple[Step, Step | None]:
    """The step at the file's time, and the one after it."""
    time = float(fixture.read(r"in\.timestep"))
    times = [step.time for step in steps]
    if time not in times:
        return fixture.give_up(f"time {time:g} is none of {times}")
    index = times.index(time)
    after = steps[index + 1] if index + 1 < len(steps) else None
    if after is not None and fixture.number("prev_timestep", after.time) != after.time:
        fixture.give_up(f"time {time:g} is followed by {after.time:g} here, by {fixture.meta['prev_timestep']} there")
    return steps[index], after
