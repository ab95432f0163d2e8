"""One file, from disk to numbers and pictures."""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from streaming.errors import UserError
from streaming.evaluation.equip import Equipment
from streaming.evaluation.files import Asked, Failed
from streaming.evaluation.intact import check_whole
from streaming.evaluation.pictures import Gatherer, Picture
from streaming.evaluation.structure import check_structure
from streaming.evaluation.timing import Timing, timing
from streaming.metrics.borders import Borders
from streaming.metrics.contract import Meter, Metric, Need, Number, Tools
from streaming.metrics.described import Plain
from streaming.metrics.evaluate import evaluate_stream
from streaming.metrics.narrative import Narrative, NarrativeMeter, NarrativeScore
from streaming.metrics.results import Results
from streaming.prompts import PromptSchedule
from streaming.read import read_video
from streaming.types import Frames

Report: TypeAlias = Callable[[int], None]
"""Told how many frames of the file are done."""


@final
@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What became of one file."""

    file: str
    """Its path, as it was given."""
    prompts: PromptSchedule | None
    """What it should show."""
    borders: Borders | None
    """Where its chunks begin."""
    results: Results
    """The numbers."""
    narrative: NarrativeScore | None
    """Segment by segment; None for prompts that don't change, and without a CLIP model."""
    pictures: tuple[Picture, ...]
    """What there is to see."""
    warnings: tuple[str, ...]
    """Lines about what is odd, though it could be evaluated."""


Outcome: TypeAlias = Evaluated | Failed


@final
class Listener(Metric):
    """A narrative score whose segments can be asked for when the video is over."""

    def __init__(self, inner: Narrative) -> None:
        self._inner = inner
        self._meter: NarrativeMeter | None = None

    @property
    def numbers(self) -> Mapping[str, Number]:
        """The score's."""
        return self._inner.numbers

    @property
    def needs(self) -> frozenset[Need]:
        """The score's."""
        return self._inner.needs

    def settings(self) -> dict[str, Plain]:
        """The score's."""
        return self._inner.settings()

    def start(self, tools: Tools) -> Meter:
        """The score's meter."""
        self._meter = self._inner.start(tools)
        return self._meter

    def score(self) -> NarrativeScore | None:
        """For the frames that its meter was shown; None before it was started."""
        return None if self._meter is None else self._meter.score()


def evaluate(asked: Asked, equipment: Equipment, report: Report) -> Outcome:
    """Evaluates a file. Whatever is wrong with it becomes a line; the traceback of a defect is printed."""
    try:
        return _evaluate(asked, equipment, report)
    except UserError as error:
        return Failed(file=str(asked.path), error=_short(asked, str(error)))
    except Exception as error:  # the other files are evaluated all the same
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        told = f"a defect of streamingt2v or of a plugin, please report it with the traceback ({reason})"
        return Failed(file=str(asked.path), error=told, defect=True)


def refused(asked: Asked, times: Timing) -> Failed | None:
    """A file of which it can be told before frames are decoded that it will not be evaluated."""
    try:
        check_before(asked, times)
    except UserError as error:
        return Failed(file=str(asked.path), error=_short(asked, str(error)))
    return None


def check_before(asked: Asked, times: Timing) -> None:
    """Raises UserError for a file that is empty, cut off, damaged as far as its container tells, or no video; for
    a picture; and for prompts behind the end."""
    if os.path.isfile(asked.path):
        if not asked.path.stat().st_size:
            raise UserError("is empty: give an intact copy")
        check_whole(asked.path, times)
        check_structure(asked.path)
    if not times.frames:
        read_video(asked.path)  # tells what is wrong
    else:  # some containers hold packets without a frame, so there may be fewer frames yet
        _check_frames(asked, times.frames)


def _check_frames(asked: Asked, frames: int) -> None:
    if frames < 2:
        raise UserError("has one frame: nothing moves in a picture, give a video of two frames or more")
    if asked.prompts is not None and (late := asked.prompts.entries[-1][0]) >= frames:
        raise UserError(f"has {frames} frames, but a prompt from frame {late} on: choose an earlier one")


def _short(asked: Asked, error: str) -> str:
    """The line without the file's name in front, which is told anyway."""
    return error.removeprefix(f"{asked.path} ")


def _evaluate(asked: Asked, equipment: Equipment, report: Report) -> Evaluated:
    times = timing(asked.path)
    check_before(asked, times)
    video = read_video(asked.path)
    gatherer = Gatherer(equipment.how, asked.borders)
    prompts = asked.prompts
    metrics, narrative = equipment.metrics(asked.borders, prompts), equipment.narrative(prompts)
    listener = Listener(narrative) if narrative is not None else None
    pieces = _watched(video.pieces, gatherer, report)
    metrics += [listener] if listener is not None else []
    results = evaluate_stream(pieces, metrics, equipment.how, fps=video.fps)
    _check_frames(asked, results.frames)
    warnings = asked.warnings
    if times.variable:
        steps = f"{1000 * times.shortest:.0f} to {1000 * times.longest:.0f} ms"
        warnings += (f"{asked.path} has frames that are unevenly spaced ({steps}): measured frame by frame",)
    return Evaluated(
        file=str(asked.path),
        prompts=prompts,
        borders=asked.borders,
        narrative=listener.score() if listener is not None else None,
        results=replace(results, settings=_with_decoder(results.settings)),
        pictures=gatherer.pictures(),
        warnings=warnings,
    )


def _watched(pieces: Iterator[Frames], gatherer: Gatherer, report: Report) -> Iterator[UInt8[Tensor, "1 _ 3 _ _"]]:
    """The frames as bytes, as they were in the file."""
    done = 0
    for piece in pieces:
        frames = (piece * 255).round_().to(torch.uint8)
        gatherer.add(frames[0])
        yield frames
        done += frames.shape[1]
        report(done)


def _with_decoder(settings: "dict[str, Plain] | object") -> dict[str, Plain]:
    """Settings of the results, and what decoded the file."""
    import av

    assert isinstance(settings, dict) and isinstance(settings["versions"], dict)
    decoder = ".".join(map(str, av.library_versions["libavcodec"]))
    return {**settings, "versions": {**settings["versions"], "av": av.__version__, "libavcodec": decoder}}
