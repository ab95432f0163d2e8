"""Training of the attribute judge on renders that are spoilt a little, as generated clips are.

It reads what captions name and what they hide. Some objects are rendered without a pattern, so that it can say of a
clip that none is to be seen; their second colour is nobody's business. It sees every pair of shape and colour: if some
were held out, as they are from the models, it would take blurred objects of these pairs for anything else.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from backends.embedded.config import FRAMES, SIZE, begin_with
from backends.embedded.judge import Judge, JudgeConfig
from backends.embedded.pool import FPS, check_options, decode, encode, freeze, random_start, world_pool
from backends.embedded.report import report
from backends.world import render, sample_scenes
from backends.world.scene import ATTRIBUTES, HIDDEN_ATTRIBUTES, PLAIN, Scenes, Split
from streaming.datasets import Samples, device_generator, draw, half_precision
from streaming.folders import save_folder
from streaming.keys import Key, initial_weights
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=5000, batch=128, learning_rate=2e-3, warmup=200, weight_decay=0.03, ema=0.997)
TOY = Recipe(steps=60, batch=8, learning_rate=3e-3, warmup=10, ema=0.9, log_every=10)
SMOOTHING = 0.02
"""Label smoothing."""
PLAIN_SHARE = 0.2
"""Share of objects without a pattern: as many as with each of the patterns."""
UNKNOWN = -100
"""Label of what a clip does not show."""
JUDGED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {**ATTRIBUTES, **HIDDEN_ATTRIBUTES, "pattern": (*HIDDEN_ATTRIBUTES["pattern"], "plain")}
)
"""The attributes that captions name, then those that they hide."""


@final
class JudgeObjective(nn.Module):
    """Mean cross-entropy over the attributes; what is `UNKNOWN` costs nothing."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `frames` in [0, 1] [n, time, 3, rows, cols] and one index tensor [n] an attribute."""
        logits = self.judge(batch["frames"])
        losses = {name: _cross_entropy(value, batch[name]) for name, value in logits.items()}
        return {"loss": torch.stack(tuple(losses.values())).mean(), **losses}


