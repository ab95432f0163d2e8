"""One training loop for every part of a model: resumable, averaged, on one device or many (through accelerate)."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from streaming.errors import UserError
from streaming.train_state import Progress, TrainState, read_state, write_state

NOT_FINITE_LIMIT = 20
RESTART_WARMUP = 200
BEGUN_RATE = 0.5
"""Factor on the learning rate where a training begins from trained weights, of which much is to be kept."""

Batches = Callable[[int, int, int, torch.device], Iterator[Any]]
"""(first step, rank, world, device) -> the batches of this rank from that step on; a pure function of step and rank."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What the command line gives every trainer."""

    work: Path
    """The model directory that grows part by part (diffusers' folder format), with `state/` and `logs/` beside them."""
    steps: int | None = None
    """Optimiser steps of the whole plan; None: the recipe's own."""
    minutes: float | None = None
    """Save and stop after this much wall time, counted from `started`; the plan stays as it is."""
    within: float | None = None
    """Minutes that the whole plan may take, all pieces together: its length follows from the measured speed."""
    batch: int | None = None
    """Clips per process and step; None: the recipe's own."""
    compile: bool = False
    """Compile the objective with torch.compile."""
    checkpoint_gradients: bool = False
    """Keep fewer activations and compute them anew in the backward pass: slower, with less memory."""
    device: str | None = None
    """"cpu" or "cuda"; None: what is there."""
    toy: bool = False
    """Toy sizes, for rehearsals and tests."""
    dataset: str = "procedural-world"
    """Name in the entry point group `streaming.datasets`."""
    begin: Path | None = None
    """A model directory whose part of the same name is trained on, in place of random weights, at `BEGUN_RATE` times
    the recipe's learning rate; None: random weights. Where a saved state says how to go on, that counts."""
    image_encoder: str | None = None
    """What APM sees the anchor frame with, as `registry.image_encoder_spec` reads it; None: the model's own."""
    condition: Literal["pixels", "latents"] | None = None
    """What memories that are shown the last frames see of them; None: the recipe's own choice."""
    distances: bool = False
    """Whether CAM is to know how far away a remembered frame lies, a departure from the paper."""
    started: float = field(default_factory=time.monotonic)
    """When the command started (`time.monotonic`)."""

    def __post_init__(self) -> None:
        for name in ("steps", "minutes", "within", "batch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} must be above 0, not {value}")
        if self.device not in (None, "cpu", "cuda"):
            raise UserError(
                f'--device must be "cpu" or "cuda", not "{self.device}"; pick a GPU by CUDA_VISIBLE_DEVICES'
            )

    def begun(self, part: str, training: str) -> Path | None:
        """The folder of the part that a training begins from; None for random weights, or where its state is there.

        Raises UserError if the folder isn't there.
        """
        if self.begin is None or self.state(training).exists():
            return None
        folder = self.begin / part
        if not folder.is_dir():
            raise UserError(f"--begin {self.begin} has no {part}: name a model directory that has, or leave it out")
        return folder

    def state(self, training: str) -> Path:
        """Where a training keeps what it needs to go on."""
        return self.work / "state" / f"{training}.safetensors"


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one part is trained."""

    steps: int
    """Steps of the plan at the recipe's batch on one process; more processes take fewer, so the clips stay the same."""
    batch: int
    """Clips per process and step."""
    learning_rate: float
    """Peak of the cosine."""
    warmup: int = 200
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's, for matrices and kernels; biases, norms and scalars have none."""
    ema: float = 0.999
    """Decay of the running average that is exported (lower in the first steps)."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "bf16"
    """"bf16" (autocast; on CUDA only, a CPU always takes float32) or "no"."""
    log_every: int = 50
    """Steps between log lines; limits of time are checked there, too."""
    save_minutes: float = 2.0
    """Minutes between saved states."""
    seed: int = 0
    """Of data, noise and initial weights."""


@final
@dataclass(frozen=True, kw_only=True)
class Result:
    """How a call of `fit` ended."""

    step: int
    """Steps done, those of earlier pieces included."""
    steps: int
    """Length of the plan."""
    losses: Mapping[str, float]
    """Averages over the last log interval; empty if no step was done."""

    @property
    def finished(self) -> bool:
        """Whether the whole plan is done."""
        return self.step >= self.steps


def fit(
    name: str,
    objective: nn.Module,
    batches: Batches,
    recipe: Recipe,
    options: TrainOptions,
    *,
    groups: Sequence[tuple[Sequence[nn.Parameter], float]] | None = None,
    export: Callable[[], None],
    begun: bool = False,
    in_warmup: Callable[[], None] | None = None,
) -> Result:
    """Minimise `objective(batch)["loss"]` over its parameters that require gradients, from where the last call stopped.

    objective: maps a batch to scalar losses; deterministic, the noise is part of the batch. groups: (parameters,
    factor on the learning rate); None: all with factor 1. export: called on the main process with the averaged weights
    in place, at every save and at the end. begun: whether the parameters are trained ones, from `options.begin`.
    in_warmup: called behind every update of the warm-up; may change parameters, whose average soon forgets what they
    were. State: `work/state/<name>.safetensors`; log: `work/logs/<name>.jsonl`.
    Raises UserError if the losses stay NaN, if the saved state belongs to another model, or for an `options.begin` of
    which the caller took nothing.
    """
    accelerator = _accelerator(recipe, options)
    objective.to(accelerator.device)
    named = {key: value for key, value in objective.named_parameters() if value.requires_grad}
    optimizer = _optimizer(named, groups, recipe)
    state = TrainState(named, optimizer)
    path = options.state(name)
    batch = options.batch or recipe.batch
    progress = _resume(path, state, batch * accelerator.num_processes)
    if not path.exists():
        if options.begin is not None and not begun:
            raise UserError(f"{name} begins from random weights: leave --begin out")
        progress = replace(progress, rate=BEGUN_RATE if begun else 1.0)
    steps = _plan(progress, recipe, options, batch * accelerator.num_processes)
    clips = batch * accelerator.num_processes
    session = _Session(name, accelerator, state, recipe, options, path, export, clips, in_warmup)
    if progress.step >= steps:
        session.say(f"{name}: all {steps} steps are done; exporting")
        session.export()
        return Result(step=progress.step, steps=steps, losses={})
    if options.compile:
        torch._dynamo.config.optimize_ddp = (
            False  # one graph on one GPU and on many; so small a gradient needs no overlap
        )
        objective.forward = torch.compile(objective.forward, dynamic=False)
    model = accelerator.prepare_model(objective)
    source = batches(progress.step, accelerator.process_index, accelerator.num_processes, accelerator.device)
    return session.run(model, source, replace(progress, steps=steps))


def learning_rate(recipe: Recipe, step: int, steps: int, restarted: int | None = None) -> float:
    """Warm-up, then one cosine over the whole plan; after a restart without Adam's moments a short new warm-up."""
    rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    rate *= min(1.0, (step + 1) / max(1, recipe.warmup))
    return rate if restarted is None else rate * min(1.0, (step - restarted + 1) / RESTART_WARMUP)


