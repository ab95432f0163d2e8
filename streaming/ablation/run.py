"""Makes what is missing of an ablation, variant by variant, and keeps what is done."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, final

from streaming.ablation.judge import ClipJudge, kept
from streaming.ablation.measure import Job, Measurer, Measures, Numbers, Video, colour_in, processes
from streaming.ablation.plan import Table, Variant
from streaming.ablation.store import Row, Stored, changed, read, write
from streaming.ablation.videos import (
    Sampled,
    blended,
    borders_of,
    enhanced,
    enhancer_for,
    joins_of,
    made,
    parts_for,
)
from streaming.enhancer import Enhancer
from streaming.errors import UserError
from streaming.metrics.borders import BordersAt
from streaming.metrics.described import Plain, plain
from streaming.metrics.fingerprint import tensors_sha256
from streaming.model import Model
from streaming.parts import Parts

Report: TypeAlias = Callable[[str, int, int], None]
"""(variant, frames done, frames in all)."""


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """An ablation of a model."""

    model: Model
    """Loaded, on its device."""
    memories: Path | None
    """Folder with trained memories; None: the model's own."""
    sampled: Sampled
    """Which videos."""
    measures: Measures
    """What is looked at."""
    judge: ClipJudge | None
    """Who tells hidden attributes; None: nobody."""
    batch: int
    """Videos made together."""
    jobs: int
    """Processes that measure."""
    output: Path
    """Folder of the results."""
    keep: int = 0
    """Videos of each variant that are kept as mp4."""


@final
@dataclass
class Found:
    """What came out."""

    rows: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    """By the variant's `file`."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a variant was left out, by its `file`."""


def run(study: Study, tables: Sequence[Table], report: Report, say: Callable[[str], None]) -> Found:
    """Makes, measures and keeps every variant that is not there yet; those without weights are skipped and told.

    say: told a line about what is skipped, taken from an earlier run, or made again. Raises UserError for a damaged
    file of an earlier run, and as the loop and the metrics do.
    """
    found, source = Found(), Source(study, report)
    with processes(study.jobs) as pool:
        for variant in {each.file: each for table in tables for each in table.variants}.values():
            try:
                work = _base(source, variant) if variant.blender is None else _enhancement(source, variant)
            except UserError as error:
                found.skipped[variant.file] = str(error)
                say(f"{variant.file} is skipped: {error}")
                continue
            found.rows[variant.file] = _rows(study, variant, work, pool, say)
    return found


@final
class Source:
    """What several variants share, made when the first one asks for it."""

    def __init__(self, study: Study, report: Report) -> None:
        self.study, self.report = study, report
        self._videos: list[Video] | None = None

    @cached_property
    def base(self) -> str:
        """The identity of the base model's weights."""
        return tensors_sha256(self.study.model.backbone.state_dict())

    @cached_property
    def enhancer(self) -> Enhancer:
        """The model's. Raises UserError if there is none."""
        model = self.study.model
        return enhancer_for(model.name, model.device, model.dtype)

    @cached_property
    def enhancers(self) -> str:
        """The identity of the enhancer's weights."""
        return tensors_sha256(self.enhancer.backbone.state_dict())

    def videos(self, parts: Parts, variant: Variant) -> list[Video]:
        """Those that every blending starts from, in memory: at 64 x 64 pixels and 240 frames 3 MB each."""
        if self._videos is None:
            study = self.study
            told = partial(_so_far, self.report, f"{variant.short}_{variant.long}", study.sampled)
            self._videos = list(made(parts, study.sampled, study.batch, told))
        return self._videos


@final
@dataclass(frozen=True, kw_only=True)
class _Work:
    """One variant, ready to be made."""

    made_with: dict[str, Plain]
    """Everything that changes a number."""
    make: Callable[[], Iterator[Video]]
    """The videos, in order."""
    job: Callable[[Video, int, int], Job]
    """(video, prompt, seed) -> what is to be measured."""
    measures: Measures
    """What is looked at."""
    judge: ClipJudge | None
    """Who tells hidden attributes."""
    fps: float
    """Of videos that are kept."""


