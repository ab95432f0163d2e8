"""`python -m benchmarks.full_size_opensora`: speed and memory of Open-Sora 1.2 with CAM and APM, random weights."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from adapters.apm import new_apm
from adapters.cam import new_cam
from benchmarks.random_model import made_on
from benchmarks.random_opensora import FULL, SMALL, open_sora
from benchmarks.work import PROMPT, device_name, in_steps, make_video, matmul_ceiling, peak_memory, report, reset, tell
from streaming import Key, Parts, TextOpening, assemble
from streaming.loop import stream


def main(
    windows: Annotated[int, typer.Option(min=3, help="Windows of the video, the first one included")] = 5,
    compile: Annotated[bool, typer.Option("--compile", help="Ends in NaN at full size so far")] = False,
    small: Annotated[bool, typer.Option("--small", help="Tiny networks, to try this command")] = False,
    device: str = "cuda",
    dtype: str = "bfloat16",
    output: Annotated[Path | None, typer.Option(help="All figures as JSON")] = None,
) -> None:
    """Prints seconds for each new frame, TFLOP/s against counted FLOPs and matmul ceiling, and memory by window."""
    where, kind, sizes = torch.device(device), getattr(torch, dtype), SMALL if small else FULL
    results: dict[str, Any] = {"torch": torch.__version__, "device": device_name(where), "dtype": dtype}
    torch.manual_seed(0)
    results["compile"] = compile
    results["ceiling"] = tell("matmul ceiling, TFLOP/s", matmul_ceiling(where, kind, 512 if small else 8192))
    model = open_sora(sizes, where, kind)
    with made_on(where, kind):
        cam, apm = new_cam(model), new_apm(model)
    for value in (*cam.parameters(), *apm.parameters()):
        if not bool(value.any()):
            nn.init.normal_(value, std=0.02)  # zeros would cost less power
    memories = cam.requires_grad_(False), apm.requires_grad_(False)
    parts = assemble(model, short=memories[0], long=memories[1], compile=compile)
    for name, module in {"transformer": model.backbone, "cam": cam, "apm": apm, "codec": model.codec}.items():
        results[f"{name}, M"] = tell(f"{name}, M parameters", sum(p.numel() for p in module.parameters()) / 1e6)
    begin = time.perf_counter()
    new = model.codec.pixel_frames(model.backbone.window.frames - model.backbone.window.overlap)
    first = model.codec.pixel_frames(model.backbone.window.frames)
    make_video(in_steps(parts, 2), first + 2 * new)
    results["warm-up"] = tell("warm-up, compilation included, s", time.perf_counter() - begin)
    frames = first + (windows - 1) * new
    results["video"] = report(frames, make_video(parts, frames), parts, results["ceiling"])
    results["memory"] = _by_window(in_steps(parts, 2), windows)
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")


def _by_window(parts: Parts, windows: int) -> list[dict[str, float]]:
    """Peaks while each window is made."""
    found = []
    chunks = stream(parts, PROMPT, TextOpening(), key=Key(0), chunks=windows)
    for index in range(windows):
        reset(parts.device)
        next(chunks)
        found.append(peak_memory(parts.device))
        told = ", ".join(f"{value:.3f} {name}" for name, value in found[-1].items())
        print(f"window {index + 1}: {told}", flush=True)
    return found


if __name__ == "__main__":
    typer.run(main)
