"""The published code's randomized blending: draws, origin of every frame, blended predictions, and the whole solver."""

import ast
import random
import re
from dataclasses import dataclass
from typing import Any, final

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from backends.modelscope_v2v_schedule import video_to_video_scheduler
from streaming.backbone import Window
from streaming.blend import RandomizedBlending, origins_from_draws
from streaming.enhancer import Enhancer
from streaming.guidance import ClassifierFree, Guidance, Unguided
from streaming.joint import _denoiser, _joined, exchange
from streaming.keys import Key
from streaming.prompts import PromptSchedule
from streaming.sample import Denoise, Step
from streaming.sample_sde import TrailingSDE, clean_video
from tests.parity.enhancer import ChunkNumbers, GivenCuts, NoCodec, ToyNetwork, evaluate_of
from tests.parity.fixture import Fixture
from tests.parity.registry import handles
from tests.parity.toy import find_formula

EXACT = {"tolerance": 0.0}
STRIDES = ("calls", "steps", "solver_steps", "num_steps", "num_inference_steps")
"""How a file may call the evaluations of its solver."""
CLEAN = r"in\.(x|x0|x_0|clean|video|latents|video_latents|z)"
NOISED = r"in\.(xt|x_t|noised|start|x_start)"
START = r"in\.(noise|start_noise|sdedit_noise|init_noise|eps)"
INCREMENTS = (
    r"(in|aux)\.(\w*(increments?|brownian|noises|noise_samples)|(step|solver|sde|sampler)_noises?)\w*([._]\d+)?"
)


@handles("st2v_blend_*")
def blend(fixture: Fixture) -> None:
    """By what the file holds: offsets and origins, one blended prediction a call, or a solver's trajectory."""
    sizes = Sizes.of(fixture)
    offsets = _offsets(fixture, sizes)
    origins = torch.stack([origins_from_draws(cuts, sizes.chunk, sizes.overlap, sizes.frames) for cuts in offsets])
    if "out.origin" in fixture.tensors:
        fixture.check("out.origin", origins.view(fixture.tensors["out.origin"].shape), **EXACT)
    if fixture.find(INCREMENTS) or _formula(fixture)[0] in ("v", "eps"):
        solve(fixture, sizes, offsets)
    elif fixture.find(CLEAN):
        blended_predictions(fixture, sizes, offsets, origins)


@final
@dataclass(frozen=True)
class Sizes:
    """Of a file's chunks."""

    chunk: int
    overlap: int
    frames: int

    @classmethod
    def of(cls, fixture: Fixture) -> "Sizes":
        """From config and metadata; the number of frames also from the latents."""
        name = fixture.find(CLEAN, NOISED, START)
        frames = None if name is None else fixture.tensors[name].shape[2]
        return cls(
            int(fixture.number("chunk_size")),
            int(fixture.number("overlap_size")),
            int(fixture.number("frames", frames)),
        )

    @property
    def spans(self) -> list[range]:
        """The chunks. Raises AssertionError if the last one had to be shifted, which the published code does not do."""
        blender = RandomizedBlending(chunk=self.chunk, overlap=self.overlap, convention="official")
        spans = blender.spans(self.frames)
        if len(spans) > 1 and (self.frames - self.overlap) % (self.chunk - self.overlap):
            raise AssertionError(
                f"{self.frames} frames are no whole chunks of {self.chunk} with overlap {self.overlap}"
            )
        return spans


def _offsets(fixture: Fixture, sizes: Sizes) -> Tensor:
    """[calls, boundaries]: stored, or drawn with the file's seed; if both, they must be the same."""
    boundaries, name = len(sizes.spans) - 1, fixture.find(r"(in|out)\.offsets?")
    seed = fixture.meta.get("python_random_seed", fixture.config.get("python_random_seed"))
    if name is None and seed is None:
        return fixture.give_up("it has neither offsets nor python_random_seed")
    stored = None if name is None else fixture.read(re.escape(name)).flatten(1)
    calls = len(stored) if stored is not None else _calls(fixture)
    if seed is not None:
        source = random.Random(int(seed))
        drawn = [[source.randint(0, sizes.overlap - 1) for _ in range(boundaries)] for _ in range(calls)]
        stored = torch.tensor(drawn, dtype=torch.int64).view(calls, boundaries)
    assert stored is not None
    if name is not None:
        fixture.check(name, stored.view(fixture.tensors[name].shape), **EXACT)
    return stored


def _calls(fixture: Fixture) -> int:
    known = [name for name in STRIDES if name in fixture.meta or name in fixture.config]
    return int(fixture.number(known[0] if known else STRIDES[0]))


