"""Makes what is missing of an ablation, variant by variant, and keeps what is done."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import final

from streaming.ablation.judge import ClipJudge, Ends, ends, examined, kept
from streaming.ablation.measure import Job, Measurer, Measures, Numbers, Video, colour_in, processes
from streaming.ablation.plan import TABLES, Table, Variant
from streaming.ablation.store import Row, Stored, changed, read, write
from streaming.ablation.study import Report, Source, Study, so_far
from streaming.ablation.videos import (
    all_joins,
    blended,
    borders_of,
    enhanced,
    enlarged,
    made,
    parts_for,
)
from streaming.errors import UserError
from streaming.metrics.borders import BordersAt
from streaming.metrics.described import Plain, plain
from streaming.parts import Parts

HIDDEN = "pattern"
"""The hidden attribute that the judge is asked about."""
TRACKED = ("object_jump_ratio", "object_jump_departure", "object_jump_border", "object_found", "object_colour_drift")
"""Numbers of the object's track."""
BLENDINGS = tuple(each for table in TABLES for each in table.variants if each.blender is not None)
"""Variants that have joins."""


@final
@dataclass
class Found:
    """What came out."""

    rows: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    """By the variant's `file`."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a variant was left out, by its `file`."""
    unmeasured: dict[str, str] = field(default_factory=dict)
    """Why a number is told of no variant, by its name."""


def run(study: Study, tables: Sequence[Table], report: Report, say: Callable[[str], None]) -> Found:
    """Makes, measures and keeps every variant that is not there yet; what cannot be made is skipped and told.

    say: told a line about what is skipped, taken from an earlier run, or made again. A variant is skipped if it has no
    weights, if the file of an earlier run is damaged, and if its videos cannot be made (NaN, for example) or measured.
    Raises UserError if a measuring process is stopped.
    """
    found, variants = Found(), {each.file: each for table in tables for each in table.variants}.values()
    found.unmeasured |= _unmeasured(study, any(map(judged, variants)))
    if study.judge is not None and (reason := found.unmeasured.get(f"{HIDDEN}_kept")):
        say(f"{HIDDEN}_kept is not measured: {reason}")
        study = replace(study, judge=None)
    source = Source(study, report)
    with processes(study.jobs) as pool:
        for variant in variants:
            try:
                work = _enhancement(source, variant) if variant.blender or variant.enlarged else _base(source, variant)
                found.rows[variant.file] = _rows(study, variant, work, pool, say)
            except UserError as error:
                found.skipped[variant.file] = str(error)
                say(f"{variant.file} is skipped: {error}")
            except BrokenProcessPool as error:
                raise UserError(
                    f"a measuring process was stopped (out of memory?): lower --jobs; finished variants are kept in "
                    f"{study.output / 'variants'}"
                ) from error
    return found


def judged(variant: Variant) -> bool:
    """Whether a table that has the variant shows what the judge says."""
    return any(f"{HIDDEN}_kept" in table.numbers and variant.file in {each.file for each in table.variants}
               for table in TABLES)  # fmt: skip


def _unmeasured(study: Study, asked: bool) -> dict[str, str]:
    """Numbers that none of the variants will have, and why. asked: whether any variant is judged."""
    measures = study.measures
    told: dict[str, str] = {}
    if not measures.track:
        told |= dict.fromkeys(TRACKED, "--no-track")
    if measures.clip == "none":
        told |= dict.fromkeys(("anchor_distance", "anchor_distance_end"), "--clip none")
    if measures.lpips is None:
        told["anchor_lpips"] = "no --lpips, whose weights are not part of the package"
    judge = study.judge
    unasked = "--judge none" if judge is None else examined(judge, HIDDEN, study.model.device) if asked else None
    if unasked is not None:
        told |= dict.fromkeys((f"{HIDDEN}_kept", f"{HIDDEN}_kept_chance"), unasked)
    return told


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
    borders, judge = borders_of(parts), study.judge if judged(variant) else None

    def job(video: Video, prompt: int, seed: int) -> Job:
        return Job(video=video, borders=borders, colour=colour_in(sampled.prompts[prompt]))

    return _Work(
        made_with={**_told(source, parts), "measures": measures.settings(borders), "judge": plain(judge)},
        make=lambda: made(parts, sampled, study.batch, partial(so_far, report, variant.file, sampled)),
        job=job,
        measures=measures,
        judge=judge,
        fps=parts.fps,
    )


