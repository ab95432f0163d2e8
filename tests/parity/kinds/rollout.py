"""`predict_step` of the published code: a given first chunk, generated chunks, and all of them stitched."""

import re
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from streaming.keys import Key
from streaming.loop import Chunk, stream
from streaming.memory import LongTermMemory
from streaming.model import Defaults, Model
from streaming.noise import Noise, OneGenerator, Shape
from streaming.openings import VideoOpening
from streaming.parts import assemble
from streaming.presets import Preset, official
from streaming.prompts import PromptSchedule
from streaming.sample import Denoise, Sampler, Solver, Step, StepNoise
from streaming.video import to_bytes
from tests.parity.chunk import PUBLISHED, GivenText, Pipeline, channel_major, like, to_unit
from tests.parity.fixture import PART, TOLERANCE, Fixture
from tests.parity.kinds.traj import check_times
from tests.parity.registry import handles

FIRST = (r"in\.(first|initial|short)_\w+", r"in\.(input_)?(video|frames)\w*", r"in\.\w*(chunk|video)[._]?\d?")
"""Names of the first chunk."""
START = r"in\.(chunk[._]?\d+[._])?(init\w*?)?latents?([._]?(chunk)?[._]?\d+)?"
NOISE = r"in\.(chunk[._]?\d+[._])?\w*?noise([._]?(chunk)?[._]?\d+)?"
NUMBERED = re.compile(r"out\.(?P<kind>[a-z_.]*?)[._]?(?P<number>\d{1,2})(?P<rest>[._][a-z_0-9]+)?")


@handles("st2v_rollout_*")
def rollout(fixture: Fixture) -> None:
    """out.video (floats or bytes, any layout), out.latents.N and out.chunk.N of generated chunks."""
    first = to_unit(_frames(fixture.read(*FIRST)))
    pipeline = Pipeline(fixture)
    long = _long(fixture, pipeline)
    shape = pipeline.window.frames, first.shape[-2] // pipeline.codec.factor, first.shape[-1] // pipeline.codec.factor
    noise = _noise(fixture, pipeline)
    model = Model(
        name="fixture",
        backbone=pipeline.backbone,
        codec=pipeline.codec,
        text=GivenText(pipeline.text),
        image=None,
        scheduler=pipeline.scheduler,
        defaults=Defaults(height=first.shape[-2], width=first.shape[-1], fps=8.0),
    )
    preset = _preset(model, pipeline)
    solver = Recording(preset.sampler)
    parts = assemble(model, short=pipeline.cam, long=long, sampler=solver, preset=replace(preset, noise=noise))
    _check_anchor(fixture, first)
    check_times(fixture, pipeline)
    wanted = _generated(fixture, pipeline, len(first))
    made = list(stream(parts, PromptSchedule.fixed("given"), VideoOpening(first), key=Key(0), chunks=1 + wanted))
    assert solver.results and solver.results[0].shape[2:] == shape
    _check(fixture, pipeline, made, solver)


@final
class Recording(Solver):
    """A sampler that keeps what it gave, and what the denoiser saw and said at each step of each chunk."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.steps = sampler, sampler.steps
        self.results: list[Tensor] = []
        self.starts: list[Tensor] = []

    def plan(self, scheduler: Any, strength: float = 1.0) -> tuple[Any, list[Step]]:
        """The sampler's."""
        return self.sampler.plan(scheduler, strength)

    def __call__(
        self,
        denoise: Denoise,
        start: Tensor,
        noise: StepNoise,
        scheduler: Any,
        *,
        strength: float = 1.0,
        clean: Tensor | None = None,
    ) -> Tensor:
        """As the sampler."""
        self.starts.append(start)
        self.results.append(self.sampler(denoise, start, noise, scheduler, strength=strength, clean=clean))
        return self.results[-1]


@final
class GivenNoise(Noise):
    """The random numbers of a file, by generated chunk."""

    def __init__(self, starts: list[Tensor], noises: list[Tensor]) -> None:
        self.starts, self.noises = starts, noises

    def start(self, key: Key, index: int, steps: int, shape: Shape) -> Tensor:
        """Chunk `index` is the file's `index - 1`."""
        return self.starts[index - 1].reshape(1, *shape)

    def step(self, key: Key, index: int, step: int, steps: int, shape: Shape) -> Tensor:
        """Likewise."""
        return channel_major(self.noises[index - 1][step], 1)


def _frames(value: Tensor) -> Tensor:
    """[T, 3, H, W] of [1, T, 3, H, W], [1, 3, T, H, W] or [T, H, W, 3]."""
    if value.ndim == 5:
        value = value[0] if value.shape[2] == 3 else value[0].transpose(0, 1)
    return value if value.shape[1] == 3 else value.permute(0, 3, 1, 2)


