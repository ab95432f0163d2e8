"""What a training needs to go on: weights, their running average, Adam's moments; kept in one safetensors file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from streaming.errors import UserError
from streaming.files import replacing

MOMENTS = ("exp_avg", "exp_avg_sq")


@final
@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training has come."""

    step: int = 0
    """Optimiser steps done."""
    steps: int | None = None
    """Length of the plan these steps belong to; None if nothing has been planned."""
    clips: int = 0
    """Clips seen by all processes together."""
    adam: float = 0.0
    """Steps that Adam's moments have seen (for its bias correction)."""
    rate: float = 1.0
    """Factor on the recipe's learning rate, for the whole plan."""
    restarted: int | None = None
    """Step at which training went on without Adam's moments; None if that never happened."""
    seconds: float = 0.0
    """Time in the training loop, all pieces together."""


@final
class TrainState:
    """The trainable parameters of an objective with their running average and optimizer."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters = dict(parameters)
        self.optimizer = optimizer
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the running average towards the parameters."""
        average: list[Tensor] = list(self.average.values())
        values: list[Tensor] = list(self.parameters.values())
        torch._foreach_lerp_(average, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold their running average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.parameters.items():
            held = value.detach().clone()
            value.copy_(self.average[name])
            self.average[name].copy_(held)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs, on the CPU."""
        out = {f"model/{name}": value for name, value in self.parameters.items()}
        out |= {f"ema/{name}": value for name, value in self.average.items()}
        for name, value in self.parameters.items():
            for moment in MOMENTS:
                if moment in self.optimizer.state.get(value, {}):
                    out[f"{moment}/{name}"] = self.optimizer.state[value][moment]
        return {name: value.detach().to("cpu").contiguous() for name, value in out.items()}

    @torch.no_grad()
    def load(self, path: Path, tensors: Mapping[str, Tensor], progress: Progress) -> bool:
        """Take over a saved state; the average may be missing. Returns whether Adam's moments were there.

        Raises UserError if the state belongs to a model of another size.
        """
        for name, value in self.parameters.items():
            saved = tensors.get(f"model/{name}")
            if saved is None or saved.shape != value.shape:
                raise UserError(
                    f"{path} is the training state of another model ({name} differs); "
                    "give another --work or move it away"
                )
            value.copy_(saved)
            self.average[name].copy_(tensors.get(f"ema/{name}", saved))
        if not all(f"{moment}/{name}" in tensors for name in self.parameters for moment in MOMENTS):
            return False
        for name, value in self.parameters.items():
            moments = {moment: tensors[f"{moment}/{name}"].to(value) for moment in MOMENTS}
            count = torch.tensor(progress.adam, dtype=torch.float32, device=value.device)
            self.optimizer.state[value] = {"step": count, **moments}
        return True

    def adam_steps(self) -> float:
        """Steps that Adam's moments have seen (skipped ones not counted)."""
        first = next(iter(self.parameters.values()))
        return float(self.optimizer.state[first]["step"]) if self.optimizer.state.get(first) else 0.0


def write_state(path: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write a state so that a killed program leaves the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "the training state") as partial:
        try:
            save_file(dict(tensors), partial, metadata={"progress": json.dumps(asdict(progress))})
        except SafetensorError as error:  # how safetensors tells of a full disk
            raise OSError(str(error)) from error


def read_state(path: Path) -> tuple[dict[str, Tensor], Progress]:
    """Tensors and progress of a saved state. Raises UserError if the file is no such state."""
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads((file.metadata() or {})["progress"]))
            return {name: file.get_tensor(name) for name in file.keys()}, progress
    except Exception as error:
        raise UserError(f"{path} is no training state ({error}); move it away to begin afresh") from error


def lighten(source: Path, target: Path) -> None:
    """Copy the running average of a state alone, in half precision: 2 bytes a parameter.

    Training resumes from it with a short warm-up. For carrying a training from one machine to another.
    """
    tensors, progress = read_state(source)
    kept = {name.replace("ema/", "model/"): v.half() for name, v in tensors.items() if name.startswith("ema/")}
    write_state(target, kept, progress)
