"""Open-Sora 1.2's rectified flow with a toy network: times, guided trajectories, frames kept and edited, training."""

import re
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from backends.opensora_rflow import LEVELS, flow_loss, flow_scheduler, flow_shift, noised, sample_frames, shifted
from streaming.errors import UserError
from streaming.guidance import ClassifierFree
from streaming.sample import Sampler, Step
from tests.parity.fixture import Fixture
from tests.parity.kinds.opensora_toy import Toy, toy, within
from tests.parity.registry import handles

TOLERANCE, TIMES = 1e-5, 2e-4
DOCUMENTED = "v = -(0.5 + t/1000) z + y"
GENERATED, TRAINED = "A", {"height": 360, "width": 640, "num_frames": 68}
"""Setting of the masked part; sizes of the transformed training times, where the file tells no others."""
SETTINGS = {"G": {"height": 480, "width": 854, "num_frames": 51}}
"""That are documented beside the files."""


@handles("opensora_v12_rflow", "opensora_v12_rflow*", "opensora_v12_rflow_*")
def rectified_flow(fixture: Fixture) -> None:
    """By what the file holds; `X.traj`, `X.out` and `timesteps.X` are of the setting X."""
    if int(fixture.config.get("num_timesteps", LEVELS)) != LEVELS:
        fixture.give_up(f"{fixture.config['num_timesteps']} time steps: only {LEVELS} are known")
    for name in fixture.names(r"timesteps\.\w+"):
        check_times(fixture, name)
    network = Network(fixture)
    for label in dict.fromkeys(name.split(".")[0] for name in fixture.names(r"(?!masked|train)\w+\.(traj|out)")):
        check_trajectory(fixture, label, network)
    if fixture.names(r"masked\..*"):
        check_masked(fixture, network)
    if fixture.names(r"train\..*"):
        check_training(fixture)


def check_times(fixture: Fixture, name: str) -> None:
    """The times that `Sampler("euler")` takes; lengths that the published code cannot do are refused."""
    label, count = name.split(".")[1], len(fixture.tensors[name])
    setting = _setting(fixture, label.removesuffix("_bf16args"))
    if setting is not None and 1 < int(setting["num_frames"]) < 17:
        fixture.used.add(name)
        try:
            flow_shift(*_sizes(setting))
        except UserError:
            return
        fixture.give_up(f"{name}: {setting['num_frames']} frames are not refused")
    if label.endswith("_bf16args"):
        if setting is None:
            fixture.give_up(f"{name}: its config has no such setting")
        steps = LEVELS * (1 - torch.arange(count) / count)
        within(fixture, name, shifted(steps, _rounded_shift(setting)), TIMES)
        return
    if int(setting.get("steps", count) if setting else count) != count:
        fixture.give_up(f"{name}: {count} times, its config has {setting}")
    plan = Sampler("euler", count).plan(_scheduler(fixture, label))[1]
    within(fixture, name, torch.tensor([step.time for step in plan]), TIMES)


def check_trajectory(fixture: Fixture, label: str, network: "Network") -> None:
    """Guided Euler steps of `Sampler` from in.z."""
    start, name = fixture.read(r"in\.z"), f"{label}.traj"
    seen: list[Tensor] = []

    def denoise(latents: Tensor, step: Step) -> Tensor:
        seen.append(latents)
        return network(latents, step)

    scheduler = _scheduler(fixture, label)
    last = Sampler("euler", _steps(fixture, label))(denoise, start, torch.zeros_like, scheduler)
    fixture.check(name, torch.stack([*seen, last]), tolerance=TOLERANCE)
    fixture.check(f"{label}.out", last, tolerance=TOLERANCE)


def check_masked(fixture: Fixture, network: "Network") -> None:
    """Frames that are kept, edited and generated; the mask that the network sees, in every guidance row."""
    shares, noise = fixture.read(r"masked\.in\.mask"), fixture.read(r"masked\.in\.noise")
    label = str(fixture.config.get("masked_setting") or _masked_setting(fixture, len(noise)))
    inputs: list[Tensor] = []
    masks: list[Tensor] = []

    def denoise(latents: Tensor, step: Step, active: Tensor) -> Tensor:
        inputs.append(latents)
        masks.append(active.repeat(2, 1))
        return network(latents, step)

    start = fixture.read(r"masked\.in\.z", r"in\.z")
    scheduler = _scheduler(fixture, label)
    last = sample_frames(denoise, start, lambda i: noise[i], scheduler, shares=shares, steps=len(noise))
    fixture.check("masked.x_mask", torch.stack(masks), tolerance=0)
    fixture.check("masked.traj_model_in", torch.stack(inputs), tolerance=TOLERANCE)
    fixture.check("masked.traj", torch.stack([*inputs, last]), tolerance=TOLERANCE)
    fixture.check("masked.out", last, tolerance=TOLERANCE)


