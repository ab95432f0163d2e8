"""Presets: "official" against a naive roll-out in the published way, what each sets, and what replaces it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from streaming.backbone import Call, Guided, Window
from streaming.checkpoint import Checkpoint
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, Unguided
from streaming.keys import Key
from streaming.loop import chunk_lengths, stream
from streaming.memory import NoLongTerm, NoShortTerm, Tail
from streaming.model import Defaults, Model
from streaming.noise import Keyed, OneGenerator
from streaming.openings import VideoOpening
from streaming.parts import Parts, assemble
from streaming.presets import PRESETS, Preset, make_preset, official, paper
from streaming.prompts import PromptSchedule
from streaming.sample import Sampler
from streaming.sites import combine
from streaming.types import Frames
from tests.toys import (
    BALL,
    OPENINGS,
    SEED,
    TEXT,
    VIDEO,
    WINDOW,
    AnchorMean,
    LetterText,
    MeanCodec,
    OneParameter,
    TailMean,
)

PUBLISHED = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
)  # fmt: skip
STEPS = 5


def model(weight: float = 0.3, window: Window = WINDOW, **changes: Any) -> Model:
    backbone = OneParameter(window)
    nn.init.constant_(backbone.weight, weight)
    given: dict[str, Any] = {
        "name": "toy", "backbone": backbone, "codec": MeanCodec(), "text": LetterText(), "image": None,
        "scheduler": PUBLISHED, "defaults": Defaults(height=8, width=12, fps=8.0, steps=3, guidance=2.0), **changes,
    }  # fmt: skip
    return Model(**given)


def parts(preset: str | Preset, made: Model | None = None, memories: bool = True, **changes: Any) -> Parts:
    short, long = (TailMean(), AnchorMean()) if memories else (NoShortTerm(), NoLongTerm())
    return assemble(made or model(), short=short, long=long, preset=preset, **changes)


def roll(given: Parts, chunks: int = 3, opening: Any = TEXT, key: Key = SEED, **more: Any) -> Frames:
    return torch.cat([c.frames for c in stream(given, BALL, opening, key=key, chunks=chunks, **more)], 1)


# ---- the published way, naively


@torch.no_grad()
def naive_roll(made: Model, given: Frames, chunks: int, steps: int) -> Frames:
    """A given first chunk and generated ones: diffusers' own DDIM step on frames, one generator for everything."""
    generator = torch.Generator().manual_seed(33)
    scheduler = DDIMScheduler.from_config(PUBLISHED.config)
    short, long = TailMean(), AnchorMean()
    anchor, frames, ended = long.remember(given[:, :1]), given, made.codec.encode(given)
    context = made.text(["", "a ball"]).tokens
    rows = (Guided(text=False, anchor=False), Guided(text=True, anchor=True))
    for _ in range(1, chunks):
        memory = short.remember(Tail(frames[:, -2:], ended[:, :, -2:]))
        latents = torch.randn(1, 2, 4, 2, 3, generator=generator)
        scheduler.set_timesteps(steps)
        for time in scheduler.timesteps:
            call = Call(latents=torch.cat([latents] * 2), time=time.float().expand(2), context=context, guided=rows)
            free, bound = made.backbone(call, combine(short.deltas(memory, call), long.deltas(anchor, call))).chunk(2)
            flat = [x.transpose(1, 2).flatten(0, 1) for x in (free + 7.5 * (bound - free), latents)]
            stepped = scheduler.step(flat[0], time, flat[1], eta=1.0, generator=generator).prev_sample
            latents = stepped.unflatten(0, (1, 4)).transpose(1, 2)
        ended = latents
        frames = torch.cat([frames, made.codec.decode(latents)[:, 2:]], 1)
    return frames


def test_official_is_the_published_roll_out():
    """Two chunks, then two more, after a given one that is never rounded and draws nothing."""
    made, given = model(), VIDEO[None, :4]
    ours = roll(parts(official(made).but(steps=STEPS), made), 5, VideoOpening(given[0]), key=Key(1234))
    naive = naive_roll(made, given, 5, STEPS)
    assert ours.shape[1] == 4 + 2 * 4 and torch.equal(ours[:, :4], given)
    torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-5)


def test_paper_is_another():
    made, given = model(), VIDEO[None, :4]
    naive = naive_roll(made, given, 3, 3)
    assert (roll(parts("paper", made), 3, VideoOpening(given[0])) - naive)[:, 4:].abs().max() > 0.01


