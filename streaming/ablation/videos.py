"""The videos of an ablation: every variant from the same prompts, seeds and noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from streaming.ablation.plan import Variant
from streaming.causal import enhance_causal
from streaming.enhancer import Enhancer, assemble_enhancer, first_pixel
from streaming.errors import UserError
from streaming.guidance import Guidance, TextThenAnchor, scaled
from streaming.joint import enhance_joint
from streaming.keys import Key
from streaming.loop import chunk_lengths, stream
from streaming.metrics.borders import BordersAt, EveryChunk
from streaming.model import Model
from streaming.openings import TextOpening
from streaming.parts import Parts, assemble
from streaming.prompts import PromptSchedule
from streaming.registry import make_blender, make_long_term, make_short_term, open_enhancer
from streaming.sample import Sampler

Video = UInt8[Tensor, "time 3 rows cols"]


@final
@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Which videos each variant makes."""

    prompts: tuple[str, ...]
    """One a video."""
    openings: tuple[str, ...] | None = None
    """What the first chunks are asked for, if that is something else."""
    seeds: int
    """Videos of every prompt."""
    frames: int
    """Of every video."""
    steps: int | None = None
    """Denoising steps a chunk; None: the model's."""
    guidance: float | None = None
    """Scale of the prompt; None: the model's."""
    anchor_guidance: float | None = None
    """Scale of the anchor, by a third evaluation [StreamingT2V, appendix]; None: it is guided with the prompt."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(prompt, seed) of each video, seed by seed."""
        return [(prompt, seed) for seed in range(self.seeds) for prompt in range(len(self.prompts))]

    def schedule(self, prompt: int, first: int) -> PromptSchedule:
        """What a video is asked for. first: frames of its first chunk."""
        told = {0: self.prompts[prompt]}
        return PromptSchedule.of(
            told if self.openings is None else {0: self.openings[prompt], first: self.prompts[prompt]}
        )

    def key(self, prompt: int, seed: int) -> Key:
        """The randomness of a video, whatever the variant and the batch."""
        return Key(seed).fold("ablation", prompt)


def parts_for(variant: Variant, model: Model, sampled: Sampled, memories: Path | None) -> Parts:
    """Model and memories. memories: folder with trained ones; None: the model's own.

    Raises UserError, naming the training, for a memory without weights, and for guidance on the anchor where the
    model rescales its guidance.
    """
    defaults = model.defaults
    scale = defaults.guidance if sampled.guidance is None else sampled.guidance
    guidance: Guidance | None = None
    if sampled.anchor_guidance is not None:
        if defaults.rescale:
            raise UserError(
                f"--anchor-guidance: this model's guidance is rescaled ({defaults.rescale:g}), which guidance by three "
                "evaluations cannot be: leave it out"
            )
        guidance = TextThenAnchor(text=scale, anchor=sampled.anchor_guidance)
    elif sampled.guidance is not None:
        guidance = scaled(scale, defaults.rescale)
    return assemble(
        model,
        short=make_short_term(variant.short, model, _folder(variant.short, memories)),
        long=make_long_term(variant.long, model, _folder(variant.long, memories)),
        guidance=guidance,
        sampler=None if sampled.steps is None else Sampler(defaults.sampler, sampled.steps, defaults.eta),
    )


def made(parts: Parts, sampled: Sampled, batch: int, report: Callable[[int], None]) -> Iterator[Video]:
    """Videos in the order of `sampled.pairs`, so many together. report: told the frames made so far, of all videos."""
    first, _ = chunk_lengths(parts, TextOpening())
    for begin in range(0, len(sampled.pairs), batch):
        group = sampled.pairs[begin : begin + batch]
        prompts = [sampled.schedule(prompt, first) for prompt, _ in group]
        pieces, count = [], 0
        for chunk in stream(parts, prompts, TextOpening(), key=[sampled.key(*pair) for pair in group]):
            pieces.append(chunk.frames.mul(255).round().to(torch.uint8))
            count += chunk.frames.shape[1]
            report(begin * sampled.frames + min(count, sampled.frames) * len(group))
            if count >= sampled.frames:
                break
        yield from torch.cat(pieces, dim=1)[:, : sampled.frames]


