"""What is measured on long videos: cuts, differences and jumps at chunk borders, drift of their looks and motion."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from streaming.metrics import EveryChunk, How, ObjectTrack, evaluate_stream
from streaming.metrics.looks import sharpness

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
    sharpness: float
    """Mean variance of the Laplacian of the grey levels."""


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
        sum(sharpness(frame) for frame in video) / len(video),
    )


def jumps(video: Video, first: int, stride: int, colour: str) -> dict[str, float | None]:
    """The object's way from frame to frame at chunk borders and inside chunks, in pixels, and how often it is found;
    None where it is lost. Borders as in `border_ratio`; colour: its name, as the prompt has it.
    """
    track = ObjectTrack(borders=EveryChunk(first, stride), colour=colour)
    return dict(evaluate_stream([video[None]], [track], How()).numbers)


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """A video and what its measures have to know."""

    video: Video
    """All of its frames."""
    first: int
    """Frames of the first chunk."""
    stride: int
    """Frames that each later chunk adds."""
    colour: str
    """The object's colour."""
    ends: int = 40
    """Frames at the start and at the end whose looks are compared."""


def measure(job: Job) -> dict[str, object]:
    """Everything that pixels tell of one video."""
    border, inside = border_ratio(job.video, job.first, job.stride)
    return {
        "cuts": count_cuts(job.video),
        "border": border,
        "inside": inside,
        **jumps(job.video, job.first, job.stride, job.colour),
        "start": asdict(look(job.video[: job.ends])),
        "end": asdict(look(job.video[-job.ends :])),
    }


def _measure(job: Job, video: np.ndarray) -> dict[str, object]:
    return measure(replace(job, video=torch.from_numpy(video.copy())))


def measured(jobs: Iterable[Job], workers: int) -> Iterator[dict[str, object]]:
    """What `measure` finds, in order; side by side with several workers."""
    if workers <= 1:
        yield from map(measure, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        # As arrays: tensors, and be they empty slices of a video, would travel through shared memory, of which
        # containers have little.
        none = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        waiting = [pool.submit(_measure, replace(job, video=none), job.video.numpy()) for job in jobs]
        yield from (each.result() for each in waiting)
