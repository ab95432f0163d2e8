"""Open-Sora 1.0's sampler, against loops written out here and other samplers; in the loop; fixtures of other sizes."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from backends.opensora_iddpm import (
    IDDPM,
    Chain,
    FirstChannels,
    full_chain,
    iddpm_scheduler,
    respaced,
    spaced_times,
    split,
)
from backends.opensora_iddpm_loss import training_losses
from streaming.errors import UserError
from streaming.guidance import ClassifierFree
from streaming.keys import Key
from streaming.sample import Sampler
from tests.parity.fixture import Fixture
from tests.parity_synthesis import changed, met, numbers, synthesise, write
from tests.toys import run, toy, video

SHAPE = (2, 4, 3, 2, 2)
START, CLEAN = Key(0).fold("start").normal(*SHAPE), Key(0).fold("clean").normal(*SHAPE)
FULL = full_chain(iddpm_scheduler())


def fresh(index):
    return Key(1).fold("step", index).normal(*SHAPE)


def toy_network(latents, step):
    noise = torch.tanh(latents) * (0.3 + step.time / 2000) + 0.05
    return torch.cat([noise, torch.sin(3 * latents)], dim=1)


@given(st.integers(2, 1000), st.integers(2, 1000))
def test_times_are_evenly_spaced_from_end_to_end(a, b):
    levels, steps = max(a, b), min(a, b)
    times = spaced_times(levels, steps)
    assert len(times) == steps and times[0] == 0 and times[-1] == levels - 1
    exact = [i * (levels - 1) / (steps - 1) for i in range(steps)]
    assert max(abs(time - even) for time, even in zip(times, exact, strict=True)) <= 0.5 + 1e-6
    assert all(x < y for x, y in zip(times, times[1:], strict=False))


def test_halves_go_to_the_even_level():
    assert spaced_times(1000, 3) == (0, 500, 999)
    assert spaced_times(6, 3) == (0, 2, 5)
    assert spaced_times(1000, 1) == (0,)


def naive_tables(betas):
    rows, kept = [], 1.0
    for i, beta in enumerate(betas):
        before, kept = kept, kept * (1 - beta)
        variance = beta * (1 - before) / (1 - kept)
        clean, noisy = beta * before**0.5 / (1 - kept), (1 - before) * (1 - beta) ** 0.5 / (1 - kept)
        rows.append((kept, before, variance, clean, noisy, None if i == 0 else math.log(variance)))
    rows[0] = (*rows[0][:5], rows[1][5])
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("steps", [2, 7, 20, 1000])
def test_tables(steps):
    times = spaced_times(1000, steps)
    chain = respaced(FULL, times)
    kept, before, variance, clean, noisy, log_variance = naive_tables(chain.betas)
    np.testing.assert_allclose(chain.kept, kept, rtol=1e-10)
    np.testing.assert_allclose(chain.kept, FULL.kept[list(times)], rtol=1e-10)
    np.testing.assert_allclose(chain.kept_before, before, rtol=1e-10)
    np.testing.assert_allclose(chain.posterior_variance, variance, atol=1e-12)
    np.testing.assert_allclose(chain.posterior_clean, clean, rtol=1e-9)
    np.testing.assert_allclose(chain.posterior_noisy, noisy, atol=1e-12)
    np.testing.assert_allclose(chain.posterior_log_variance, log_variance, rtol=1e-9)
    assert chain.times == times


@given(st.integers(0, 19), st.integers(0, 19), st.floats(-1, 1))
def test_moments_of_the_true_noise(first, second, share):
    """They are the posterior's; the variance lies where its share says."""
    chain, index = respaced(FULL, spaced_times(1000, 20)), torch.tensor([first, second])
    latents = chain.noised(CLEAN, START, index)
    found = chain.moments(torch.cat([START, torch.full(SHAPE, share)], dim=1), latents, index)
    torch.testing.assert_close(found.clean, CLEAN, atol=1e-3, rtol=1e-3)
    for b, level in enumerate((first, second)):
        low, high = chain.posterior_log_variance[level], math.log(chain.betas[level])
        assert found.log_variance[b].unique().item() == pytest.approx(low + (share + 1) / 2 * (high - low), rel=1e-5)
    plain = chain.moments(START, latents, index)
    torch.testing.assert_close(plain.mean, found.mean)
    assert torch.equal(plain.log_variance[0].unique(), torch.tensor([chain.posterior_log_variance[first]]).float())


