"""The autoregressive loop: a generator of chunks. All of its state is the `Checkpoint` that each chunk carries.

Written once for every base model: it speaks of windows in latent frames and asks the codec for pixels.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from streaming.anchor import Anchor
from streaming.backbone import Call
from streaming.checkpoint import Checkpoint, check_resume
from streaming.codec import EncodedText
from streaming.errors import UserError
from streaming.keys import Key
from streaming.memory import Tail
from streaming.noise import Shape
from streaming.openings import ImageOpening, Opening, TextOpening, VideoOpening, opening_frames, opening_tail
from streaming.parts import Parts
from streaming.prompts import PromptSchedule
from streaming.rows import (
    Condition,
    check_finite,
    compiled,
    encode_rows,
    evaluate,
    guided_denoiser,
    unconditioned,
)
from streaming.sites import Deltas, combine
from streaming.types import Frames, Latents

Prompts = tuple[PromptSchedule, ...]

A = TypeVar("A")
B = TypeVar("B")


@final
@dataclass(frozen=True, eq=False)
class Chunk:
    """A step of the rollout."""

    index: int
    """0 for the opening."""
    frames: Frames
    """Only the NEW frames [batch, time, 3, rows, cols] in [0, 1], float32 on the CPU."""
    checkpoint: Checkpoint
    """From which the next chunk, or a resumed run, goes on."""


def stream(
    parts: Parts,
    prompts: PromptSchedule | Sequence[PromptSchedule],
    opening: Opening,
    *,
    key: Key | Sequence[Key],
    chunks: int | None = None,
    resume: Checkpoint | None = None,
) -> Iterator[Chunk]:
    """Chunks of one video, or of a batch of videos (a sequence of prompt schedules), one after the other.

    With one key, video b of a batch draws from `key.fold("video", b)`; with a key for each video, it is what a run of
    its own with that key gives. `chunks` counts from the start of the video, the opening included, also after
    `resume`; None: endless. A resumed run takes its opening from the checkpoint and is bit-identical to the unbroken
    one. Memory does not grow with the length.

    Raises UserError at once for prompts, keys or a checkpoint that don't fit, and later if latents become NaN: what
    was yielded before stays valid.
    """
    schedules = (prompts,) if isinstance(prompts, PromptSchedule) else tuple(prompts)
    given = key if isinstance(key, Key) else tuple(key)
    if not schedules:
        raise UserError("no prompt: give at least one")
    if chunks is not None and chunks < 1:
        raise UserError(f"{chunks} chunks: ask for at least 1")
    if not isinstance(given, Key) and len(given) != len(schedules):
        raise UserError(f"{len(given)} keys for {len(schedules)} videos: give one for each")
    if resume is not None:
        check_resume(resume, parts.settings, given, schedules)
    return _chunks(parts, schedules, opening, given, chunks, resume)


def chunk_lengths(parts: Parts, opening: Opening) -> tuple[int, int]:
    """New pixel frames of the opening and of every later chunk."""
    window, codec = parts.backbone.window, parts.codec
    first = codec.pixel_frames(window.frames)
    later = first - (codec.pixel_frames(window.overlap) if window.overlap else 0)
    if isinstance(opening, ImageOpening):
        first = 1
    elif isinstance(opening, VideoOpening):
        first = opening.frames.shape[0]
    return first, later


def chunks_needed(parts: Parts, opening: Opening, frames: int) -> int:
    """Chunks, the opening included, that make at least so many pixel frames. Raises UserError for less than 1."""
    if frames < 1:
        raise UserError(f"{frames} frames: ask for at least 1")
    first, later = chunk_lengths(parts, opening)
    return 1 + max(0, -(-(frames - first) // later))


def _chunks(
    parts: Parts,
    prompts: Prompts,
    opening: Opening,
    key: Key | tuple[Key, ...],
    chunks: int | None,
    last: Checkpoint | None,
) -> Iterator[Chunk]:
    texts: Texts = _Latest(partial(_encode_text, parts), operator.eq)
    anchors: Anchors = _Latest(partial(_remember_anchor, parts), operator.is_)
    for index in count(0 if last is None else last.index + 1):
        if chunks is not None and index >= chunks:
            return
        made = (
            _first(parts, prompts, opening, key, texts) if last is None else _next(parts, prompts, last, texts, anchors)
        )
        last = made.checkpoint
        yield made


def _first(parts: Parts, prompts: Prompts, opening: Opening, key: Key | tuple[Key, ...], texts: "Texts") -> Chunk:
    if isinstance(opening, TextOpening):
        opener, lines = _opener(parts), tuple(schedule.at(0) for schedule in prompts)
        text = texts(lines) if opener is parts else _encode_text(opener, lines)
        latents = _sample(opener, text, _keys(key, len(prompts)), 0, unconditioned)
        frames = _decode(parts, latents, 0, 0)
        tail = _last_of(parts, Tail(frames, latents.cpu()))
    else:
        frames = opening_frames(opening, parts.height, parts.width).expand(len(prompts), -1, -1, -1, -1).cpu()
        tail = _encode_tail(parts, opening, frames)
    return _finished(0, frames, Checkpoint(0, frames.shape[1], tail, _own(frames[:, :1]), key, prompts, parts.settings))


def _next(parts: Parts, prompts: Prompts, last: Checkpoint, texts: "Texts", anchors: "Anchors") -> Chunk:
    index, keys = last.index + 1, _keys(last.key, len(prompts))
    text = texts(tuple(schedule.at(last.frames_done) for schedule in prompts))
    condition = _condition(parts, last.tail, anchors(last.anchor))
    latents = _sample(parts, text, keys, index, condition)
    overlap = parts.backbone.window.overlap
    frames = _decode(parts, latents, overlap, index)
    tail = _last_of(parts, _joined(last.tail, Tail(frames, latents[:, :, overlap:].cpu())))
    anchor = _renewed(parts, prompts, last, frames)
    done = last.frames_done + frames.shape[1]
    return _finished(index, frames, Checkpoint(index, done, tail, anchor, last.key, prompts, parts.settings))


@torch.inference_mode()
def _sample(parts: Parts, text: EncodedText, keys: tuple[Key, ...], index: int, condition: Condition) -> Latents:
    """A chunk's latents. Each video's noise is drawn with its own key, so that a batch equals single runs."""
    source, steps, shape, where = parts.noise, parts.sampler.steps, _shape(parts), f"in chunk {index}"
    start = torch.cat([source.start(key, index, steps, shape) for key in keys]).to(parts.device)

    def noise(step: int) -> Latents:
        return torch.cat([source.step(key, index, step, steps, shape) for key in keys]).to(parts.device)

    faster = compiled() if parts.compile and index else evaluate  # one chunk alone is sooner made than compiled for
    denoise = guided_denoiser(parts.backbone, parts.guidance, text, start, parts.dtype, where, condition, faster)
    latents = parts.sampler(denoise, start, noise, parts.scheduler)
    check_finite(latents, where, steps - 1)
    return latents


def _opener(parts: Parts) -> Parts:
    """What makes the first chunk of a video from text: the parts themselves if they say nothing else."""
    first = parts.first
    if first is None:
        return parts
    return replace(
        parts,
        backbone=first.backbone,
        guidance=first.guidance,
        sampler=first.sampler,
        scheduler=first.scheduler,
        first=None,
    )


@torch.inference_mode()
def _condition(parts: Parts, tail: Tail, anchor_state: Any) -> Condition:
    tail_state = parts.short.remember(Tail(_to_model(parts, tail.frames), _to_model(parts, tail.latents)))

    def condition(call: Call) -> tuple[Call, Deltas]:
        call = parts.short.rewrite(tail_state, call)
        seen = parts.long.rewrite(anchor_state, call)
        return seen, combine(parts.short.deltas(tail_state, call), parts.long.deltas(anchor_state, seen))

    return condition


@torch.inference_mode()
def _remember_anchor(parts: Parts, anchor: Anchor) -> Any:
    return parts.long.remember(_to_model(parts, anchor))


@torch.inference_mode()
def _encode_text(parts: Parts, lines: tuple[str, ...]) -> EncodedText:
    return encode_rows(parts.text, parts.guidance, lines, parts.negative_prompt, parts.device, parts.dtype)


@torch.inference_mode()
def _decode(parts: Parts, latents: Latents, overlap: int, index: int) -> Frames:
    """The new pixel frames. A codec that needs the frames before to decode later ones gets the whole chunk."""
    codec, total = parts.codec, latents.shape[2]
    wanted = codec.pixel_frames(total) - (codec.pixel_frames(overlap) if overlap else 0)
    alone = codec.pixel_frames(total - overlap) == wanted
    frames = codec.decode((latents[:, :, overlap:] if alone else latents).to(parts.dtype)).float().cpu()
    if not bool(torch.isfinite(frames).all()):
        raise UserError(f"frames became NaN when chunk {index} was decoded: use --dtype float32")
    return frames[:, frames.shape[1] - wanted :]


@torch.inference_mode()
def _encode_tail(parts: Parts, opening: ImageOpening | VideoOpening, frames: Frames) -> Tail:
    overlap = parts.backbone.window.overlap
    needed = parts.codec.pixel_frames(overlap) if overlap else 0
    pixels = opening_tail(opening, frames, needed)
    if not overlap:
        side = parts.codec.factor
        empty = torch.zeros(len(frames), parts.codec.channels, 0, parts.height // side, parts.width // side)
        return Tail(pixels, empty)
    latents = parts.codec.encode(_to_model(parts, pixels)).float().cpu()
    if not bool(torch.isfinite(latents).all()):
        raise UserError("latents of the opening became NaN when it was encoded: use --dtype float32")
    return Tail(pixels, latents)


def _renewed(parts: Parts, prompts: Prompts, last: Checkpoint, frames: Frames) -> Anchor:
    """The anchor for the next chunk; the very same tensor if no video's is renewed."""
    started = last.frames_done - chunk_lengths(parts, TextOpening())[1] if last.index else 0
    renewed = []
    for b, schedule in enumerate(prompts):
        changed = schedule.at(last.frames_done) != schedule.at(started)
        renewed.append(parts.anchors.renew(last.anchor[b : b + 1], frames[b : b + 1], last.index + 1, changed))
    if all(anchor is None for anchor in renewed):
        return last.anchor
    return torch.cat([last.anchor[b : b + 1] if new is None else new for b, new in enumerate(renewed)])


