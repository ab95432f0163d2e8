"""Results of a variant on disk: a finished one is not computed again unless something that changes it is another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, final

from streaming.errors import UserError
from streaming.files import replacing
from streaming.metrics.described import Plain
from streaming.metrics.results import INFINITE


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """One video."""

    prompt: int
    """Its prompt's place."""
    seed: int
    """Its seed."""
    numbers: Mapping[str, float | None]
    """What was measured. Infinite: as bad as can be; None: not defined for it."""


@final
@dataclass(frozen=True, kw_only=True)
class Stored:
    """A finished variant."""

    made_with: Mapping[str, Plain]
    """Everything that changes a number."""
    rows: tuple[Row, ...]
    """One a video."""


def read(path: Path) -> Stored | None:
    """What an earlier run wrote; None if there is nothing. Raises UserError for a damaged file."""
    if not path.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(
            Row(prompt=each["prompt"], seed=each["seed"], numbers=_numbers(each["numbers"])) for each in told["rows"]
        )
        return Stored(made_with=told["made_with"], rows=rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} holds no results of a variant ({error}): remove it, it is made again") from error


def write(path: Path, stored: Stored) -> None:
    """Writes it whole or not at all. Raises UserError if the file system refuses."""
    rows = [{"prompt": row.prompt, "seed": row.seed, "numbers": plain(row.numbers)} for row in stored.rows]
    text = json.dumps({"made_with": dict(stored.made_with), "rows": rows}, allow_nan=False, indent=1)
    with replacing(path, "the results") as waiting:
        waiting.write_text(text + "\n", encoding="utf-8")


def changed(stored: Stored, made_with: Mapping[str, Plain]) -> list[str]:
    """Names of what was another when these results were made, in the order in which it is told."""
    old, new = (json.loads(json.dumps(dict(each))) for each in (stored.made_with, made_with))
    return [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]


def plain(numbers: Mapping[str, float | None]) -> dict[str, float | str | None]:
    """As JSON knows it; infinity is the word "infinite"."""
    return {name: INFINITE if value == inf else value for name, value in numbers.items()}


def by_prompt(rows: Sequence[Row], name: str) -> list[float | None]:
    """The mean over each prompt's seeds, by place; None where the number is not defined for any of them."""
    values: dict[int, list[float]] = {}
    for row in rows:
        value = row.numbers.get(name)
        values.setdefault(row.prompt, []).extend([] if value is None else [value])
    return [sum(values[prompt]) / len(values[prompt]) if values[prompt] else None for prompt in sorted(values)]


def _numbers(told: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: inf if value == INFINITE else value for name, value in told.items()}
