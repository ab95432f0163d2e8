"""Settings as plain data: whatever changes a number stands beside it in the results."""

import sys
from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

Plain: TypeAlias = "str | int | float | bool | None | list[Plain] | dict[str, Plain]"
"""What JSON knows."""


class Described(ABC):  # noqa: B024 - abstract by what its subclasses add
    """Something that can tell its settings. Those that are no dataclasses override `settings`."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules whose version changes its numbers. Default: none."""
        return ()

    def settings(self) -> dict[str, Plain]:
        """Its kind and the fields of its dataclass, as plain data."""
        assert is_dataclass(self), "what is no dataclass tells its settings itself"
        told = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return {"kind": type(self).__name__, **told}


def plain(value: object) -> Plain:
    """A setting as JSON knows it. Raises TypeError for what is none."""
    if isinstance(value, Described):
        return value.settings()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    raise TypeError(f"{type(value).__name__} is no setting")


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Versions of imported modules, as they call themselves or as their distribution does; without those not found."""
    found = {}
    for name in sorted(set(modules)):
        told = getattr(sys.modules.get(name), "__version__", None) or _distributed(name)
        if told:
            found[name] = str(told)
    return found


def _distributed(name: str) -> str | None:
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:
        return None
