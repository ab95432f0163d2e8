"""`streamingt2v doctor`: whether everything that is needed is there, and what to do if not."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import final

from streaming.errors import UserError

DISTRIBUTION = "streamingt2v"
PACKAGES = ("streaming", "adapters", "backends")
"""Import names of this distribution; the first is mosaicml-streaming's too, the second that of AdapterHub's package."""


@final
@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    text: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty: nothing."""


def doctor() -> int:
    """Look for what is missing, too old or in the way; exits with 1 if there is something to do."""
    problems = 0
    for title, check in CHECKS.items():
        print(title)
        for finding in check():
            problems += bool(finding.advice)
            print(f"  {finding.text}" + (f"\n    PROBLEM: {finding.advice}" if finding.advice else ""))
    print(f"{problems} problem{'s' * (problems > 1)} found" if problems else "no problem found")
    return 1 if problems else 0


def versions() -> Iterator[Finding]:
    """Python, and each dependency against the lowest version that was tried."""
    yield Finding(f"python {platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})")
    try:
        yield Finding(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        needed = [line for line in metadata.requires(DISTRIBUTION) or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        yield Finding(f"{DISTRIBUTION} is not installed", "run 'pip install .' in the project's folder")
        return
    for line in needed:
        yield _dependency(line)


def _dependency(line: str) -> Finding:
    from packaging.requirements import Requirement

    need = Requirement(line)
    try:
        found = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return Finding(f"{need.name} is missing", f"pip install '{line}'")
    fits = need.specifier.contains(found, prereleases=True)
    return Finding(f"{need.name} {found}", "" if fits else f"{need.specifier} is needed: pip install '{line}'")


def clashes() -> Iterator[Finding]:
    """Other distributions that install our import names, and modules that hide ours."""
    owners = metadata.packages_distributions()
    home = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        others = sorted({owner for owner in owners.get(name, ()) if owner.lower() != DISTRIBUTION})
        place = _place(name)
        if others:
            yield Finding(
                f"{name}: {' and '.join(others)} install{'s' * (len(others) == 1)} a package of this name, too",
                f"the two overwrite each other: pip uninstall {' '.join(others)}, then reinstall {DISTRIBUTION}, "
                f"or keep {DISTRIBUTION} in a virtual environment of its own (python -m venv)",
            )
        elif place is None or place.parent != home:
            yield Finding(
                f"{name}: Python finds it in {place}, not in {home / name}",
                "rename that folder, or take its parent off PYTHONPATH, or start from another folder",
            )
        else:
            yield Finding(f"{name}: {place}")


def _place(name: str) -> Path | None:
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]).resolve() if places else None


def machine() -> Iterator[Finding]:
    """Processors, memory and GPUs."""
    import torch

    memory = _memory()
    has = f", {memory / 2**30:.0f} GiB of memory" if memory else ""
    yield Finding(f"{os.cpu_count()} processors, {torch.get_num_threads()} threads{has}")
    if not torch.cuda.is_available():
        yield Finding("no CUDA device: the CPU is used")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB")


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system says
        return None


def encoders() -> Iterator[Finding]:
    """H.264 in PyAV."""
    import av

    for name in ("libx264", "libx264rgb"):
        there = name in av.codecs_available
        advice = "" if there else "this PyAV is built without x264: pip install --force-reinstall av"
        yield Finding(f"video encoder {name}: {'there' if there else 'missing'}", advice)


def weights() -> Iterator[Finding]:
    """The model that ships with the package."""
    from streaming.cli.options import DEFAULT_MODEL
    from streaming.registry import open_model

    try:
        model = open_model(DEFAULT_MODEL)
    except UserError as error:
        yield Finding(f"{DEFAULT_MODEL} cannot be loaded", str(error))
        return
    millions = sum(weight.numel() for weight in model.backbone.parameters()) / 1e6
    yield Finding(f"{DEFAULT_MODEL}: {millions:.1f} M parameters, from {model.directory or 'its plugin'}")


def plugins() -> Iterator[Finding]:
    """What is registered in each group, and what of it is broken or claimed twice."""
    from streaming import registry

    groups = (
        registry.BACKBONES,
        registry.SHORT_TERM_MEMORIES,
        registry.LONG_TERM_MEMORIES,
        registry.BLENDERS,
        registry.IMAGE_ENCODERS,
    )
    for group in groups:
        try:
            names = registry.discover(group)
        except UserError as error:
            yield Finding(group, str(error))
            continue
        yield Finding(
            f"{group}: {', '.join(names) or 'none'}", "" if names else "run 'pip install .' in the project's folder"
        )
        yield from _broken(group, list(names))


def _broken(group: str, names: list[str]) -> Iterator[Finding]:
    from streaming.registry import load

    for name in names:
        try:
            load(group, name)
        except UserError as error:
            yield Finding(f"{name} is broken", str(error))


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": versions,
    "import names": clashes,
    "machine": machine,
    "video": encoders,
    "plugins": plugins,
    "model": weights,
}
"""In the order in which they are made."""
