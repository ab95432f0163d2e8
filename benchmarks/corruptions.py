"""Ten ways to spoil a video, each of them a defect that generated videos have; what a measure must not be fooled by.

Strengths go by the frame's shorter side, so that the same defect is as visible at any size. Randomness is a key's.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.keys import Key

Video: TypeAlias = UInt8[Tensor, "time 3 rows cols"]
Corruption: TypeAlias = Callable[[Video, Key], Video]

OPENING = 16
"""Frames of a first chunk: what stagnates does so behind it, and pieces are as long."""
NOISE = 2
"""Grey levels that noise on a frozen video adds or takes at most."""
HEAVY = 25
"""Grey levels that noise on a moving video adds or takes at most."""
GRAIN = 8
"""Grey levels that grain adds or takes at most."""
FLICKER = 20
"""Grey levels that brightness flickers up or down at most."""
JITTER = 1 / 32
"""Of the shorter side: how far a frame is shifted at most in either direction."""
BLUR = 1 / 75
"""Of the shorter side: standard deviation of the Gaussian."""
DRIFT = 0.3
"""Part by which red has grown and blue has shrunk in the last frame."""


def frozen(video: Video, key: Key) -> Video:
    """The first frame, over and over."""
    return video[:1].expand_as(video).contiguous()


def frozen_noise(video: Video, key: Key) -> Video:
    """The first frame with fresh noise in every frame."""
    return _noisy(frozen(video, key), key, NOISE)


def _noisy(video: Video, key: Key, most: int) -> Video:
    noise = key.integers(-most, most + 1, *video.shape)
    return (video.int() + noise).clamp(0, 255).to(torch.uint8)


def shuffled(video: Video, key: Key) -> Video:
    """All frames in random order."""
    return video[torch.randperm(len(video), generator=key.generator())]


def cut_in_half(video: Video, key: Key) -> Video:
    """The second half mirrored: one cut to another view, whatever the video shows; its own cuts stay."""
    half = len(video) // 2
    return torch.cat((video[:half], video[half:].flip(-1)))


def cut_every_16(video: Video, key: Key) -> Video:
    """Every other piece of 16 frames mirrored."""
    return torch.cat([piece.flip(-1) if i % 2 else piece for i, piece in enumerate(video.split(OPENING))])


def jitter(video: Video, key: Key) -> Video:
    """Every frame shifted by whole pixels at random; border pixels are repeated."""
    most = max(1, round(min(video.shape[-2:]) * JITTER))
    padded = functional.pad(video.float(), (most,) * 4, mode="replicate").to(torch.uint8)
    rows, cols = video.shape[-2:]
    shifts = key.integers(0, 2 * most + 1, len(video), 2).tolist()
    return torch.stack([frame[:, y : y + rows, x : x + cols] for frame, (y, x) in zip(padded, shifts, strict=True)])


def brightness_flicker(video: Video, key: Key) -> Video:
    """Every frame brighter or darker at random."""
    change = key.integers(-FLICKER, FLICKER + 1, len(video), 1, 1, 1)
    return (video.int() + change).clamp(0, 255).to(torch.uint8)


def stagnation(video: Video, key: Key) -> Video:
    """The first 16 frames, then the last of them for ever."""
    return torch.cat((video[:OPENING], video[OPENING - 1 : OPENING].expand_as(video[OPENING:])))


def blur(video: Video, key: Key) -> Video:
    """Every frame through a Gaussian."""
    deviation = BLUR * min(video.shape[-2:])
    reach = max(1, round(3 * deviation))
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * deviation**2))
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(video.float(), (reach,) * 4, mode="replicate")
    smooth = functional.conv2d(functional.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3)
    return smooth.round().clamp(0, 255).to(torch.uint8)


def colour_drift(video: Video, key: Key) -> Video:
    """Red grows and blue shrinks, evenly from the first frame to the last."""
    progress: Float[Tensor, "time 1 1"] = torch.linspace(0, 1, len(video))[:, None, None]
    spoilt = video.float()
    spoilt[:, 0] *= 1 + DRIFT * progress
    spoilt[:, 2] *= 1 - DRIFT * progress
    return spoilt.round().clamp(0, 255).to(torch.uint8)


def stagnation_noise(video: Video, key: Key) -> Video:
    """The first 16 frames, then the last of them with fresh noise in every frame, as little as on the frozen video."""
    return torch.cat((video[:OPENING], _noisy(stagnation(video, key)[OPENING:], key, NOISE)))


def noise(video: Video, key: Key) -> Video:
    """Fresh noise in every frame."""
    return _noisy(video, key, HEAVY)


def grain_on_blur(video: Video, key: Key) -> Video:
    """Every frame through the Gaussian of `blur`, then under fresh grain, which has the fine detail that is gone."""
    return _noisy(blur(video, key), key, GRAIN)


def jump_in_half(video: Video, key: Key) -> Video:
    """The second half first: one jump to another moment of the same scene."""
    return video.roll(-(len(video) // 2), dims=0)


def jump_every_16(video: Video, key: Key) -> Video:
    """Neighbouring pieces of 16 frames change places."""
    pieces = list(video.split(OPENING))
    for i in range(0, len(pieces) - 1, 2):
        pieces[i], pieces[i + 1] = pieces[i + 1], pieces[i]
    return torch.cat(pieces)


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "frozen": frozen,
        "frozen + noise": frozen_noise,
        "shuffled": shuffled,
        "cut in half": cut_in_half,
        "cut every 16": cut_every_16,
        "jitter": jitter,
        "brightness flicker": brightness_flicker,
        "stagnation after 16": stagnation,
        "blur": blur,
        "drift of colour": colour_drift,
    }
)
"""By name. Each takes a video of 32 frames or more and gives one of the same size."""

NOISY: Mapping[str, Corruption] = MappingProxyType(
    {"noise": noise, "grain on blur": grain_on_blur, "stagnation + noise": stagnation_noise}
)
"""Three more that the verdict must not be fooled by."""

SUBTLE: Mapping[str, Corruption] = MappingProxyType({"jump in half": jump_in_half, "jump every 16": jump_every_16})
"""Harder ones. Where one object moves to and fro before a still camera, a jump in time may look like its motion."""
