"""Who handles a fixture: functions registered for a pattern of file names, one module of `kinds` a group of kinds.

A new kind is one new file in `kinds`: a function of a `Fixture`, decorated `@handles("opensora_v10_*")`.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from tests.parity.fixture import Fixture

Handler: TypeAlias = Callable[[Fixture], None]
_HANDLERS: dict[str, Handler] = {}


def handles(*patterns: str) -> Callable[[Handler], Handler]:
    """Registers a function for file names; `*` stands for the last part of a name (letters and digits)."""

    def register(handler: Handler) -> Handler:
        for pattern in patterns:
            if pattern in _HANDLERS:
                raise ValueError(f"two handlers for {pattern}")
            _HANDLERS[pattern] = handler
        return handler

    return register


@cache
def _handlers() -> dict[str, Handler]:
    from tests.parity import kinds

    for module in pkgutil.iter_modules(kinds.__path__):
        importlib.import_module(f"{kinds.__name__}.{module.name}")
    return _HANDLERS


def handler_of(name: str) -> Handler | None:
    """The handler of a file's name; one that names the file itself goes before one with `*`."""
    known = _handlers()
    fitting = [p for p in known if re.fullmatch(re.escape(p).replace(r"\*", "[A-Za-z0-9_]+"), name)]
    return known[max(fitting, key=lambda p: ("*" not in p, len(p)))] if fitting else None


def check(fixture: Fixture) -> None:
    """Runs a fixture's handler. Raises AssertionError that tells what differs or is not understood."""
    if fixture.companion_of is not None:
        fixture.check_companion()
        return
    handler = handler_of(fixture.name)
    if handler is None:
        raise AssertionError(f"{fixture.name}: nothing handles files of this kind; there are {', '.join(_handlers())}")
    handler(fixture)
    fixture.finish()
