"""`python -m benchmarks.first_chunks`: how often the judge finds in the first chunk what the prompt asked for."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from backends.embedded.judge import Judge
from backends.world import ATTRIBUTES
from benchmarks.clips import draw_prompts, make_videos
from streaming.guidance import ClassifierFree
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.parts import assemble
from streaming.registry import open_model
from streaming.sample import Sampler


def main(
    model: str = "tiny-modelscope",
    judge: Annotated[
        str | None, typer.Option(help="Model directory that holds judge/; default: the embedded one")
    ] = None,
    prompts: int = 96,
    seeds: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    device: str = "cpu",
    batch: int = 32,
) -> None:
    """Prints the share of clips in which each attribute is judged as the prompt names it."""
    where = torch.device(device)
    opened = open_model(model, device=where, dtype=torch.float32)
    defaults = opened.defaults
    parts = assemble(
        opened,
        short=NoShortTerm(),
        long=NoLongTerm(),
        sampler=Sampler(sampler or defaults.sampler, steps or defaults.steps, defaults.eta),
        guidance=ClassifierFree(defaults.guidance if guidance is None else guidance),
    )
    referee = Judge.load(Path(judge or str(opened.directory)) / "judge").to(where).eval()
    asked = draw_prompts(prompts, 0)
    right = dict.fromkeys(ATTRIBUTES, 0)
    for seed in range(seeds):
        clips = torch.stack(list(make_videos(parts, asked.texts, 16, seed=seed, batch=batch)))
        with torch.inference_mode():
            answers = referee.classify(clips.to(where).float() / 255)
        for name in ATTRIBUTES:
            right[name] += int((answers[name].cpu() == asked.scenes.attribute(name)).sum())
    shares = "  ".join(f"{name} {count / (prompts * seeds):.3f}" for name, count in right.items())
    print(f"{prompts * seeds} first chunks, {parts.sampler.kind} {parts.sampler.steps} steps: {shares}", flush=True)


if __name__ == "__main__":
    typer.run(main)