def training_device(options: TrainOptions) -> torch.device:
    """Where this process trains: the CPU, or its own of the GPUs (which `accelerate launch` numbers by LOCAL_RANK).

    Raises UserError if a GPU is asked for and none is there.
    """
    if options.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if options.device == "cuda":
        raise UserError("--device cuda: no CUDA device is to be seen; leave --device out to train on the CPU")
    return torch.device("cpu")


@final
class _Session:
    """One call of `fit`: the loop, its clock, its log."""

    def __init__(
        self,
        name: str,
        accelerator: Any,
        state: TrainState,
        recipe: Recipe,
        options: TrainOptions,
        path: Path,
        export: Callable[[], None],
        clips: int,
        in_warmup: Callable[[], None] | None,
    ) -> None:
        self.name, self.accelerator, self.state, self.recipe = name, accelerator, state, recipe
        self.options, self.path, self._export, self.clips = options, path, export, clips
        self.in_warmup = in_warmup
        self.began = self.saved = self.logged = time.monotonic()
        self.pace: float | None = None
        self.bad_in_a_row = torch.zeros((), device=accelerator.device)
        self.bad = torch.zeros((), device=accelerator.device)
        self.sums: dict[str, Tensor] = {}
        self.since = 0

    def run(self, model: nn.Module, source: Iterator[Any], progress: Progress) -> Result:
        """Steps until the plan or the time is over."""
        losses: dict[str, float] = {}
        earlier, first = progress.seconds, progress.step
        while progress.step < (progress.steps or 0):
            self._step(model, next(source), progress)
            progress = replace(progress, step=progress.step + 1, clips=progress.clips + self.clips)
            if progress.step % self.recipe.log_every and progress.step != progress.steps:
                continue
            now = time.monotonic()
            progress = replace(progress, seconds=earlier + now - self.began)
            progress = self._replan(progress, now, warm=progress.step - first > self.recipe.log_every)
            losses = self._log(progress, now)
            done = progress.step >= (progress.steps or 0)
            over = self._agree(
                self.options.minutes is not None and now - self.options.started > self.options.minutes * 60
            )
            if done or over or self._agree(now - self.saved > self.recipe.save_minutes * 60):
                self.save(progress)
            if over and not done:
                self.say(
                    f"{self.name}: time is over at step {progress.step} of {progress.steps}; run it again to go on"
                )
                break
        return Result(step=progress.step, steps=progress.steps or 0, losses=losses)

    def _step(self, model: nn.Module, batch: Any, progress: Progress) -> None:
        """One update; a gradient that is not finite leaves the weights as they are (without waiting for the device)."""
        optimizer, recipe = self.state.optimizer, self.recipe
        rate = progress.rate * learning_rate(recipe, progress.step, progress.steps or 1, progress.restarted)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        losses = model(batch)
        self.accelerator.backward(losses["loss"])
        norm = self.accelerator.clip_grad_norm_(self.state.parameters.values(), recipe.clip)
        bad = (~torch.isfinite(norm)).float()
        # What a gradient scaler would set: the fused kernel then skips the update.
        optimizer.found_inf = bad  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.in_warmup is not None and progress.step < recipe.warmup:
            self.in_warmup()
        self.state.follow(min(recipe.ema, (1 + progress.step) / (10 + progress.step)))
        self.bad_in_a_row = (self.bad_in_a_row + 1) * bad
        self.bad = self.bad + bad
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0) + torch.where(bad > 0, 0, value.detach().float())
        self.since += 1

    def _log(self, progress: Progress, now: float) -> dict[str, float]:
        """Average, print and append one line; stop if nothing but NaN came."""
        if self.bad_in_a_row.item() >= NOT_FINITE_LIMIT:
            raise UserError(
                f"{self.name}: {int(self.bad_in_a_row.item())} steps in a row gave gradients that are not finite "
                f"at step {progress.step}; lower the learning rate or begin again without {self.path}"
            )
        skipped = int(self.bad.item())
        losses = {key: (value / max(1, self.since - skipped)).item() for key, value in self.sums.items()}
        speed = self.since * self.clips / max(now - self.logged, 1e-9)
        rate = progress.rate * learning_rate(self.recipe, progress.step, progress.steps or 1, progress.restarted)
        self._write({"step": progress.step, "steps": progress.steps, **losses, "learning_rate": rate,
                     "clips_per_second": round(speed, 1), "clips": progress.clips, "skipped": skipped,
                     "seconds": round(progress.seconds, 1)})  # fmt: skip
        told = "  ".join(f"{key} {value:.4f}" for key, value in losses.items())
        self.say(
            f"{self.name} {progress.step}/{progress.steps}  {told}  lr {rate:.1e}  {speed:.0f} clips/s"
            f"  {progress.seconds:.0f} s" + (f"  {skipped} skipped" if skipped else "")
        )
        self.sums, self.since, self.logged = {}, 0, time.monotonic()
        self.bad = torch.zeros_like(self.bad)
        return losses

    def _replan(self, progress: Progress, now: float, *, warm: bool) -> Progress:
        """Fit the length of the plan to the minutes it may take, by the pace since the last log line."""
        if self.options.within is None:
            return progress
        if warm:  # the first interval pays for compilation and benchmarking
            pace = (now - self.logged) / max(1, self.since)
            self.pace = pace if self.pace is None else 0.7 * self.pace + 0.3 * pace
        if self.pace is None:
            return progress
        left = self._share(max(0.0, self.options.within * 60 - progress.seconds) / self.pace)
        return replace(progress, steps=progress.step + int(left))

    def save(self, progress: Progress) -> None:
        """Write state and exports on the main process."""
        progress = replace(progress, adam=self.state.adam_steps())
        if self.accelerator.is_main_process:
            write_state(self.path, self.state.tensors(), progress)
        self.export()
        self.accelerator.wait_for_everyone()
        self.saved = self.logged = time.monotonic()

    def export(self) -> None:
        """Hand the averaged weights to the caller's export, on the main process."""
        if self.accelerator.is_main_process:
            with self.state.averaged():
                self._export()

    def say(self, line: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            path = self.options.work / "logs" / f"{self.name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def _share(self, value: float) -> float:
        """The main process's number, on every process."""
        if self.accelerator.num_processes == 1:
            return value
        mine = value if self.accelerator.is_main_process else 0.0
        return self.accelerator.reduce(torch.tensor(mine, device=self.accelerator.device), reduction="sum").item()

    def _agree(self, flag: bool) -> bool:
        """The main process's decision, on every process."""
        return bool(self._share(float(flag)))


def _accelerator(recipe: Recipe, options: TrainOptions) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    cuda = training_device(options).type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    handler = DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True)
    return Accelerator(mixed_precision=recipe.precision if cuda else "no", cpu=not cuda, kwargs_handlers=[handler])


