"""Second training of the embedded text encoder: which way the camera moves, in the states that denoisers read.

Contrast with frames (`train_clip`) leaves hardly a trace of it: frames in any order have the same mean embedding, so
"pans left" and "pans right" come out nearly alike. Captions are all that is needed here.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from backends.embedded.config import save_half, trained
from backends.embedded.pool import check_options
from backends.embedded.report import report
from backends.embedded.tokenizer import EOS, token_numbers
from backends.embedded.train_clip import EMPTY_SHARE
from backends.world import CAMERAS, captions, sample_scenes
from streaming.keys import Key, initial_weights
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=1500, batch=64, learning_rate=5e-4, warmup=50, ema=0.99)
TOY = Recipe(steps=4, batch=8, learning_rate=3e-4, warmup=1, ema=0.5, log_every=2)
SHARPNESS = 8.0
"""Of the readers, whose scores are cosines: states of different cameras must differ by more than a trace."""
KEEP_STATES, KEEP_EMBEDS = 4.0, 10.0
"""Weights of the losses that hold states and embeddings where they were, beside that of the camera."""
UNSAID = len(CAMERAS)
"""Number of a caption that doesn't name the camera."""


@final
class TextObjective(nn.Module):
    """States from a caption's end on tell the camera; all else stays what contrast with frames has made of it."""

    def __init__(self, text: Any) -> None:
        """text: the encoder after `train_clip`, to be trained on; a frozen copy is what it is compared with."""
        super().__init__()
        self.before = copy.deepcopy(text).requires_grad_(False)
        self.text = text
        self.readers = nn.Parameter(torch.randn(UNSAID + 1, text.config.hidden_size))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """batch: `tokens` [n, tokens], `camera` [n] numbers of `CAMERAS` or `UNSAID`.

        `tell`: cross-entropy of the camera; `states`, `embeds`: squared departures of token states, in units of their
        variance, and of unit embeddings from what they were.
        """
        now, before = self.text(batch["tokens"]), self.before(batch["tokens"])
        states = now.last_hidden_state.float()
        scores = SHARPNESS * F.normalize(states, dim=-1) @ F.normalize(self.readers, dim=-1).T
        wanted = batch["camera"][:, None].expand(scores.shape[:2])
        tell = F.cross_entropy(scores.transpose(1, 2), wanted, reduction="none")[behind_end(batch["tokens"])].mean()
        kept = F.mse_loss(states, before.last_hidden_state.float()) / before.last_hidden_state.float().var()
        embeds = [F.normalize(each.text_embeds.float(), dim=-1) for each in (now, before)]
        moved = (embeds[0] - embeds[1]).square().sum(dim=-1).mean()
        return {"loss": tell + KEEP_STATES * kept + KEEP_EMBEDS * moved, "tell": tell, "states": kept, "embeds": moved}


def behind_end(tokens: Int[Tensor, "captions tokens"]) -> Tensor:
    """True from a caption's end on: those tokens have seen all its words."""
    return (tokens == EOS).cumsum(dim=1) > 0


def named_cameras(lines: Sequence[str]) -> Int[Tensor, " captions"]:
    """What captions say of the camera: a number of `CAMERAS`, or `UNSAID`."""
    static, left, right = (CAMERAS.index(name) for name in ("static", "pans left", "pans right"))

    def number(words: list[str]) -> int:
        return left if "left" in words else right if "right" in words else static if "camera" in words else UNSAID

    return torch.tensor([number(line.split()) for line in lines])


def train_text(options: TrainOptions) -> None:
    """Train `work/text_encoder` on and write it again; prints how far it has moved.

    Raises UserError if `train clip` has not been here.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    check_options(options)
    recipe = TOY if options.toy else RECIPE
    tokenizer = AutoTokenizer.from_pretrained(trained(options.work, "tokenizer", "clip"))
    text = CLIPTextModelWithProjection.from_pretrained(
        trained(options.work, "text_encoder", "clip"), dtype=torch.float32
    )
    with initial_weights(recipe.seed):
        objective = TextObjective(text.train())
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold("text", rank)
        while True:
            yield drawn(tokenizer, count, key.fold("step", step), device)
            step += 1

    def export() -> None:
        report(options.work, "text", moves(objective, tokenizer, n=8 if options.toy else 512))
        save_half(objective.text, options.work / "text_encoder")

    fit("text", objective, batches, recipe, options, export=export)


def drawn(tokenizer: Any, n: int, key: Key, device: torch.device) -> dict[str, Tensor]:
    """Captions of random scenes, a few of them empty."""
    generator = key.generator()
    lines = captions(sample_scenes(n, generator, split="train"), generator)
    empty = (torch.rand(n, generator=generator) < EMPTY_SHARE).tolist()
    lines = ["" if gone else line for line, gone in zip(lines, empty, strict=True)]
    return {"tokens": token_numbers(tokenizer, lines).to(device), "camera": named_cameras(lines).to(device)}


@torch.no_grad()
def moves(objective: TextObjective, tokenizer: Any, *, n: int) -> dict[str, float]:
    """For captions with pairs that no training shows: what was learned, and what it did to everything else.

    `camera` is how often the readers are right; `left_right` the distance of states that only "left" and "right" tell
    apart, and `left_right_before` what it was; `others` the distance that states of captions without a pan have moved;
    all distances as shares of a state's length.
    """
    device = next(objective.parameters()).device
    generator = Key(0).fold("held out").generator()
    lines = captions(sample_scenes(n, generator, split="heldout"), generator)
    cameras, numbers = named_cameras(lines), token_numbers(tokenizer, lines).to(device)
    turned = token_numbers(tokenizer, [_turned(line) for line in lines]).to(device)
    late, pans = behind_end(numbers), ((cameras == 1) | (cameras == 2)).to(device)
    objective.eval()
    now, before = (each(numbers).last_hidden_state for each in (objective.text, objective.before))
    apart = [each(turned).last_hidden_state for each in (objective.text, objective.before)]
    objective.train()
    found = (F.normalize(now, dim=-1) @ F.normalize(objective.readers, dim=-1).T).argmax(dim=-1)
    return {
        "camera": (found == cameras.to(device)[:, None])[late].float().mean().item(),
        "left_right": _distance(now, apart[0], late & pans[:, None]),
        "left_right_before": _distance(before, apart[1], late & pans[:, None]),
        "others": _distance(now, before, (numbers >= 0) & ~pans[:, None]),
    }


def _turned(line: str) -> str:
    return " ".join({"left": "right", "right": "left"}.get(word, word) for word in line.split(" "))


def _distance(a: Tensor, b: Tensor, where: Tensor) -> float:
    return ((a - b).norm(dim=-1) / b.norm(dim=-1))[where].mean().item()