def _base(source: Source, variant: Variant) -> _Work:
    study, report = source.study, source.report
    sampled, measures = study.sampled, study.measures
    parts = parts_for(variant, study.model, sampled, study.memories)
    borders = borders_of(parts)

    def job(video: Video, prompt: int, seed: int) -> Job:
        return Job(video=video, borders=borders, colour=colour_in(sampled.prompts[prompt]))

    return _Work(
        made_with={**_told(source, parts), "measures": measures.settings(borders), "judge": plain(study.judge)},
        make=lambda: made(parts, sampled, study.batch, partial(_so_far, report, variant.file, sampled)),
        job=job,
        measures=measures,
        judge=study.judge,
        fps=parts.fps,
    )


def _enhancement(source: Source, variant: Variant) -> _Work:
    study, report = source.study, source.report
    sampled, measures = study.sampled, replace(study.measures, flow=True, track=False, clip="none")
    parts = parts_for(variant, study.model, sampled, study.memories)
    enhancer = blended(source.enhancer, variant)

    def job(video: Video, prompt: int, seed: int) -> Job:
        return Job(video=video, borders=joins_of(enhancer, variant.causal, sampled, prompt, seed), colour=None)

    def make() -> Iterator[Video]:
        told = partial(_so_far, report, variant.file, sampled)
        return enhanced(enhancer, variant.causal, source.videos(parts, variant), sampled, study.batch, told)

    about = {"blender": repr(enhancer.blender), "causal": variant.causal, "strength": enhancer.strength}
    about |= {
        "weights": source.enhancers,
        "steps": enhancer.sampler.steps,
        "size": f"{enhancer.made[1]}x{enhancer.made[0]}",
    }
    return _Work(
        made_with={**_told(source, parts), "enhancement": about, "measures": measures.settings(BordersAt(()))},
        make=make,
        job=job,
        measures=measures,
        judge=None,
        fps=parts.fps,
    )


def _told(source: Source, parts: Parts) -> dict[str, Plain]:
    study, sampled = source.study, source.study.sampled
    return {
        "base": source.base,
        "prompts": list(sampled.prompts),
        "seeds": sampled.seeds,
        "frames": sampled.frames,
        "device": study.model.device.type,
        **parts.settings,
    }


def _rows(
    study: Study, variant: Variant, work: _Work, pool: ProcessPoolExecutor | None, say: Callable[[str], None]
) -> tuple[Row, ...]:
    path = study.output / "variants" / f"{variant.file}.json"
    before = read(path)
    if before is not None:
        other = changed(before, work.made_with)
        if not other:
            say(f"{variant.file}: taken from {path}")
            return before.rows
        say(f"{variant.file} is made again: {', '.join(other)} changed")
    rows = _measured(study, variant, work, Measurer(work.measures, pool))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, Stored(made_with=work.made_with, rows=rows))
    return rows


def _measured(study: Study, variant: Variant, work: _Work, measurer: Measurer) -> tuple[Row, ...]:
    waiting: list[Future[Numbers]] = []
    judged: list[Numbers] = []
    group: list[Video] = []
    pairs = study.sampled.pairs
    for video, (prompt, seed) in zip(work.make(), pairs, strict=True):
        if len(waiting) < study.keep:
            _keep(study.output / "videos" / variant.file / f"{len(waiting):02d}.mp4", video, work.fps)
        waiting.append(measurer.submit(work.job(video, prompt, seed)))
        group.append(video)
        if len(group) == study.batch or len(waiting) == len(pairs):
            judged += [{}] * len(group) if work.judge is None else kept(work.judge, group, study.model.device)
            group = []
    numbers = [each.result() | more for each, more in zip(waiting, judged, strict=True)]
    return tuple(
        Row(prompt=prompt, seed=seed, numbers=each) for each, (prompt, seed) in zip(numbers, pairs, strict=True)
    )


def _keep(path: Path, video: Video, fps: float) -> None:
    from streaming.video import VideoWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps=fps, height=video.shape[2], width=video.shape[3]) as writer:
        writer.write(video[None].float() / 255)


def _so_far(report: Report, name: str, sampled: Sampled, done: int) -> None:
    report(name, done, sampled.frames * len(sampled.pairs))
