"""Batches for the training of memories: clips of any dataset, encoded once into a pool and noised afresh every step."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from adapters.apm import GREY
from adapters.cam import fitting_condition
from adapters.recipe import MemoryRecipe
from streaming.codec import Codec
from streaming.datasets import ClipDataset, RollingPool, Samples, device_generator, draw, half_precision
from streaming.errors import UserError
from streaming.keys import Key
from streaming.memory import Tail
from streaming.model import Model
from streaming.noising import Diffusion, Times
from streaming.subject_weight import subject_weight
from streaming.types import Latents, TokenMask, Tokens

FRAMES_AT_ONCE = 512
"""64 × 64 frames (or as many pixels) that a codec handles together."""


@final
@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's clips, noised."""

    noisy: Latents
    """x_t."""
    time: Times
    """t, in the scheduler's unit."""
    target: Latents
    """What the network should predict."""
    weight: Float[Tensor, "batch frames"]
    """How much each frame counts: 0 for given ones, else 1."""
    focus: Float[Tensor, "batch frames high wide"]
    """How much each cell counts besides: 1, and more on the subject."""
    context: Tokens
    """Text tokens."""
    context_mask: TokenMask | None
    """True where a token is to be read."""
    forgotten: Bool[Tensor, " batch"] | None
    """Clips that the short-term memory knows nothing of; None: none of them."""
    tail: Tail
    """The overlap as the memory sees it: the clip's own first frames, made imperfect; pixels only if it reads them."""
    anchor: Float[Tensor, "batch image_width"] | None
    """Image embeddings of the anchors; None if the model has no image encoder."""


@final
class ClipBatches:
    """The `batches` of `streaming.training.fit`: a pure function of step and rank."""

    def __init__(self, model: Model, dataset: ClipDataset, recipe: MemoryRecipe, *, batch: int, name: str) -> None:
        """name: of the training; others of that name see the same clips with the same noise.

        Raises UserError for oblong models.
        """
        if model.defaults.height != model.defaults.width:
            raise UserError(
                f"clips are square, {model.name} makes {model.defaults.height}x{model.defaults.width} pixels: "
                "train it with a square height and width in its defaults"
            )
        self.model, self.dataset, self.recipe, self.batch = model, dataset, recipe, batch
        self.key = Key(recipe.loop.seed).fold(name)
        self.condition = recipe.condition or fitting_condition(model.backbone, model.codec)
        self.diffusion = Diffusion(model.scheduler)
        self.overlap = model.backbone.window.overlap

    def __call__(self, first: int, rank: int, world: int, device: torch.device) -> Iterator[Batch]:
        """Endless batches from step `first` on; moves codec, text and image encoder to the device."""
        for part in (self.model.codec, self.model.text, self.model.image):
            if part is not None:
                part.to(device).eval().requires_grad_(False)
        pool = RollingPool(
            lambda index: self.slice_of(self.key.fold("slice", index, rank), device),
            slices=self.recipe.slices,
            period=self.recipe.period,
        )
        nothing = self.nothing(device)
        for step in count(first):
            key = self.key.fold("step", step, rank)
            yield self.noised(draw(pool.at(step), self.batch, key.fold("rows")), nothing, device_generator(key, device))

    @torch.no_grad()
    def slice_of(self, key: Key, device: torch.device) -> Samples:
        """One batch of clips, encoded: latents and tail pixels, text tokens, embeddings of the anchors."""
        codec, window = self.model.codec, self.model.backbone.window
        clips = self.dataset.clips(
            self.batch,
            key.generator(),
            frames=codec.pixel_frames(window.frames),
            size=self.model.defaults.height,
            device=device,
            context_seconds=self.recipe.context_seconds,
        )
        latents = encode(codec, clips.frames)
        samples = {"latents": latents.half(), **self._text(clips.captions)}
        if clips.subject is not None:
            samples["subject"] = F.adaptive_avg_pool3d(clips.subject[:, None], latents.shape[2:]).half()
        if self.condition == "pixels":
            samples["tail"] = decode(codec, latents[:, :, : window.overlap])
        if self.model.image is not None:
            samples["anchor"] = self.model.image(clips.anchors.float() / 255)
        return samples

    @torch.no_grad()
    def nothing(self, device: torch.device) -> Samples:
        """What stands for no text and for no anchor, one row each."""
        size = self.model.defaults.height
        grey = torch.full((1, 3, size, size), GREY, device=device)
        anchor = {} if self.model.image is None else {"anchor": self.model.image(grey)}
        text = self._text([""])
        own = self.model.text.nothing(self.model.text([""]))
        if own is not None:  # as in sampling, read as far as the prompt in whose place it stands: no mask of its own
            text = {"text": own.tokens.half()}
        return {**text, **anchor}

    @torch.no_grad()
    def noised(self, clips: Samples, nothing: Samples, generator: torch.Generator) -> Batch:
        """A batch of pooled clips with drops, imperfect memories, times and noise, all drawn from the generator."""
        clean, recipe = clips["latents"].float(), self.recipe
        rows, frames = clean.shape[0], clean.shape[2]
        uniform = torch.rand(2, rows, generator=generator, device=clean.device)
        no_text, no_anchor = drops(uniform[0], recipe.text_dropout, recipe.anchor_dropout)
        injected = uniform[1] < recipe.injected
        time, noise = self.diffusion.times(rows, generator), normal_like(clean, generator)
        tail = self._tail(clips, generator)  # last, so that memories of pixels and of latents meet the same noise
        forgotten = None
        if recipe.forgetting > 0:
            forgotten = torch.rand(rows, generator=generator, device=clean.device) < recipe.forgetting
            injected &= ~forgotten
        noisy, overlap = self.diffusion.noised(clean, noise, time), slice(0, self.overlap)
        known = self.diffusion.noised(tail.latents, noise[:, :, overlap], time)
        noisy[:, :, overlap] = torch.where(injected.view(-1, 1, 1, 1, 1), known, noisy[:, :, overlap])
        weight = torch.ones(rows, frames, device=clean.device)
        weight[:, overlap] = (~injected).float()[:, None]
        return Batch(
            noisy=noisy,
            time=time,
            target=self.diffusion.target(clean, noise, time),
            weight=weight,
            focus=self._focus(clips, time),
            forgotten=forgotten,
            context=torch.where(no_text.view(-1, 1, 1), nothing["text"], clips["text"]).float(),
            context_mask=_either(no_text, nothing, clips, "text_mask"),
            tail=tail,
            anchor=_either(no_anchor, nothing, clips, "anchor"),
        )

    def _focus(self, clips: Samples, time: Times) -> Float[Tensor, "batch frames high wide"]:
        if "subject" not in clips:
            return torch.ones_like(clips["latents"][:, 0]).float()
        share = clips["subject"].float()
        return subject_weight(share, *self.diffusion.levels(time), self.recipe.subject)[:, 0]

    def _tail(self, clips: Samples, generator: torch.Generator) -> Tail:
        latents = self._imperfect(clips["latents"][:, :, : self.overlap].float(), generator)
        if "tail" not in clips:  # the memory reads latents: no pixels are made
            return Tail(latents.new_zeros(latents.shape[0], 0, 3, 1, 1), latents)
        signed = clips["tail"].transpose(1, 2).float() / 127.5 - 1
        pixels = self._imperfect(signed, generator).transpose(1, 2).add(1).div(2).clamp(0, 1)
        return Tail(pixels, latents)

    def _imperfect(self, value: Latents, generator: torch.Generator) -> Latents:
        """Drifted (a gain and an offset for each clip and channel) and noisy."""
        rows, channels = value.shape[:2]
        drift = torch.randn(2, rows, channels, 1, 1, 1, generator=generator, device=value.device)
        gain, offset = self.recipe.condition_drift * drift
        spread = torch.rand(rows, 1, 1, 1, 1, generator=generator, device=value.device) * self.recipe.condition_noise
        return value * (1 + gain) + offset + spread * normal_like(value, generator)

    def _text(self, captions: list[str]) -> dict[str, Tensor]:
        text = self.model.text(captions)
        return {"text": text.tokens.half()} | ({} if text.mask is None else {"text_mask": text.mask})


