"""The attribute judge as a plugin of the group `streaming.clip_judges`: `embedded`, or `embedded:DIR`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import UInt8
from torch import Tensor

from backends.embedded import packaged_weights
from backends.embedded.judge import Judge
from backends.world import HIDDEN_ATTRIBUTES
from streaming.ablation.judge import ClipJudge
from streaming.metrics.described import Plain
from streaming.metrics.fingerprint import tensors_sha256

AT_ONCE = 64
"""Clips that are judged together."""
NOTHING = {"pattern": ("plain",)}
"""Words for an object that has nothing to be kept."""


@final
class EmbeddedJudge(ClipJudge):
    """A judge of the procedural world's clips."""

    def __init__(self, folder: Path) -> None:
        """folder: holds `judge/`. Raises UserError if there is none."""
        self._judge, self._folder = Judge.load(folder / "judge"), folder

    @property
    def frames(self) -> int:
        """As it was trained."""
        return self._judge.config.frames

    @property
    def hidden(self) -> Mapping[str, tuple[str, ...]]:
        """What captions never name, as far as this judge has learned it."""
        known = self._judge.config.attributes
        return {name: NOTHING.get(name, ()) for name in HIDDEN_ATTRIBUTES if name in known}

    def settings(self) -> dict[str, Plain]:
        """The SHA-256 of its weights."""
        return {"kind": "EmbeddedJudge", "sha256": tensors_sha256(self._judge.state_dict())}

    def ask(self, clips: UInt8[Tensor, "clips time 3 rows cols"], device: torch.device) -> Mapping[str, Sequence[str]]:
        """The likeliest word of every attribute."""
        judge, words = self._judge.to(device), self._judge.config.attributes
        told = [judge.classify(part.to(device).float() / 255) for part in clips.split(AT_ONCE)]
        return {
            name: [words[name][i] for part in told for i in part[name].tolist()]
            for name in self._judge.config.attributes
        }


def embedded(folder: str) -> EmbeddedJudge:
    """Entry point `embedded`: the packaged judge, or the one in `DIR/judge`."""
    return EmbeddedJudge(Path(folder) if folder else packaged_weights())
