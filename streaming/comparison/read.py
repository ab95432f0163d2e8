"""What `evaluate` wrote, taken in; and which video of one evaluation belongs to which of another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, final

from streaming.errors import UserError
from streaming.metrics.contract import Number
from streaming.metrics.paired import Value
from streaming.metrics.results import INFINITE, Results

VERSION = 1
"""Of the file format."""
NAME = "results.json"
"""What `evaluate` calls its file."""
VERDICT = "verdict_badness"
"""The summary verdict, as one of a video's numbers."""


@final
@dataclass(frozen=True, kw_only=True)
class Video:
    """One video of an evaluation."""

    file: str
    """As the evaluation names it."""
    results: Results | None
    """None: it could not be evaluated."""
    prompts: object
    """What it was to show, as JSON; None: not known."""
    numbers: Mapping[str, Value]
    """Of the results, and the verdict where there is one."""

    @property
    def stem(self) -> str:
        """Its name without folder and ending."""
        return Path(self.file).stem


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One file of results."""

    label: str
    """A short name that no other one has."""
    path: Path
    """The file."""
    videos: tuple[Video, ...]
    """In its order."""
    meanings: Mapping[str, Number]
    """Of all numbers that some video has."""


@final
@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which videos belong together."""

    by: Literal["name", "order"]
    """What tells it."""
    pairs: tuple[tuple[Video, Video], ...]
    """Both were evaluated."""
    alone: tuple[str, ...]
    """Files of either that have no partner."""
    failed: tuple[str, ...]
    """Pairs, by the first's file, of which one could not be evaluated."""


def read(paths: Sequence[Path]) -> tuple[Evaluation, ...]:
    """The evaluations in files, or in folders that hold a results.json.

    Raises UserError for files that are missing, damaged or of another kind, and for one that is named twice.
    """
    files = [path / NAME if path.is_dir() else path for path in paths]
    for i, file in enumerate(files):
        if file.absolute() in {earlier.absolute() for earlier in files[:i]}:
            raise UserError(f"{file} is named twice: name each result once")
    return tuple(_evaluation(file, label) for file, label in zip(files, _labels(files), strict=True))


def pair(first: Evaluation, second: Evaluation) -> Pairing:
    """Videos of the same name (without ending) belong together; if no names agree, those at the same place.

    Raises UserError if neither tells it.
    """
    one, two = ({video.stem: video for video in each.videos} for each in (first, second))
    unique = len(one) == len(first.videos) and len(two) == len(second.videos)
    if unique and one.keys() & two.keys():
        both = [(one[stem], two[stem]) for stem in one if stem in two]
        alone = [video.file for stem, video in [*one.items(), *two.items()] if stem not in one or stem not in two]
        return _pairing("name", both, alone)
    if len(first.videos) != len(second.videos):
        why = "no names agree" if unique else "some names occur twice"
        raise UserError(
            f"the videos of {first.label} and {second.label} cannot be paired: {why}, and there are "
            f"{len(first.videos)} and {len(second.videos)}; give the files of one prompt the same name in both"
        )
    return _pairing("order", list(zip(first.videos, second.videos, strict=True)), [])


def _pairing(by: Literal["name", "order"], both: list[tuple[Video, Video]], alone: list[str]) -> Pairing:
    fine = [(a, b) for a, b in both if a.results is not None and b.results is not None]
    failed = [a.file for a, b in both if a.results is None or b.results is None]
    return Pairing(by=by, pairs=tuple(fine), alone=tuple(alone), failed=tuple(failed))


def _labels(files: Sequence[Path]) -> list[str]:
    """The folders' names where these are all different (evaluations are called results.json), or the paths."""
    for name in (lambda file: file.parent.name if file.name == NAME else file.stem, str):
        labels = [name(file) for file in files]
        if len(set(labels)) == len(labels) and all(labels):
            return labels
    return [str(file) for file in files]


def _evaluation(file: Path, label: str) -> Evaluation:
    told = _json(file)
    if not isinstance(told, dict) or not isinstance(told.get("videos"), list):
        raise UserError(f"{file} holds no results of 'streamingt2v evaluate': name the results.json that it wrote")
    if told.get("version") != VERSION:
        raise UserError(
            f"{file} has version {told.get('version')} of the results, this program reads {VERSION}: evaluate again"
        )
    videos = tuple(_video(file, one) for one in told["videos"])
    if not any(video.results for video in videos):
        raise UserError(f"{file} has no video that could be evaluated: there is nothing to compare")
    meanings: dict[str, Number] = {}
    for video in videos:
        meanings |= video.results.meanings if video.results else {}
    if any(VERDICT in video.numbers for video in videos):
        meanings[VERDICT] = Number(meaning="the summary verdict", better="lower")
    return Evaluation(label=label, path=file, videos=videos, meanings=meanings)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{file} cannot be read ({reason}): name a results.json of 'streamingt2v evaluate'") from error
    except ValueError as error:
        raise UserError(
            f"{file} is no JSON ({error}): name a results.json that 'streamingt2v evaluate' wrote"
        ) from error


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _video(file: Path, told: Any) -> Video:
    try:
        name = told["file"]
        if not isinstance(name, str):
            raise ValueError("a video without a name")
        if "error" in told:
            return Video(file=name, results=None, prompts=None, numbers={})
        results = Results.from_json(json.dumps(told["results"]))
        numbers = {number: _value(value) for number, value in results.numbers.items()}
        if isinstance(verdict := told.get("verdict"), dict) and "badness" in verdict:
            numbers[VERDICT] = _value(verdict["badness"])
        return Video(file=name, results=results, prompts=told.get("prompts"), numbers=numbers)
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is damaged or was not written by 'evaluate' ({reason}): evaluate again") from error


def _value(told: Any) -> Value:
    if told == INFINITE:
        return inf
    return None if told is None else float(told)
