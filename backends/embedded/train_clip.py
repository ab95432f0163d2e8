"""Training of the embedded text and image encoders: captions, frames and videos of the world in one space."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from backends.embedded.config import MEAN, SIZE, STD, build_image_encoder, build_text_encoder, save_half
from backends.embedded.pool import check_options, random_start, world_pool
from backends.embedded.report import report
from backends.embedded.tokenizer import build_tokenizer, token_numbers
from backends.world import VOCABULARY, captions, render, sample_scenes
from backends.world.scene import ATTRIBUTES, Scenes
from streaming.datasets import Samples, draw
from streaming.folders import save_folder
from streaming.keys import Key, initial_weights
from streaming.training import Recipe, TrainOptions, fit

RECIPE = Recipe(steps=6000, batch=512, learning_rate=1e-3, warmup=300, weight_decay=0.05, ema=0.997)
TOY = Recipe(steps=60, batch=16, learning_rate=3e-3, warmup=10, ema=0.9, log_every=10)
CLIP_FRAMES, CLIP_FPS = 4, 2.0
"""Frames whose mean embedding stands for a clip of two seconds."""
LATER_FRAMES = 2
"""More frames of the same scene, up to `LATER_SECONDS` away: the embedding must hold what captions hardly teach."""
LATER_SECONDS = 30.0
EMPTY_SHARE = 0.02
"""Share of captions replaced by the empty one, so that it has states, too (guidance needs them)."""


@final
class ClipObjective(nn.Module):
    """Contrastive losses between frames and text, clips and text, and frames of one scene at different times."""

    def __init__(self, text: Any, image: Any) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.mean: Tensor
        self.std: Tensor
        self.scales = nn.Parameter(torch.full((3,), math.log(1 / 0.1)))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `frames` [n, 4, ...] of a clip, `later` [n, 2, ...], `tokens` [n, tokens], `look`, `whole` [n] codes.

        Scenes with the same code `look` (place, shape, colour) are no negatives of each other's frames and captions,
        those with the same `whole` (with the action) none of each other's clips and captions.
        """
        text = F.normalize(self.text(batch["tokens"]).text_embeds.float(), dim=-1)
        frames = self._embed(batch["frames"])
        later = self._embed(batch["later"])
        scale = self.scales.clamp(max=math.log(100)).exp()
        same_look = batch["look"][:, None] == batch["look"][None, :]
        same_whole = batch["whole"][:, None] == batch["whole"][None, :]
        other = batch["frames"].shape[1] // 2
        video = F.normalize(frames.mean(dim=1), dim=-1)
        frame_text = contrast(frames[:, 0], text, scale[0], same_look)
        video_text = contrast(video, text, scale[1], same_whole)
        same = torch.zeros_like(same_look)
        frame_frame = contrast(frames[:, other], later[:, 0], scale[2], same)
        frame_frame = 0.5 * (frame_frame + contrast(frames[:, 0], later[:, 1], scale[2], same))
        loss = frame_text + video_text + frame_frame
        return {"loss": loss, "frame_text": frame_text, "video_text": video_text, "frame_frame": frame_frame}

    def _embed(self, frames: Tensor) -> Float[Tensor, "batch time depth"]:
        pixels = (frames.flatten(0, 1).float() / 255 - self.mean) / self.std
        embeds = F.normalize(self.image(pixel_values=pixels).image_embeds.float(), dim=-1)
        return embeds.unflatten(0, frames.shape[:2])


