"""Second training of the embedded text encoder: what contrast doesn't teach, in the states that denoisers read.

Contrast with frames (`train_clip`) leaves hardly a trace of which way the camera moves: frames in any order have the
same mean embedding, so "pans left" and "pans right" come out nearly alike. And it asks nothing of the words for an
object's look: scenes of one place, shape and colour are no negatives. Captions are all that is needed here.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from backends.embedded.config import save_half, trained
from backends.embedded.pool import caption_numbers, check_options
from backends.embedded.report import report
from backends.embedded.tokenizer import EOS, token_numbers
from backends.embedded.train_clip import EMPTY_SHARE
from backends.world import CAMERAS, HIDDEN_ATTRIBUTES, captions, sample_scenes
from streaming.keys import Key, initial_weights
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=1500, batch=64, learning_rate=5e-4, warmup=50, ema=0.99)
TOY = Recipe(steps=4, batch=8, learning_rate=3e-4, warmup=1, ema=0.5, log_every=2)
SHARPNESS = 8.0
"""Of the readers, whose scores are cosines: states of different words must differ by more than a trace."""
KEEP_STATES, KEEP_EMBEDS = 4.0, 10.0
"""Weights of the losses that hold states and embeddings where they were, beside that of the readers."""
TOLD: Mapping[str, tuple[str, ...]] = MappingProxyType({"camera": CAMERAS, **HIDDEN_ATTRIBUTES})
"""What is read off the states; a caption that doesn't say has the number of words, one more than the last word's."""


@final
class TextObjective(nn.Module):
    """States from a caption's end on tell the camera and the object's look; all else stays what contrast with frames
    has made of it."""

    def __init__(self, text: Any) -> None:
        """text: the encoder after `train_clip`, to be trained on; a frozen copy is what it is compared with."""
        super().__init__()
        self.before = copy.deepcopy(text).requires_grad_(False)
        self.text = text
        width = text.config.hidden_size
        self.readers = nn.ParameterDict({name: torch.randn(len(words) + 1, width) for name, words in TOLD.items()})

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """batch: `tokens` and `plain`, the captions without looks [n, tokens], and a number [n] for each of `TOLD`.

        `tell`: cross-entropy of the readers; `states`: squared departure of token states from what they were, in units
        of their variance, where nothing is said of looks; `embeds`: of unit embeddings from those without looks.
        """
        now, before = self.text(batch["tokens"]), self.before(batch["plain"])
        states, were = now.last_hidden_state.float(), before.last_hidden_state.float()
        late = behind_end(batch["tokens"])
        told = [F.cross_entropy(self.scores(name, states)[late], self._wanted(batch[name], late)) for name in TOLD]
        tell = torch.stack(told).mean()
        same = (batch["tokens"] == batch["plain"]).all(dim=1)
        kept = ((states - were).square().mean(dim=(1, 2)) * same).sum() / same.sum().clamp(min=1) / were.var()
        embeds = [F.normalize(each.text_embeds.float(), dim=-1) for each in (now, before)]
        moved = (embeds[0] - embeds[1]).square().sum(dim=-1).mean()
        return {"loss": tell + KEEP_STATES * kept + KEEP_EMBEDS * moved, "tell": tell, "states": kept, "embeds": moved}

    def scores(self, name: str, states: Float[Tensor, "n tokens depth"]) -> Float[Tensor, "n tokens words"]:
        """What the reader of an attribute says of every token."""
        return SHARPNESS * F.normalize(states, dim=-1) @ F.normalize(self.readers[name], dim=-1).T

    def _wanted(self, numbers: Int[Tensor, " n"], late: Tensor) -> Tensor:
        return numbers[:, None].expand(late.shape)[late]


def behind_end(tokens: Int[Tensor, "captions tokens"]) -> Tensor:
    """True from a caption's end on: those tokens have seen all its words."""
    return (tokens == EOS).cumsum(dim=1) > 0


def said(lines: Sequence[str]) -> dict[str, Int[Tensor, " captions"]]:
    """What captions say, a number for each of `TOLD`: the word's, or the number of words if they don't."""
    rows = [_said(line.replace(",", " ").split()) for line in lines]
    return {name: torch.tensor([row.get(name, len(words)) for row in rows]) for name, words in TOLD.items()}


