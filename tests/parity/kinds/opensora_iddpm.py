"""Open-Sora 1.0's diffusion with a toy network: tables, single evaluations, whole trajectories, training losses."""

import re

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from backends.opensora_iddpm import (
    FIRST_BETA,
    GUIDANCE,
    GUIDED_CHANNELS,
    IDDPM,
    LAST_BETA,
    LEVELS,
    Chain,
    FirstChannels,
    full_chain,
    iddpm_scheduler,
    respaced,
    spaced_times,
)
from backends.opensora_iddpm_loss import training_losses
from streaming.guidance import Guidance, Unguided
from streaming.sample import Step
from tests.parity.fixture import Fixture
from tests.parity.kinds.opensora_toy import toy
from tests.parity.registry import handles

TABLES, SINGLE, TRAJECTORY = 1e-10, 1e-5, 2e-5
KNOWN = {"noise_schedule": "linear", "prediction": "epsilon", "variance": "learned_range", "clip_denoised": False}


@handles("opensora_v10_iddpm", "opensora_v10_iddpm*", "opensora_v10_iddpm_*")
def iddpm(fixture: Fixture) -> None:
    """By what the file holds."""
    for name, known in KNOWN.items():
        if fixture.config.get(name, known) != known:
            fixture.give_up(f"{name} {fixture.config[name]}: only {known} is known")
    scheduler = iddpm_scheduler(
        int(fixture.number("diffusion_steps", LEVELS)),
        fixture.number("beta_start", FIRST_BETA),
        fixture.number("beta_end", LAST_BETA),
    )
    full, steps = full_chain(scheduler), _steps(fixture)
    chain = respaced(full, spaced_times(len(full.betas), steps))
    check_tables(fixture, full, chain)
    network = Network(fixture)
    if fixture.find(r"pmv\..*"):
        check_evaluations(fixture, chain, network)
    check_trajectories(fixture, scheduler, steps, network)
    if fixture.find(r"train\..*"):
        check_training(fixture, full, network)


def check_tables(fixture: Fixture, full: Chain, chain: Chain) -> None:
    """Of all levels, and of those that are left."""
    found = {
        "base.betas": full.betas,
        "base.alphas_cumprod": full.kept,
        "spaced.betas": chain.betas,
        "spaced.alphas_cumprod": chain.kept,
        "spaced.alphas_cumprod_prev": chain.kept_before,
        "spaced.posterior_variance": chain.posterior_variance,
        "spaced.posterior_log_variance_clipped": chain.posterior_log_variance,
        "spaced.posterior_mean_coef1": chain.posterior_clean,
        "spaced.posterior_mean_coef2": chain.posterior_noisy,
        "spaced.log_betas": [*map(float, torch.from_numpy(chain.betas).log())],
    }
    for name, values in found.items():
        fixture.check(name, torch.as_tensor(values, dtype=torch.float64), tolerance=TABLES)
    fixture.check("timesteps", torch.tensor(chain.times), tolerance=0)
    for name in fixture.names(r"timesteps\.\d+"):
        fixture.check(name, torch.tensor(spaced_times(len(full.betas), int(name.split(".")[1]))), tolerance=0)


def check_evaluations(fixture: Fixture, chain: Chain, network: "Network") -> None:
    """Mean, variance and clean latents of one evaluation without guidance, at each level."""
    latents, y = fixture.read(r"in\.z"), fixture.read(r"in\.y_cond")
    found = []
    for level, time in enumerate(chain.times):
        index = torch.full((len(latents),), level)
        found.append(chain.moments(network.rows(latents, float(time), y), latents, index))
    for name, field in (("mean", "mean"), ("log_variance", "log_variance"), ("pred_xstart", "clean")):
        fixture.check(f"pmv.{name}", torch.stack([getattr(one, field) for one in found]), tolerance=SINGLE)