def contrast(
    a: Float[Tensor, "batch depth"],
    b: Float[Tensor, "batch depth"],
    scale: Float[Tensor, ""],
    same: Bool[Tensor, "batch batch"],
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of unit vectors; pairs off the diagonal where `same` is true are no negatives."""
    logits = scale * a @ b.T
    diagonal = torch.eye(len(a), dtype=torch.bool, device=a.device)
    logits = logits.masked_fill(same & ~diagonal, -torch.inf)
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def train_clip(options: TrainOptions) -> None:
    """Train and write `work/text_encoder`, `work/tokenizer` and `work/image_encoder`; prints retrieval figures."""
    check_options(options)
    recipe = TOY if options.toy else RECIPE
    tokenizer = build_tokenizer(VOCABULARY)
    with initial_weights(recipe.seed):
        encoders = build_text_encoder(len(tokenizer), toy=options.toy), build_image_encoder(toy=options.toy)
    objective = ClipObjective(*encoders)
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold("clip", rank)
        pool = world_pool(key, device, _slices(tokenizer), clips=count, slices=2 if options.toy else 24)
        while True:
            yield paired(pool.at(step), count, key.fold("step", step))
            step += 1

    def export() -> None:
        report(options.work, "clip", retrieval(objective, tokenizer, n=8 if options.toy else 512))
        save_folder(options.work / "tokenizer", lambda folder: tokenizer.save_pretrained(folder))
        save_half(objective.text, options.work / "text_encoder")
        save_half(objective.image, options.work / "image_encoder")
        save_preprocessor(options.work / "image_encoder")

    fit("clip", objective, batches, recipe, options, export=export)


def paired(samples: Samples, n: int, key: Key) -> dict[str, Tensor]:
    """n rows of a pool, half by chance and half their likest neighbours, which only hidden things tell apart."""
    samples = dict(samples)
    order = samples["whole"].argsort(stable=True)
    first = draw({"row": torch.arange(len(order), device=order.device)}, (n + 1) // 2, key)["row"]
    rows = order[torch.cat((first, (first + 1) % len(order)))[:n]]
    chosen = {name: value[rows] for name, value in samples.items()}
    # One of a scene's two captions, by chance.
    which = key.fold("caption").integers(0, 2, n).to(rows.device)
    chosen["tokens"] = chosen["tokens"][torch.arange(n, device=rows.device), which]
    return chosen


def codes(scenes: Scenes) -> dict[str, Int[Tensor, " n"]]:
    """Numbers that are equal for scenes whose captions may be equal, without and with the action."""
    look = torch.zeros_like(scenes.attribute("place"))
    for name in ("place", "shape", "colour"):
        look = look * len(ATTRIBUTES[name]) + scenes.attribute(name)
    return {"look": look, "whole": look * len(ATTRIBUTES["action"]) + scenes.attribute("action")}


def _slices(tokenizer: Any) -> Callable[[Scenes, torch.Generator], Samples]:
    def make(scenes: Scenes, generator: torch.Generator) -> Samples:
        n, device = len(scenes), scenes.device
        start = random_start(n, generator, device)
        # A quarter of the clips begin at frame 0, as the anchors of long videos do.
        start = torch.where((torch.rand(n, generator=generator) < 0.25).to(device), 0.0, start)
        later = [start + (torch.rand(n, generator=generator) * LATER_SECONDS).to(device) for _ in range(LATER_FRAMES)]
        on_cpu = scenes.to("cpu")
        lines = captions(on_cpu, generator) + captions(on_cpu, generator)
        empty = (torch.rand(2 * n, generator=generator) < EMPTY_SHARE).tolist()
        tokens = token_numbers(tokenizer, ["" if gone else line for line, gone in zip(lines, empty, strict=True)])
        return {
            "frames": render(scenes, frames=CLIP_FRAMES, start=start, fps=CLIP_FPS, size=SIZE),
            "later": torch.cat([render(scenes, frames=1, start=time, size=SIZE) for time in later], dim=1),
            "tokens": tokens.unflatten(0, (2, n)).transpose(0, 1).to(device),
            **codes(scenes),
        }

    return make


@torch.no_grad()
def retrieval(objective: ClipObjective, tokenizer: Any, *, n: int) -> dict[str, float]:
    """How often a held-out clip finds a caption of its kind among n, and frame 0 the frame half a minute later."""
    device = next(objective.parameters()).device
    generator = Key(0).fold("held out").generator()
    scenes = sample_scenes(n, generator, split="heldout")
    numbers = token_numbers(tokenizer, captions(scenes, generator)).to(device)
    scenes = scenes.to(device)
    objective.eval()
    text = F.normalize(objective.text(numbers).text_embeds, dim=-1)
    frames = objective._embed(render(scenes, frames=CLIP_FRAMES, fps=CLIP_FPS, size=SIZE))
    later = objective._embed(render(scenes, frames=1, start=LATER_SECONDS, size=SIZE))[:, 0]
    objective.train()
    whole = codes(scenes)["whole"]
    nearest = (F.normalize(frames.mean(dim=1), dim=-1) @ text.T).argmax(dim=-1)
    found = (frames[:, 0] @ later.T).argmax(dim=-1)
    return {
        "clip_to_text": (whole[nearest] == whole).float().mean().item(),
        "frame_to_later_frame": (found == torch.arange(n, device=device)).float().mean().item(),
    }


def save_preprocessor(folder: Path) -> None:
    """Write how pictures are prepared beside the image encoder."""
    from transformers import CLIPImageProcessor

    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(
        do_resize=True, size=size, do_center_crop=False, do_rescale=True, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)