def _optimizer(
    named: Mapping[str, nn.Parameter], groups: Sequence[tuple[Sequence[nn.Parameter], float]] | None, recipe: Recipe
) -> torch.optim.Optimizer:
    pieces = []
    for parameters, scale in groups or [(list(named.values()), 1.0)]:
        chosen = [value for value in parameters if value.requires_grad]
        for decay, part in (
            (recipe.weight_decay, [value for value in chosen if value.ndim > 1]),
            (0.0, [value for value in chosen if value.ndim <= 1]),
        ):
            if part:
                pieces.append({"params": part, "weight_decay": decay, "scale": scale})
    if not pieces or sum(len(piece["params"]) for piece in pieces) != len(named):
        raise ValueError("the groups must hold every trainable parameter of the objective exactly once")
    return torch.optim.AdamW(pieces, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)


def _resume(path: Path, state: TrainState, clips: int) -> Progress:
    if not path.exists():
        return Progress()
    tensors, progress = read_state(path)
    if not state.load(path, tensors, progress):
        progress = replace(progress, restarted=progress.step, adam=0.0)
    # With another batch or number of processes the same clips are another number of steps.
    step = progress.step if progress.clips == progress.step * clips else round(progress.clips / clips)
    steps = progress.steps
    if step != progress.step and steps is not None:
        steps = round(steps * step / max(1, progress.step))
    restarted = step if progress.restarted == progress.step else progress.restarted
    return replace(progress, step=step, steps=steps, restarted=restarted)


def _plan(progress: Progress, recipe: Recipe, options: TrainOptions, clips: int) -> int:
    if options.steps is not None:
        return options.steps
    planned = progress.steps or math.ceil(recipe.steps * recipe.batch / clips)
    if options.within is None or progress.seconds >= options.within * 60:
        return planned
    return max(planned, progress.step + 2 * recipe.log_every)  # time is left: enough steps to measure the pace again