_PATTERNS, _OUTLINES = ("|".join(HIDDEN_ATTRIBUTES[name]) for name in ("pattern", "outline"))
_LOOK = re.compile(rf" with (?:(?:a )?(\w+) ({_PATTERNS})(?: and )?)?(?:a ({_OUTLINES}) edge)?")


def _said(words: list[str]) -> dict[str, int]:
    static, left, right = (CAMERAS.index(name) for name in ("static", "pans left", "pans right"))
    found = {}
    if "left" in words or "right" in words or "camera" in words:
        found["camera"] = left if "left" in words else right if "right" in words else static
    if (look := _LOOK.search(" ".join(words))) is not None:
        told = zip(("second_colour", "pattern", "outline"), look.groups(), strict=True)
        found |= {name: HIDDEN_ATTRIBUTES[name].index(word) for name, word in told if word}
    return found


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
    """Captions of random scenes, a few of them empty, with and without looks."""
    scenes = sample_scenes(n, key.generator(), split="train")
    lines, plain = (captions(scenes, key.fold("wording").generator(), looks=looks) for looks in (True, False))
    empty = (torch.rand(n, generator=key.fold("empty").generator()) < EMPTY_SHARE).tolist()
    lines, plain = (["" if gone else line for line, gone in zip(each, empty, strict=True)] for each in (lines, plain))
    numbers = {"tokens": caption_numbers(tokenizer, lines), "plain": caption_numbers(tokenizer, plain)}
    return {name: value.to(device) for name, value in {**numbers, **said(lines)}.items()}


@torch.no_grad()
def moves(objective: TextObjective, tokenizer: Any, *, n: int) -> dict[str, float]:
    """For captions with pairs that no training shows: what was learned, and what it did to everything else.

    For each of `TOLD` how often its reader is right; `left_right` the distance of states that only "left" and "right"
    tell apart, and `left_right_before` what it was; `others` the distance that states of captions without a pan and
    without looks have moved; all distances as shares of a state's length.
    """
    device = next(objective.parameters()).device
    scenes = sample_scenes(n, Key(0).fold("held out").generator(), split="heldout")
    wording = Key(0).fold("held out", "wording")
    looking, lines = (captions(scenes, wording.generator(), looks=looks) for looks in (True, False))
    objective.eval()
    right = _read(objective, tokenizer, looking, device)
    cameras, numbers = said(lines)["camera"], token_numbers(tokenizer, lines).to(device)
    turned = token_numbers(tokenizer, [_turned(line) for line in lines]).to(device)
    late, pans = behind_end(numbers), ((cameras == 1) | (cameras == 2)).to(device)
    now, before = (each(numbers).last_hidden_state for each in (objective.text, objective.before))
    apart = [each(turned).last_hidden_state for each in (objective.text, objective.before)]
    objective.train()
    return right | {
        "left_right": _distance(now, apart[0], late & pans[:, None]),
        "left_right_before": _distance(before, apart[1], late & pans[:, None]),
        "others": _distance(now, before, (numbers >= 0) & ~pans[:, None]),
    }


def _read(objective: TextObjective, tokenizer: Any, lines: Sequence[str], device: torch.device) -> dict[str, float]:
    """How often each reader is right about the states from captions' ends on."""
    numbers = token_numbers(tokenizer, lines).to(device)
    late, states = behind_end(numbers), objective.text(numbers).last_hidden_state
    found = {name: objective.scores(name, states).argmax(dim=-1) for name in TOLD}
    wanted = {name: value.to(device)[:, None] for name, value in said(lines).items()}
    return {name: (found[name] == wanted[name])[late].float().mean().item() for name in TOLD}


def _turned(line: str) -> str:
    return " ".join({"left": "right", "right": "left"}.get(word, word) for word in line.split(" "))


def _distance(a: Tensor, b: Tensor, where: Tensor) -> float:
    return ((a - b).norm(dim=-1) / b.norm(dim=-1))[where].mean().item()
