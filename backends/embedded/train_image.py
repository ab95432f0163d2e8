"""Second training of the embedded image encoder: an object's look, in the embedding that long-term memory reads.

Contrast (`train_clip`) only keeps what tells pictures apart: place and colour tell captions apart, hills and clouds
tell scenes apart, so the pattern on an object, which is what the memory is there to keep, is hardly in the embedding.
Here readers ask for every attribute, named or hidden; contrast goes on beside them, with the text encoder as it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from backends.embedded.config import MEAN, SIZE, STD, save_half, trained
from backends.embedded.pool import caption_numbers, check_options, freeze, random_start, world_pool
from backends.embedded.report import report
from backends.embedded.train_clip import LATER_SECONDS, codes, contrast, save_preprocessor
from backends.world import ATTRIBUTES, HIDDEN_ATTRIBUTES, captions, render, sample_scenes
from backends.world.scene import Scenes
from streaming.datasets import Samples, draw
from streaming.keys import Key, initial_weights
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=4000, batch=256, learning_rate=6e-4, warmup=200, weight_decay=0.05, ema=0.997)
TOY = Recipe(steps=4, batch=4, learning_rate=1e-3, warmup=1, ema=0.5, log_every=2)
NAMED = ("place", "shape", "colour", "size")
"""Attributes with a name in captions that a single frame shows."""
ASKED = {name: len(ATTRIBUTES[name]) for name in NAMED} | {name: len(each) for name, each in HIDDEN_ATTRIBUTES.items()}
"""What readers ask for, with the number of possible answers."""


TELL = 4.0
"""Weight of the readers' loss beside the two contrasts."""


@final
class ImageObjective(nn.Module):
    """Readers on the embeddings of frames, and contrast with captions and with later frames of the same scene."""

    def __init__(self, image: Any, text: Any) -> None:
        """image: the encoder after `train_clip`, to be trained on; text: its partner, which stays as it is."""
        super().__init__()
        self.image, self.text = image, text.requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.readers = nn.ModuleDict({name: nn.Linear(image.config.projection_dim, n) for name, n in ASKED.items()})
        self.scales = nn.Parameter(torch.full((2,), math.log(1 / 0.05)))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """batch: `frames` and `later` [n, 3, rows, cols] bytes, `tokens` [n, tokens], `look` [n] codes, attributes [n].

        `tell`: mean cross-entropy of the readers.
        """
        embeds = self.embed(torch.cat((batch["frames"], batch["later"])))
        frames, later = F.normalize(embeds, dim=-1).chunk(2)
        with torch.no_grad():
            text = F.normalize(self.text(batch["tokens"]).text_embeds.float(), dim=-1)
        scale = self.scales.clamp(max=math.log(100)).exp()
        same_look = batch["look"][:, None] == batch["look"][None, :]
        frame_text = contrast(frames, text, scale[0], same_look)
        frame_frame = contrast(frames, later, scale[1], torch.zeros_like(same_look))
        wrong = [F.cross_entropy(self.readers[name](embeds), batch[name].repeat(2)) for name in ASKED]
        tell = torch.stack(wrong).mean()
        loss = frame_text + frame_frame + TELL * tell
        return {"loss": loss, "tell": tell, "frame_text": frame_text, "frame_frame": frame_frame}

    def embed(self, frames: Tensor) -> Float[Tensor, "n depth"]:
        """Embeddings of frames [n, 3, rows, cols], bytes; not normalised, as memories read them."""
        return self.image(pixel_values=(frames.float() / 255 - self.mean) / self.std).image_embeds.float()


def looks(scenes: Scenes) -> dict[str, Int[Tensor, " n"]]:
    """What the readers are asked, scene by scene."""
    return {name: scenes.attribute(name) for name in ASKED}


def train_image(options: TrainOptions) -> None:
    """Train `work/image_encoder` on and write it again; prints what can be read off its embeddings.

    Raises UserError if `train clip` has not been here.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    check_options(options)
    recipe, work = TOY if options.toy else RECIPE, options.work
    tokenizer = AutoTokenizer.from_pretrained(trained(work, "tokenizer", "clip"))
    text = CLIPTextModelWithProjection.from_pretrained(trained(work, "text_encoder", "clip"), dtype=torch.float32)
    image = CLIPVisionModelWithProjection.from_pretrained(trained(work, "image_encoder", "clip"), dtype=torch.float32)
    with initial_weights(recipe.seed):
        objective = ImageObjective(image.train(), text)
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold("image", rank)
        freeze(objective.text, device)
        pool = world_pool(key, device, _slices(tokenizer), clips=count, slices=2 if options.toy else 24, period=3)
        while True:
            yield draw(pool.at(step), count, key.fold("step", step))
            step += 1

    def export() -> None:
        report(work, "image", readable(objective, n=8 if options.toy else 1024))
        save_half(objective.image, work / "image_encoder")
        save_preprocessor(work / "image_encoder")

    fit("image", objective, batches, recipe, options, export=export)


def _slices(tokenizer: Any) -> Callable[[Scenes, torch.Generator], Samples]:
    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        n, device = len(scenes), scenes.device
        start = random_start(n, generator, device)
        # A quarter of the frames are the first ones, as the anchors of long videos are.
        start = torch.where((torch.rand(n, generator=generator) < 0.25).to(device), 0.0, start)
        later = start + (torch.rand(n, generator=generator) * LATER_SECONDS).to(device)
        return {
            "frames": render(scenes, frames=1, start=start, size=SIZE)[:, 0],
            "later": render(scenes, frames=1, start=later, size=SIZE)[:, 0],
            "tokens": caption_numbers(tokenizer, captions(scenes.to("cpu"), generator)).to(device),
            "look": codes(scenes)["look"],
            **looks(scenes),
        }

    return make


@torch.no_grad()
def readable(objective: ImageObjective, *, n: int) -> dict[str, float]:
    """How often the readers are right about first frames of scenes with pairs that no training shows."""
    device = next(objective.parameters()).device
    scenes = sample_scenes(n, Key(0).fold("held out").generator(), split="heldout").to(device)
    objective.eval()
    frames = render(scenes, frames=1, size=SIZE)[:, 0]
    embeds = torch.cat([objective.embed(part) for part in frames.split(256)])
    objective.train()
    asked = looks(scenes).items()
    return {
        name: (objective.readers[name](embeds).argmax(dim=-1) == right).float().mean().item() for name, right in asked
    }