def _long(fixture: Fixture, pipeline: Pipeline) -> LongTermMemory[Any]:
    if fixture.find(r"in\.image_tokens"):
        return pipeline.given_tokens(fixture.read(r"in\.image_tokens"))
    return pipeline.apm


def _noise(fixture: Fixture, pipeline: Pipeline) -> Noise:
    """Stored numbers, else one generator of the file's seed."""
    starts = [one for value in _read_all(fixture, START) for one in value.flatten(0, -5).split(1)]
    noises = [one for value in _read_all(fixture, NOISE) for one in value.flatten(0, -5).split(pipeline.steps)]
    if starts and noises:
        return GivenNoise(starts, noises)
    drawn = re.search(r"manual_seed\((\d+)\)", fixture.meta.get("draws", ""))
    return OneGenerator(int(drawn[1]) if drawn else int(fixture.number("seed", 33)))


def _read_all(fixture: Fixture, pattern: str) -> list[Tensor]:
    return [fixture.read(re.escape(name)) for name in fixture.names(pattern)]


def _preset(model: Model, pipeline: Pipeline) -> Preset:
    """The library's own, with what the file says of settings other than the published ones."""
    scale, other = pipeline.guidance.scale, pipeline.guidance.scale != PUBLISHED["guidance_scale"]
    preset = official(model).but(steps=pipeline.steps, scale=scale if other else None)
    assert isinstance(preset.sampler, Sampler)
    if pipeline.sampler.eta != PUBLISHED["eta"]:
        preset = replace(preset, sampler=replace(preset.sampler, eta=pipeline.sampler.eta))
    return preset


def _check_anchor(fixture: Fixture, first: Tensor) -> None:
    """Anchor and conditioning frames that are given must be the first and the last ones, which the loop takes."""
    for pattern, place in ((r"in\.anchor\w*", "first"), (r"in\.cond_frames", "last")):
        if (name := fixture.find(pattern)) is not None:
            given = to_unit(_frames(fixture.read(re.escape(name)).reshape(-1, *first.shape[1:])))
            own = first[: len(given)] if place == "first" else first[-len(given) :]
            if not torch.allclose(given, own, atol=1e-6):
                fixture.give_up(f"{name} are not the {place} frames of the first chunk")


def _generated(fixture: Fixture, pipeline: Pipeline, given: int) -> int:
    """Generated chunks, by the longest output that is longer than a chunk, else by the numbered ones."""
    new = pipeline.window.frames - pipeline.window.overlap
    lengths = [len(_frames(v)) for k, v in fixture.tensors.items() if k.startswith("out.") and _is_video(v)]
    longest = max([length for length in lengths if length > given], default=0)
    if longest:
        return (longest - given) // new
    numbers = [int(match["number"]) for k in fixture.tensors if (match := _numbered(k))]
    return max([*numbers, int(fixture.number("n_autoregressive_generations", 3)) - 1])


def _is_video(value: Tensor) -> bool:
    return value.ndim >= 4 and 3 in (value.shape[-1], value.shape[-3], value.shape[1])


def _check(fixture: Fixture, pipeline: Pipeline, made: list[Chunk], solver: Recording) -> None:
    """Each output against the closest of what it may be by its shape: what is wrong is as far from all of them.

    Chunks may be counted from 0 or 1, the given one among them or not, and some may be left out; within one kind of
    output all are counted from the same.
    """
    given, new = made[0].frames[0], [chunk.frames[0] for chunk in made[1:]]
    whole = [pipeline.codec.decode(latents)[0] for latents in solver.results]
    ends = [one[-pipeline.window.overlap :] for one in (given, *whole)]
    serial = [[given, *new], [given, *whole], ends, solver.results, solver.starts]
    alone = [torch.cat([given, *new]), torch.cat(new), given, given[:1], *_tokens(fixture, pipeline, given[None, :1])]
    alone += [torch.cat(some) for some in (solver.results, solver.starts)] + [solver.results[-1]]
    alone += [torch.stack(some) for some in (new, whole, solver.results, solver.starts)]
    kinds: dict[tuple[str, str], dict[int, str]] = {}
    for name in fixture.names(r"out\..+"):
        if (match := _numbered(name)) is None:
            _check_closest(fixture, [name], [[value] for value in alone])
        else:
            kinds.setdefault((match["kind"], match["rest"] or ""), {})[int(match["number"])] = name
    for names in kinds.values():
        begins = [
            (some, first) for some in serial for first in (-1, 0, 1) if all(0 <= n - first < len(some) for n in names)
        ]
        _check_closest(fixture, list(names.values()), [[some[n - first] for n in names] for some, first in begins])


