"""A whole chunk: all steps of DDIM with both memories, then the decode."""

import re

import torch

from streaming.keys import Key
from streaming.noise import OneGenerator
from tests.parity.chunk import NOISE, Pipeline, channel_major, like, to_unit
from tests.parity.fixture import Fixture
from tests.parity.registry import handles


@handles("st2v_traj_*")
def trajectory(fixture: Fixture) -> None:
    """out.latents.N after step N, out.noise_pred.N of step N, out.video."""
    start = fixture.read(r"in\.(init_)?latents")
    pipeline, batch = Pipeline(fixture), len(start)
    frames = to_unit(fixture.read(r"in\.cond_frames")).unflatten(0, (batch, -1))
    if fixture.find(r"in\.image_tokens"):
        long = pipeline.given_tokens(fixture.read(r"in\.image_tokens"))
        state = long.state
    else:
        long = pipeline.apm
        state = long.remember(to_unit(fixture.read(r"in\.anchor\w*")).unflatten(0, (batch, -1)))
    given = fixture.read(NOISE) if pipeline.sampler.eta or fixture.find(NOISE) else torch.empty(0)
    noise = [channel_major(one, batch) for one in given]
    denoise = pipeline.denoiser(start, pipeline.memories(frames, long, state))
    last = pipeline.sampler(denoise, start, lambda step: noise[step], pipeline.scheduler)
    check_times(fixture, pipeline)
    _check_draws(fixture, pipeline, start, noise)
    _check_steps(fixture, denoise.latents[1:] + [last], denoise.guided)
    if fixture.find(r"out\.video"):
        video = pipeline.codec.decode(last)
        fixture.check("out.video", video if _axes(fixture, "out.video") == 5 else video.flatten(0, 1))


def check_times(fixture: Fixture, pipeline: Pipeline) -> None:
    """Raises AssertionError for given times that are not the sampler's."""
    times = [step.time for step in pipeline.sampler.plan(pipeline.scheduler)[1]]
    if fixture.find(r"in\.timesteps") and fixture.read(r"in\.timesteps").tolist() != times:
        fixture.give_up(f"its times are not {times}")


def _axes(fixture: Fixture, name: str) -> int:
    return len(fixture.shape(name) or ()) + 1


def _check_steps(fixture: Fixture, latents: list[torch.Tensor], guided: list[torch.Tensor]) -> None:
    """By number: latents after a step, guided predictions in it."""
    for kind, values in (("latents", latents), ("noise_pred", guided)):
        for name in fixture.names(rf"out\.{kind}[._]\d+"):
            index = int(re.split(r"[._]", name)[-1])
            if index >= len(values):
                fixture.give_up(f"{name}, but there are {len(values)} steps")
            fixture.check(name, like(values[index], fixture.tensors[name]))


def _check_draws(fixture: Fixture, pipeline: Pipeline, start: torch.Tensor, noise: list[torch.Tensor]) -> None:
    """If the file says so, its noise is the first chunk's of one generator: this library's own draws are the same."""
    seed = re.search(r"manual_seed\((\d+)\)", fixture.meta.get("draws", ""))
    if seed is None or len(start) != 1:
        return
    source, shape = OneGenerator(int(seed[1])), (start.shape[1], start.shape[2], start.shape[3], start.shape[4])
    drawn = [source.start(Key(0), 1, pipeline.steps, shape)]
    drawn += [source.step(Key(0), 1, step, pipeline.steps, shape) for step in range(len(noise))]
    for ours, theirs in zip(drawn, [start, *noise], strict=True):
        if not torch.equal(ours, theirs):
            fixture.give_up(f"its noise is not what a generator of seed {seed[1]} gives in the published order")
