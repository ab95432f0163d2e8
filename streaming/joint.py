"""Joint enhancement: all chunks are denoised step by step together and agree on their overlaps at every step."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.codec import EncodedText
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
from streaming.keys import Key
from streaming.prompts import PromptSchedule
from streaming.sample import Denoise, Step
from streaming.types import Frames, Latents

Stack: TypeAlias = Float[Tensor, "chunks channels frames high wide"]
"""All chunks of one video on the host."""

Mapper: TypeAlias = Callable[[Callable[[int], Latents], Iterable[int]], Iterable[Latents]]
"""Applies a function to each chunk's index and gives the results in order: `map`, or the `map` of an executor."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the evaluations done and to do."""


def enhance_joint(
    enhancer: Enhancer,
    frames: Clip,
    prompts: PromptSchedule,
    *,
    key: Key,
    progress: Progress | None = None,
    mapper: Mapper = map,
    together: int = 1,
) -> Iterator[Frames]:
    """The enhanced video in pieces of a chunk's stride, after the last denoising step of all chunks.

    frames: one video [1, time, 3, rows, cols] in [0, 1] on the host; pieces likewise, at the target size. Host memory
    grows with the video by its latents only. SDEdit: the enlarged video is noised at `enhancer.strength` and denoised
    with the prompt that holds at each chunk's first frame; after every step the chunks' predictions are blended. A
    chunk's evaluation depends on values alone, so `mapper` may run them in any order, or side by side.
    together: so many neighbouring chunks with one prompt are one batch on the device: sooner done, rounded otherwise.
    Raises UserError for an empty video, several videos, and values that are not finite.
    """
    check_frames(frames)
    spans = enhancer.blender.spans(enhancer.codec.latent_frames(frames.shape[1]) if frames.shape[1] else 0)
    return _pieces(enhancer, frames, spans, prompts, key, progress, mapper, together)


def _pieces(
    enhancer: Enhancer,
    frames: Clip,
    spans: list[range],
    prompts: PromptSchedule,
    key: Key,
    progress: Progress | None,
    mapper: Mapper,
    together: int,
) -> Iterator[Frames]:
    clean = torch.cat([encode(enhancer, _cut(enhancer, frames, span), span) for span in spans])
    start = _noise(enhancer, key.fold("start"), spans, clean)
    denoise = _denoiser(enhancer, spans, start, prompts, key, progress, mapper, together)
    with torch.inference_mode():
        latents = enhancer.sampler(
            denoise,
            start,
            lambda step: _noise(enhancer, key.fold("step", step), spans, clean),
            enhancer.scheduler,
            strength=enhancer.strength,
            clean=clean,
        )
        video = _joined(enhancer, latents, spans, key)
    yield from _decoded(enhancer, video, spans, frames.shape[1])


def _denoiser(
    enhancer: Enhancer,
    spans: list[range],
    start: Stack,
    prompts: PromptSchedule,
    key: Key,
    progress: Progress | None,
    mapper: Mapper,
    together: int = 1,
) -> Denoise:
    """Evaluates group by group of chunks on the device, then exchanges the overlaps on the host."""
    lines = [prompts.at(first_pixel(enhancer.codec, span.start)) for span in spans]
    texts = {line: read(enhancer, line) for line in dict.fromkeys(lines)}
    groups = _groups(lines, together)
    total = len(spans) * enhancer.sampler.steps

    def denoise(latents: Latents, step: Step) -> Latents:
        def evaluate(k: int) -> Latents:
            first, text = groups[k].start, texts[lines[groups[k].start]]
            part = slice(first, groups[k].stop)
            return predict(enhancer, _repeated(text, len(groups[k])), start[part], latents[part], step, first)

        predictions = []
        for k, prediction in enumerate(mapper(evaluate, range(len(groups)))):
            predictions.append(prediction)
            if progress is not None:
                progress(step.index * len(spans) + groups[k].stop, total)
        stack = torch.cat(predictions)
        if not enhancer.blender.coupled:
            return stack
        weights = enhancer.blender.weights(spans[-1].stop, key.fold("blend", step.index))
        return exchange(stack, latents, spans, weights, slope(enhancer, step))

    return denoise


def _groups(lines: list[str], together: int) -> list[range]:
    """Neighbouring chunks with one prompt, so many at most."""
    groups: list[range] = []
    for k, line in enumerate(lines):
        last = groups[-1] if groups else range(0)
        if len(last) in range(1, together) and lines[last.start] == line:
            groups[-1] = range(last.start, k + 1)
        else:
            groups.append(range(k, k + 1))
    return groups


def _repeated(text: EncodedText, count: int) -> EncodedText:
    """The guidance rows of one video for so many, row-major."""
    if count == 1:
        return text
    mask = None if text.mask is None else text.mask.repeat_interleave(count, dim=0)
    return EncodedText(text.tokens.repeat_interleave(count, dim=0), mask)


def exchange(
    predictions: Stack, latents: Stack, spans: list[range], weights: Float[Tensor, "chunks length"], slope: float
) -> Stack:
    """Predictions that agree: in every frame they stand for the same weighted mean of clean videos.

    Where chunks hold the same noisy latents (noise is shared) this is the weighted mean of their predictions; where
    latents differ, `slope` times the difference is added (see `streaming.enhancer.slope`).
    """
    agreed, where = _mean(predictions, spans, weights), _mean(latents, spans, weights)
    return torch.stack(
        [
            agreed[:, span.start : span.stop] + slope * (own - where[:, span.start : span.stop])
            for own, span in zip(latents, spans, strict=True)
        ]
    )


def _mean(
    stack: Stack, spans: list[range], weights: Float[Tensor, "chunks length"]
) -> Float[Tensor, "channels length high wide"]:
    _, channels, _, high, wide = stack.shape
    total = torch.zeros(channels, spans[-1].stop, high, wide)
    for chunk, span, weight in zip(stack, spans, weights, strict=True):
        total[:, span.start : span.stop] += weight[span.start : span.stop, None, None] * chunk
    return total


def _noise(enhancer: Enhancer, key: Key, spans: list[range], like: Stack) -> Stack:
    return torch.cat([frame_noise(enhancer, key, k, span, like[:1]) for k, span in enumerate(spans)])


def _joined(
    enhancer: Enhancer, latents: Stack, spans: list[range], key: Key
) -> Float[Tensor, "channels length high wide"]:
    """Every frame from the chunk that owns it at the last step."""
    owners = enhancer.blender.owners(spans[-1].stop, key.fold("blend", enhancer.sampler.steps - 1)).tolist()
    return torch.stack([latents[k, :, frame - spans[k].start] for frame, k in enumerate(owners)], dim=1)


def _decoded(
    enhancer: Enhancer, video: Float[Tensor, "channels length high wide"], spans: list[range], frames: int
) -> Iterator[Frames]:
    """Decodes from each chunk's beginning to the next one's, lest pixels pile up; as many frames as went in."""
    borders = [*(span.start for span in spans), spans[-1].stop]
    for begin, end in zip(borders, borders[1:], strict=False):
        piece = decode(enhancer, video[None, :, begin:end])
        yield piece[:, : frames - first_pixel(enhancer.codec, begin)].clone()


def _cut(enhancer: Enhancer, frames: Clip, span: range) -> Clip:
    return frames[:, first_pixel(enhancer.codec, span.start) : enhancer.codec.pixel_frames(span.stop)]