def borders_of(parts: Parts) -> EveryChunk:
    """Where chunks begin in videos from text."""
    return EveryChunk(*chunk_lengths(parts, TextOpening()))


def enhancer_for(model: str, device: torch.device, dtype: torch.dtype) -> Enhancer:
    """The model's enhancer. Raises UserError if there is none."""
    return assemble_enhancer(open_enhancer(model, device=device, dtype=dtype))


def blended(enhancer: Enhancer, variant: Variant) -> Enhancer:
    """The enhancer with the variant's blender."""
    blender = enhancer.blender
    return replace(enhancer, blender=make_blender(variant.blender or "", blender.chunk, blender.overlap))


def enhanced(
    enhancer: Enhancer,
    causal: bool,
    videos: Sequence[Video],
    sampled: Sampled,
    batch: int,
    report: Callable[[int], None],
) -> Iterator[Video]:
    """The videos after stage 3, in order; the same noise keys for every variant. batch: of chunks, in joint mode."""
    for done, (video, (prompt, seed)) in enumerate(zip(videos, sampled.pairs, strict=True)):
        key, schedule = _enhancement(sampled, prompt, seed), PromptSchedule.fixed(sampled.prompts[prompt])
        frames = video[None].float() / 255
        if causal:
            pieces = enhance_causal(enhancer, frames.split(enhancer.blender.chunk, dim=1), schedule, key=key)
        else:
            pieces = enhance_joint(enhancer, frames, schedule, key=key, together=batch)
        yield torch.cat([piece[0].mul(255).round().to(torch.uint8) for piece in pieces])
        report((done + 1) * sampled.frames)


def joins_of(enhancer: Enhancer, causal: bool, sampled: Sampled, prompt: int, seed: int) -> BordersAt:
    """The frames at which another chunk's begin in the enhanced video: where a seam would be.

    In joint mode those of the last step's owners. In causal mode, if chunks are coupled, a regular overlap before the
    end of the chunk before: what lies there comes from the right chunk, but for frames that were given already, as
    before a last chunk that is shifted left.
    """
    blender, length = enhancer.blender, enhancer.codec.latent_frames(sampled.frames)
    if causal and blender.coupled:
        starts = [span.stop - blender.overlap for span in blender.spans(length)[:-1]]
    else:
        last = _enhancement(sampled, prompt, seed).fold("blend", enhancer.sampler.steps - 1)
        owners = blender.owners(length, last).tolist()
        starts = [frame for frame in range(1, length) if owners[frame] != owners[frame - 1]]
    return BordersAt(tuple(first_pixel(enhancer.codec, start) for start in starts))


def all_joins(enhancer: Enhancer, variants: Sequence[Variant], sampled: Sampled, prompt: int, seed: int) -> BordersAt:
    """The joins of a video in any of the variants: where all of them are measured.

    The video before enhancement has seams of its own, which lie on the joins of some variants and not of others; at
    the same frames all of them have the same ones.
    """
    every = (joins_of(blended(enhancer, each), each.causal, sampled, prompt, seed) for each in variants)
    return BordersAt(tuple(sorted({frame for joins in every for frame in joins.frames})))


def enlarged(
    enhancer: Enhancer, videos: Sequence[Video], sampled: Sampled, report: Callable[[int], None]
) -> Iterator[Video]:
    """The videos as the enhancer gets them: bicubic at its size, nothing denoised."""
    size = (enhancer.height, enhancer.width)
    for done, video in enumerate(videos):
        large = F.interpolate(video.float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
        yield large.mul(255).round().to(torch.uint8)
        report((done + 1) * sampled.frames)


def _enhancement(sampled: Sampled, prompt: int, seed: int) -> Key:
    return sampled.key(prompt, seed).fold("enhance")


def _folder(name: str, memories: Path | None) -> Path | None:
    """Where the trained weights lie that a memory of this name reads: `cam+inject` reads those of `cam`."""
    return None if memories is None else memories / name.partition("+")[0]