def blended_predictions(fixture: Fixture, sizes: Sizes, offsets: Tensor, origins: Tensor) -> None:
    """out.x0 [call, 1, C, F, h, w] of a toy denoiser that predicts x0 of in.x, the same in every call."""
    latents, formula = fixture.read(CLEAN), _formula(fixture)
    if formula[0] not in ("x0", "out", "output"):
        fixture.give_up(f"a toy that predicts {formula[0]}, without a noise level")
    spans, blender = sizes.spans, GivenCuts(chunk=sizes.chunk, overlap=sizes.overlap, offsets=offsets)
    chunks = torch.cat([latents[:, :, span.start : span.stop] for span in spans])
    names = [{"x": one, **dict.fromkeys(("chunk_index", "chunk", "k", "i", "c"), k)} for k, one in enumerate(chunks)]
    stack = torch.stack([evaluate_of(fixture, formula[1], given) for given in names])
    found = []
    for call, origin in enumerate(origins.tolist()):
        weights = blender.weights(sizes.frames, Key(0).fold("blend", call))
        agreed = exchange(stack, chunks, spans, weights, 0.0)
        found.append(torch.stack([agreed[k, :, n - spans[k].start] for n, k in enumerate(origin)], dim=1))
    name = fixture.find(r"out\.(x0|x_0|blended)") or "out.x0"
    fixture.check(name, torch.stack(found).reshape(fixture.tensors[name].shape), **EXACT)


def solve(fixture: Fixture, sizes: Sizes, offsets: Tensor) -> None:
    """The published solver over all chunks with a toy network, given noise and given cuts."""
    target, formula = _formula(fixture)
    kinds = {"v": "v_prediction", "out": "v_prediction", "output": "v_prediction", "eps": "epsilon", "x0": "sample"}
    scheduler = DDIMScheduler.from_config(video_to_video_scheduler().config, prediction_type=kinds[target])
    steps, spans = int(fixture.number("steps", fixture.config.get("solver_steps", len(offsets)))), sizes.spans
    levels = fixture.number("total_noise_levels", fixture.config.get("noise_levels", 600))
    solver = TrailingSDE(steps, fixture.number("eta", 1.0), published_start=True)
    strength = levels / len(scheduler.alphas_cumprod)
    ratios, plan = solver.plan(scheduler, strength)
    if len(offsets) < steps:
        fixture.give_up(f"{len(offsets)} calls for {steps} steps")
    clean, start = _start(fixture, plan[0])
    enhancer = _enhancer(fixture, sizes, offsets, formula, solver, scheduler, strength, clean)
    cut = lambda video: torch.cat([video[:, :, span.start : span.stop] for span in spans])  # noqa: E731
    noises = _increments(fixture, ratios, clean)
    prompts = PromptSchedule(tuple((span.start, f"chunk {k}") for k, span in enumerate(spans)))
    denoise = Recorder(_denoiser(enhancer, spans, cut(start), prompts, Key(0), None, map), enhancer, spans)
    last = solver(denoise, cut(start), lambda step: cut(noises[step]), scheduler, strength=strength, clean=cut(clean))
    _check_solver(fixture, denoise, _joined(enhancer, last, spans, Key(0))[None], plan, ratios)


def _check_solver(fixture: Fixture, seen: "Recorder", last: Tensor, plan: list[Step], ratios: list[float]) -> None:
    """Every output that can be understood by its name."""
    times = torch.tensor([step.time for step in plan])
    known: list[tuple[str, Any]] = [
        (r"out\.(model_)?(timesteps|times|t)", times),
        (r"(in|out)\.(ve_)?sigmas\w*", torch.tensor(ratios, dtype=torch.float64)),
        (r"out\.(xt|x_t|noised|sdedit_start)", seen.inputs[0] / plan[0].level.noise),
        (r"out\.(start|x_start|first_(model_)?input|model_input_first)", seen.inputs[0]),
        (r"out\.(model_inputs?|model_in|network_inputs?|inputs|traj\w*|x_in)", torch.stack(seen.inputs)),
        (r"out\.(x0s|x0_(steps|calls|per_call|preds?|all)|denoised)", torch.stack(seen.clean)),
        (r"out\.(x0|x_0|final|samples?|latents|video|result|out|x)", last),
    ]
    for pattern, value in known:
        for name in fixture.names(pattern):
            expected = fixture.tensors[name]
            if value.ndim == 1:  # tables: with the end or without it
                value = value[: len(expected)]
            if value is last and expected.numel() == last.numel() * len(plan):
                value = torch.stack(seen.clean)
            fixture.check(name, value.reshape(expected.shape) if value.numel() == expected.numel() else value)
    numbered = {
        "x0": seen.clean,
        "denoised": seen.clean,
        "x": seen.inputs,
        "model_input": seen.inputs,
        "model_in": seen.inputs,
    }
    for name in fixture.names(r"out\.(x0|denoised|x|model_input|model_in)[._]\d+"):
        kind, number = re.split(r"[._](?=\d+$)", name.removeprefix("out."))
        values = [*numbered[kind], last]
        fixture.check(name, values[int(number)].reshape(fixture.tensors[name].shape))