# ---- what they set


def test_official_settings_are_the_published_ones_whatever_the_model_says():
    made = model(scheduler=DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_end=0.012))
    given = parts("official", made)
    assert (given.sampler, given.guidance) == (Sampler("ddim", 50, eta=1.0), ClassifierFree(7.5))
    assert given.noise == OneGenerator(33) and given.truncate
    assert [step.time for step in Sampler("ddim", 50).plan(given.scheduler)[1]] == list(range(981, 0, -20))
    first = given.first
    assert first is not None
    assert (first.sampler, first.guidance) == (Sampler("dpm++", 50), ClassifierFree(9.0))
    solver, steps = Sampler("dpm++", 50).plan(first.scheduler)
    assert [step.time for step in steps] == [round(999 * k / 50) for k in range(50, 0, -1)]
    assert (solver.config.solver_order, solver.config.solver_type, solver.config.final_sigmas_type) == (
        2, "midpoint", "zero",
    )  # fmt: skip
    assert solver.config.beta_end == given.scheduler.config["beta_end"] == 0.012


def test_the_last_step_of_official_adds_noise():
    """Of the standard deviation that facts of the published code name."""
    given = official(model())
    size, asked = (1, 2, 4, 2, 3), []

    def noise(step: int) -> torch.Tensor:
        asked.append(step)
        return torch.full(size, float(step == 49))

    still = lambda step: torch.zeros(size)  # noqa: E731
    ends = [
        given.sampler(lambda x, step: torch.zeros_like(x), torch.ones(size), n, given.scheduler) for n in (noise, still)
    ]
    assert asked == list(range(50))
    torch.testing.assert_close(ends[0] - ends[1], torch.full(size, 0.0206), rtol=0, atol=1e-4)


def test_paper_is_what_the_model_says():
    given = parts("paper")
    assert (given.sampler, given.guidance) == (Sampler("ddim", 3, 1.0), ClassifierFree(2.0))
    assert given.scheduler is PUBLISHED and given.noise == Keyed()
    assert given.first is None and not given.truncate
    assert torch.equal(roll(given), roll(assemble(model(), short=TailMean(), long=AnchorMean())))


def test_a_scale_of_one_is_no_guidance():
    assert paper(model(defaults=Defaults(height=8, width=12, fps=8.0, guidance=1.0))).guidance == Unguided()
    assert official(model()).but(scale=1.0).guidance == Unguided()


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_given_replaces_the_preset_in_all_chunks(name):
    made = replace(model(), first=model(0.5))
    changed = make_preset(name, made).but(kind="dpm++sde", steps=2, scale=3.0)
    assert changed.first is not None and isinstance(changed.first.sampler, Sampler)
    for sampler, guidance in (
        (changed.sampler, changed.guidance), (changed.first.sampler, changed.first.guidance),
    ):  # fmt: skip
        assert (sampler.kind, sampler.steps, guidance) == ("dpm++sde", 2, ClassifierFree(3.0))
    same = parts(name, made, guidance=ClassifierFree(3.0), sampler=changed.sampler)
    assert same.first is not None
    assert same.sampler == same.first.sampler == changed.sampler
    assert same.guidance == same.first.guidance == ClassifierFree(3.0)
    untouched = make_preset(name, made)
    assert untouched.but() == untouched


# ---- the first chunk


def test_the_first_chunk_is_made_by_the_unmodified_base_model():
    base, tuned = model(0.5), model(0.3)
    own = replace(base, defaults=replace(base.defaults, steps=2, guidance=4.0, sampler="dpm++"))
    given = parts("paper", replace(tuned, first=own))
    begun = roll(given, 1)
    assert torch.equal(begun, roll(parts("paper", own, memories=False), 1))
    assert not torch.equal(begun, roll(parts("paper", tuned), 1))
    rest = roll(given, 3)[:, 4:]
    later = next(stream(given, BALL, TEXT, key=SEED, chunks=1)).checkpoint
    alone = roll(parts("paper", tuned), 3, resume=replace(later, settings=parts("paper", tuned).settings))
    assert torch.equal(rest, alone)


