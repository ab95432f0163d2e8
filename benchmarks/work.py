"""What a rollout costs: seconds, counted work against the machine's ceiling, peak memory."""

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from streaming import Key, Parts, PromptSchedule, TextOpening
from streaming.loop import chunks_needed, stream

PROMPT = PromptSchedule.fixed("a red ball rolls over a green meadow")


def make_video(parts: Parts, frames: int) -> dict[str, float]:
    """Makes a video as a user would. Times are those of chunks after the first two (of memories: after one)."""
    reset(parts.device)
    times, last = [], time.perf_counter()
    opening = TextOpening()
    for chunk in stream(parts, PROMPT, opening, key=Key(0), chunks=chunks_needed(parts, opening, frames)):
        now = time.perf_counter()
        times.append(now - last)
        new, last = chunk.frames.shape[1], now
    return {"first chunk": times[0], "chunk": median(times[2:]), "new": new, **peak_memory(parts.device)}


def report(count: int, found: dict[str, float], parts: Parts, ceiling: float) -> dict[str, float]:
    """Prints what `make_video` found beside the counted work; returns both."""
    seconds, work = found["chunk"], chunk_work(parts)
    found |= {"s per new frame": seconds / found["new"], "TFLOP per chunk": work, "TFLOP/s": work / seconds}
    print(
        f"{count} frames at {parts.sampler.steps} steps: first chunk {found['first chunk']:.2f} s, then "
        f"{found['s per new frame']:.3f} s a new frame, {found['TFLOP/s']:.0f} TFLOP/s "
        f"({found['TFLOP/s'] / ceiling:.0%} of the ceiling), peak {memory_told(found)}",
        flush=True,
    )
    return found


def in_steps(parts: Parts, steps: int) -> Parts:
    """The parts with another number of denoising steps."""
    return replace(parts, sampler=replace(parts.sampler, steps=steps))  # pyright: ignore


def chunk_work(parts: Parts) -> float:
    """Counted TFLOP of a chunk: one step's times the steps, and everything else once."""

    def count(steps: int) -> float:
        short = in_steps(replace(parts, compile=False), steps)
        chunks = stream(short, PROMPT, TextOpening(), key=Key(0), chunks=2)
        next(chunks)
        with FlopCounterMode(display=False) as counter:
            next(chunks)
        return counter.get_total_flops() / 1e12

    one, two = count(1), count(2)
    return one + (parts.sampler.steps - 1) * (two - one)


def matmul_ceiling(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of a large square matrix product, median of 20."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(5):
        a @ b
    return 2e-12 * side**3 / median(timed(lambda: a @ b, device) for _ in range(20))


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is done."""
    wait(device)
    begin = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - begin


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset(device: torch.device) -> None:
    """Peaks of memory are counted from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB: what tensors took on the GPU, what the allocator held, and the process's largest size on the host so far."""
    host = {"host GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device.type != "cuda":
        return host
    made, held = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"GiB": made / 2**30, "held GiB": held / 2**30, **host}


def memory_told(found: dict[str, float]) -> str:
    """Of `peak`, for people."""
    return ", ".join(f"{found[name]:.3f} {name}" for name in ("GiB", "held GiB", "host GiB") if name in found)


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def tell(what: str, value: float) -> float:
    """Prints and returns it."""
    print(f"{what}: {value:.4g}", flush=True)
    return value