def _joined(left: Tail, right: Tail) -> Tail:
    return Tail(torch.cat([left.frames, right.frames], 1), torch.cat([left.latents, right.latents], 2))


def _last_of(parts: Parts, all_: Tail) -> Tail:
    """The last `overlap` latent frames and the pixel frames that they decode to."""
    overlap = parts.backbone.window.overlap
    pixels = parts.codec.pixel_frames(overlap) if overlap else 0
    return Tail(all_.frames[:, all_.frames.shape[1] - pixels :], all_.latents[:, :, all_.latents.shape[2] - overlap :])


def _finished(index: int, frames: Frames, checkpoint: Checkpoint) -> Chunk:
    """The chunk with tensors of its own: not slices that keep a chunk alive, nor tensors that autograd refuses.

    They lie in memory as those that come from a file do: sums over another layout would be rounded otherwise.
    """
    tail = Tail(_own(checkpoint.tail.frames), _own(checkpoint.tail.latents))
    return Chunk(index, _own(frames), replace(checkpoint, tail=tail, anchor=checkpoint.anchor.contiguous()))


def _own(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)


def _keys(key: Key | tuple[Key, ...], batch: int) -> tuple[Key, ...]:
    if isinstance(key, Key):
        return tuple(key.fold("video", b) for b in range(batch))
    return tuple(single.fold("video", 0) for single in key)


def _shape(parts: Parts) -> Shape:
    side = parts.codec.factor
    return parts.codec.channels, parts.backbone.window.frames, parts.height // side, parts.width // side


def _to_model(parts: Parts, value: Tensor) -> Tensor:
    return value.to(parts.device, parts.dtype)


@final
class _Latest(Generic[A, B]):
    """A function that keeps its last result and gives it again for the same argument."""

    def __init__(self, function: Callable[[A], B], same: Callable[[A, A], bool]) -> None:
        self.function, self.same = function, same
        self.kept: tuple[A, B] | None = None

    def __call__(self, argument: A) -> B:
        if self.kept is None or not self.same(self.kept[0], argument):
            self.kept = (argument, self.function(argument))
        return self.kept[1]


Texts = _Latest[tuple[str, ...], EncodedText]
Anchors = _Latest[Anchor, Any]