def _tokens(fixture: Fixture, pipeline: Pipeline, anchor: Tensor) -> list[Tensor]:
    if not fixture.names(r"out\.(image_tokens|clip_embed)\w*"):
        return []
    state, grey = pipeline.apm.remember(anchor), torch.full_like(anchor, 0.5)
    return [torch.cat([state.none, state.tokens]), pipeline.apm.embed(anchor), pipeline.apm.embed(grey)]


def _check_closest(fixture: Fixture, names: list[str], candidates: list[list[Tensor]]) -> None:
    """Raises AssertionError if none has the shapes of the outputs."""
    fitting = [values for values in candidates if all(map(partial(_far, fixture), names, values))]
    if not fitting:
        fixture.give_up(f"no idea what {', '.join(names)} of shape {tuple(fixture.tensors[names[0]].shape)} is")
    best = min(fitting, key=lambda values: max(_far(fixture, n, v) or 0.0 for n, v in zip(names, values, strict=True)))
    for name, value in zip(names, best, strict=True):
        check_frames(fixture, name, value) if value.ndim == 4 and value.shape[1] == 3 else fixture.check(
            name, _like(value, fixture, name)
        )


def _like(value: Tensor, fixture: Fixture, name: str) -> Tensor:
    expected = fixture.tensors[name]
    value = like(value, expected) if value.ndim == 5 and value.shape[0] == 1 else value
    return value.reshape(expected.shape) if value.numel() == expected.numel() else value


def _far(fixture: Fixture, name: str, value: Tensor) -> float | None:
    """The largest difference (and a bit); None where shapes don't fit."""
    parts = [(key, PART.fullmatch(key)) for key in fixture.tensors if PART.sub(r"\1", key) == name]
    expected = fixture.tensors[parts[0][0]]
    ours = value[int(parts[0][1][2]) : int(parts[0][1][3])] if parts[0][1] else value
    ours = _layout(ours, expected) if ours.ndim == 4 and ours.shape[1] == 3 else _like(ours, fixture, parts[0][0])
    if ours.shape != expected.shape:
        return None
    scale = 1 if expected.is_floating_point() else 255
    signed = scale == 1 and value.ndim == 4 and value.shape[1] == 3 and float(expected.min()) < -1e-3
    return 1e-9 + float(((2 * ours - 1 if signed else ours * scale) - expected.float()).abs().max() / scale)


def _numbered(name: str) -> re.Match[str] | None:
    """A chunk's output; `uint8` is no number of a chunk."""
    match = NUMBERED.fullmatch(name)
    return None if match is None or match["kind"].endswith("int") else match


def check_frames(fixture: Fixture, name: str, video: Tensor) -> None:
    """Frames [T, 3, H, W] in [0, 1] against floats or bytes of any layout; bytes are cut off, not rounded."""
    for key in [key for key in fixture.tensors if PART.sub(r"\1", key) == name]:
        expected, part = fixture.tensors[key], PART.fullmatch(key)
        ours = video[int(part[2]) : int(part[3])] if part else video
        if not expected.is_floating_point() or float(expected.max()) > 1.5:
            _check_bytes(fixture, key, ours)
        else:
            signed = float(expected.min()) < -1e-3
            fixture.check(key, _layout(2 * ours - 1 if signed else ours, expected))


def _layout(video: Tensor, expected: Tensor) -> Tensor:
    """[T, 3, H, W], [3, T, H, W] or [T, H, W, 3], with a batch of one or without, as is expected."""
    layouts = (video, video.transpose(0, 1), video.permute(0, 2, 3, 1))
    return next(
        (
            one.reshape(expected.shape)
            for one in layouts
            if one.numel() == expected.numel() and one.shape == expected.shape[-4:]
        ),
        video,
    )


def _check_bytes(fixture: Fixture, name: str, ours: Tensor) -> None:
    """Equal to what our floats give, but where those are as near to the next level as the tolerance of floats."""
    expected, reach = fixture.tensors[name], TOLERANCE * (1 + ours)
    low, found, high = (_layout(_bytes(one), expected) for one in (ours - reach, ours, ours + reach))
    if found.shape != expected.shape:
        fixture.check(name, found)
        return
    given = expected.to(torch.int64)
    fixture.check(name, torch.where((low <= given) & (given <= high), given, found), tolerance=0)


def _bytes(video: Tensor) -> Tensor:
    return to_bytes(video.clamp(0, 1)[None], truncate=True)[0].to(torch.int64)
