"""What is measured on long videos: cuts, differences at chunk borders, drift of their looks and motion."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Video = UInt8[Tensor, "time 3 rows cols"]


def count_cuts(video: Video) -> int:
    """Scene cuts by PySceneDetect's AdaptiveDetector.

    `min_scene_len=1`, since a chunk adds 8 frames and the default of 15 would hide cuts.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(min_scene_len=1)
    cuts = set()
    for index, frame in enumerate(video.flip(1).permute(0, 2, 3, 1).contiguous().numpy()):
        cuts.update(cut.frame_num for cut in detector.process_frame(FrameTimecode(index, 8.0), frame))
    return len(cuts)


def differences(video: Video) -> Float[Tensor, " pairs"]:
    """Mean absolute difference of neighbouring frames, in grey levels (0..255)."""
    values = video.float()
    return (values[1:] - values[:-1]).abs().mean(dim=(1, 2, 3))


def border_ratio(video: Video, first: int, stride: int) -> tuple[float, float]:
    """Mean differences at chunk borders and inside chunks; the first chunk has `first` frames, others `stride`."""
    pairs = differences(video)
    border = torch.zeros(len(pairs), dtype=torch.bool)
    border[first - 1 :: stride] = True
    return float(pairs[border].mean()), float(pairs[~border].mean())


@final
@dataclass(frozen=True)
class Look:
    """Mean appearance of a stretch of video."""

    brightness: float
    """Mean of the grey values, 0..255."""
    contrast: float
    """Standard deviation of the grey values within a frame."""
    saturation: float
    """Mean of (max - min) over the colour channels, 0..255."""
    motion: float
    """Mean absolute difference of neighbouring frames, 0..255."""


def look(video: Video) -> Look:
    """Appearance of all frames given."""
    values = video.float()
    grey = values.mean(dim=1)
    spread = values.amax(dim=1) - values.amin(dim=1)
    return Look(
        float(grey.mean()),
        float(grey.flatten(1).std(dim=1).mean()),
        float(spread.mean()),
        float(differences(video).mean()),
    )