def check_trajectories(fixture: Fixture, scheduler: SchedulerMixin, steps: int, network: "Network") -> None:
    """`ddpm`, `ddim_etaN`, and both with `noguide.` before them (all rows alone, one noise for each)."""
    for name in fixture.names(r"(noguide\.)?(ddpm|ddim_eta[\d.]+?)\.traj"):
        label = name.removesuffix(".traj")
        kind = label.removeprefix("noguide.")
        eta = None if kind == "ddpm" else float(kind.removeprefix("ddim_eta"))
        start, noise = fixture.read(r"in\.z"), _noise(fixture, steps)
        network.guided = label == kind
        if not network.guided:
            start = start.repeat(2, 1, 1, 1, 1)
        network.seen, network.times = [], []
        last = IDDPM(steps, eta)(network, start, lambda i: noise[i, : len(start)], scheduler)  # noqa: B023
        tolerance = TRAJECTORY if network.guided else SINGLE
        fixture.check(name, torch.stack([*network.seen, last]), tolerance=tolerance)
        fixture.check(f"{label}.out", last, tolerance=tolerance)
        fixture.check(f"{label}.model_t", torch.tensor(network.times), tolerance=0)


def check_training(fixture: Fixture, full: Chain, network: "Network") -> None:
    """Noised latents and losses, each sample at its own level of the whole chain."""
    clean, noise = fixture.read(r"train\.in\.x0"), fixture.read(r"train\.in\.noise")
    index, y = fixture.read(r"train\.in\.t").long(), fixture.read(r"train\.in\.y(_cond)?", r"in\.y_cond")
    latents = full.noised(clean, noise, index)
    losses = training_losses(full, network.rows(latents, index.float(), y), clean, noise, index)
    found = {"x_t": latents, "mse": losses.noise, "vb": losses.bound, "loss": losses.total}
    for name, value in found.items():
        fixture.check(f"train.{name}", value, tolerance=SINGLE)


class Network:
    """The toy: noise and variance, guided or all rows alone; keeps what it saw."""

    def __init__(self, fixture: Fixture) -> None:
        self.noise = toy(fixture, "eps = (0.6 + 0.4 t/1000) x + y")
        self.variance = toy(fixture, "v = 0.4 cos(x)", spelled=r"(?:variance(?: channels)?|learned[ _]range|var)")
        scale = fixture.number("cfg_scale", GUIDANCE)
        channels = int(fixture.number("cfg_channels", fixture.config.get("cfg_channel", GUIDED_CHANNELS)))
        self.guidance: Guidance = FirstChannels(scale, channels)
        rows = [row for row in ("cond", "uncond") if f"in.y_{row}" in fixture.tensors]
        self.y = {row: fixture.read(re.escape(f"in.y_{row}")) for row in rows}
        self.guided = True
        self.seen: list[Tensor] = []
        self.times: list[int] = []

    def rows(self, latents: Tensor, time: Tensor | float, y: Tensor) -> Tensor:
        """Twice the channels."""
        return torch.cat([self.noise(latents, time, y), self.variance(latents, time, y)], dim=1)

    def __call__(self, latents: Tensor, step: Step) -> Tensor:
        """One prediction for each video."""
        self.seen.append(latents)
        self.times.append(int(step.time))
        if not self.guided:
            y = torch.cat([self.y["cond"], self.y["uncond"]])
            return Unguided().combine(self.rows(latents, step.time, y)[None])
        y = torch.cat([self.y["uncond"], self.y["cond"]])
        both = self.rows(latents.repeat(2, 1, 1, 1, 1), step.time, y)
        return self.guidance.combine(both.unflatten(0, (2, -1)))


def _steps(fixture: Fixture) -> int:
    """Told by the config, the times or the noise."""
    if "timesteps" in fixture.tensors:
        return int(fixture.number("steps", len(fixture.tensors["timesteps"])))
    return int(fixture.number("steps", len(_noise(fixture, 0)) or None))


def _noise(fixture: Fixture, steps: int) -> Tensor:
    if fixture.find(r"in\.noise"):
        return fixture.read(r"in\.noise")
    start = fixture.read(r"in\.z")
    return torch.zeros(steps, 2 * len(start), *start.shape[1:])
