"""`python -m benchmarks.enhanced_videos VIDEOS OUTPUT`: stage 3 on the videos that `benchmarks.long_videos` kept."""

import json
from pathlib import Path

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file

from streaming.enhance import assemble_enhancer, enhance_causal, enhance_joint
from streaming.keys import Key
from streaming.prompts import PromptSchedule
from streaming.registry import make_blender, open_enhancer


def main(
    videos: Path,
    output: Path,
    model: str = "tiny-modelscope",
    blender: str = "randomized",
    mode: str = "joint",
    strength: float | None = None,
    count: int = 16,
    device: str = "cpu",
) -> None:
    """Writes the enhanced videos (uint8, safetensors) with their prompts, for `benchmarks.sheet`."""
    opened = open_enhancer(model, device=torch.device(device), dtype=torch.float32)
    window = opened.backbone.window
    enhancer = assemble_enhancer(opened, make_blender(blender, window.frames, window.overlap), strength=strength)
    done: dict[str, torch.Tensor] = {}
    with safe_open(videos, "pt") as archive:
        prompts = json.loads(archive.metadata()["prompts"])
        for name, prompt in list(zip(sorted(archive.keys()), prompts, strict=True))[:count]:
            frames, schedule = archive.get_tensor(name)[None].float() / 255, PromptSchedule.fixed(prompt)
            run = enhance_joint if mode == "joint" else enhance_causal
            source = frames if mode == "joint" else frames.split(8, dim=1)
            pieces = run(enhancer, source, schedule, key=Key(int(name)))  # pyright: ignore[reportArgumentType]
            done[name] = torch.cat([piece.mul(255).round().to(torch.uint8)[0] for piece in pieces]).contiguous()
            print(f"{name}: {prompt}", flush=True)
    save_file(done, output, {"prompts": json.dumps(prompts[: len(done)])})


if __name__ == "__main__":
    typer.run(main)
