"""What is measured of each video, in processes of one thread each while the next videos are made."""

import re
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from streaming.evaluation.equip import Wanted, equip
from streaming.metrics.borders import Borders
from streaming.metrics.clip import AnchorDistance
from streaming.metrics.clip_registry import make_clip
from streaming.metrics.contract import Metric
from streaming.metrics.cuts import Adaptive, SceneCuts
from streaming.metrics.described import Plain
from streaming.metrics.evaluate import How, evaluate_stream, settings_of
from streaming.metrics.flicker import SeamRatio
from streaming.metrics.flow import DIS
from streaming.metrics.motion import FlowSpread
from streaming.metrics.track import COLOURS, ObjectTrack

Video = UInt8[Tensor, "time 3 rows cols"]
Numbers = dict[str, float | None]


@final
@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is looked at, beside cuts and seams."""

    clip: str = "none"
    """SPEC of the CLIP model that tells the distance from the first frame; none: it is not told."""
    track: bool = False
    """Whether the procedural world's object is followed."""
    lpips: str | None = None
    """NET:FILE of the LPIPS distance from the first frame, as `evaluate --lpips`; None: it is not told."""
    flow: bool = False
    """Whether the evenness of the motion at joins is measured."""

    def how(self) -> How:
        """At the video's own size."""
        clip = None if self.clip == "none" else make_clip(self.clip)
        return How(flow=DIS() if self.flow else None, clip=clip)

    def metrics(self, borders: Borders, colour: str | None) -> list[Metric]:
        """For a video whose chunks begin there; colour: the object's, if it is known."""
        found: list[Metric] = [SceneCuts(detector=Adaptive(min_scene_len=1)), SeamRatio(borders=borders)]
        found += [ObjectTrack(borders=borders, colour=colour)] if self.track else []
        found += [] if self.clip == "none" else [AnchorDistance()]
        found += [] if self.lpips is None else [_lpips(self.lpips)]
        return found + ([FlowSpread(borders=borders)] if self.flow else [])

    def settings(self, borders: Borders) -> dict[str, Plain]:
        """Everything that changes a number but for the objects' colours."""
        return settings_of(self.metrics(borders, None), self.how())


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """A video and what its measures have to know."""

    video: Video
    """All of its frames."""
    borders: Borders
    """Where its chunks begin."""
    colour: str | None
    """The object's, if the prompt tells it."""


@lru_cache(maxsize=1)  # a process loads its network once
def _lpips(said: str) -> Metric:
    found = equip(Wanted(flow="none", lpips=said)).lpips
    assert found is not None
    return found


def colour_in(prompt: str) -> str | None:
    """The first of the procedural world's colours that a prompt names."""
    words = re.findall(r"[a-z]+", prompt.lower())
    return next((word for word in words if word in COLOURS), None)


@final
class Measurer:
    """Measures videos here, or in other processes; results come as futures."""

    def __init__(self, measures: Measures, pool: Executor | None) -> None:
        self._measures, self._pool = measures, pool

    def submit(self, job: Job) -> "Future[Numbers]":
        """What will be measured. Raises what the metrics raise if it is done here."""
        if self._pool is not None:  # no tensor, not even an empty part: its storage would move to shared memory
            return self._pool.submit(_measured, self._measures, job.video.numpy(), job.borders, job.colour)
        done: Future[Numbers] = Future()
        done.set_result(_measure(self._measures, job))
        return done


@contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """So many processes that measure, started when they are needed; None for 1: this one does it."""
    if jobs == 1:
        yield None
        return
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


_HOW: dict[Measures, How] = {}  # a process loads its CLIP model once


def _measure(measures: Measures, job: Job) -> Numbers:
    if measures not in _HOW:
        _HOW[measures] = measures.how()
    metrics = measures.metrics(job.borders, job.colour)
    return dict(evaluate_stream([job.video[None]], metrics, _HOW[measures]).numbers)


def _measured(measures: Measures, video: Any, borders: Borders, colour: str | None) -> Numbers:
    return _measure(measures, Job(video=torch.from_numpy(video.copy()), borders=borders, colour=colour))
