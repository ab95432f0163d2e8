"""Registered names for tests of the command line: the toy UNet as default model, and a long-term memory one can see."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Tensor

from streaming.backbone import Call
from streaming.cli import main
from streaming.memory import LongTermMemory
from streaming.model import Model
from streaming.read import read_video
from streaming.sites import Deltas
from streaming.types import Frames

PLUGINS = {
    "streaming.backbones": {
        "tiny-modelscope": "backends.toy_unet:ToyUNetBackend",
        "toy-dit": "backends.toy_dit:ToyDiTBackend",
    },
    "streaming.short_term_memories": {
        "none": "streaming.memory:no_short_term",
        "inject": "streaming.injection:inject",
    },
    "streaming.long_term_memories": {"none": "streaming.memory:no_long_term", "loud": "tests.cli_toys:loud"},
    "streaming.blenders": {
        "randomized": "streaming.blend:randomized",
        "naive": "streaming.blend:naive",
        "cross-fade": "streaming.blend:cross_fade",
    },
    "streaming.image_encoders": {"timm": "backends.image_timm:make"},
}


@final
class Loud(LongTermMemory[Tensor]):
    """Adds the anchor's brightness to every text token."""

    def __init__(self, sites: tuple[str, ...]) -> None:
        super().__init__()
        self.sites = sites

    def remember(self, anchor: Frames) -> Tensor:
        return anchor.mean((1, 2, 3, 4))

    def deltas(self, state: Tensor, call: Call) -> Deltas:
        rows = state.repeat(len(call.guided) // len(state))
        return {name: lambda value: 4 * rows.view(-1, 1, 1).expand_as(value) for name in self.sites}


def loud(model: Model, weights: Path | None) -> Loud:
    return Loud(tuple(site.name for site in model.backbone.context_sites))


def register(monkeypatch: pytest.MonkeyPatch, plugins: dict[str, dict[str, str]] = PLUGINS) -> None:
    """Lets the registry see these plugins and no others, whatever is installed."""

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in plugins.get(group, {}).items()]

    monkeypatch.setattr("streaming.registry.entry_points", entry_points)


def run(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def frames_of(path: Path) -> Frames:
    return torch.cat(list(read_video(path).pieces), dim=1)


def same(left: Path, right: Path) -> bool:
    """Whether two files hold the same frames."""
    one, other = frames_of(left), frames_of(right)
    return one.shape == other.shape and torch.equal(one, other)
