"""`python -m benchmarks.full_size`: speed and memory of the published sizes, with random weights, against the floor."""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_model import FULL, SMALL, Sizes, base_model, enhancer_model, memories
from streaming import (
    Key,
    Parts,
    PromptSchedule,
    Sampler,
    TextOpening,
    assemble,
    assemble_enhancer,
)
from streaming.enhance import enhance_joint
from streaming.loop import chunks_needed, stream
from streaming.types import Frames

PROMPT = PromptSchedule.fixed("a red ball rolls over a green meadow")


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Lengths with all steps  [default: 40, 240]")] = None,
    long: Annotated[int, typer.Option(help="A length with 2 steps, for its memory")] = 1200,
    steps: int = 50,
    compile: Annotated[bool, typer.Option("--compile/--eager")] = True,
    enhance: Annotated[bool, typer.Option("--enhance/--no-enhance", help="One chunk at 1280x720 besides")] = True,
    small: Annotated[bool, typer.Option("--small", help="Tiny networks, to try this command")] = False,
    device: str = "cuda",
    dtype: str = "bfloat16",
    output: Annotated[Path | None, typer.Option(help="All figures as JSON")] = None,
) -> None:
    """Prints seconds for each new frame, TFLOP/s against counted FLOPs and matmul ceiling, and peak memory."""
    if min([*(frames or []), long or 32]) < 32:
        raise typer.BadParameter("give 32 frames or more: speed is that of the third chunk and later ones")
    where, kind, sizes = torch.device(device), getattr(torch, dtype), SMALL if small else FULL
    results: dict[str, Any] = {"torch": torch.__version__, "device": _name(where), "dtype": dtype, "compile": compile}
    torch.manual_seed(0)
    results["ceiling"] = _tell("matmul ceiling, TFLOP/s", _ceiling(where, kind, 512 if small else 8192))
    model = base_model(sizes, where, kind)
    cam, apm = memories(sizes, model)
    parts = assemble(model, short=cam, long=apm, sampler=Sampler("ddim", steps, 1.0), compile=compile)
    begin = time.perf_counter()
    _video(replace(parts, sampler=Sampler("ddim", 4, 1.0)), 40)
    results["warm-up"] = _tell("warm-up, compilation included, s", time.perf_counter() - begin)
    lengths = frames or [40, 240]
    for count in lengths:
        results[f"{count} frames"] = _told(count, _video(parts, count), parts, results["ceiling"])
    if long:
        few = replace(parts, sampler=Sampler("ddim", 2, 1.0))
        results[f"{long} frames, 2 steps"] = _told(long, _video(few, long), few, results["ceiling"])
        for name in ("GiB", "host GiB"):
            if name in results[f"{long} frames, 2 steps"]:
                ratio = results[f"{long} frames, 2 steps"][name] / results[f"{min(lengths)} frames"][name]
                results[f"{name}, {long} over {min(lengths)} frames"] = _tell(
                    f"peak {name} of {long} frames over that of {min(lengths)}", ratio
                )
    del model, parts, cam, apm
    if enhance:
        results["enhanced chunk"] = _enhanced(sizes, where, kind, results["ceiling"], 3 if small else 24)
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")


def _video(parts: Parts, frames: int) -> dict[str, float]:
    """Makes a video as a user would. Times are those of chunks after the first two (of memories: after one)."""
    _reset(parts.device)
    times, last = [], time.perf_counter()
    opening = TextOpening()
    for chunk in stream(parts, PROMPT, opening, key=Key(0), chunks=chunks_needed(parts, opening, frames)):
        now = time.perf_counter()
        times.append(now - last)
        new, last = chunk.frames.shape[1], now
    return {"first chunk": times[0], "chunk": median(times[2:]), "new": new, **_peak(parts.device)}


def _told(count: int, found: dict[str, float], parts: Parts, ceiling: float) -> dict[str, float]:
    seconds, work = found["chunk"], _chunk_work(parts)
    found |= {"s per new frame": seconds / found["new"], "TFLOP per chunk": work, "TFLOP/s": work / seconds}
    print(
        f"{count} frames at {parts.sampler.steps} steps: first chunk {found['first chunk']:.2f} s, then "
        f"{found['s per new frame']:.3f} s a new frame, {found['TFLOP/s']:.0f} TFLOP/s "
        f"({found['TFLOP/s'] / ceiling:.0%} of the ceiling), peak {_shown(found)}",
        flush=True,
    )
    return found


def _chunk_work(parts: Parts) -> float:
    """Counted TFLOP of a chunk: one step's times the steps, and everything else once."""

    def count(steps: int) -> float:
        short = replace(parts, sampler=Sampler("ddim", steps, 1.0), compile=False)
        chunks = stream(short, PROMPT, TextOpening(), key=Key(0), chunks=2)
        next(chunks)
        with FlopCounterMode(display=False) as counter:
            next(chunks)
        return counter.get_total_flops() / 1e12

    one, two = count(1), count(2)
    return one + (parts.sampler.steps - 1) * (two - one)


def _enhanced(sizes: Sizes, device: torch.device, dtype: torch.dtype, ceiling: float, frames: int) -> dict[str, float]:
    """One chunk of 24 frames, from 256x256 to 1280x720: encoded, denoised, decoded."""
    enhancer = assemble_enhancer(enhancer_model(sizes, device, dtype))
    video = torch.rand(1, frames, 3, sizes.side, sizes.side)

    def make(with_steps: int, few: Frames) -> None:
        short = replace(enhancer, sampler=replace(enhancer.sampler, steps=with_steps))
        for _ in enhance_joint(short, few, PROMPT, key=Key(0)):
            pass

    make(1, video)
    _reset(device)
    steps = enhancer.sampler.steps
    seconds = _seconds(lambda: make(steps, video), device)
    peak = _peak(device)
    works = []
    for few in (1, 2):
        with FlopCounterMode(display=False) as counter:
            make(few, video)
        works.append(counter.get_total_flops() / 1e12)
    work = works[0] + (steps - 1) * (works[1] - works[0])
    new = max(1, frames - enhancer.blender.overlap)
    found = {"seconds": seconds, "TFLOP": work, "TFLOP/s": work / seconds, "s per new frame": seconds / new, **peak}
    print(
        f"one chunk of {frames} frames at {enhancer.width}x{enhancer.height}, {steps} steps: {seconds:.1f} s "
        f"({seconds / new:.2f} s for each of {new} new frames), {work / seconds:.0f} TFLOP/s "
        f"({work / seconds / ceiling:.0%} of the ceiling), peak {_shown(found)}",
        flush=True,
    )
    return found


def _ceiling(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of a large square matrix product, median of 20."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(5):
        a @ b
    return 2e-12 * side**3 / median(_seconds(lambda: a @ b, device) for _ in range(20))


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> dict[str, float]:
    """GiB: what tensors took on the GPU, what the allocator held, and the process's largest size on the host so far."""
    host = {"host GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device.type != "cuda":
        return host
    made, held = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"GiB": made / 2**30, "held GiB": held / 2**30, **host}


def _shown(found: dict[str, float]) -> str:
    return ", ".join(f"{found[name]:.3f} {name}" for name in ("GiB", "held GiB", "host GiB") if name in found)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _tell(what: str, value: float) -> float:
    print(f"{what}: {value:.4g}", flush=True)
    return value


if __name__ == "__main__":
    typer.run(main)
