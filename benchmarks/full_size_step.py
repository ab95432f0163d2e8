"""`python -m benchmarks.full_size_step`: where the time of one guided step goes, at the published sizes."""

import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import typer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.random_model import FULL, SMALL, TOKENS, base_model, memories
from streaming import Call, Guided, NoiseLevel, Parts, Tail, assemble
from streaming.rows import Condition, compiled, evaluate
from streaming.sites import combine

KINDS = {
    "convolutions": ("fprop_implicit", "conv", "cutlass__5x_cudnn"),
    "attention": ("sdpa", "flash", "attention"),
    "matrix products": ("nvjet", "gemm", "cublas", "splitK"),
}
"""Parts of a kernel's name; a kernel of none of these kinds is a norm, an activation or a copy."""


def main(
    small: Annotated[bool, typer.Option("--small", help="Tiny networks, to try this command")] = False,
    device: str = "cuda",
    dtype: str = "bfloat16",
) -> None:
    """Prints milliseconds of a step, eager and compiled, and what kinds of kernels they are made of."""
    where, sizes = torch.device(device), SMALL if small else FULL
    torch.manual_seed(0)
    model = base_model(sizes, where, getattr(torch, dtype))
    cam, apm = memories(sizes, model)
    parts = assemble(model, short=cam, long=apm)
    with torch.inference_mode():
        call, condition = _call(parts), _condition(parts)
        _report("eager", lambda: evaluate(parts.backbone, condition, call), where)
        fast = assemble(model, short=cam, long=apm, compile=True)
        condition = _condition(fast)
        _report("compiled", lambda: torch.compile(evaluate, dynamic=False)(fast.backbone, condition, call), where)
        _report("compiled, launched as a whole", lambda: compiled()(fast.backbone, condition, call), where)


def _call(parts: Parts) -> Call:
    high, wide = parts.height // parts.codec.factor, parts.width // parts.codec.factor
    size = (2, parts.codec.channels, parts.backbone.window.frames, high, wide)
    with parts.device:
        latents, start = (torch.randn(size, dtype=parts.dtype) for _ in range(2))
        context, at = torch.randn(2, TOKENS, 1024, dtype=parts.dtype), torch.full((2,), 501.0)
    rows = (Guided(text=False, anchor=False), Guided(text=True, anchor=True))
    return Call(latents=latents, time=at, context=context, guided=rows, level=NoiseLevel(0.6, 0.8), start=start)


def _condition(parts: Parts) -> Condition:
    """The memories of a random chunk."""
    overlap, side = parts.backbone.window.overlap, parts.codec.factor
    frames = torch.rand(1, overlap, 3, parts.height, parts.width, device=parts.device, dtype=parts.dtype)
    latents = torch.randn(1, parts.codec.channels, overlap, parts.height // side, parts.width // side).to(frames)
    tail, anchor = parts.short.remember(Tail(frames, latents)), parts.long.remember(frames[:, :1])
    return lambda call: (call, combine(parts.short.deltas(tail, call), parts.long.deltas(anchor, call)))


def _report(name: str, step: Callable[[], object], device: torch.device) -> None:
    begin = time.perf_counter()
    for _ in range(3):
        step()
    _wait(device)
    ready, times = time.perf_counter() - begin, []
    for _ in range(5):
        begin = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - begin)
    print(f"{name}: {1e3 * median(times):.1f} ms a step (ready after {ready:.0f} s)", flush=True)
    if device.type == "cuda":
        _kernels(step, device)


def _kernels(step: Callable[[], object], device: torch.device) -> None:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        _wait(device)
    kernels = [event for event in found.events() or () if event.device_type == DeviceType.CUDA]
    spent: Counter[str] = Counter()
    for event in kernels:
        spent[_kind(event.name)] += event.device_time / 1e3
    told = ", ".join(f"{kind} {ms:.1f}" for kind, ms in spent.most_common())
    print(f"  {len(kernels)} kernels, {sum(spent.values()):.1f} ms: {told}", flush=True)


def _kind(kernel: str) -> str:
    if kernel.startswith("triton"):  # named after all that was fused into it
        return "the rest"
    return next((kind for kind, names in KINDS.items() if any(name in kernel for name in names)), "the rest")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    typer.run(main)
