"""Causal enhancement: chunk after chunk, frames as soon as they are ready, memory that does not grow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.enhancer import (
    Clip,
    Enhancer,
    check_frames,
    decode,
    encode,
    first_pixel,
    frame_noise,
    predict,
    read,
    slope,
)
from streaming.errors import UserError
from streaming.keys import Key
from streaming.prompts import PromptSchedule
from streaming.sample import Step
from streaming.types import Frames, Latents


@final
@dataclass(frozen=True)
class Trace:
    """What a finished chunk leaves to the next one; the only state of a causal enhancement."""

    span: range
    """Its latent frames."""
    latents: Latents
    """Its final latents."""
    steps: tuple[tuple[Latents, Latents], ...]
    """At every step, noisy latents and prediction; empty for a blender that couples nothing."""


@final
@dataclass(frozen=True)
class Arrival:
    """A chunk whose frames have all come."""

    span: range
    """Its latent frames."""
    frames: Clip
    """Its pixel frames, before enhancement."""
    last: bool
    """Whether the video ends with it and it was shifted left, or is shorter than a chunk."""


def enhance_causal(
    enhancer: Enhancer, frames: Iterable[Clip], prompts: PromptSchedule, *, key: Key
) -> Iterator[Frames]:
    """The enhanced video in pieces, each as soon as no later chunk can change it.

    frames: pieces of one video [1, time, 3, rows, cols] in [0, 1] on the host, of any lengths; results likewise, at the
    target size. A chunk is denoised after the one before it is finished and meets only the stored trajectory of their
    overlap: at every step, each overlap frame's prediction stands for the clean video of the left chunk, of the right
    one, or of a mean of both, as the blender says. What lies before the next chunk is given at once; the overlap
    follows from the right chunk (from its owner, if the blender couples nothing). A last chunk with too few new frames
    is shifted left; frames that were given stay as they are. A video of one chunk comes out as in joint mode.
    Raises UserError for an empty video, several videos, pieces of unequal size, and values that are not finite.
    """
    blender, codec = enhancer.blender, enhancer.codec
    before: Trace | None = None
    given, came = 0, 0
    for index, arrival in enumerate(_arrivals(enhancer, frames)):
        before = _enhance_chunk(enhancer, index, arrival, before, prompts, key)
        came = first_pixel(codec, arrival.span.start) + arrival.frames.shape[1]
        end = arrival.span.stop
        ready = end if arrival.last else end - blender.overlap + _kept_by_left(enhancer, index + 1, key)
        yield from _given(enhancer, before, given, ready, came)
        given = ready
    if before is None:
        raise UserError("there is no frame to be enhanced: give at least one")
    yield from _given(enhancer, before, given, before.span.stop, came)


def _arrivals(enhancer: Enhancer, pieces: Iterable[Clip]) -> Iterator[Arrival]:
    """Cuts a stream into chunks as `ChunkBlender.spans` would; holds a chunk and the piece that came last."""
    codec, chunk = enhancer.codec, enhancer.blender.chunk
    stride = chunk - enhancer.blender.overlap
    start, held, first = 0, None, 0
    for piece in pieces:
        check_frames(piece)
        if held is not None and piece.shape[3:] != held.shape[3:]:
            raise UserError(f"frames of {_size(piece)} after frames of {_size(held)}: a video has one size")
        held = piece if held is None else torch.cat([held, piece], dim=1)
        while codec.pixel_frames(start + chunk) <= first + held.shape[1]:
            begin, end = first_pixel(codec, start), codec.pixel_frames(start + chunk)
            yield Arrival(range(start, start + chunk), held[:, begin - first : end - first], last=False)
            start += stride
        keep = first_pixel(codec, max(start - stride, 0))  # a last chunk begins after the latest one's beginning
        held, first = held[:, keep - first :].clone(), keep
    if held is None or not first + held.shape[1]:
        return
    length = codec.latent_frames(first + held.shape[1])
    if length > (start - stride + chunk if start else 0):
        span = range(max(length - chunk, 0), length)
        yield Arrival(span, held[:, first_pixel(codec, span.start) - first :], last=True)


def _enhance_chunk(
    enhancer: Enhancer, index: int, arrival: Arrival, before: Trace | None, prompts: PromptSchedule, key: Key
) -> Trace:
    span = arrival.span
    clean = encode(enhancer, arrival.frames, span)
    start = frame_noise(enhancer, key.fold("start"), index, span, clean)
    text = read(enhancer, prompts.at(first_pixel(enhancer.codec, span.start)))
    steps: list[tuple[Latents, Latents]] = []

    def denoise(latents: Latents, step: Step) -> Latents:
        prediction = predict(enhancer, text, start, latents, step, index)
        if not enhancer.blender.coupled:
            return prediction
        if before is not None:
            share = _weight_of_right(enhancer, index, before.span.stop - span.start, key.fold("blend", step.index))
            prediction = meet(prediction, latents, before.steps[step.index], share, slope(enhancer, step))
        steps.append((latents, prediction))
        return prediction

    with torch.inference_mode():
        latents = enhancer.sampler(
            denoise,
            start,
            lambda step: frame_noise(enhancer, key.fold("step", step), index, span, clean),
            enhancer.scheduler,
            strength=enhancer.strength,
            clean=clean,
        )
    return Trace(span, latents, tuple(steps))


def meet(
    prediction: Latents, latents: Latents, left: tuple[Latents, Latents], share: Float[Tensor, " overlap"], slope: float
) -> Latents:
    """A chunk's prediction after it met the one before it, whose noisy latents and prediction at this step are `left`.

    The two chunks' noisy latents differ in the overlap, so the left prediction is carried over to the right chunk's
    latents such that it stands for the same clean frames (see `streaming.enhancer.slope`).
    """
    overlap = len(share)
    if not overlap:
        return prediction
    there, theirs = (value[:, :, -overlap:] for value in left)
    carried = theirs + slope * (latents[:, :, :overlap] - there)
    weight = share[:, None, None]
    met = (1 - weight) * carried + weight * prediction[:, :, :overlap]
    return torch.cat([met, prediction[:, :, overlap:]], dim=2)


def _weight_of_right(enhancer: Enhancer, index: int, met: int, key: Key) -> Float[Tensor, " met"]:
    """The chunk's weight in the `met` frames it shares with the one before; none in frames that were given already."""
    regular = enhancer.blender.overlap
    share = enhancer.blender.boundary_share(index, regular, key)
    return torch.cat([torch.zeros(met - regular), share])


def _kept_by_left(enhancer: Enhancer, right: int, key: Key) -> int:
    """Frames of the overlap before chunk `right` that its left neighbour gives; none where the two agree on them."""
    if enhancer.blender.coupled:
        return 0
    last = key.fold("blend", enhancer.sampler.steps - 1)
    return int((enhancer.blender.boundary_share(right, enhancer.blender.overlap, last) <= 0.5).sum())


def _given(enhancer: Enhancer, trace: Trace, begin: int, end: int, came: int) -> Iterator[Frames]:
    """The chunk's frames from latent frame `begin` to `end`, none beyond the `came` pixel frames of the video."""
    if begin < end:
        own = trace.latents[:, :, begin - trace.span.start : end - trace.span.start]
        yield decode(enhancer, own)[:, : came - first_pixel(enhancer.codec, begin)].clone()


def _size(frames: Clip) -> str:
    return f"{frames.shape[4]}x{frames.shape[3]} pixels"
