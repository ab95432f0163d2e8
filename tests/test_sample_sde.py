"""The published enhancer's solver: against its formulation in another space, and against exact answers."""

import math
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from backends.modelscope_v2v_schedule import video_to_video_scheduler, video_to_video_sigmas
from streaming.backbone import NoiseLevel
from streaming.errors import UserError
from streaming.joint import exchange
from streaming.keys import Key
from streaming.sample import Sampler
from streaming.sample_sde import TrailingSDE, clean_video, make_solver

SHAPE = (1, 2, 3, 2, 2)
SCHEDULER = video_to_video_scheduler()
SIGMAS = torch.from_numpy(video_to_video_sigmas())
START, CLEAN = Key(0).fold("start").normal(*SHAPE), Key(0).fold("clean").normal(*SHAPE)


def fresh(index, shape=SHAPE):
    return Key(1).fold("step", index).normal(*shape)


def toy_network(latents, step):
    return torch.tanh(latents) * (0.3 + step.time / 2000) + 0.05


def run(solver, denoise=toy_network, noise=fresh, scheduler=SCHEDULER, **options):
    return solver(denoise, START, noise, scheduler, **options)


def naive(steps, eta, strength, published_start):
    """In latents whose signal is one and whose noise alone grows, in double precision, from the published settings."""
    log = (SIGMAS / (1 - SIGMAS**2).sqrt()).log()
    top = round(1000 * strength)
    times = torch.tensor([top - 1 - k * top / (steps + 1) for k in range(steps + 1)], dtype=torch.float64)
    low = times.floor().long()
    share = times - low
    sigmas = ((1 - share) * log[low] + share * log[(low + 1).clamp(max=top - 1)]).exp()
    sigmas = torch.cat([sigmas[:-1], sigmas.new_zeros(1)])  # the next to last is left out
    alpha, sigma = (1 - SIGMAS[top - 1] ** 2).sqrt(), SIGMAS[top - 1]
    noised = alpha * CLEAN.double() + sigma * START.double()
    x = noised * sigmas[0] if published_start else noised / alpha
    inputs, before, last = [], None, None
    for i, (now, then) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        t = int(times[i].round())
        inputs.append((t, x / (now**2 + 1).sqrt()))
        prediction = toy_network(inputs[-1][1], type("Step", (), {"time": float(t)}))
        clean = (1 - SIGMAS[t] ** 2).sqrt() * inputs[-1][1] - SIGMAS[t] * prediction
        if then == 0:
            return clean, inputs
        h = now.log() - then.log()
        factor = 1 - torch.exp(-h - eta * h)
        x = then / now * torch.exp(-eta * h) * x + factor * clean
        if before is not None:
            x = x + 0.5 * factor * (h / last) * (clean - before)
        x = x + then * (1 - torch.exp(-2 * eta * h)).sqrt() * fresh(i).double()
        before, last = clean, h
    raise AssertionError("no last step")


@given(
    st.integers(1, 60), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.25, 0.6, 0.999]), st.sampled_from([0, 1])
)
def test_equals_the_formulation_without_scaling(steps, eta, strength, published):
    seen = []

    def network(latents, step):
        seen.append((step.time, latents))
        return toy_network(latents, step)

    found = run(TrailingSDE(steps, eta, bool(published)), network, strength=strength, clean=CLEAN)
    wanted, inputs = naive(steps, eta, strength, published)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-4, atol=2e-4)
    assert [time for time, _ in seen] == [time for time, _ in inputs]
    for (_, mine), (_, other) in zip(seen, inputs, strict=True):
        torch.testing.assert_close(mine, other.float(), rtol=2e-4, atol=2e-4)


def test_published_times_and_levels():
    ratios, steps = TrailingSDE(30).plan(SCHEDULER, 0.6)
    times = [step.time for step in steps]
    assert (times[:3], times[-2:], len(times)) == ([599, 580, 560], [57, 38], 30)
    assert ratios[0] == pytest.approx(4.1648, abs=1e-4) and ratios[-1] == 0
    assert steps[0].level.noise == pytest.approx(0.97236, abs=1e-5)
    assert all(step.level.noise == pytest.approx(float(SIGMAS[int(step.time)]), abs=1e-7) for step in steps)
    assert [step.index for step in steps] == list(range(30))


def test_published_start_is_too_small_by_its_noise():
    first = []
    for published in (False, True):
        inputs = []
        run(TrailingSDE(3, 0.0, published), lambda x, step: inputs.append(x) or x, strength=0.6, clean=CLEAN)  # noqa: B023
        first.append(inputs[0])
    right = 0.23347313 * CLEAN + 0.97236325 * START
    torch.testing.assert_close(first[0], right)
    torch.testing.assert_close(first[1], 0.97236325 * right)


MEAN, SPREAD = 0.7, 0.4


def gaussian(latents, step):
    """The best prediction if clean values are normal with this mean and standard deviation."""
    signal, noise = step.level.signal, step.level.noise
    share = signal * SPREAD**2 / (signal**2 * SPREAD**2 + noise**2)
    clean = MEAN + share * (latents - signal * MEAN)
    return (signal * latents - clean) / noise


