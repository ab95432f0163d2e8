"""Samplers against loops written out here, and against denoisers that know the answer."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.keys import Key
from streaming.sample import Sampler

SHAPE = (1, 2, 3, 2, 2)
MODELSCOPE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
ZERO_TERMINAL = {
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
DIFFUSION = ("ddim", "dpm++", "dpm++sde")
START, CLEAN = Key(0).fold("start").normal(*SHAPE), Key(0).fold("clean").normal(*SHAPE)


def fresh(index):
    return Key(1).fold("step", index).normal(*SHAPE)


def toy_network(latents, step):
    return torch.tanh(latents) * (0.3 + step.time / 2000) + 0.05


def perfect(clean, prediction_type, seen=None):
    """The prediction of a network that knows the clean latents, whatever is in the latents."""

    def denoise(latents, step):
        signal, noise = step.level.signal, step.level.noise
        eps = (latents - signal * clean) / noise
        if seen is not None:
            seen.append((latents, step))
        return {"epsilon": eps, "v_prediction": signal * eps - noise * clean, "flow": eps - clean}[prediction_type]

    return denoise


def naive_ddim(scheduler, times, latents, eta):
    """[DDIM, equations 12 and 16] with the next time of the list as the previous one."""
    alphas = scheduler.alphas_cumprod.double()
    for i, t in enumerate(times):
        last = i == len(times) - 1
        now, then = alphas[t], scheduler.final_alpha_cumprod.double() if last else alphas[times[i + 1]]
        step = type("Step", (), {"time": float(t)})
        eps = toy_network(latents, step)
        clean = (latents - (1 - now).sqrt() * eps) / now.sqrt()
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        latents = then.sqrt() * clean + (1 - then - sigma**2).sqrt() * eps + sigma * fresh(i)
    return latents


@given(st.integers(1, 60), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["leading", "trailing"]))
@example(7, 1.0, "trailing")
def test_ddim_equals_the_loop_written_out(steps, eta, spacing):
    scheduler = DDIMScheduler(**MODELSCOPE | {"timestep_spacing": spacing})
    result = Sampler("ddim", steps, eta)(toy_network, START, fresh, scheduler)
    if spacing == "leading":
        times = [1 + i * (1000 // steps) for i in reversed(range(steps))]
    else:
        times = [round(1000 * i / steps) - 1 for i in reversed(range(1, steps + 1))]
    planned = [step.time for step in Sampler("ddim", steps).plan(scheduler)[1]]
    assert max(abs(a - b) for a, b in zip(planned, times, strict=True)) <= (spacing == "trailing")  # halves are rounded
    expected = naive_ddim(scheduler, [int(t) for t in planned], START.double(), eta)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_diffusers_own_where_the_steps_divide_the_schedule(eta):
    scheduler = DDIMScheduler(**MODELSCOPE)
    scheduler.set_timesteps(50)
    latents = START
    for i, t in enumerate(scheduler.timesteps):
        prediction = toy_network(latents, type("Step", (), {"time": float(t)}))
        latents = scheduler.step(prediction, t, latents, eta=eta, variance_noise=fresh(i)).prev_sample
    result = Sampler("ddim", 50, eta)(toy_network, START, fresh, scheduler)
    torch.testing.assert_close(result, latents, rtol=1e-5, atol=1e-5)


def naive_second_order(levels, stochastic):
    """DPM-Solver++ 2M and its SDE form for x_0 predictions [arXiv 2211.01095, algorithm 2], from (signal, noise)."""
    latents, before = START.double(), None
    for i, (signal, noise, time) in enumerate(levels):
        eps = toy_network(latents, type("Step", (), {"time": time}))
        clean = (latents - noise * eps) / signal
        if i == len(levels) - 1:
            return clean
        next_signal, next_noise, _ = levels[i + 1]
        h = math.log(next_signal / next_noise) - math.log(signal / noise)
        guess = clean
        if before is not None:
            r = (math.log(signal / noise) - math.log(levels[i - 1][0] / levels[i - 1][1])) / h
            guess = clean + (clean - before) / (2 * r)
        if stochastic:
            latents = next_noise / noise * math.exp(-h) * latents + next_signal * (1 - math.exp(-2 * h)) * guess
            latents = latents + next_noise * math.sqrt(1 - math.exp(-2 * h)) * fresh(i)
        else:
            latents = next_noise / noise * latents - next_signal * (math.exp(-h) - 1) * guess
        before = clean
    raise AssertionError


@pytest.mark.parametrize("kind", ["dpm++", "dpm++sde"])
@pytest.mark.parametrize("steps", [1, 2, 16, 25])  # from 3 to 14 diffusers lowers the last but one's order
def test_dpm_solver_equals_the_loop_written_out(kind, steps):
    scheduler = DDIMScheduler(**MODELSCOPE)
    plan = Sampler(kind, steps).plan(scheduler)[1]
    levels = [(step.level.signal, step.level.noise, step.time) for step in plan]
    result = Sampler(kind, steps)(toy_network, START, fresh, scheduler)
    expected = naive_second_order(levels, kind == "dpm++sde")
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


@given(
    kind=st.sampled_from(DIFFUSION),
    steps=st.integers(1, 80),
    strength=st.sampled_from([1.0, 0.8, 0.6, 0.35, 0.1]),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    prediction=st.sampled_from(["epsilon", "v_prediction"]),
)
@example("dpm++", 61, 1.0, "trailing", "epsilon")
@example("ddim", 61, 1.0, "trailing", "epsilon")
def test_a_perfect_denoiser_is_a_fixed_point(kind, steps, strength, spacing, prediction):
    config = {"clip_sample": False, "timestep_spacing": spacing, "prediction_type": prediction}
    result = Sampler(kind, steps)(
        perfect(CLEAN, prediction), START, fresh, DDIMScheduler(**config), strength=strength, clean=CLEAN
    )
    torch.testing.assert_close(result, CLEAN, rtol=1e-3, atol=1e-3)


@given(st.sampled_from(DIFFUSION), st.integers(1, 100), st.sampled_from([0.0, 0.3, 1.0]))
@example("ddim", 61, 1.0)
def test_zero_terminal_snr_is_finite_and_exact(kind, steps, eta):
    """The first level holds no signal at all: nothing may be divided by it, no root drawn from -1e-8."""
    seen = []
    denoise = perfect(CLEAN, "v_prediction", seen)
    result = Sampler(kind, steps, eta)(denoise, START, fresh, DDIMScheduler(**ZERO_TERMINAL))
    assert seen[0][1].time == 999 and seen[0][1].level.signal < 3e-4
    assert all(bool(torch.isfinite(latents).all()) for latents, _ in seen)
    torch.testing.assert_close(result, CLEAN, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["ddim", "dpm++sde"])
def test_latents_keep_to_the_level_of_their_step(kind):
    """With a perfect denoiser x_t = signal x_0 + noise * (unit normal), at every step."""
    seen, shape = [], (1, 4, 16, 16, 16)
    clean = Key(5).normal(*shape)
    noise = lambda i: Key(6).fold(i).normal(*shape)  # noqa: E731
    Sampler(kind, 10)(
        perfect(clean, "v_prediction", seen), Key(7).normal(*shape), noise, DDIMScheduler(**ZERO_TERMINAL)
    )
    assert [step.index for _, step in seen] == list(range(10))
    for latents, step in seen:
        rest = (latents - step.level.signal * clean) / step.level.noise
        assert rest.std().item() == pytest.approx(1, abs=0.03) and abs(rest.mean().item()) < 0.03
        assert step.level.signal**2 + step.level.noise**2 == pytest.approx(1)


@given(st.sampled_from(DIFFUSION), st.integers(1, 60), st.sampled_from([1.0, 0.7, 0.5, 0.2]))
def test_levels_are_those_of_the_schedule_at_the_times(kind, steps, strength):
    scheduler = DDIMScheduler(**MODELSCOPE)
    plan = Sampler(kind, steps).plan(scheduler, strength)[1]
    assert len(plan) == steps
    assert all(a.time > b.time for a, b in zip(plan, plan[1:], strict=False))
    for step in plan:
        kept = float(scheduler.alphas_cumprod[int(step.time)])
        assert step.level.signal == pytest.approx(kept**0.5, rel=1e-4)
        assert step.level.noise == pytest.approx((1 - kept) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("kind", [*DIFFUSION, "euler"])
@pytest.mark.parametrize("strength", [0.9, 0.6, 0.25])
def test_sdedit_takes_all_its_steps_below_the_strength(kind, strength):
    flow = kind == "euler"
    scheduler = (
        FlowMatchEulerDiscreteScheduler() if flow else DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    )
    seen = []
    denoise = perfect(CLEAN, "flow" if flow else "epsilon", seen)
    result = Sampler(kind, 12)(denoise, START, fresh, scheduler, strength=strength, clean=CLEAN)
    latents, first = seen[0]
    assert len(seen) == 12
    assert first.time == pytest.approx(1000 * strength, abs=45)
    torch.testing.assert_close(latents, first.level.signal * CLEAN + first.level.noise * START)
    torch.testing.assert_close(result, CLEAN, rtol=1e-3, atol=1e-3)


def asked_noise(kind, steps, eta=1.0):
    asked = []

    def noise(index):
        asked.append(index)
        return fresh(index)

    flow = kind == "euler"
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDIMScheduler(**MODELSCOPE)
    Sampler(kind, steps, eta)(toy_network, START, noise, scheduler)
    return asked


def test_only_stochastic_solvers_ask_for_noise_and_name_the_step():
    assert asked_noise("ddim", 4) == [0, 1, 2, 3]
    assert asked_noise("dpm++sde", 4) == [0, 1, 2, 3]
    assert asked_noise("ddim", 4, eta=0.0) == asked_noise("dpm++", 4) == asked_noise("euler", 4) == []


@pytest.mark.parametrize("kind", ["ddim", "dpm++sde"])
def test_step_noise_changes_the_result(kind):
    scheduler = DDIMScheduler(**MODELSCOPE)
    results = [
        Sampler(kind, 5)(toy_network, START, lambda i, s=s: Key(s).fold(i).normal(*SHAPE), scheduler) for s in (1, 1, 2)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def naive_flow(steps, shift, latents):
    """x' = x + (t' - t) v with t = 1, 1 - 1/N, ..., 1/N, 0, shifted once."""
    times = [shift * t / (1 + (shift - 1) * t) for t in (1 - i / steps for i in range(steps + 1))]
    for now, then in zip(times, times[1:], strict=False):
        latents = latents + (then - now) * toy_network(latents, type("Step", (), {"time": 1000 * now}))
    return latents


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_rectified_flow_equals_the_loop_written_out(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    result = Sampler("euler", steps)(toy_network, START, fresh, scheduler)
    torch.testing.assert_close(result, naive_flow(steps, shift, START), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_rectified_flow_predicts_noise_minus_clean(steps):
    """Time in the unit 0..1000, level 1 - t and t; the opposite sign would run away from the clean latents."""
    seen = []
    result = Sampler("euler", steps)(perfect(CLEAN, "flow", seen), START, fresh, FlowMatchEulerDiscreteScheduler())
    torch.testing.assert_close(result, CLEAN, rtol=1e-4, atol=1e-4)
    assert seen[0][1].time == 1000 and torch.equal(seen[0][0], START)
    for _, step in seen:
        assert step.level.noise == pytest.approx(step.time / 1000) and step.level.signal == pytest.approx(
            1 - step.time / 1000
        )


@pytest.mark.parametrize("kind", DIFFUSION)
def test_configurations_of_other_diffusion_schedulers_will_do_without_a_word(kind, caplog):
    for scheduler in (DDPMScheduler(clip_sample=False), DPMSolverMultistepScheduler()):
        assert torch.isfinite(Sampler(kind, 3)(toy_network, START, fresh, scheduler)).all()
    assert not caplog.records


@pytest.mark.parametrize("kind", DIFFUSION)
def test_the_models_scheduler_stays_as_it_is(kind):
    scheduler = DDIMScheduler(**MODELSCOPE)
    before = {name: str(value) for name, value in vars(scheduler).items()}
    Sampler(kind, 4)(toy_network, START, fresh, scheduler)
    assert {name: str(value) for name, value in vars(scheduler).items()} == before


def test_what_cannot_be_sampled_is_refused():
    diffusion, flow = DDIMScheduler(**MODELSCOPE), FlowMatchEulerDiscreteScheduler()
    cases = [
        (lambda: Sampler("heun", 5), "unknown sampler 'heun': choose one of ddim, dpm++, dpm++sde, euler"),
        (lambda: Sampler("ddim", 0), "0 denoising steps: choose between 1 and 1000"),
        (lambda: Sampler("ddim", 5, eta=1.5), "an eta of 1.5: choose between 0 and 1"),
        (lambda: Sampler("ddim", 5).plan(diffusion, 0.0), "a strength of 0.0: choose more than 0 and at most 1"),
        (lambda: Sampler("ddim", 600).plan(diffusion, 0.5), "600 steps at strength 0.5: choose at most 500 steps"),
        (lambda: Sampler("dpm++", 1000).plan(diffusion), "1000 steps at strength 1: choose at most 999 steps"),
        (
            lambda: Sampler("euler", 5).plan(diffusion),
            "the sampler 'euler' does not suit a diffusion, which this model is: choose ddim, dpm++, dpm++sde",
        ),
        (
            lambda: Sampler("ddim", 5).plan(flow),
            "the sampler 'ddim' does not suit a rectified flow, which this model is: choose euler",
        ),
    ]
    for attempt, message in cases:
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(caught.value) == message


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["ddim", "dpm++", "euler"])
def test_a_trajectory_begins_at_its_strength_also_with_few_steps(kind: str, steps: int) -> None:
    trailing = DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    scheduler = FlowMatchEulerDiscreteScheduler() if kind == "euler" else trailing
    begins = [Sampler(kind, steps).plan(scheduler, strength)[1][0] for strength in (0.2, 0.5, 0.7, 0.9, 1.0)]
    noise = [begin.level.noise for begin in begins]
    assert noise == sorted(set(noise))
    assert begins[1].time == pytest.approx(500, abs=1)


@pytest.mark.parametrize(("kind", "steps"), [("ddim", 1000), ("dpm++", 999)])
def test_steps_past_the_noise_schedule_are_refused(kind: str, steps: int) -> None:
    leading = DDIMScheduler(timestep_spacing="leading", steps_offset=1, beta_schedule="scaled_linear")
    with pytest.raises(UserError, match="choose fewer than 999"):
        Sampler(kind, steps).plan(leading)