def drops(uniform: Float[Tensor, " batch"], text: float, anchor: float) -> tuple[Tensor, Tensor]:
    """Which rows lose their text and which their anchor, from one uniform number a row.

    Half of the rarer coincide; more where the shares are so large that more must.
    """
    first = text - min(text, anchor) / 2
    return uniform < text, (uniform - first) % 1 < anchor


def normal_like(value: Latents, generator: torch.Generator) -> Latents:
    """Standard normal numbers of the same shape, on the same device."""
    return torch.randn(value.shape, generator=generator, device=value.device)


def encode(codec: Codec, frames: UInt8[Tensor, "clips time 3 rows cols"]) -> Latents:
    """Latents of RGB bytes, a few clips at a time."""
    parts = frames.split(_clips_at_once(frames.shape[1], frames.shape[3] * frames.shape[4]))
    with half_precision(frames.device):
        return torch.cat([codec.encode(part.float() / 255).float() for part in parts])


def decode(codec: Codec, latents: Latents) -> UInt8[Tensor, "clips time 3 rows cols"]:
    """RGB bytes of latents, a few clips at a time."""
    cells = latents.shape[3] * latents.shape[4] * codec.factor**2
    with half_precision(latents.device):
        parts = [codec.decode(part) for part in latents.split(_clips_at_once(latents.shape[2], cells))]
    return torch.cat([(part.float() * 255).round().to(torch.uint8) for part in parts])


def _clips_at_once(frames: int, pixels: int) -> int:
    return max(1, FRAMES_AT_ONCE * 64 * 64 // (frames * pixels))


def _either(dropped: Tensor, nothing: Samples, clips: Samples, name: str) -> Tensor | None:
    if name not in clips or name not in nothing:
        return clips.get(name)
    return torch.where(dropped[:, None], nothing[name], clips[name])