def _cross_entropy(logits: Float[Tensor, "batch words"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean over the known labels; 0 where there are none."""
    total = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING, reduction="sum", ignore_index=UNKNOWN)
    return total / (labels != UNKNOWN).sum().clamp(min=1)


def train_judge(options: TrainOptions) -> None:
    """Train and write `work/judge`; prints the accuracy on held-out scenes, per attribute.

    If `work/vae` is there, half of the clips go through it.
    """
    check_options(options)
    recipe = TOY if options.toy else RECIPE
    with initial_weights(recipe.seed):
        judge = Judge(JudgeConfig(attributes=dict(JUDGED)))
    if (begun := options.begun("judge", "judge")) is not None:
        _begin(judge, begun)
    objective = JudgeObjective(judge)
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold("judge", rank)
        make = _slices(_vae(options, device))
        pool = world_pool(key, device, make, clips=count, slices=2 if options.toy else 48, split="all")
        while True:
            drawn = key.fold("step", step)
            batch = draw(pool.at(step), count, drawn)
            batch["frames"] = spoil(batch["frames"], device_generator(drawn.fold("spoil"), device))
            yield batch
            step += 1

    def export() -> None:
        report(options.work, "judge", accuracy(objective.judge, n=8 if options.toy else 1024))
        save_folder(options.work / "judge", objective.judge.save)

    fit("judge", objective, batches, recipe, options, export=export, begun=begun is not None)


def _begin(judge: Judge, folder: Path) -> None:
    """Raises UserError if the judge there is damaged, of other sizes or asked for other numbers of words."""
    otherwise = f"the judge in {folder} is asked for other attributes, or of other sizes"
    begin_with(judge, Judge.load(folder).state_dict(), otherwise)


@torch.no_grad()
def spoil(
    frames: UInt8[Tensor, "n time 3 rows cols"], generator: torch.Generator
) -> Float[Tensor, "n time 3 rows cols"]:
    """RGB in [0, 1], each clip with its own amount of blur, noise and change of brightness and contrast."""
    n, device = len(frames), frames.device

    def amount(high: float) -> Float[Tensor, "n 1 1 1 1"]:
        return torch.rand((n, 1, 1, 1, 1), generator=generator, device=device) * high

    clean = frames.float() / 255
    blurred = F.avg_pool2d(clean.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False).view_as(clean)
    output = torch.lerp(clean, blurred, amount(0.9))
    output = (output - 0.5) * (0.9 + amount(0.2)) + 0.46 + amount(0.08)
    return output + torch.randn(output.shape, generator=generator, device=device) * amount(0.04)


def _vae(options: TrainOptions, device: torch.device) -> Any:
    if not (options.work / "vae").is_dir():
        return None
    from diffusers import AutoencoderKL

    return freeze(AutoencoderKL.from_pretrained(options.work / "vae", torch_dtype=torch.float32), device)


def _slices(vae: Any) -> Callable[[Scenes, torch.Generator], Samples]:
    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        scenes = some_plain(scenes, generator)
        start = random_start(len(scenes), generator, scenes.device)
        frames = render(scenes, frames=FRAMES, start=start, fps=FPS, size=SIZE)
        if vae is not None:
            half = len(frames) // 2
            frames[:half] = decode(vae, encode(vae, frames[:half]))
        return {"frames": frames, **labels(scenes)}

    return make


def some_plain(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """The scenes, `PLAIN_SHARE` of them without a pattern."""
    chosen = torch.rand(len(scenes), generator=generator).to(scenes.device) < PLAIN_SHARE
    return replace(scenes, pattern=torch.where(chosen, PLAIN, scenes.pattern))


def labels(scenes: Scenes) -> dict[str, Int64[Tensor, " n"]]:
    """What a judge should say of the scenes: indices into `JUDGED`, or `UNKNOWN`."""
    told = {name: scenes.attribute(name) for name in JUDGED}
    plain = told["pattern"] == PLAIN
    told["pattern"] = torch.where(plain, JUDGED["pattern"].index("plain"), told["pattern"])
    told["second_colour"] = torch.where(plain, UNKNOWN, told["second_colour"])
    return told


def examination(
    n: int, device: torch.device, *, split: Split = "heldout"
) -> tuple[UInt8[Tensor, "n 16 3 64 64"], dict[str, Int64[Tensor, " n"]]]:
    """Clips of scenes that no training has seen, rendered on the device, and what they show; "heldout": with pairs of
    shape and colour that no model has seen."""
    generator = Key(0).fold("held out", *(() if split == "heldout" else (split,))).generator()
    scenes = some_plain(sample_scenes(n, generator, split=split).to(device), generator)
    frames = render(scenes, frames=FRAMES, start=random_start(n, generator, device), fps=FPS, size=SIZE)
    return frames, labels(scenes)


@torch.no_grad()
def accuracy(judge: Judge, *, n: int) -> dict[str, float]:
    """Share of unspoilt clips of unseen scenes that are judged rightly, per attribute."""
    frames, known = examination(n, next(judge.parameters()).device)
    judge.eval()
    with half_precision(frames.device):
        right = share_right(judge, frames, known)
    judge.train()
    return right


@torch.no_grad()
def share_right(
    judge: Judge, frames: UInt8[Tensor, "n time 3 rows cols"], known: Mapping[str, Int64[Tensor, " n"]]
) -> dict[str, float]:
    """Share of the clips that are judged rightly, per attribute, over those whose label is known."""
    told = [judge.classify(part.float() / 255) for part in frames.split(64)]
    shares = {}
    for name in judge.config.attributes:
        asked = known[name] != UNKNOWN
        answers = torch.cat([each[name] for each in told])
        shares[name] = (answers == known[name])[asked].double().mean().item()
    return shares
