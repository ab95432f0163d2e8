"""`python -m benchmarks.first_chunks`: how often the judge finds in the first chunk what the prompt asked for."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, final

import torch
import typer
from jaxtyping import Bool, Int
from torch import Tensor

from backends.world import ATTRIBUTES, HELD_OUT
from benchmarks.clips import Prompts, draw_prompts, make_videos
from benchmarks.intervals import Estimate, share
from benchmarks.judged import Referee, appoint, judge_folder, tell
from streaming.guidance import ClassifierFree
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.parts import Parts, assemble
from streaming.registry import open_model
from streaming.sample import Sampler

PAIR = "colour + shape"
"""Both right in the same clip: what pairs that training never shows are asked for."""


@final
@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a judge found in the clips of some prompts."""

    asked: Prompts
    """What they should show."""
    found: Mapping[str, Int[Tensor, "prompts seeds"]]
    """Indices of words, by attribute."""

    def right(self, name: str) -> Bool[Tensor, "prompts seeds"]:
        """Where an attribute of the prompt was found."""
        return self.found[name] == self.asked.scenes.attribute(name)[:, None]

    def shares(self, referee: Referee) -> dict[str, Estimate]:
        """Share of clips that are right, for each attribute that the judge may be asked about, and for `PAIR`."""
        shares = {name: share(self.right(name)) for name in ATTRIBUTES if referee.may(name)}
        if referee.may("colour") and referee.may("shape"):
            shares[PAIR] = share(self.right("colour") & self.right("shape"))
        return shares

    def by_word(self, name: str) -> dict[str, float]:
        """Share of clips that are right, for each word that prompts gave."""
        asked, right = self.asked.scenes.attribute(name), self.right(name).double()
        words = enumerate(ATTRIBUTES[name])
        return {word: float(right[asked == i].mean()) for i, word in words if bool((asked == i).any())}


def main(
    model: str = "tiny-modelscope",
    judge: Annotated[
        str | None, typer.Option(help="Model directory that holds judge/; default: the model's own, or the packaged")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts with pairs of colour and shape from training")] = 256,
    held_out: Annotated[int, typer.Option(min=0, help="Prompts with pairs that no training shows")] = 96,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    unsaid: Annotated[
        bool, typer.Option(help='Prompts that name neither "medium" nor a static camera, as a user may leave them out')
    ] = False,
    judge_clips: Annotated[int, typer.Option(min=2, help="Renders on which the judge itself is examined")] = 512,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    device: str = "cpu",
    batch: Annotated[int | None, typer.Option(help="Clips made together; default: 128 on a GPU, 16 on a CPU")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON with the figures, and what was found in every clip")] = None,
) -> None:
    """Prints the share of clips in which each attribute is judged as the prompt names it, with 95 % intervals."""
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
    referee = appoint(judge_folder(judge, opened.directory), parts.codec, where, clips=judge_clips)
    tell(referee)
    at_once = batch or (128 if where.type == "cuda" else 16)
    groups = {"trained pairs": draw_prompts(prompts, 0, complete=not unsaid)}
    if held_out:
        groups["held-out pairs"] = draw_prompts(held_out, 0, split="heldout", complete=not unsaid)
    figures: dict[str, object] = {
        "model": model, "sampler": parts.sampler.kind, "steps": parts.sampler.steps, "guidance": parts.guidance.scale,
        "seeds": seeds, "device": str(where), "complete prompts": not unsaid, "batch": at_once,
        "judge": {"renders": dict(referee.renders), "after the autoencoder": dict(referee.coded)},
    }  # fmt: skip
    for name, asked in groups.items():
        begin = time.perf_counter()
        answers = judged(parts, referee, asked, seeds=seeds, batch=at_once)
        print(f"{name}: {len(asked.texts)} prompts x {seeds} seeds, {time.perf_counter() - begin:.1f} s", flush=True)
        figures[name] = _report(answers, referee)
    if output:
        output.write_text(json.dumps(figures | {"held out": [" ".join(pair) for pair in HELD_OUT]}, indent=1) + "\n")


def judged(parts: Parts, referee: Referee, asked: Prompts, *, seeds: int, batch: int) -> Answers:
    """First chunks of all prompts, judged."""
    frames = referee.judge.config.frames
    told = []
    for seed in range(seeds):
        told.append(referee.ask(torch.stack(list(make_videos(parts, asked.texts, frames, seed=seed, batch=batch)))))
    return Answers(asked=asked, found={name: torch.stack([each[name] for each in told], dim=1) for name in told[0]})


def _report(answers: Answers, referee: Referee) -> dict[str, object]:
    """Prints and returns the figures of a group of prompts."""
    shares = answers.shares(referee)
    for name, estimate in shares.items():
        words = answers.by_word(name) if name in ATTRIBUTES else {}
        print(f"  {name:15}{estimate}   " + "  ".join(f"{word} {value:.2f}" for word, value in words.items()))
    for name in ATTRIBUTES.keys() - shares.keys():
        print(f"  {name:15}not judged")
    found = {name: [[referee.words(name)[i] for i in row] for row in told.tolist()]
             for name, told in answers.found.items()}  # fmt: skip
    return {
        "shares": {name: asdict(estimate) for name, estimate in shares.items()},
        "by word": {name: answers.by_word(name) for name in shares if name in ATTRIBUTES},
        "clips": [
            {"prompt": text, "found": {name: found[name][i] for name in found}}
            for i, text in enumerate(answers.asked.texts)
        ],
    }


if __name__ == "__main__":
    typer.run(main)
