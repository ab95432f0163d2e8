"""The parity tests' own tests: files of other sizes and layouts are met, wrong ones are not, unknown ones are told."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from tests.parity.chunk import Pipeline, to_unit
from tests.parity.fixture import Fixture
from tests.parity.registry import handler_of
from tests.parity.toy import evaluate, find_formula
from tests.parity_synthesis import CAM, FORMULA, SCHEDULER, UNET, VAE, changed, met, numbers, synthesise, write

BATCH_HERE, HIGH, WIDE, FRAMES, REMEMBERED = 2, 4, 6, 6, 2


def differs(path, name, by=1e-2):
    with pytest.raises(AssertionError, match=rf"{re.escape(name)}: differs by up to 0\.0"):
        met(changed(path, name, by))


@pytest.mark.parametrize(("batch", "frames", "span", "width"), [(1, 12, 4, 128), (3, 3, 5, 64)])
def test_mergers(tmp_path, batch, frames, span, width):
    from adapters.official_names import merger_to_official

    shapes = {"norm.weight": (width,), "norm.bias": (width,), "to_out.bias": (width,), "to_out.weight": (width, width)}
    shapes |= {f"to_{x}.weight": (width, width) for x in "qkv"}
    shapes |= {
        f"proj_{x}.{y}": (width, width)[: 1 + (y == "weight")] for x in ("in", "out") for y in ("weight", "bias")
    }
    state = {f"state.{merger_to_official(k)}": numbers(len(k), *v).bfloat16() / 8 for k, v in shapes.items()}
    sample, memory = numbers(0, batch, frames, width, 2, 5), numbers(1, batch, span, width, 2, 5)
    tensors = {**state, "in.sample": sample, "in.conditioning": memory, "out.sample": torch.empty_like(sample)}
    config = {"input_channels": width, "attention_head_dim": 64, "norm_num_groups": 32, "norm_eps": 1e-6}
    made = synthesise(tmp_path / "st2v_merger_x.safetensors", tensors, {"config": config})
    met(made)
    turned = {k: v.transpose(1, 2) if k.endswith("sample") else v for k, v in Fixture(made).tensors.items()}
    other = {"config": config, "layout": "sample [B,C,F,H,W], conditioning [B,F_cond,C,H,W]; out same as sample"}
    met(write(tmp_path / "st2v_merger_y.safetensors", turned, other))
    differs(made, "out.sample")


def test_image_encoders_of_the_condition(tmp_path):
    widths, state = [4, 6, 8, 8, 10], {}
    for i, (narrow, wide) in enumerate(zip(widths, widths[1:], strict=False)):
        state |= {f"state.blocks.{2 * i}.weight": numbers(i, narrow, narrow, 3, 3)}
        state |= {f"state.blocks.{2 * i + 1}.weight": numbers(i, wide, narrow, 3, 3)}
        state |= {f"state.blocks.{2 * i}.bias": numbers(i, narrow), f"state.blocks.{2 * i + 1}.bias": numbers(i, wide)}
    state |= {"state.conv_in.weight": numbers(7, 4, 3, 3, 3), "state.conv_in.bias": numbers(8, 4)}
    state |= {"state.conv_out.weight": numbers(7, 12, 10, 3, 3), "state.conv_out.bias": numbers(8, 12)}
    tensors = {**state, "in.image": numbers(0, 3, 3, 32, 48), "out.embedding": torch.empty(3, 12, 2, 3)}
    config = {"conditioning_embedding_channels": 12, "block_out_channels": widths}
    met(synthesise(tmp_path / "st2v_cond_embedding_x.safetensors", tensors, {"config": config}))


def test_image_tokens(tmp_path):
    state = {"0.weight": (5, 7), "0.bias": (5,), "2.weight": (3 * 6, 5), "2.bias": (18,)}
    tensors = {f"state.context_embedding.{k}": numbers(len(k), *v) for k, v in state.items()}
    tensors |= {"in.clip_embedding_1frame": numbers(0, 4, 7), "out.tokens_1frame": torch.empty(4, 3, 6)}
    tensors |= {"in.clip_embedding_2frames": numbers(1, 8, 7), "out.tokens_2frames": torch.empty(4, 3, 6)}
    made = synthesise(tmp_path / "st2v_apm_x.safetensors", tensors, {})
    met(made)
    tokens, w = Fixture(made).tensors["out.tokens_2frames"], {k[-8:]: v for k, v in tensors.items() if "state" in k}
    hidden = torch.nn.functional.silu(
        numbers(1, 4, 2, 7).mean(1) @ w["0.weight"].T + tensors["state.context_embedding.0.bias"]
    )
    plain = hidden @ w["2.weight"].T + tensors["state.context_embedding.2.bias"]
    torch.testing.assert_close(tokens, plain.view(4, 3, 6))


def test_preprocessing(tmp_path):
    """Several images, sizes that shrink and grow, bytes; a wrong interpolation is noticed."""
    tensors = {"in.image_a": numbers(0, 2, 3, 40, 60).clamp(-1, 1), "out.pixel_values_a": torch.empty(2, 3, 28, 28)}
    tensors |= {"in.image_b": torch.arange(540).remainder(256).view(1, 3, 20, 9).to(torch.uint8)}
    tensors["out.pixel_values_b"] = torch.empty(1, 3, 28, 28)
    made = synthesise(tmp_path / "st2v_apm_c.safetensors", tensors, {"config": {}, "module": "preprocess"})
    met(made)
    wrong = dict(Fixture(made).tensors)
    image = torch.nn.functional.interpolate(tensors["in.image_a"] / 2 + 0.5, (28, 28), mode="bicubic")
    wrong["out.pixel_values_a"] = image
    with pytest.raises(AssertionError, match="pixel_values_a: differs"):
        met(write(made, wrong, {}))


def cam_inputs(batch, seed=0):
    tensors = {
        "in.sample": numbers(seed, batch, 4, FRAMES, HIGH, WIDE),
        "in.context": numbers(seed + 1, batch, 79, 8),
        "in.image": numbers(seed + 2, batch * REMEMBERED, 3, 2 * HIGH, 2 * WIDE).clamp(-1, 1),
        "in.timestep": torch.tensor(41),
    }
    sizes = [(HIGH, WIDE)] * 2 + [(HIGH // 2, WIDE // 2)] * 2
    tensors |= {f"out.down.{i}": torch.empty(batch * REMEMBERED, 64, *size) for i, size in enumerate(sizes)}
    return tensors | {"out.mid": torch.empty(batch * REMEMBERED, 64, *sizes[-1])}


def cam_file(folder, name, batch=1, seed=0, stored=False):
    meta = {"config": {**UNET, **CAM, "use_image_embedding": False}, **FORMULA, "weights_formula_prefix": "unet."}
    return synthesise(folder / f"{name}.safetensors", cam_inputs(batch, seed), meta, stored=stored)


def joined(paths, path, meta):
    """A batch of files of one sample each: every tensor's first axis begins with the sample."""
    parts = [Fixture(one).tensors for one in paths]
    both = {k: torch.cat([p[k] for p in parts]) if parts[0][k].ndim else parts[0][k] for k in parts[0]}
    return write(path, both, meta)


