"""`python -m benchmarks.train_speed`: how fast a denoiser trains, against the machine's ceiling, and why."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, final

import torch
import typer
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from backends.embedded.config import FRAMES, LATENT_CHANNELS, SIZE, TOKENS, build_base, build_scheduler, without_dropout
from backends.embedded.train_base import noised_batch
from backends.embedded.train_unet import DiffusionObjective
from backends.embedded_opensora.config import FPS, build_defaults, build_transformer
from backends.embedded_opensora.train import FlowObjective, flow_batch
from backends.opensora_backbone import OpenSora3Backbone
from backends.opensora_init import begin
from backends.opensora_stdit3 import STDiT3
from benchmarks.work import device_name, matmul_ceiling, wait
from streaming.keys import Key, initial_weights
from streaming.noising import Diffusion
from streaming.training import Batches, Recipe, TrainOptions, fit

TEXT_WIDTH = 192
EVERY = 20
"""Steps of one measurement."""

Noised = Callable[[Mapping[str, Tensor], Tensor, torch.Generator], dict[str, Tensor]]


def main(
    model: Annotated[str, typer.Option(help="modelscope or opensora")] = "modelscope",
    batch: Annotated[int, typer.Option(help="Clips a step")] = 256,
    rounds: Annotated[int, typer.Option(help="Measurements of 20 steps each")] = 4,
    compile: Annotated[bool, typer.Option("--compile", help="Compile with torch.compile.")] = False,
    device: str = "cuda",
    toy: Annotated[bool, typer.Option("--toy", help="Tiny networks, to try this command")] = False,
    kernels: Annotated[int, typer.Option(help="Longest kernels of one step to name")] = 12,
) -> None:
    """Prints clips a second of the training loop itself on random latents; forward work is counted by PyTorch."""
    where = torch.device(device)
    if model not in MODELS:
        raise typer.BadParameter(f"{model}: choose {' or '.join(MODELS)}", param_hint="--model")
    objective, noised = MODELS[model](toy)
    source = partial(_batches, noised, batch)
    work = _work(objective, next(source(0, 0, 1, torch.device("cpu"))))
    ceiling = matmul_ceiling(where, torch.bfloat16 if where.type == "cuda" else torch.float32, 512 if toy else 8192)
    print(f"{device_name(where)}, matrix product {ceiling:.0f} TFLOP/s; {1e3 * work:.2f} GFLOP a clip, forward")
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(work=Path(folder), batch=batch, compile=compile, device=device, steps=rounds * EVERY + 3)
        recipe = Recipe(steps=1, batch=batch, learning_rate=1e-4, log_every=EVERY)
        times = _Clock(source, where, rounds * EVERY, kernels)
        fit("speed", objective, times.batches, recipe, options, export=lambda: None)
    speed = batch / median(times.seconds[1:] or times.seconds)
    print(f"{model}, batch {batch}{', compiled' if compile else ''}: {speed:.0f} clips/s, "
          f"{3 * work * speed:.1f} TFLOP/s ({3 * work * speed / ceiling:.0%} of the ceiling)", flush=True)  # fmt: skip


@final
class _Clock:
    """Batches for `fit` that time `EVERY` steps at a time, and profile one of the last."""

    def __init__(self, source: Batches, device: torch.device, steps: int, kernels: int) -> None:
        self.source, self.device, self.steps, self.kernels = source, device, steps, kernels
        self.seconds: list[float] = []

    def batches(self, step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        begin, made = time.perf_counter(), self.source(step, rank, world, device)
        for number, drawn in enumerate(made):
            if number and number % EVERY == 0 and number <= self.steps:
                wait(self.device)
                self.seconds.append((time.perf_counter() - begin) / EVERY)
                begin = time.perf_counter()
            if number == self.steps + 1 and self.device.type == "cuda":
                with profile(activities=[ProfilerActivity.CUDA]) as found:
                    yield drawn
                    wait(self.device)
                _report(found, self.kernels)
                continue
            yield drawn


def _batches(
    noised: Noised, count: int, step: int, rank: int, world: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Random latents and texts, noised anew for every step as in training."""
    key, high = Key(0), SIZE // 8
    pool = {
        "latents": key.normal(count, LATENT_CHANNELS, FRAMES, high, high).to(device).half(),
        "object": torch.zeros(count, 1, FRAMES, high, high, device=device),
        "text": key.fold("text").normal(count, 2, TOKENS, TEXT_WIDTH).to(device).half(),
    }
    empty = torch.zeros(1, TOKENS, TEXT_WIDTH, device=device)
    generator = torch.Generator(device).manual_seed(0)
    while True:
        yield noised(pool, empty, generator)


def _modelscope(toy: bool) -> tuple[nn.Module, Noised]:
    diffusion = Diffusion(build_scheduler())
    with initial_weights(0):
        unet = without_dropout(build_base(TEXT_WIDTH, toy=toy))
    return DiffusionObjective(unet), lambda pool, empty, generator: noised_batch(pool, empty, diffusion, generator)


def _opensora(toy: bool) -> tuple[nn.Module, Noised]:
    with initial_weights(0):
        net = begin(STDiT3(build_transformer(TEXT_WIDTH, LATENT_CHANNELS, toy=toy)))
    return FlowObjective(OpenSora3Backbone(net, window=build_defaults()[1], fps=FPS, factor=8)), flow_batch


MODELS = {"modelscope": _modelscope, "opensora": _opensora}


def _work(objective: nn.Module, batch: dict[str, Tensor]) -> float:
    """TFLOP of a clip's forward pass."""
    two = {name: value[:2] for name, value in batch.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        objective(two)
    return counter.get_total_flops() / 2e12


def _report(found: profile, count: int) -> None:
    """The longest kernels of one step."""
    spent: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for event in found.events() or ():
        if event.device_type == DeviceType.CUDA:
            spent[event.name] += event.device_time / 1e3
            number[event.name] += 1
    print(f"one step: {number.total()} kernels, {sum(spent.values()):.1f} ms", flush=True)
    for name, ms in spent.most_common(count):
        print(f"  {ms:7.2f} ms  {number[name]:4d} x  {name[:150]}", flush=True)


if __name__ == "__main__":
    typer.run(main)
