"""What `evaluate` wrote, taken in; and which video of one evaluation belongs to which of another."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    judged: frozenset[str] | None = None
    """Aspects that the verdict is of; None: it needs none, or there is no verdict."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Of its path."""
        return Path(self.file).parts

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
    """Videos of the same path belong together, or of the same end of the path, if no other on either side has it.

    Ends are compared from the whole path down to the file's name without ending. If no name of one side occurs on the
    other, those at the same place belong together. Raises UserError if neither tells it.
    """
    one, two = first.videos, second.videos
    found: dict[int, int] = {}  # places of one and of two
    for name in _names(one, two):
        left, right = (_places(videos, name) for videos in (one, two))
        alike = [(left[key][0], right[key][0]) for key in left if len(left[key]) == len(right.get(key, ())) == 1]
        taken = set(found.values())
        found |= {i: j for i, j in alike if i not in found and j not in taken}
    if found:
        taken = set(found.values())
        both = [(one[i], two[j]) for i, j in sorted(found.items())]
        alone = [video.file for i, video in enumerate(one) if i not in found]
        return _pairing("name", both, alone + [video.file for j, video in enumerate(two) if j not in taken])
    shared = {video.stem for video in one} & {video.stem for video in two}
    if shared or len(one) != len(two):
        why = "no names agree" if not shared else f"'{min(shared)}' and its folders don't tell which belongs to which"
        raise UserError(
            f"the videos of {first.label} and {second.label} cannot be paired: {why}, and there are "
            f"{len(one)} and {len(two)}; give the files of one prompt the same name in both"
        )
    return _pairing("order", list(zip(one, two, strict=True)), [])


def _names(one: Sequence[Video], two: Sequence[Video]) -> list[Callable[[Video], tuple[str, ...]]]:
    """What may name a video, in the order in which it is tried: the whole path, then its ends, the longest first.

    Each with the file's ending and then without it.
    """
    deepest = max((len(video.parts) for video in (*one, *two)), default=0)
    found: list[Callable[[Video], tuple[str, ...]]] = []
    for depth in range(deepest, 0, -1):
        found.append(lambda video, depth=depth: video.parts[-depth:])
        found.append(lambda video, depth=depth: (*video.parts[-depth:-1], video.stem))
    return found


def _places(videos: Sequence[Video], name: Callable[[Video], tuple[str, ...]]) -> dict[tuple[str, ...], list[int]]:
    """Where the videos of each name are."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, video in enumerate(videos):
        found.setdefault(name(video), []).append(place)
    return found


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
    if isinstance(told, dict) and told.get("version", VERSION) != VERSION:
        version = json.dumps(told["version"])[:20]
        raise UserError(f"{file} has version {version} of the results, this program reads {VERSION}: evaluate again")
    if not isinstance(told, dict) or "version" not in told or not isinstance(told.get("videos"), list):
        raise UserError(f"{file} holds no results of 'streamingt2v evaluate': name the results.json that it wrote")
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
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is no JSON ({error}): name a results.json that 'streamingt2v evaluate' wrote"
        ) from error


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _video(file: Path, told: Any) -> Video:
    try:
        name = told["file"]
        if not isinstance(name, str) or not name:
            raise ValueError("a video without a name")
        if "error" in told:
            return Video(file=name, results=None, prompts=None, numbers={}, judged=None)
        _check(told["results"])
        floats = {number: _value(value) for number, value in told["results"]["numbers"].items()}
        plain = {**told["results"], "fps": float(told["results"]["fps"]), "numbers": dict.fromkeys(floats)}
        results = replace(Results.from_json(json.dumps(plain)), numbers=floats)
        numbers = dict(floats)
        verdict, judged = told.get("verdict"), None
        if verdict is not None:
            numbers[VERDICT], judged = _value(verdict["badness"]), _judged(verdict, results)
        return Video(file=name, results=results, prompts=told.get("prompts"), numbers=numbers, judged=judged)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, UserError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{file} is damaged or was not written by 'evaluate' ({reason}): evaluate again") from error


def _check(told: Any) -> None:
    """Raises ValueError for what is not of the kind that it should be, naming it."""
    kinds = {
        "numbers": dict, "meanings": dict, "series": dict, "events": dict, "settings": dict, "shown": list,
        "frames": int, "fps": int | float, "frozen": bool,
    }  # fmt: skip
    if not isinstance(told, dict):
        raise ValueError("results that are no object")
    for name, kind in kinds.items():
        value = told.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"its {name} are {json.dumps(value)[:20]}")
    if [type(side) for side in told["shown"]] != [int, int]:
        raise ValueError("its shown is no size")
    for name in told["numbers"]:
        _check_meaning(name, told["meanings"].get(name))
    for name, number in told["meanings"].items():
        _check_meaning(name, number)
    for name, one in told["series"].items():
        if not (isinstance(one, dict) and isinstance(one.get("points"), list) and all(map(_is_number, one["points"]))):
            raise ValueError(f"its series {name} is none")
    for name, frames in told["events"].items():
        if not (isinstance(frames, list) and all(type(frame) is int for frame in frames)):
            raise ValueError(f"its events {name} are no frames")
    for value in told["numbers"].values():
        _value(value)


def _check_meaning(name: str, told: Any) -> None:
    if not isinstance(told, dict) or not all(isinstance(told.get(key, ""), str) for key in ("meaning", "unit")):
        raise ValueError(f"the number {name} has no meaning")
    if told.get("better") not in ("lower", "higher", None) or told.get("frozen") not in ("as is", "absent", "infinite"):
        raise ValueError(f"the number {name} is better {json.dumps(told.get('better'))[:20]}")


def _is_number(told: object) -> bool:
    return isinstance(told, int | float) and not isinstance(told, bool)


def _judged(verdict: Mapping[str, Any], results: Results) -> frozenset[str] | None:
    """Aspects that the badness is of; None where that is not told: a frozen video is bad whatever is judged."""
    if isinstance(judged := verdict.get("judged"), list):
        return frozenset(map(str, judged))
    if results.frozen:
        return None
    return frozenset(name for name, grade in verdict.get("grades", {}).items() if grade is not None)


def _value(told: Any) -> Value:
    if told == INFINITE:
        return inf
    if told is not None and not _is_number(told):
        raise ValueError(f"{json.dumps(told)[:20]} is no number")
    return None if told is None else float(told)
