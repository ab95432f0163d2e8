"""Perceptual distance from the first frame: the contract, and LPIPS where its weights are at hand."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from streaming.errors import UserError
from streaming.keys import initial_weights
from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.described import Described, Plain
from streaming.metrics.fingerprint import file_sha256
from streaming.metrics.missing import need
from streaming.metrics.running import Curve
from streaming.weights import Checkpoint


class PerceptualDistance(Described):
    """How different two images look."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What numbers are called after it."""

    @abstractmethod
    def distance(self, one: UInt8[Tensor, "3 rows cols"], other: UInt8[Tensor, "3 rows cols"]) -> float:
        """0 for equal images, finite."""


@final
@dataclass(frozen=True, kw_only=True)
class LPIPS(PerceptualDistance):
    """Learned perceptual distance [Zhang et al., CVPR 2018], version 0.1, by the package lpips, which brings the linear
    heads; the trunk's ImageNet weights are torchvision's, from a file."""

    trunk: Path
    """torchvision's weights of that network (safetensors or PyTorch); named in the results."""
    net: Literal["alex", "vgg", "squeeze"] = "alex"
    """The trunk."""

    @property
    def name(self) -> str:
        """lpips."""
        return "lpips"

    @property
    def modules(self) -> tuple[str, ...]:
        """The package, and torchvision with the trunk."""
        return ("lpips", "torchvision")

    def settings(self) -> dict[str, Plain]:
        """Of the file its name and the SHA-256 of its bytes; the heads come with the package, whose version is told."""
        return {"kind": "LPIPS", "trunk": self.trunk.name, "sha256": file_sha256(self.trunk), "net": self.net}

    def distance(self, one: UInt8[Tensor, "3 rows cols"], other: UInt8[Tensor, "3 rows cols"]) -> float:
        """Raises UserError without the package, and for weights of another network."""
        with torch.no_grad():
            return float(self._network(*((2 * each.float() / 255 - 1)[None] for each in (one, other))))

    @cached_property
    def _network(self) -> Any:
        library = need("lpips", "the perceptual distance LPIPS")
        checkpoint = Checkpoint(self.trunk)
        with initial_weights(0):
            network = library.LPIPS(net=self.net, pnet_rand=True, verbose=False)
        # the package cuts torchvision's `features` into slices that keep the layers' numbers
        wanted = network.net.state_dict()
        names = {name: f"features.{name.split('.', 1)[1]}" for name in wanted}
        if missing := sorted(set(names.values()) - set(checkpoint.meta)):
            raise UserError(f"{self.trunk} holds no {missing[0]}: give torchvision's weights of {self.net}")
        try:
            network.net.load_state_dict(dict(zip(names, checkpoint.read(list(names.values())), strict=True)))
        except RuntimeError as error:
            raise UserError(f"{self.trunk} does not fit: give torchvision's weights of {self.net}") from error
        return network.eval().requires_grad_(False)


@final
@dataclass(frozen=True, kw_only=True)
class AnchorPerceptual(Metric):
    """Mean perceptual distance of the later frames from the first one (the paper's "image distance" with LPIPS)."""

    perceptual: PerceptualDistance
    """How images are compared, at the resolution of the evaluation."""

    @property
    def _number(self) -> str:
        return f"anchor_{self.perceptual.name}"

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One."""
        told = f"mean {self.perceptual.name} from the first frame"
        return {self._number: Number(meaning=told, better="lower", frozen="absent")}

    @property
    def modules(self) -> tuple[str, ...]:
        """The distance's."""
        return self.perceptual.modules

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter(self.perceptual, self._number)


@final
class _Meter(Meter):
    def __init__(self, perceptual: PerceptualDistance, name: str) -> None:
        self._perceptual, self._name, self._distances = perceptual, name, Curve(first=1)
        self._anchor: Tensor | None = None

    def add(self, seen: Observation) -> None:
        if self._anchor is None:
            self._anchor = seen.frame
        else:
            self._distances.add(self._perceptual.distance(self._anchor, seen.frame))

    def result(self) -> Values:
        return {self._name: self._distances.mean()}

    def curves(self) -> Mapping[str, Curve]:
        return {self._name: self._distances}