def test_cams_of_a_batch_equal_single_ones(tmp_path):
    singles = [cam_file(tmp_path, f"st2v_cam_{name}", seed=seed) for name, seed in (("x", 0), ("y", 9))]
    both = joined(singles, tmp_path / "st2v_cam_z.safetensors", Fixture(singles[0]).meta)
    met(both)
    differs(both, "out.down.3")


def test_weights_may_be_stored_and_split(tmp_path):
    path = cam_file(tmp_path, "st2v_cam_x", stored=True)
    whole = Fixture(path)
    met(path)
    names = [name for name in whole.tensors if name.startswith("state.")]
    moved = {name: whole.tensors.pop(name) for name in names[::2]}
    more = write(tmp_path / "st2v_cam_x_state2.safetensors", moved, {})
    write(path, whole.tensors, whole.meta)
    met(path)
    met(more)
    more.unlink()
    with pytest.raises(AssertionError, match="st2v_cam_x: no weights for "):
        met(path)
    write(more, moved, {})
    path.unlink()
    with pytest.raises(AssertionError, match="st2v_cam_x_state2: needs st2v_cam_x, which is not in"):
        met(more)


def unet_inputs(batch, seed=0):
    sample = numbers(seed + 5, batch, 4, FRAMES, HIGH, WIDE)
    tensors = {"in.sample": sample, "in.context": numbers(seed + 6, batch, 79, 8), "in.timestep": torch.tensor([41])}
    return tensors | {f"out.sample{end}": torch.empty_like(sample) for end in ("", "_without_residuals")}