def _enhancement(source: Source, variant: Variant) -> _Work:
    study, report = source.study, source.report
    sampled, measures = study.sampled, replace(study.measures, flow=True, track=False, clip="none", lpips=None)
    parts = parts_for(variant, study.model, sampled, study.memories)
    enhancer = source.enhancer if variant.enlarged else blended(source.enhancer, variant)

    def job(video: Video, prompt: int, seed: int) -> Job:
        return Job(video=video, borders=all_joins(enhancer, BLENDINGS, sampled, prompt, seed), colour=None)

    def make() -> Iterator[Video]:
        told, videos = partial(so_far, report, variant.file, sampled), source.videos(parts, variant)
        if variant.enlarged:
            return enlarged(enhancer, videos, sampled, told)
        return enhanced(enhancer, variant.causal, videos, sampled, study.batch, told)

    blending = "none" if variant.enlarged else repr(enhancer.blender)
    about = {**source.enhancers, "blender": blending, "causal": variant.causal}
    joins = "those of " + ", ".join(each.name for each in BLENDINGS)
    return _Work(
        made_with={
            **_told(source, parts),
            "enhancement": about,
            "joins": joins,
            "measures": measures.settings(BordersAt(())),
        },  # fmt: skip
        make=make,
        job=job,
        measures=measures,
        judge=None,
        fps=parts.fps,
    )


def _told(source: Source, parts: Parts) -> dict[str, Plain]:
    study, sampled = source.study, source.study.sampled
    return {
        **source.base,
        "prompts": list(sampled.prompts),
        **({} if sampled.openings is None else {"openings": list(sampled.openings)}),
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
        complete = [(row.prompt, row.seed) for row in before.rows] == study.sampled.pairs
        if complete and not other:
            say(f"{variant.file}: taken from {path}{_without_videos(study, variant)}")
            return before.rows
        reason = f"{', '.join(other)} changed" if other else f"{path} does not hold each video once"
        say(f"{variant.file} is made again: {reason}")
    rows = _measured(study, variant, work, Measurer(work.measures, pool))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, Stored(made_with=work.made_with, rows=rows))
    return rows


def _measured(study: Study, variant: Variant, work: _Work, measurer: Measurer) -> tuple[Row, ...]:
    waiting: list[Future[Numbers]] = []
    seen: list[Ends | None] = []
    group: list[Video] = []
    pairs = study.sampled.pairs
    try:
        for video, (prompt, seed) in zip(work.make(), pairs, strict=True):
            if len(waiting) < study.keep:
                _keep(_kept_at(study, variant) / f"{len(waiting):02d}.mp4", video, work.fps)
            waiting.append(measurer.submit(work.job(video, prompt, seed)))
            group.append(video)
            if work.judge is not None and (len(group) == study.batch or len(waiting) == len(pairs)):
                seen += ends(work.judge, HIDDEN, group, study.model.device)
            if len(group) == study.batch:
                group = []
    except UserError:
        for each in waiting:
            each.cancel()
        raise
    more = kept(HIDDEN, seen) if work.judge is not None else [{} for _ in pairs]
    numbers = [each.result() | own for each, own in zip(waiting, more, strict=True)]
    return tuple(
        Row(prompt=prompt, seed=seed, numbers=each) for each, (prompt, seed) in zip(numbers, pairs, strict=True)
    )


def _kept_at(study: Study, variant: Variant) -> Path:
    return study.output / "videos" / variant.file


def _without_videos(study: Study, variant: Variant) -> str:
    """What --keep asks for and an earlier run did not keep."""
    wanted = min(study.keep, len(study.sampled.pairs))
    if all((_kept_at(study, variant) / f"{i:02d}.mp4").exists() for i in range(wanted)):
        return ""
    return f"; for {wanted} videos of it, remove that file: it is made again"


def _keep(path: Path, video: Video, fps: float) -> None:
    from streaming.video import VideoWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps=fps, height=video.shape[2], width=video.shape[3]) as writer:
        writer.write(video[None].float() / 255)