def check_training(fixture: Fixture) -> None:
    """Noised latents and losses, of all frames and of those that a mask leaves; transformed times."""
    clean, noise = fixture.read(r"train\.in\.x0"), fixture.read(r"train\.in\.noise")
    time = fixture.read(r"train\.in\.t")
    masks: list[tuple[str, Tensor | None]] = [("", None)]
    if fixture.find(r"train\.in\.mask"):
        masks.append(("_masked", fixture.read(r"train\.in\.mask").bool()))
    for ending, mask in masks:
        latents = noised(clean, noise, time, mask)
        loss = flow_loss(-0.1 * latents, clean, noise, mask)  # the toy's 0.1 x_t is of Open-Sora's sign
        fixture.check(f"train.x_t{ending}", latents, tolerance=TOLERANCE)
        fixture.check(f"train.loss{ending}", loss, tolerance=TOLERANCE)
    if fixture.find(r"train\.in\.t_raw"):
        known = [fixture.config.get("train", {}), _setting(fixture, "F") or {}, TRAINED]
        sizes = next(one for one in known if "height" in one)
        times = shifted(fixture.read(r"train\.in\.t_raw"), flow_shift(*_sizes(sizes)))
        within(fixture, "train.t_transformed", times, TIMES)


class Network:
    """The toy in both guidance rows, twice the channels, of Open-Sora's sign: guided, cut and negated."""

    def __init__(self, fixture: Fixture) -> None:
        self.toy: Toy = toy(fixture, DOCUMENTED)
        self.guidance = ClassifierFree(float(fixture.number("cfg_scale", 7.0)))
        names = (r"in\.y_uncond", r"in\.y_cond")
        self.y = torch.cat([fixture.read(name) for name in names]) if fixture.find(*names) else torch.empty(0)

    def __call__(self, latents: Tensor, step: Step) -> Tensor:
        """noise - x_0."""
        twice = latents.repeat(2, 1, 1, 1, 1)
        given = torch.cat([self.toy(twice, step.time, self.y), torch.full_like(twice, 123.0)], dim=1)
        velocity = given.chunk(2, dim=1)[0]
        return -self.guidance.combine(velocity.unflatten(0, (2, -1)))


def _setting(fixture: Fixture, label: str) -> dict[str, Any] | None:
    return {**SETTINGS, **fixture.config.get("settings", {})}.get(label)


def _masked_setting(fixture: Fixture, steps: int) -> str:
    """`GENERATED`, or, if the config has settings without it, the first with so many steps, or the first of all."""
    own = fixture.config.get("settings", {})
    if not own or GENERATED in own:
        return GENERATED
    return next((label for label in own if _steps(fixture, label) == steps), next(iter(own)))


def _sizes(setting: dict[str, Any]) -> tuple[int, int, int]:
    return int(setting["height"]), int(setting["width"]), int(setting["num_frames"])


def _steps(fixture: Fixture, label: str) -> int:
    """Told by the trajectory, the times or the config."""
    for name, more in ((f"{label}.traj", 1), (f"timesteps.{label}", 0)):
        if name in fixture.tensors:
            return len(fixture.tensors[name]) - more
    setting = _setting(fixture, label)
    return int((setting or fixture.give_up(f"how many steps has {label}?"))["steps"])


def _scheduler(fixture: Fixture, label: str) -> SchedulerMixin:
    """Of a setting; `plain` and a number: without a transform."""
    setting = _setting(fixture, label)
    plain = re.fullmatch(r"plain\d*", label) or not fixture.config.get("use_timestep_transform", True)
    if setting is None and not plain:
        return fixture.give_up(f"its config has no setting {label}")
    if plain or not (setting or {}).get("use_timestep_transform", True):
        return FlowMatchEulerDiscreteScheduler()
    assert setting is not None
    return flow_scheduler(*_sizes(setting))


def _rounded_shift(setting: dict[str, Any]) -> float:
    """The shift where sizes and what is made of them are bfloat16."""
    high, wide, frames = (torch.tensor(float(n), dtype=torch.bfloat16) for n in _sizes(setting))
    length = torch.ones_like(frames) if frames == 1 else frames // 17 * 5
    return float((high * wide / 512**2).sqrt() * length.sqrt())