@pytest.mark.parametrize("steps", [2, 10, 100])
def test_ancestral_sampling(steps):
    """Against the equations, number by number, in double precision."""
    found = IDDPM(steps)(toy_network, START, fresh, iddpm_scheduler())
    chain, plan = IDDPM(steps).plan(iddpm_scheduler())
    assert [step.time for step in plan] == sorted(map(float, spaced_times(1000, steps)), reverse=True)
    kept, _, _, clean_factor, noisy_factor, low = naive_tables(chain.betas)
    latents = START.double()
    for step in plan:
        i = steps - 1 - step.index
        noise, share = toy_network(latents, step).chunk(2, dim=1)
        clean = (latents - (1 - kept[i]) ** 0.5 * noise) / kept[i] ** 0.5
        mean = clean_factor[i] * clean + noisy_factor[i] * latents
        log_variance = (1 + share) / 2 * math.log(chain.betas[i]) + (1 - share) / 2 * low[i]
        latents = mean + (log_variance / 2).exp() * fresh(step.index) if i else mean
    torch.testing.assert_close(found.double(), latents, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_library_s_own(eta):
    """Whose alphas are in single precision."""
    scheduler = iddpm_scheduler()
    config = {k: v for k, v in scheduler.config.items() if k in ("beta_start", "beta_end", "beta_schedule")}
    theirs = DDIMScheduler(**config, clip_sample=False, timestep_spacing="linspace")
    found = IDDPM(20, eta)(toy_network, START, fresh, scheduler)
    expected = Sampler("ddim", 20, eta)(lambda x, step: toy_network(x, step)[:, :4], START, fresh, theirs)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_a_network_that_knows_the_answer_samples_it(eta):
    def perfect(latents, step):
        return (latents - step.level.signal * CLEAN) / step.level.noise

    found = IDDPM(50, eta)(perfect, START, fresh, iddpm_scheduler())
    torch.testing.assert_close(found, CLEAN, atol=1e-4, rtol=1e-4)
    seen = []

    def watched(latents, step):
        seen.append((latents, step))
        return perfect(latents, step)

    found = IDDPM(5, eta)(watched, START, fresh, iddpm_scheduler(), strength=0.3, clean=CLEAN)
    torch.testing.assert_close(found, CLEAN, atol=1e-4, rtol=1e-4)
    (first, step), times = seen[0], [step.time for _, step in seen]
    assert times == [299, 224, 150, 75, 0]
    torch.testing.assert_close(first, FULL.noised(CLEAN, START, torch.tensor([299, 299])))
    assert step.level.signal == pytest.approx(FULL.kept[299] ** 0.5)


def test_noise_is_asked_by_step_and_not_at_the_end():
    asked = []
    for eta, expected in ((None, [0, 1, 2]), (1.0, [0, 1, 2]), (0.0, [])):
        asked.clear()
        IDDPM(4, eta)(toy_network, START, lambda i: asked.append(i) or fresh(i), iddpm_scheduler())
        assert asked == expected


def test_what_is_refused():
    with pytest.raises(UserError, match="1 denoising steps: choose between 2 and 1000"):
        IDDPM(1)
    with pytest.raises(UserError, match="an eta of 1.5: choose between 0 and 1"):
        IDDPM(10, 1.5)
    with pytest.raises(UserError, match="a strength of 0.0: choose more than 0 and at most 1"):
        IDDPM(10).plan(iddpm_scheduler(), 0.0)
    with pytest.raises(UserError, match="300 steps at strength 0.2: choose at most 200 steps"):
        IDDPM(300).plan(iddpm_scheduler(), 0.2)
    for wrong in (FlowMatchEulerDiscreteScheduler(), DDIMScheduler(beta_schedule="scaled_linear")):
        with pytest.raises(UserError, match="suits a diffusion with linear betas, which this model is not"):
            IDDPM(10).plan(wrong)
    with pytest.raises(UserError, match="reads predicted noise, this model predicts v_prediction"):
        IDDPM(10).plan(DDIMScheduler(beta_schedule="linear", prediction_type="v_prediction"))
    with pytest.raises(UserError, match="a prediction of 5 channels for latents of 4: expected once or twice as many"):
        split(torch.zeros(1, 5, 1, 1, 1), 4)
    with pytest.raises(UserError, match="predicts no variance: give one with twice the latents' channels"):
        training_losses(FULL, CLEAN, CLEAN, START, torch.tensor([1, 2]))


def test_listed_betas_are_taken_as_they_are():
    betas = np.linspace(0.01, 0.2, 10).tolist()
    chain = full_chain(DDIMScheduler(num_train_timesteps=10, trained_betas=betas))
    np.testing.assert_array_equal(chain.betas, betas)


@given(st.floats(0, 9), st.integers(0, 4), st.booleans())
def test_guidance_of_the_first_channels(scale, channels, learned):
    rows = Key(7).normal(2, 3, 8 if learned else 4, 2, 2, 2)
    found, guided = FirstChannels(scale, channels).combine(rows), ClassifierFree(scale).combine(rows)
    assert FirstChannels(scale, channels).rows == ClassifierFree(scale).rows
    assert torch.equal(found[:, :channels], guided[:, :channels])
    assert torch.equal(found[:, channels:], rows[1][:, channels:])


@given(st.integers(1, 999), st.integers(1, 999))
def test_losses_of_the_truth_are_nothing_and_the_mean_learns_from_one_alone(first, second):
    index = torch.tensor([first, second])
    truth = torch.cat([START, torch.full(SHAPE, -1.0)], dim=1)
    losses = training_losses(FULL, truth, CLEAN, START, index)
    assert losses.noise.tolist() == [0, 0] and losses.bound.abs().max() < 1e-3
    guess = (truth + 0.3).requires_grad_()
    losses = training_losses(FULL, guess, CLEAN, START, index)
    assert bool((losses.bound > 0).all())
    torch.testing.assert_close(losses.total, losses.noise + losses.bound)
    (gradient,) = torch.autograd.grad(losses.bound.sum(), guess)
    assert not gradient[:, :4].any() and bool(gradient[:, 4:].any())


def test_divergence_is_that_of_distributions():
    index = torch.tensor([5, 700])
    prediction = torch.cat([START + 0.2, torch.full(SHAPE, 0.5)], dim=1)
    latents = FULL.noised(CLEAN, START, index)
    found = FULL.moments(prediction, latents, index)
    true, bits = FULL.posterior(CLEAN, latents, index), []
    for b, level in enumerate(index.tolist()):
        p = torch.distributions.Normal(true[b], math.exp(FULL.posterior_log_variance[level] / 2))
        q = torch.distributions.Normal(found.mean[b], (found.log_variance[b] / 2).exp())
        bits.append(torch.distributions.kl_divergence(p, q).mean() / math.log(2))
    losses = training_losses(FULL, prediction, CLEAN, START, index)
    torch.testing.assert_close(losses.bound, torch.stack(bits), atol=1e-4, rtol=1e-4)


def test_the_lowest_level_is_a_likelihood_of_bins():
    """Against the exact normal distribution, near which the published approximation is."""
    index, clean = torch.tensor([0, 0]), Key(9).normal(*SHAPE).tanh()
    clean[0, 0, 0, 0], clean[0, 0, 0, 1] = 1.0, -1.0
    noise = Key(10).normal(*SHAPE)
    prediction = torch.cat([noise + 0.1, torch.zeros(SHAPE)], dim=1)
    found = FULL.moments(prediction, FULL.noised(clean, noise, index), index)
    normal = torch.distributions.Normal(found.mean.double(), (found.log_variance.double() / 2).exp())
    ends = (clean.double() - 1 / 255, clean.double() + 1 / 255)
    low = torch.where(clean < -0.999, 0.0, normal.cdf(ends[0]))
    high = torch.where(clean > 0.999, 1.0, normal.cdf(ends[1]))
    expected = -(high - low).log().flatten(1).mean(dim=1) / math.log(2)
    losses = training_losses(FULL, prediction, clean, noise, index)
    torch.testing.assert_close(losses.bound.double(), expected, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("eta", [None, 1.0])
def test_in_the_loop_without_a_learned_variance(eta):
    kit = toy(sampler=IDDPM(4, eta), scheduler=iddpm_scheduler(), guidance=FirstChannels(3.0, 1))
    first = video(run(kit))
    assert torch.equal(first, video(run(kit))) and bool(torch.isfinite(first).all())
    assert {float(call.time[0]) for call in kit.backbone.calls} == {999.0, 666.0, 333.0, 0.0}
    kit = toy(sampler=IDDPM(4, eta), scheduler=iddpm_scheduler(), guidance=ClassifierFree(3.0))
    assert not torch.equal(first, video(run(kit)))


def diffusion_file(path):
    """Three videos of odd sizes, 23 steps, a level of 0 in training; outputs are what the handler computes."""
    batch, steps, shape = 3, 23, (3, 4, 2, 3, 5)
    tensors = {"in.z": numbers(0, *shape), "in.noise": numbers(1, steps, 6, *shape[1:])}
    tensors |= {"in.y_cond": numbers(2, batch), "in.y_uncond": numbers(3, batch)}
    tensors |= {
        "timesteps": torch.tensor(spaced_times(1000, steps)),
        "timesteps.21": torch.zeros(21, dtype=torch.int64),
    }
    tensors |= {
        "base.betas": torch.zeros(1000, dtype=torch.float64),
        "ddpm.model_t": torch.zeros(23, dtype=torch.int64),
    }
    for name in ("betas", "posterior_variance", "posterior_log_variance_clipped", "log_betas"):
        tensors[f"spaced.{name}"] = torch.zeros(steps, dtype=torch.float64)
    tensors |= {f"{name}.traj": torch.zeros(steps + 1, *shape) for name in ("ddpm", "ddim_eta0", "ddim_eta0.5")}
    tensors |= {"noguide.ddpm.traj": torch.zeros(steps + 1, 6, *shape[1:]), "ddpm.out": torch.zeros(shape)}
    tensors |= {f"pmv.{name}": torch.zeros(steps, *shape) for name in ("mean", "log_variance", "pred_xstart")}
    tensors |= {"train.in.x0": numbers(4, *shape), "train.in.noise": numbers(5, *shape)}
    tensors |= {"train.in.t": torch.tensor([0, 1, 999]), "train.x_t": torch.zeros(shape)}
    tensors |= {f"train.{name}": torch.zeros(batch) for name in ("mse", "vb", "loss")}
    config = {"steps": steps, "cfg_scale": 3.0, "cfg_channels": 2, "diffusion_steps": 1000}
    note = "toy eps = (0.5 + 0.2 t/1000) x + y; variance channels = 0.3 sin(x)"
    return synthesise(path, tensors, {"config": config, "note": note})


def test_fixtures_of_other_sizes(tmp_path):
    path = diffusion_file(tmp_path / "opensora_v10_iddpm_b.safetensors")
    made = Fixture(path).tensors
    assert torch.equal(made["ddpm.traj"][0], made["in.z"]) and torch.equal(made["ddpm.traj"][-1], made["ddpm.out"])
    met(path)
    for name, by in (("ddpm.traj", 1e-2), ("ddim_eta0.5.traj", 1e-2), ("train.vb", 1e-3), ("base.betas", 1e-6)):
        with pytest.raises(AssertionError, match=f"{name}: differs by up to"):
            met(changed(path, name, by))
        met(changed(path, name, -by))  # back again, up to rounding


def test_fixtures_of_other_diffusions_are_not_understood(tmp_path):
    given = {"in.z": numbers(0, 1, 4, 1, 1, 1)}
    path = write(tmp_path / "opensora_v10_iddpm_c.safetensors", given, {"config": {"noise_schedule": "cosine"}})
    with pytest.raises(AssertionError, match="noise_schedule cosine: only linear is known"):
        met(path)


def test_a_chain_of_one_level_has_the_variance_of_its_beta():
    assert Chain(np.array([0.5]), (0,)).posterior_log_variance == pytest.approx(math.log(0.5))