def test_unets_with_residuals_of_a_batch(tmp_path):
    """CAM's features are those of its file; given in the UNet's own file they do the same."""
    meta = {"config": UNET, **FORMULA, "weights_formula_prefix": "base_model."}
    singles = []
    for name, seed in (("x", 0), ("y", 9)):
        cam_file(tmp_path, f"st2v_cam_{name}", seed=seed)
        told = {**meta, "layout": f"residuals are the outputs of st2v_cam_{name}"}
        singles.append(synthesise(tmp_path / f"st2v_unet_{name}.safetensors", unet_inputs(1, seed), told))
        met(singles[-1])
        plain = Fixture(singles[-1]).tensors
        assert not torch.allclose(plain["out.sample"], plain["out.sample_without_residuals"], atol=1e-2)
    cams = [tmp_path / f"st2v_cam_{name}.safetensors" for name in "xy"]
    features = joined(cams, tmp_path / "st2v_cam_z.safetensors", Fixture(cams[0]).meta)
    both = joined(singles, tmp_path / "st2v_unet_z.safetensors", {**meta, "layout": "residuals of st2v_cam_z"})
    met(both)
    given = {k.replace("out.", "in."): v for k, v in Fixture(features).tensors.items() if k.startswith("out.")}
    met(write(tmp_path / "st2v_unet_w.safetensors", {**Fixture(both).tensors, **given}, meta))
    features.unlink()
    with pytest.raises(AssertionError, match="st2v_unet_z: needs st2v_cam_z, which is not in"):
        met(both)


def test_unets_of_three_levels_with_stored_weights(tmp_path):
    down, up = ["CrossAttnDownBlock3D"] * 2 + ["DownBlock3D"], ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 2
    config = {**UNET, "block_out_channels": [64, 64, 128], "down_block_types": down, "up_block_types": up}
    tensors = {k: v for k, v in unet_inputs(2).items() if k != "out.sample_without_residuals"}
    tensors["in.sample"] = tensors["out.sample"] = numbers(0, 2, 4, 3, 8, 4)
    path = tmp_path / "st2v_unet_x.safetensors"
    met(synthesise(path, tensors, {"config": config, **FORMULA, "weights_formula_prefix": "base_model."}, stored=True))
    differs(path, "out.sample")


def test_video_to_video_unets(tmp_path):
    config = {"in_dim": 4, "dim": 32, "y_dim": 8, "context_dim": 8, "out_dim": 4, "dim_mult": [1, 2], "num_heads": 8,
              "head_dim": 8, "num_res_blocks": 1, "attn_scales": [1.0], "temporal_attention": True}  # fmt: skip
    latents = numbers(0, 2, 4, 3, 6, 4)
    tensors = {"in.x": latents, "in.t": torch.tensor([5, 800]), "in.y": numbers(1, 2, 9, 8), "out.v": latents}
    meta = {"config": config, **FORMULA, "weights_formula_prefix": "v2v."}
    path = tmp_path / "st2v_v2v_unet_x.safetensors"
    met(synthesise(path, tensors, meta))
    met(synthesise(path, tensors, meta, stored=True))
    differs(path, "out.v")


PIPELINE = {
    "config": {
        "unet": {**UNET, "cross_attention_dim": 8}, "cam": CAM, "vae": VAE, "video_length": FRAMES, "seed": 5,
        "resampler": {"inner_dim": 6, "expansion_factor": 3}, "num_control_input_frames": REMEMBERED,
    },
    "scheduler": SCHEDULER, "eta": "1.0", "guidance_scale": "7.5", "num_inference_steps": "2", **FORMULA,
}  # fmt: skip
ENCODER = {"state.image_encoder.proj.weight": numbers(3, 7, 27), "state.image_encoder.proj.bias": numbers(4, 7)}


def chunk_inputs(batch=1):
    return {
        "in.text_embeds": numbers(1, 2 * batch, 77, 8),
        "in.cond_frames": numbers(2, batch * REMEMBERED, 3, 2 * HIGH, 2 * WIDE).clamp(-1, 1),
    }


