"""A fixture file: tensors, metadata, and an account of what has been read and compared."""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tests.parity.formula import formula, is_known

TOLERANCE = 1e-4
"""Relative and absolute, in float32."""
PART = re.compile(r"(.*)\[(\d+):(\d+)\]")
"""`out.video[0:4]`: entries 0 to 3 of the tensor's first axis, of a file that was cut."""

OWNERS = {"st2v_unet": "base_model.", "st2v_cam": "unet.", "st2v_apm": "resampler."}
"""Files of a kind hold the weights below a published prefix, and leave it out; others name them in their metadata."""


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class Fixture:
    """`in.*` must all be read, `state.*` must all be used, `out.*` must all be compared: `finish` says what was not."""

    def __init__(self, path: Path) -> None:
        """Reads NAME.safetensors, the weights in NAME_state2, ... beside it, and the tensors that other files share."""
        self.path, self.name = path, path.stem
        self.meta, self.tensors = read(path)
        for more in sorted(path.parent.glob(f"{self.name}_state*.safetensors")):
            self._join(more.stem, read(more)[1])
        self._borrow()
        self.used: set[str] = set()
        self._siblings: dict[str, list[Fixture]] = {}
        self.errors: list[str] = []
        self.worst: dict[str, float] = {}

    def _join(self, name: str, more: Mapping[str, Tensor]) -> None:
        twice = sorted(set(more) & set(self.tensors))
        if twice:
            raise AssertionError(f"{name}: {', '.join(twice[:3])} also in {self.name}")
        self.tensors.update(more)

    def _borrow(self) -> None:
        for name, owner in json.loads(self.meta.get("shared_tensors", "{}")).items():
            self.tensors[name] = self.sibling(owner).tensors[name]

    def sibling(self, name: str) -> "Fixture":
        """Another file of the same folder. Raises AssertionError if it is not there."""
        path = self.path.with_name(f"{name}.safetensors")
        if not path.exists():
            raise AssertionError(f"{self.name}: needs {name}, which is not in {self.path.parent}")
        return Fixture(path)

    def siblings(self, kind: str = "[a-z0-9_]+") -> "list[Fixture]":
        """The files of a kind that the metadata names, as far as they are there (NAME_state2 comes with NAME)."""
        if kind not in self._siblings:
            names = re.findall(rf"\b{kind}_[A-Za-z0-9]+", " ".join(self.meta.values()))
            names = dict.fromkeys(re.sub(r"_state\d+$", "", name) for name in names if name != self.name)
            paths = [self.path.with_name(f"{name}.safetensors") for name in names]
            self._siblings[kind] = [Fixture(path) for path in paths if path.exists()]
        return self._siblings[kind]

    @property
    def companion_of(self) -> str | None:
        """NAME if this file is NAME_state2 (3, ...)."""
        match = re.fullmatch(r"(.+)_state\d+", self.name)
        return match[1] if match else None

    def check_companion(self) -> None:
        """A companion is as good as its NAME, whose test reads it."""
        assert self.companion_of is not None
        self.sibling(self.companion_of)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The metadata's `config`."""
        return json.loads(self.meta.get("config", "{}"))

    def json(self, name: str) -> Any:
        """Metadata that is JSON (numbers, lists, objects). Raises AssertionError if it is not there."""
        if name not in self.meta:
            self.give_up(f"its metadata has no `{name}`")
        return json.loads(self.meta[name])

    def number(self, name: str, default: float | None = None) -> float:
        """A number of the metadata or of its config."""
        value = self.meta.get(name, self.config.get(name, default))
        if value is None:
            self.give_up(f"neither its metadata nor its config has `{name}`")
        return float(value)

    def give_up(self, why: str) -> Any:
        """Raises AssertionError: the file cannot be understood."""
        raise AssertionError(f"{self.name}: {why}")

    def names(self, pattern: str) -> list[str]:
        """Tensors whose whole name matches, by the numbers in it. Slices of cut tensors count as the tensor."""
        whole = [PART.sub(r"\1", name) for name in self.tensors]
        fitting = [name for name in dict.fromkeys(whole) if re.fullmatch(pattern, name)]
        return sorted(fitting, key=lambda name: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", name)])

    def find(self, *patterns: str) -> str | None:
        """The first tensor that matches the first fitting pattern."""
        return next((names[0] for pattern in patterns if (names := self.names(pattern))), None)

    def read(self, *patterns: str) -> Tensor:
        """An input by the first fitting pattern, float32 if it is floating. Raises AssertionError if there is none."""
        name = self.find(*patterns)
        if name is None:
            self.give_up(f"no tensor {' or '.join(patterns)}; there are {self._listed('in.', 'out.')}")
        self.used.add(name)
        value = self.tensors[name]
        return value.float() if value.is_floating_point() else value

    def shape(self, name: str) -> torch.Size | None:
        """Of an output, without its first axis (along which it may have been cut); None if it is not there."""
        found = [value for key, value in self.tensors.items() if PART.sub(r"\1", key) == name]
        return found[0].shape[1:] if found else None

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """Stored weights below a prefix, without it, float32; all count as used. If there are none, a sibling's."""
        start = f"state.{prefix}"
        found = [name for name in self.tensors if name.startswith(start)]
        self.used.update(found)
        owner = self if found else next((other for other in self.siblings() if other.has(start)), self)
        return {name[len(start) :]: value.float() for name, value in owner.tensors.items() if name.startswith(start)}

    def drawn(self, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Weights by the metadata's formula, their names behind `prefix`; empty if the metadata has none."""
        if not self.meta.get("weights_formula"):
            return {}
        if not is_known(self.meta["weights_formula"]):
            self.give_up(f"its weights_formula is not the known one: {self.meta['weights_formula']}")
        return {name: formula(prefix + name, tuple(shape)) for name, shape in shapes.items()}

    def has(self, start: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(start) for name in self.tensors)

    def weights(self, shapes: Mapping[str, torch.Size], home: str = "") -> dict[str, Tensor]:
        """Weights by their full published names, float32: stored here, else by the formula, else from sibling files.

        home: prefix of the module that the file is about, which its names do without.
        Raises AssertionError listing what is nowhere.
        """
        found = {name: self._weight(name, tuple(shape), home) for name, shape in shapes.items()}
        missing = [name for name, value in found.items() if value is None]
        if missing:
            self.give_up(f"no weights for {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
        return {name: value for name, value in found.items() if value is not None}

    def _weight(self, name: str, shape: tuple[int, ...], home: str) -> Tensor | None:
        short = name.removeprefix(home)
        for own in (f"state.{name}", f"state.{short}"):
            if own in self.tensors:
                self.used.add(own)
                return self.tensors[own].float()
        if self.meta.get("weights_formula"):
            if not is_known(self.meta["weights_formula"]):
                self.give_up(f"its weights_formula is not the known one: {self.meta['weights_formula']}")
            prefix = self.meta.get("weights_formula_prefix", home) if home and name.startswith(home) else ""
            return formula(prefix + short if prefix else name, shape)
        keys = {kind: f"state.{name.removeprefix(start)}" for kind, start in OWNERS.items() if name.startswith(start)}
        for kind, key in [*keys.items(), ("[a-z0-9_]+", f"state.{name}")]:
            for other in self.siblings(kind):
                if key in other.tensors:
                    return other.tensors[key].float()
        return None

    def check(self, name: str, value: Tensor, *, tolerance: float = TOLERANCE) -> None:
        """Compares an output if the file has it, or the part of it that the file was cut to."""
        if name in self.tensors:
            self._compare(name, value, tolerance)
        for key in self.tensors:
            part = PART.fullmatch(key)
            if part and part[1] == name:
                self._compare(key, value[int(part[2]) : int(part[3])], tolerance)

    def _compare(self, name: str, value: Tensor, tolerance: float) -> None:
        expected = self.tensors[name]
        self.used.add(name)
        if value.shape != expected.shape:
            self.errors.append(f"{name}: shape {tuple(value.shape)} instead of {tuple(expected.shape)}")
            return
        if expected.numel():
            self.worst[name] = float((value.double() - expected.double()).abs().max())
        if not torch.allclose(value.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
            self.errors.append(
                f"{name}: differs by up to {self.worst[name]:.3g}, allowed is {tolerance:g} + {tolerance:g} |x|"
            )

    def finish(self) -> None:
        """Raises AssertionError for what differed, and for tensors that no handler has looked at."""
        ignored = [name for name in self.tensors if name not in self.used and not name.startswith("aux.")]
        if ignored:
            more = " ..." if len(ignored) > 5 else ""
            self.errors.append(f"tensors that the handler does not know: {', '.join(sorted(ignored)[:5])}{more}")
        if not self.worst:
            self.errors.append("nothing was compared")
        if self.errors:
            raise AssertionError(f"{self.name}: " + "\n".join(self.errors))

    def _listed(self, *prefixes: str) -> str:
        return ", ".join(sorted(name for name in self.tensors if name.startswith(prefixes)))