def test_without_noise_it_converges_to_the_exact_answer():
    """Strides are whole numbers of levels; halving them leaves less than a quarter of the error."""
    first = NoiseLevel(0.23347313, 0.97236325)
    latents = (first.signal * CLEAN.double() + first.noise * START.double()) / first.signal
    exact = MEAN + (latents - MEAN) * SPREAD / math.hypot(first.noise / first.signal, SPREAD)
    errors = []
    for steps in (39, 79, 299):
        found = run(TrailingSDE(steps, 0.0), gaussian, strength=0.6, clean=CLEAN)
        errors.append(float((found - exact).abs().max()))
    assert errors[0] > 4 * errors[1] and errors[1] > 4 * errors[2] and errors[2] < 3e-4


def test_with_noise_it_draws_from_the_clean_distribution():
    shape = (1, 4, 4, 40, 40)
    draw = partial(fresh, shape=shape)
    clean = MEAN + SPREAD * Key(3).normal(*shape)
    found = TrailingSDE(120)(gaussian, Key(4).normal(*shape), draw, SCHEDULER, strength=0.6, clean=clean)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(found.std()) == pytest.approx(SPREAD, rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clean", [None, CLEAN], ids=["from noise", "edit"])
def test_begins_with_noise_alone_where_no_signal_is_left(eta, clean):
    inputs = []

    def network(latents, step):
        inputs.append((step.level, latents))
        return gaussian(latents, step)

    found = run(TrailingSDE(499, eta), network, clean=clean)
    assert inputs[0][0] == NoiseLevel(0.0, 1.0) and torch.equal(inputs[0][1], START)
    if not eta:
        torch.testing.assert_close(found, MEAN + SPREAD * START, rtol=0, atol=3e-3)
    assert bool(torch.isfinite(found).all())


def test_noise_is_drawn_between_evaluations_only():
    asked = []
    run(TrailingSDE(5), noise=lambda i: asked.append(i) or fresh(i))
    assert asked == [0, 1, 2, 3]
    run(TrailingSDE(5, 0.0), noise=lambda i: pytest.fail("noise that is not needed"))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_all_predictions_stand_for_the_same_video(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)

    def knowing(latents, step):
        signal, noise = step.level.signal, step.level.noise
        eps = (latents - signal * CLEAN) / noise
        return {"epsilon": eps, "v_prediction": signal * eps - noise * CLEAN, "sample": CLEAN}[kind]

    torch.testing.assert_close(run(TrailingSDE(4), knowing, scheduler=scheduler), CLEAN, rtol=1e-3, atol=1e-3)


def test_blending_predictions_is_blending_clean_videos():
    """With shared noise, at the level of the time that the network is told."""
    spans, weights = [range(0, 4), range(2, 6)], torch.tensor([[1, 1, 1, 0.0, 0, 0], [0, 0, 0, 1, 1, 1]])
    video = Key(7).normal(2, 6, 2, 2)
    latents = torch.stack([video[:, s.start : s.stop] for s in spans])
    predictions = Key(8).normal(*latents.shape)
    for step in TrailingSDE(30).plan(SCHEDULER, 0.6)[1]:
        level = step.level
        agreed = clean_video("v_prediction", exchange(predictions, latents, spans, weights, 0.0), latents, level)
        cleans = clean_video("v_prediction", predictions, latents, level)
        blended = torch.cat([cleans[0, :, :3], cleans[1, :, 1:]], dim=1)
        assert torch.equal(agreed, torch.stack([blended[:, s.start : s.stop] for s in spans]))
        slope = level.signal / level.noise
        assert torch.equal(exchange(predictions, latents, spans, weights, slope)[0], exchange(
            predictions, latents, spans, weights, 0.0)[0])  # fmt: skip


def test_names():
    assert make_solver("ddim", 7, 0.5) == Sampler("ddim", 7, 0.5)
    assert make_solver("dpm++sde-trailing", 7, 0.5, published_start=True) == TrailingSDE(7, 0.5, True)
    with pytest.raises(UserError, match="unknown sampler 'heun': choose one of ddim, .*, euler, dpm.*-trailing"):
        make_solver("heun", 7)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TrailingSDE(0), "0 denoising steps: choose between 1 and 1000"),
        (lambda: TrailingSDE(3, 1.5), "an eta of 1.5: choose between 0 and 1"),
        (lambda: run(TrailingSDE(3), strength=0.0), "a strength of 0.0: choose more than 0 and at most 1"),
        (lambda: run(TrailingSDE(600), strength=0.6), "600 steps at strength 0.6: choose at most 599 steps"),
        (
            lambda: run(TrailingSDE(3), scheduler=FlowMatchEulerDiscreteScheduler()),
            "the sampler 'dpm.*-trailing' does not suit a rectified flow, which this model is: choose euler",
        ),
        (
            lambda: run(TrailingSDE(3), scheduler=DDIMScheduler(rescale_betas_zero_snr=True)),
            "this noise schedule ends without any signal, where predicted noise says nothing: lower --strength",
        ),
    ],
)
def test_bad_input(make, line):
    with pytest.raises(UserError, match=line):
        make()


@pytest.mark.parametrize("kind", ["dpm++", "dpm++sde"])
def test_other_solvers_on_a_schedule_that_ends_without_signal(kind):
    with pytest.raises(UserError, match="where .dpm.*. cannot begin: choose a strength below 1"):
        run(Sampler(kind, 5))
    assert bool(torch.isfinite(run(Sampler(kind, 5), strength=0.6, clean=CLEAN)).all())
    assert bool(torch.isfinite(run(Sampler("ddim", 5))).all())
