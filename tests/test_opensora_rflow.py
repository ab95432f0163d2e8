"""Open-Sora 1.2's rectified flow, against loops written out here; fixtures of other sizes."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from backends.opensora_rflow import flow_loss, flow_scheduler, flow_shift, noised, sample_frames, shifted
from streaming.errors import UserError
from streaming.keys import Key
from streaming.sample import Sampler
from tests.parity_synthesis import changed, met, numbers, write

SHAPE = (2, 3, 4, 2, 3)
START = Key(0).fold("start").normal(*SHAPE)


def fresh(index):
    return Key(1).fold("step", index).normal(*SHAPE)


def toy_network(latents, step):
    return torch.tanh(latents) * (0.3 + step.time / 2000) + 0.05


def test_the_published_shift():
    assert flow_shift(240, 426, 51) == pytest.approx(2.418723, abs=1e-6)
    assert flow_shift(512, 512, 1) == 1
    assert flow_shift(512, 512, 33) == flow_shift(512, 512, 17) == math.sqrt(5)  # an unfinished piece does not count


@pytest.mark.parametrize("frames", [*range(2, 17), 0, -1])
def test_lengths_without_times_are_refused(frames):
    words = rf"cannot make {frames} frames \(its times would all become 0\): ask for 1, or for 17 or a multiple of that"
    for make in (flow_shift, flow_scheduler):
        with pytest.raises(UserError, match=words):
            make(240, 426, frames)


def test_a_size_of_nothing_is_refused():
    with pytest.raises(UserError, match="a size of 426x0: width and height must be at least 1"):
        flow_shift(0, 426, 51)


@given(st.floats(0.2, 9), st.floats(1, 999), st.floats(1, 999))
def test_shifted_times_keep_ends_and_order(shift, a, b):
    times = torch.tensor([0.0, min(a, b), max(a, b), 1000.0], dtype=torch.float64)
    found = shifted(times, shift)
    assert found[0] == 0 and abs(float(found[3]) - 1000) < 1e-9 and bool((found.diff() >= 0).all())
    torch.testing.assert_close(shifted(found, 1 / shift), times)


@given(st.integers(144, 2000), st.integers(144, 2000), st.sampled_from([1, 17, 51, 204]), st.integers(1, 60))
def test_the_scheduler_takes_shifted_times_once(height, width, frames, steps):
    plan = Sampler("euler", steps).plan(flow_scheduler(height, width, frames))[1]
    even = 1000 * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    expected = shifted(even, flow_shift(height, width, frames))
    times = torch.tensor([step.time for step in plan], dtype=torch.float64)
    torch.testing.assert_close(times, expected, atol=2e-4, rtol=0)


def naive_frames(shares, noise_of, scheduler, steps):
    """Frame by frame and video by video."""
    plan = Sampler("euler", steps).plan(scheduler)[1]
    latents, begun = START.clone(), [[share == 1 for share in row] for row in shares.tolist()]
    seen = []
    for i, step in enumerate(plan):
        after = plan[i + 1].level.noise if i + 1 < steps else 0.0
        for b, row in enumerate(shares.tolist()):
            for f, share in enumerate(row):
                if not begun[b][f] and 1000 * share >= step.time:
                    begun[b][f] = True
                    level = step.time / 1000
                    latents[b, :, f] = (1 - level) * latents[b, :, f] + level * noise_of(i)[b, :, f]
        seen.append([list(row) for row in begun])
        prediction = toy_network(latents, step)
        for b, row in enumerate(begun):
            for f, under_way in enumerate(row):
                if under_way:
                    latents[b, :, f] = latents[b, :, f] - (step.level.noise - after) * prediction[b, :, f]
    return latents, seen


@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=8, max_size=8), st.integers(1, 12))
def test_kept_edited_and_generated_frames(values, steps):
    shares, scheduler, masks = torch.tensor(values).view(2, 4), flow_scheduler(64, 96, 17), []

    def denoise(latents, step, active):
        masks.append(active.tolist())
        return toy_network(latents, step)

    found = sample_frames(denoise, START, fresh, scheduler, shares=shares, steps=steps)
    expected, seen = naive_frames(shares, fresh, scheduler, steps)
    torch.testing.assert_close(found, expected)
    assert masks == seen
    kept = (shares == 0)[:, None, :, None, None].expand(SHAPE)
    assert torch.equal(found[kept], START[kept])


@given(st.integers(16, 2000), st.integers(16, 2000), st.sampled_from([1, 17, 51, 102]))
def test_frames_that_are_all_generated_are_sampled_plainly(height, width, frames):
    scheduler, shares = flow_scheduler(height, width, frames), torch.ones(2, 4)
    found = sample_frames(lambda x, step, _: toy_network(x, step), START, fresh, scheduler, shares=shares, steps=5)
    expected = Sampler("euler", 5)(toy_network, START, fresh, scheduler)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_shares_outside_are_refused():
    for wrong in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"share of the trajectory must lie between 0 \(keep\) and 1 \(generate\)"):
            sample_frames(toy_network, START, fresh, flow_scheduler(64, 64, 17), shares=torch.full((2, 4), wrong))


@given(st.lists(st.booleans(), min_size=8, max_size=8), st.floats(0, 1000), st.floats(0, 1000))
def test_noised_latents_and_loss_of_the_frames_under_way(values, first, second):
    clean, noise, time = Key(2).normal(*SHAPE), Key(3).normal(*SHAPE), torch.tensor([first, second])
    generated = torch.tensor(values).view(2, 4)
    latents, prediction = noised(clean, noise, time, generated), Key(4).normal(*SHAPE)
    loss = flow_loss(prediction, clean, noise, generated)
    for b, row in enumerate(generated.tolist()):
        share, squares = float(time[b]) / 1000, []
        for f, yes in enumerate(row):
            expected = (1 - share) * clean[b, :, f] + share * noise[b, :, f] if yes else clean[b, :, f]
            torch.testing.assert_close(latents[b, :, f], expected, atol=1e-6, rtol=1e-6)
            if yes:
                squares.append((prediction[b, :, f] - (noise - clean)[b, :, f]) ** 2)
        expected = torch.stack(squares).mean() if squares else torch.tensor(0.0)
        torch.testing.assert_close(loss[b], expected)
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(noised(clean, noise, time), noised(clean, noise, time, everything))
    torch.testing.assert_close(flow_loss(prediction, clean, noise), flow_loss(prediction, clean, noise, everything))


def test_a_network_that_knows_the_answer_samples_it():
    clean = Key(5).normal(*SHAPE)

    def perfect(latents, step):
        return (latents - clean) / step.level.noise

    found = Sampler("euler", 30)(perfect, START, fresh, flow_scheduler(240, 426, 51))
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-5)


def flow_file(path):
    """One video more, odd sizes, other steps, settings and formula than the published numbers; written out here."""
    shape, steps, scale = (3, 5, 4, 3, 2), 7, 5.5
    setting = {"height": 144, "width": 250, "num_frames": 68, "steps": steps}
    ratio = math.sqrt(144 * 250 / 512**2) * math.sqrt(20)
    even = [1 - i / steps for i in range(steps)]
    times = [1000 * ratio * t / (1 + (ratio - 1) * t) for t in even]
    cond, free, mask = numbers(1, 3), numbers(2, 3), torch.tensor([[0, 1, 0.4, 1], [1, 1, 1, 1], [0.8, 0, 0, 1.0]])
    noise = numbers(3, steps, *shape)

    def velocity(z, t):
        rows = [-(0.3 + t / 500) * z + 2 * y.view(-1, 1, 1, 1, 1) for y in (cond, free)]
        return rows[1] + scale * (rows[0] - rows[1])

    def run(times, shares=None):
        z, traj, masks, begun = numbers(0, *shape), [], [], None
        begun = None if shares is None else shares == 1
        for i, t in enumerate(times):
            after = times[i + 1] if i + 1 < len(times) else 0.0
            move = torch.ones(3, 4, dtype=torch.bool) if shares is None else shares * 1000 >= t
            if begun is not None:
                new = (move & ~begun)[:, None, :, None, None]
                z, begun = torch.where(new, (1 - t / 1000) * z + t / 1000 * noise[i], z), move
            traj.append(z)
            masks.append(move.repeat(2, 1))
            z = torch.where(move[:, None, :, None, None], z + velocity(z, t) * (t - after) / 1000, z)
        return torch.stack([*traj, z]), torch.stack(masks)

    traj, (masked, masks) = run(times)[0], run(times, mask)
    plain = run([1000 * t for t in even])[0]
    tensors = {"in.z": numbers(0, *shape), "in.y_cond": cond, "in.y_uncond": free, "K.traj": traj, "K.out": traj[-1]}
    tensors |= {"timesteps.K": torch.tensor(times), "timesteps.plain7": torch.tensor(even) * 1000, "plain7.traj": plain}
    tensors |= {"timesteps.bad": torch.tensor([math.nan] + [0.0] * 6), "masked.in.mask": mask, "masked.in.noise": noise}
    tensors |= {"masked.x_mask": masks, "masked.traj_model_in": masked[:-1], "masked.out": masked[-1]}
    settings = {"K": setting, "bad": {**setting, "num_frames": 12}}
    config = {"num_timesteps": 1000, "cfg_scale": scale, "settings": settings, "masked_setting": "K"}
    return write(path, tensors, {"config": config, "note": "toy velocity v = -(0.3 + t/500) z + 2 y; t in 0..1000"})


@pytest.mark.parametrize("name", ["opensora_v12_rflow_b", "opensora_v12_rflow2"])
def test_fixtures_of_other_sizes(tmp_path, name):
    path = flow_file(tmp_path / f"{name}.safetensors")
    met(path)
    for tensor, by in (("K.traj", 1e-3), ("timesteps.K", 1e-2), ("masked.out", 1e-3), ("plain7.traj", 1e-3)):
        with pytest.raises(AssertionError, match=f"{tensor}: differs by up to"):
            met(changed(flow_file(tmp_path / f"{name}.safetensors"), tensor, by))


def test_plain_flow_is_diffusers_own():
    times = [step.time for step in Sampler("euler", 10).plan(FlowMatchEulerDiscreteScheduler())[1]]
    assert times == pytest.approx([1000 - 100 * i for i in range(10)])
