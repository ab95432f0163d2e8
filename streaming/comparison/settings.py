"""What was measured differently: settings whose difference alone changes numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from typing import final

from streaming.comparison.read import Pairing, Video
from streaming.errors import UserError
from streaming.metrics.described import Plain

_FILES = ("weights", "trunk")
"""Names of files: it does not matter what the same weights are called."""


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting that is not the same for both videos of a pair."""

    name: str
    """With dots: "flow.preset", "versions.torch", "frames"."""
    values: tuple[str, str]
    """Of the first pair that differs, as JSON; identities of weights are cut short."""
    file: str
    """The first one's file."""
    pairs: int
    """That differ in it."""


def differences(pairing: Pairing) -> tuple[Difference, ...]:
    """What differs in some pair, in the order in which it is met."""
    found: dict[str, Difference] = {}
    for first, second in pairing.pairs:
        for name, one, two in _differing(first, second):
            known = found.get(name)
            values = (_told(name, one), _told(name, two)) if known is None else known.values
            file, count = (first.file, 0) if known is None else (known.file, known.pairs)
            found[name] = Difference(name=name, values=values, file=file, pairs=count + 1)
    return tuple(found.values())


def _told(name: str, value: Plain) -> str:
    """As JSON; of the identity of weights the beginning."""
    return dumps(f"{value[:12]}..." if name.endswith("sha256") and isinstance(value, str) else value)


def check(found: Sequence[Difference], labels: tuple[str, str], despite: Sequence[str]) -> None:
    """Raises UserError for differences that are not named in `despite`, by themselves or by what they are part of."""
    wrong = [each for each in found if not any(f"{each.name}.".startswith(f"{name}.") for name in despite)]
    if not wrong:
        return
    told = "; ".join(f"{each.name} ({each.values[0]} and {each.values[1]})" for each in wrong[:4])
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    groups = dict.fromkeys(each.name.split(".")[0] for each in wrong)
    raise UserError(
        f"{labels[0]} and {labels[1]} were not measured alike, which changes numbers: {told}{more}; evaluate both "
        f"alike, or compare them all the same with {' '.join(f'--despite {group}' for group in groups)}"
    )


def _differing(first: Video, second: Video) -> Iterator[tuple[str, Plain, Plain]]:
    assert first.results is not None and second.results is not None
    one, two = dict(first.results.settings), dict(second.results.settings)
    if one.get("clip") is None or two.get("clip") is None:  # then no number that both have is by a CLIP model
        one["clip"] = two["clip"] = None
    yield from _metrics(_listed(one.pop("metrics", [])), _listed(two.pop("metrics", [])))
    yield from _versions(one.pop("versions", {}), two.pop("versions", {}))
    yield from _flat("", one, two)
    if first.results.settings.get("size") is None and first.results.shown != second.results.shown:
        yield "resolution", list(first.results.shown), list(second.results.shown)
    if first.results.frames != second.results.frames:
        yield "frames", first.results.frames, second.results.frames
    if first.prompts is not None and second.prompts is not None and first.prompts != second.prompts:
        yield "prompts", dumps(first.prompts), dumps(second.prompts)


def _flat(name: str, one: Plain, two: Plain) -> Iterator[tuple[str, Plain, Plain]]:
    """The innermost settings that differ."""
    if isinstance(one, Mapping) and isinstance(two, Mapping) and one.get("kind") == two.get("kind"):
        same = one.get("sha256") is not None and one.get("sha256") == two.get("sha256")
        for key in dict.fromkeys([*one, *two]):
            if not (same and key in _FILES):
                yield from _flat(f"{name}.{key}" if name else key, one.get(key), two.get(key))
    elif one != two:
        yield name, one, two


def _versions(one: Plain, two: Plain) -> Iterator[tuple[str, Plain, Plain]]:
    """Of modules that both used; others computed no number that both have."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for module in one:
            if module in two:
                yield from _flat(f"versions.{module}", one[module], two[module])


def _metrics(one: list[Plain], two: list[Plain]) -> Iterator[tuple[str, Plain, Plain]]:
    """Of metrics of one kind, those with other settings; a metric that only one has gives numbers that only it has."""
    left, right = ([each for each in mine if each not in theirs] for mine, theirs in ((one, two), (two, one)))
    for metric in left:
        kind = metric.get("kind") if isinstance(metric, Mapping) else None
        partner = next((each for each in right if isinstance(each, Mapping) and each.get("kind") == kind), None)
        if partner is not None:
            right.remove(partner)
            yield from _flat(f"metrics.{kind}", metric, partner)


def _listed(told: Plain) -> list[Plain]:
    return list(told) if isinstance(told, list) else []