@pytest.mark.parametrize(("time", "batch"), [(501, 1), (1, 2)])
def test_steps(tmp_path, time, batch):
    """The first and the last step; the guided prediction and the next latents equal diffusers' own."""
    latents, noise = numbers(7, batch, 4, FRAMES, HIGH, WIDE), numbers(8, batch * FRAMES, 4, HIGH, WIDE)
    tensors = {**chunk_inputs(batch), **ENCODER, "in.latents": latents, "in.noise": noise}
    tensors |= {"in.timestep": torch.tensor(time), "in.anchor_frame": numbers(9, batch, 3, 8, 12).clamp(-1, 1)}
    outs = ("noise_pred", "noise_pred_uncond", "noise_pred_text", "prev_latents")
    tensors |= {f"out.{name}": torch.empty_like(latents) for name in outs}
    tensors |= {"out.image_tokens": torch.empty(2 * batch, 3, 8), "out.clip_embed_uncond": torch.empty(1, 7)}
    path = synthesise(tmp_path / "st2v_step_x.safetensors", tensors, PIPELINE)
    met(path)
    found = Fixture(path).tensors
    guided = found["out.noise_pred_uncond"] + 7.5 * (found["out.noise_pred_text"] - found["out.noise_pred_uncond"])
    torch.testing.assert_close(guided, found["out.noise_pred"], rtol=1e-4, atol=1e-4)
    solver = DDIMScheduler.from_config(SCHEDULER)
    solver.set_timesteps(2)
    flat = [value.transpose(1, 2).flatten(0, 1) for value in (found["out.noise_pred"], latents)]
    after = solver.step(flat[0], time, flat[1], eta=1.0, variance_noise=noise).prev_sample
    expected = after.unflatten(0, (batch, FRAMES)).transpose(1, 2)
    torch.testing.assert_close(found["out.prev_latents"], expected, rtol=1e-4, atol=1e-4)
    differs(path, "out.prev_latents")


def test_a_step_at_another_time_is_told(tmp_path):
    latents = numbers(7, 1, 4, FRAMES, HIGH, WIDE)
    tensors = {**chunk_inputs(), "in.latents": latents, "in.timestep": torch.tensor(500)}
    tensors |= {"in.image_tokens": numbers(0, 2, 3, 8), "in.noise": numbers(0, FRAMES, 4, HIGH, WIDE)}
    path = write(tmp_path / "st2v_step_x.safetensors", {**tensors, "out.prev_latents": latents}, PIPELINE)
    with pytest.raises(AssertionError, match=r"st2v_step_x: time 500 is none of \[501.0, 1.0\]"):
        met(path)


def naive_rollout(path, first, generated, seed):
    """What `predict_step` does, step by step with diffusers' own DDIM: frames in [0, 1] and each chunk's latents."""
    pipeline = Pipeline(Fixture(path))
    generator, solver = torch.Generator().manual_seed(seed), DDIMScheduler.from_config(SCHEDULER)
    solver.set_timesteps(2)
    anchor = pipeline.apm.remember(first[None, :1])
    video, chunks, before = first, [], first[-REMEMBERED:]
    for _ in range(generated):
        latents = torch.randn(1, 4, FRAMES, HIGH, WIDE, generator=generator)
        denoise = pipeline.denoiser(latents, pipeline.memories(before[None], pipeline.apm, anchor))
        for step in pipeline.sampler.plan(pipeline.scheduler)[1]:
            flat = [value.transpose(1, 2).flatten(0, 1) for value in (denoise(latents, step), latents)]
            noise = torch.randn(FRAMES, 4, HIGH, WIDE, generator=generator)
            after = solver.step(flat[0], int(step.time), flat[1], eta=1.0, variance_noise=noise).prev_sample
            latents = after.unflatten(0, (1, FRAMES)).transpose(1, 2)
        frames = pipeline.codec.decode(latents)[0]
        chunks.append(latents)
        video, before = torch.cat([video, frames[REMEMBERED:]]), frames[-REMEMBERED:]
    return video, chunks