@final
class Recorder:
    """A denoiser of all chunks; keeps the network's inputs and the clean video that predictions stand for."""

    def __init__(self, denoise: Denoise, enhancer: Enhancer, spans: list[range]) -> None:
        self.denoise, self.enhancer, self.spans = denoise, enhancer, spans
        self.kind = str(dict(enhancer.scheduler.config)["prediction_type"])  # pyright: ignore
        self.inputs: list[Tensor] = []
        self.clean: list[Tensor] = []

    def __call__(self, latents: Tensor, step: Step) -> Tensor:
        """As the denoiser; whole videos are kept, in which overlaps agree."""
        prediction = self.denoise(latents, step)
        self.inputs.append(self._whole(latents))
        self.clean.append(self._whole(clean_video(self.kind, prediction, latents, step.level)))
        return prediction

    def _whole(self, stack: Tensor) -> Tensor:
        video = torch.zeros(1, stack.shape[1], self.spans[-1].stop, *stack.shape[3:])
        for span, chunk in zip(self.spans, stack, strict=True):
            video[0, :, span.start : span.stop] = chunk
        return video


def _formula(fixture: Fixture) -> tuple[str, ast.expr]:
    extra = [name.removeprefix("in.") for name in fixture.names(r"in\.\w+")]
    found = next(
        (
            f
            for text in [*fixture.meta.values(), *map(str, fixture.config.values())]
            if (f := find_formula(text, extra)) is not None
        ),
        None,
    )
    if found is None:
        return fixture.give_up("its metadata has no formula of a toy network (like `x0 = x + 1000*(chunk index+1)`)")
    return found


def _start(fixture: Fixture, first: Step) -> tuple[Tensor, Tensor]:
    """Clean video and noise of SDEdit; a noised video that is given stands for a clean one without noise."""
    if fixture.find(CLEAN) and fixture.find(START):
        return fixture.read(CLEAN), fixture.read(START)
    noised = fixture.read(NOISED, CLEAN, START)  # the only one there is
    return noised / first.level.signal, torch.zeros_like(noised)


def _increments(fixture: Fixture, ratios: list[float], like: Tensor) -> Tensor:
    """Standard normal noise of each step; increments of a Brownian path over the steps' sigmas are made so."""
    name = fixture.find(INCREMENTS) or ""
    given = torch.stack([fixture.read(re.escape(one)) for one in fixture.names(INCREMENTS)])
    given = given.reshape(-1, *like.shape)
    sigmas = torch.tensor(ratios, dtype=torch.float64)
    expected = (sigmas[:-1] - sigmas[1:]).abs().sqrt()[: len(given)].float()
    if given.shape[0] > len(expected):
        return fixture.give_up(f"{name}: {len(given)} for {len(expected)} steps")
    spread = given.flatten(1).std(dim=1)
    shape = (-1, *[1] * like.ndim)
    brownian = (spread / expected).log().abs().mean() < spread.log().abs().mean()
    return given / expected.view(shape) if bool(brownian) else given


def _enhancer(
    fixture: Fixture,
    sizes: Sizes,
    offsets: Tensor,
    formula: ast.expr,
    solver: TrailingSDE,
    scheduler: Any,
    strength: float,
    like: Tensor,
) -> Enhancer:
    cond, free = fixture.find(r"in\.y(_cond)?"), fixture.find(r"in\.(y_uncond|negative_y|y_neg\w*)")
    y = [float(fixture.read(re.escape(name)).flatten()[0]) if name else 0.0 for name in (free, cond)]
    scale, rescale = (fixture.config.get(name) for name in ("guide_scale", "guide_rescale"))
    scale = scale if scale is not None else fixture.config.get("guidance_scale")
    guidance: Guidance = Unguided() if scale is None else ClassifierFree(float(scale), float(rescale or 0.0))
    constants = {
        name.removeprefix("in."): fixture.read(re.escape(name))
        for name in fixture.names(r"in\.\w+")
        if name not in fixture.used and fixture.tensors[name].numel() == 1
    }
    rows, cols = like.shape[-2:]
    return Enhancer(
        backbone=ToyNetwork(fixture, formula, y, constants, Window(sizes.chunk, sizes.overlap)),
        codec=NoCodec(like.shape[1]),
        text=ChunkNumbers(),
        guidance=guidance,
        sampler=solver,
        scheduler=scheduler,
        blender=GivenCuts(chunk=sizes.chunk, overlap=sizes.overlap, offsets=offsets),
        strength=strength,
        height=rows,
        width=cols,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
