"""`python -m benchmarks.speed`: wall time and peak memory of the command line, from start to finished file."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

PROMPT = "a red ball rolls over a green meadow"


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Lengths to measure")] = None,
    enhance: bool = False,
    cores: Annotated[int, typer.Option(help="Cores that the process may use")] = 2,
    extra: Annotated[str, typer.Option(help="Further options of `generate`, in one string")] = "",
) -> None:
    """Prints seconds, frames/s and peak resident memory for each length."""
    for count in frames or [80]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "streaming.cli", "generate", PROMPT, "--frames", str(count)]
            command += ["--output", str(Path(folder) / "out.mp4"), *(["--enhance"] if enhance else []), *extra.split()]
            seconds, peak = _watch(command, cores)
        what = f"{count} frames{' enhanced' if enhance else ''}"
        print(f"{what}: {seconds:.1f} s, {count / seconds:.2f} frames/s, peak {peak / 2**20:.0f} MiB", flush=True)


def _watch(command: list[str], cores: int) -> tuple[float, int]:
    """Wall seconds and peak resident bytes (the kernel's own high-water mark)."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(cores)}
    )
    watched = psutil.Process(process.pid)
    if hasattr(watched, "cpu_affinity"):
        watched.cpu_affinity(list(range(cores)))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the command failed with exit code {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