@pytest.mark.parametrize("own", [True, False])
def test_official_first_chunk(own):
    """DPM-Solver++ 2M over evenly spaced times, guidance 9, from noise that the seed names; no memories."""
    base, tuned = model(0.5), model(0.3)
    given = parts(official(made := replace(tuned, first=base) if own else tuned).but(steps=4), made)
    spaced = DDIMScheduler.from_config(PUBLISHED.config, timestep_spacing="linspace")
    naive = replace(base if own else tuned, scheduler=spaced)
    expected = parts("paper", naive, memories=False, guidance=ClassifierFree(9.0), sampler=Sampler("dpm++", 4))
    assert torch.equal(roll(given, 1, key=Key(6)), roll(expected, 1, key=Key(6)))
    assert not torch.equal(roll(given, 1, key=Key(6)), roll(given, 1, key=Key(7)))


def test_guidance_of_the_first_chunk_may_need_other_rows():
    made = replace(model(), first=replace(model(0.5), defaults=replace(model().defaults, guidance=1.0)))
    given = parts("paper", made)
    roll(given, 2)
    assert made.first is not None and isinstance(made.first.backbone, OneParameter)
    assert [len(call.guided) for call in made.first.backbone.calls] == [1] * 3
    assert isinstance(made.backbone, OneParameter)
    assert [len(call.guided) for call in made.backbone.calls] == [2] * 3


def test_the_first_chunk_has_as_many_frames():
    with pytest.raises(UserError, match="a first chunk of 6 latent frames does not fit later ones of 4: give both"):
        parts("paper", replace(model(), first=model(window=Window(6, 2))))
    assert chunk_lengths(parts("paper", replace(model(), first=model())), TEXT) == (4, 2)


# ---- resume and batches


@pytest.mark.parametrize("stop", [0, 1, 2])
@pytest.mark.parametrize("opening", OPENINGS)
def test_a_resumed_official_run_is_bit_identical(stop, opening, tmp_path):
    fresh = lambda: parts(official(made := replace(model(), first=model(0.5))).but(steps=3), made)  # noqa: E731
    whole = list(stream(fresh(), BALL, OPENINGS[opening], key=SEED, chunks=4))
    whole[stop].checkpoint.save(tmp_path / "state")
    rest = list(stream(fresh(), BALL, TEXT, key=SEED, chunks=4, resume=Checkpoint.load(tmp_path / "state")))
    assert [chunk.index for chunk in rest] == list(range(stop + 1, 4))
    for resumed, unbroken in zip(rest, whole[stop + 1 :], strict=True):
        assert torch.equal(resumed.frames, unbroken.frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": OneGenerator()}, r"another noise: it was 'Keyed\(\)', now it is 'OneGenerator\(seed=33\)'"),
        ({"truncate": True}, "another 8-bit colours: it was 'rounded', now it is 'truncated'"),
        ({"first": official(model()).first}, "another first chunk: it was 'like the others', now it is 'OneParameter "),
    ],
)
def test_a_preset_is_not_changed_on_the_way(change, message):
    begun = next(stream(parts("paper"), BALL, TEXT, key=SEED)).checkpoint
    with pytest.raises(UserError, match="cannot resume with " + message):
        stream(replace(parts("paper"), **change), BALL, TEXT, key=SEED, resume=begun)


def test_other_weights_of_the_first_chunks_network_are_noticed():
    one, other = (parts("paper", replace(model(), first=model(weight))).settings for weight in (0.5, 0.6))
    assert one["first chunk"] != other["first chunk"]


def test_every_video_of_an_official_batch_is_as_if_alone():
    prompts = [BALL, PromptSchedule.fixed("two red cubes")]
    given = parts(official(made := model()).but(steps=3), made)
    keys = [Key(1), Key(2)]
    batch = torch.cat([c.frames for c in stream(given, prompts, VideoOpening(VIDEO), key=keys, chunks=3)], 1)
    for b, prompt in enumerate(prompts):
        alone = torch.cat([c.frames for c in stream(given, prompt, VideoOpening(VIDEO), key=keys[b], chunks=3)], 1)
        torch.testing.assert_close(batch[b : b + 1], alone, rtol=1e-6, atol=1e-6)


# ---- refusals


def test_unknown_preset():
    with pytest.raises(UserError, match="unknown preset 'offical': choose one of paper, official"):
        parts("offical")


def test_official_is_for_diffusions():
    flow = model(scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="the preset 'official' is for diffusions and toy is none: choose 'paper'"):
        parts("official", flow)


def test_official_keeps_the_noise_levels_of_the_model():
    made = replace(model(), scheduler=DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True))
    given = official(made)
    assert given.first is not None
    for scheduler in (given.scheduler, given.first.scheduler):
        assert torch.equal(scheduler.alphas_cumprod, made.scheduler.alphas_cumprod)