@pytest.fixture(scope="module")
def rolled(tmp_path_factory):
    """A roll-out of three generated chunks: its inputs, video and latents."""
    tensors = {
        **ENCODER,
        "in.text_embeds": numbers(1, 2, 77, 8),
        "in.first_chunk": numbers(2, 8, 3, 8, 12).clamp(-1, 1),
    }
    path = write(tmp_path_factory.mktemp("rolled") / "st2v_rollout_x.safetensors", tensors, PIPELINE)
    with torch.no_grad():
        video, latents = naive_rollout(path, to_unit(tensors["in.first_chunk"]), 3, 5)
    return tensors, video, latents


def test_rollouts(tmp_path, rolled):
    """Stitched floats and bytes, in either order of axes, and the chunks' latents, in either layout."""
    tensors, video, latents = rolled
    outs = {"out.video": video, "out.frames_uint8": (video * 255).to(torch.uint8).permute(0, 2, 3, 1)}
    outs |= {"out.latents.0": latents[0], "out.latents.1": latents[1]}
    outs["out.latents.2"] = latents[2].transpose(1, 2).flatten(0, 1)
    outs["out.chunk.0"] = 2 * video[8:12] - 1
    path = write(tmp_path / "st2v_rollout_x.safetensors", {**tensors, **outs}, PIPELINE)
    met(path)
    differs(path, "out.video")


def test_rollouts_that_round_their_bytes_differ(tmp_path, rolled):
    tensors, video, _ = rolled
    outs = {"out.video": (video * 255).round().to(torch.uint8)}
    with pytest.raises(AssertionError, match="out.video: differs by up to 1"):
        met(write(tmp_path / "st2v_rollout_x.safetensors", {**tensors, **outs}, PIPELINE))


def test_trajectories(tmp_path, rolled):
    """The roll-out's first generated chunk, with its noise given."""
    tensors, video, latents = rolled
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(1, 4, FRAMES, HIGH, WIDE, generator=generator)
    noise = torch.stack([torch.randn(FRAMES, 4, HIGH, WIDE, generator=generator) for _ in range(2)])
    first = tensors["in.first_chunk"]
    given = {**ENCODER, "in.text_embeds": tensors["in.text_embeds"], "in.init_latents": start, "in.noise": noise}
    given |= {
        "in.cond_frames": first[-REMEMBERED:],
        "in.anchor_frame": first[:1],
        "in.timesteps": torch.tensor([501, 1]),
    }
    given |= {"out.latents.1": latents[0], "out.video[2:6]": video[8:12]}
    meta = {**PIPELINE, "draws": "torch.Generator('cpu').manual_seed(5): latents, then noise of each step"}
    path = write(tmp_path / "st2v_traj_x.safetensors", given, meta)
    met(path)
    with pytest.raises(AssertionError, match="not what a generator of seed 6 gives in the published order"):
        met(write(path, given, {**meta, "draws": "manual_seed(6)"}))


def blend_file(folder, seed=3, frames=21, **changes):
    source = random.Random(seed)
    offsets = torch.tensor([[source.randint(0, 2) for _ in range(3)] for _ in range(4)])
    video = numbers(0, 1, 2, frames, 2, 3)
    origin = torch.zeros(4, frames, dtype=torch.int64)
    for call, cuts in enumerate(offsets.tolist()):
        for right, cut in enumerate(cuts, start=1):
            origin[call, right * 5 + cut :] = right
    clean = video[None] + 10 * (origin + 1).view(4, 1, 1, frames, 1, 1)
    tensors = {"in.x": video, "out.offsets": offsets, "out.origin": origin, "out.x0": clean, **changes}
    config = {"chunk_size": 8, "overlap_size": 3, "frames": frames, "calls": 4, "python_random_seed": seed}
    layout = "toy denoiser returns x0 = x_chunk + 10*(chunk index+1); origin [call, frame]"
    return write(folder / "st2v_blend_x.safetensors", tensors, {"config": config, "layout": layout})


def test_blends_of_other_sizes(tmp_path):
    """8 frames with overlap 3 in four chunks: 8 + 3 * 5 = 23."""
    path = blend_file(tmp_path, frames=23)
    met(path)
    offsets = Fixture(path).tensors["out.offsets"]
    with pytest.raises(AssertionError, match="out.offsets: differs by up to"):
        met(blend_file(tmp_path, frames=23, **{"out.offsets": offsets.roll(1, 0)}))
    with pytest.raises(AssertionError, match="out.origin: differs by up to"):
        met(changed(blend_file(tmp_path, frames=23), "out.origin", by=1))


