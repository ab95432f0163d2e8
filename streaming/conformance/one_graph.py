"""Whether a backbone is one graph for `torch.compile`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import torch

from streaming.backbone import Backbone, Call


@runtime_checkable
class Compilable(Protocol):
    """A suite that can say what it tests."""

    def make(self) -> Backbone:
        """The backbone under test."""
        ...

    def call(self) -> Call:
        """A call that it takes."""
        ...


def check_one_graph(suite: Compilable) -> None:
    """Fails unless the backbone, with a delta at every site, compiles without a break and computes the same.

    A test run may have put shape checkers around every function, which no compiler can trace. So the suite is imported
    anew, by its module's name, without them, and with it the modules of its package and of the backbone's.
    """
    packages = {type(thing).__module__.partition(".")[0] for thing in (suite, suite.make())}
    with unchecked(*(name for name in sys.modules if name.partition(".")[0] in packages)):
        module = import_module(type(suite).__module__)
        again: Any = reduce(getattr, type(suite).__qualname__.split("."), module)()  # pyright: ignore[reportCallIssue]
        backbone, call = again.make(), again.call()
        first = () if backbone.input_site is None else (backbone.input_site,)
        sites = (*first, *backbone.feature_sites, *backbone.context_sites)
        deltas = {site.name: lambda value: 0.1 * value for site in sites}
        with torch.no_grad():
            expected = backbone(call, deltas)
            compiled = torch.compile(backbone, fullgraph=True, backend="eager")(call, deltas)
    torch.testing.assert_close(compiled, expected)


@contextmanager
def unchecked(*names: str) -> Iterator[None]:
    """Within, modules that jaxtyping has put checkers into, and those named, are imported anew without."""
    kept = {name: module for name, module in sys.modules.items() if name in names or _is_checked(module)}
    finders = sys.meta_path[:]
    for name in kept:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in finders if not _is_jaxtypings(finder)]
    try:
        yield
    finally:
        sys.meta_path[:] = finders
        sys.modules.update(kept)


def _is_checked(module: object) -> bool:
    return _is_jaxtypings(getattr(getattr(module, "__spec__", None), "loader", None))


def _is_jaxtypings(thing: object) -> bool:
    return type(thing).__module__.split(".")[0] == "jaxtyping"
