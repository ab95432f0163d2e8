"""`python -m benchmarks.full_size`: speed and memory of the published sizes, with random weights, against the floor."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_model import FULL, SMALL, Sizes, base_model, enhancer_model, memories
from benchmarks.work import (
    PROMPT,
    device_name,
    in_steps,
    make_video,
    matmul_ceiling,
    memory_told,
    peak_memory,
    report,
    reset,
    tell,
    timed,
)
from streaming import Key, Sampler, assemble, assemble_enhancer
from streaming.enhance import enhance_joint
from streaming.types import Frames


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
    results: dict[str, Any] = {"torch": torch.__version__, "device": device_name(where), "dtype": dtype}
    results["compile"] = compile
    torch.manual_seed(0)
    results["ceiling"] = tell("matmul ceiling, TFLOP/s", matmul_ceiling(where, kind, 512 if small else 8192))
    model = base_model(sizes, where, kind)
    cam, apm = memories(sizes, model)
    parts = assemble(model, short=cam, long=apm, sampler=Sampler("ddim", steps, 1.0), compile=compile)
    begin = time.perf_counter()
    make_video(in_steps(parts, 4), 40)
    results["warm-up"] = tell("warm-up, compilation included, s", time.perf_counter() - begin)
    lengths = frames or [40, 240]
    for count in lengths:
        results[f"{count} frames"] = report(count, make_video(parts, count), parts, results["ceiling"])
    if long:
        few = in_steps(parts, 2)
        results[f"{long} frames, 2 steps"] = report(long, make_video(few, long), few, results["ceiling"])
        for name in ("GiB", "host GiB"):
            if name in results[f"{long} frames, 2 steps"]:
                ratio = results[f"{long} frames, 2 steps"][name] / results[f"{min(lengths)} frames"][name]
                results[f"{name}, {long} over {min(lengths)} frames"] = tell(
                    f"peak {name} of {long} frames over that of {min(lengths)}", ratio
                )
    del model, parts, cam, apm
    if enhance:
        results["enhanced chunk"] = _enhanced(sizes, where, kind, results["ceiling"], 3 if small else 24)
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")


def _enhanced(sizes: Sizes, device: torch.device, dtype: torch.dtype, ceiling: float, frames: int) -> dict[str, float]:
    """One chunk of 24 frames, from 256x256 to 1280x720: encoded, denoised, decoded."""
    enhancer = assemble_enhancer(enhancer_model(sizes, device, dtype))
    video = torch.rand(1, frames, 3, sizes.side, sizes.side)

    def make(with_steps: int, few: Frames) -> None:
        short = replace(enhancer, sampler=replace(enhancer.sampler, steps=with_steps))
        for _ in enhance_joint(short, few, PROMPT, key=Key(0)):
            pass

    make(1, video)
    reset(device)
    steps = enhancer.sampler.steps
    seconds = timed(lambda: make(steps, video), device)
    peak = peak_memory(device)
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
        f"({work / seconds / ceiling:.0%} of the ceiling), peak {memory_told(found)}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    typer.run(main)