def test_blends_that_the_published_code_cuts_off_are_told(tmp_path):
    with pytest.raises(AssertionError, match="21 frames are no whole chunks of 8 with overlap 3"):
        met(blend_file(tmp_path, frames=21))


def naive_solver(clean, noise, increments, offsets, steps):
    """Frame by frame: every frame from the chunk that owns it; a second-order solver over noise / signal."""
    from backends.modelscope_v2v_schedule import video_to_video_sigmas

    s = torch.tensor(video_to_video_sigmas(), dtype=torch.float64)
    a = (1 - s**2).sqrt()
    times = [599 - k * 600 / (steps + 1) for k in range(steps)]
    ratio = [float(torch.exp(torch.lerp((s / a).log()[int(t)], (s / a).log()[int(t) + 1], t % 1))) for t in times] + [
        0.0
    ]
    x = float(s[599]) * (float(a[599]) * clean + float(s[599]) * noise) * (1 + ratio[0] ** 2) ** 0.5
    owner, before = torch.zeros(clean.shape[2], dtype=torch.int64), None
    for k, t in enumerate(times):
        owner[:] = 0
        for right, cut in enumerate(offsets[k].tolist(), start=1):
            owner[right * 4 + cut :] = right
        at = round(t)
        seen = x / (1 + ratio[k] ** 2) ** 0.5
        bound = 0.3 * seen + 0.1 * torch.tanh(seen) * (1 + owner.view(1, 1, -1, 1, 1)) + 0.5 * at / 1000
        found = float(a[at]) * seen - float(s[at]) * bound
        if ratio[k + 1] == 0:
            return found
        h = torch.tensor(ratio[k]).double().log() - torch.tensor(ratio[k + 1]).double().log()
        kept = float((-2 * h).exp())
        x_next = ratio[k + 1] / ratio[k] * float((-h).exp()) * x + (1 - kept) * found
        if before is not None:
            r = (torch.tensor(ratio[k - 1]).log() - torch.tensor(ratio[k]).log()) / h
            x_next = x_next + 0.5 * (1 - kept) * (found - before) / r
        x = (x_next + ratio[k + 1] * (1 - kept) ** 0.5 * increments[k]).float()
        before = found
    return None


def test_the_whole_enhancer_s_solver(tmp_path):
    """6 steps over chunks of 6 frames with overlap 2, by a reference that computes on whole videos."""
    steps, frames = 6, 14
    clean, noise = numbers(0, 1, 2, frames, 2, 3), numbers(1, 1, 2, frames, 2, 3)
    increments = numbers(2, steps - 1, 1, 2, frames, 2, 3)
    offsets = torch.randint(0, 2, (steps, 2), generator=torch.Generator().manual_seed(0))
    final = naive_solver(clean, noise, increments, offsets, steps).float()
    tensors = {"in.x0": clean, "in.noise": noise, "in.noise_increments": increments, "in.offsets": offsets}
    tensors |= {"out.x0": final, "out.timesteps": torch.tensor([round(599 - k * 600 / 7) for k in range(steps)])}
    config = {"chunk_size": 6, "overlap_size": 2, "frames": frames, "steps": steps, "total_noise_levels": 600}
    meta = {
        "config": config,
        "layout": "toy network v = 0.3 x + 0.1 tanh(x) (1 + chunk index) + 0.5 t/1000; x [1,2,F,2,3]",
    }
    path = write(tmp_path / "st2v_blend_c.safetensors", tensors, meta)
    met(path)
    with pytest.raises(AssertionError, match="no formula of a toy network"):
        met(write(path, tensors, {**meta, "layout": "toy network v = 0.3 w"}))
    with pytest.raises(AssertionError, match="no formula of a toy network"):
        met(write(path, tensors, {**meta, "layout": "a toy network"}))


def test_mawe_files(tmp_path):
    video = torch.randint(0, 256, (3, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flows = 3 * numbers(1, 2, 2, 7, 9)
    flows[1] = 0
    tensors = {"in.video": video, "in.flows": flows, "out.mawe": torch.zeros((), dtype=torch.float64)}
    tensors |= {"out.warped": torch.empty(2, 3, 7, 9), "out.warp_errors": torch.empty(2)}
    path = synthesise(tmp_path / "st2v_mawe_x.safetensors", tensors, {"config": {"coeff": 9.5}})
    assert Fixture(path).tensors["out.mawe"].isinf()  # the second pair stands still
    met(path)
    differs(path, "out.warp_errors")
    with pytest.raises(AssertionError, match="only 9.5 is known"):
        met(write(path, Fixture(path).tensors, {"config": {"coeff": 5}}))


def mawe_file(folder, name, **more):
    tensors = {"in.video": torch.zeros(2, 3, 2, 2, dtype=torch.uint8), "in.flows": torch.ones(1, 2, 2, 2)}
    return write(folder / f"{name}.safetensors", {**tensors, "out.warp_errors": torch.zeros(1), **more}, {})


def test_tensors_that_nobody_knows_are_told(tmp_path):
    for name in ("in.depth", "out.depth", "state.depth", "depth"):
        with pytest.raises(AssertionError, match=f"tensors that the handler does not know: {name}$"):
            met(mawe_file(tmp_path, "st2v_mawe_x", **{name: torch.zeros(1)}))
    met(mawe_file(tmp_path, "st2v_mawe_x", **{"aux.depth": torch.zeros(1)}))


def test_another_formula_of_weights_is_told(tmp_path):
    path = cam_file(tmp_path, "st2v_cam_x")
    with pytest.raises(AssertionError, match="its weights_formula is not the known one: all are 1"):
        met(write(path, Fixture(path).tensors, {**Fixture(path).meta, "weights_formula": "all are 1"}))


def test_which_handler():
    assert handler_of("st2v_unet_c") is not handler_of("st2v_v2v_unet_a") is not None
    assert handler_of("st2v_merger_b") is handler_of("st2v_merger_zz9") is not None
    assert handler_of("st2v_merger_b") is handler_of("st2v_merger_new_a")
    assert (
        handler_of("opensora_v12_odd_sizes") is handler_of("opensora_v12_a") is handler_of("opensora_v12_xmask_cfg_b")
    )
    assert handler_of("opensora_v12_rflow_guided_7") is handler_of("opensora_v12_rflow") is not None
    assert handler_of("opensora_v12_rflow") is not handler_of("opensora_v12_a") is not None
    assert handler_of("st2v_merger") is handler_of("st2v_dream_a") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("toy denoiser returns x0 = x_chunk + 1000*(chunk index+1); origin", 2 + 1000 * 4),
        ("eps = (0.6 + 0.4 t/1000) x + y ; variance channels 0.4 cos(x)", (0.6 + 0.4 * 0.5) * 2 + 7),
        ("v(x,t) = -x^2 (with t a number)", -4),
        ("v = 2 exp(0) x, y unused", 4),
    ],
)
def test_formulas(text, value):
    _, formula = find_formula(text)
    assert float(evaluate(formula, {"x": 2, "t": 500, "y": 7, "chunk_index": 3})) == pytest.approx(value)


def test_texts_without_formulas():
    assert find_formula("the output is a video; v = none of these: [1, 2]") is None


def test_from_the_command_line(tmp_path):
    """One test a file, named after it; what nobody handles and what differs fails."""
    for name in ("st2v_mawe_a", "st2v_dream_a"):
        mawe_file(tmp_path, name)
    mawe_file(tmp_path, "st2v_mawe_b", **{"out.warp_errors": torch.full((1,), 0.01)})
    write(tmp_path / "st2v_mawe_a_state2.safetensors", {"aux.more": torch.zeros(1)}, {})
    command = ["pytest", "tests/parity", "--fixtures", str(tmp_path), "-n", "0", "-vv", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    results = dict(re.findall(r"test_fixture\[(\w+)\] (\w+)", run.stdout))
    assert run.returncode == 1, run.stdout + run.stderr
    expected = {"st2v_mawe_a": "PASSED", "st2v_mawe_a_state2": "PASSED"}
    assert {k: v for k, v in results.items() if v == "PASSED"} == expected
    assert "st2v_dream_a: nothing handles files of this kind; there are " in run.stdout
    assert "out.warp_errors: differs by up to 0.01" in run.stdout
