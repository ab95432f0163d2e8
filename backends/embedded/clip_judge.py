"""The attribute judge as a plugin of the group `streaming.clip_judges`: `embedded`, or `embedded:DIR`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import UInt8
from torch import Tensor

from backends.embedded import packaged_weights
from backends.embedded.judge import Judge
from backends.embedded.train_judge import examination, share_right
from backends.world import HIDDEN_ATTRIBUTES
from streaming.ablation.judge import ClipJudge
from streaming.metrics.described import Plain
from streaming.metrics.fingerprint import tensors_sha256

AT_ONCE = 64
"""Clips that are judged together."""
EXAMINED = 256
"""Renders that it is examined on, half of them with pairs of shape and colour that no training shows."""
PLAIN_WORD = "plain"
"""The judge's word for the pattern of an object that has nothing hidden to be kept."""


@final
class EmbeddedJudge(ClipJudge):
    """A judge of the procedural world's clips."""

    def __init__(self, folder: Path) -> None:
        """folder: holds `judge/`. Raises UserError if there is none."""
        self._judge = Judge.load(folder / "judge")
        self._accuracy: dict[str, float] | None = None

    @property
    def frames(self) -> int:
        """As it was trained."""
        return self._judge.config.frames

    @property
    def hidden(self) -> tuple[str, ...]:
        """What prompts need not name, as far as this judge has learned it."""
        return tuple(name for name in HIDDEN_ATTRIBUTES if name in self._judge.config.attributes)

    def accuracy(self, device: torch.device) -> Mapping[str, float]:
        """Share of renders of unseen scenes that are read rightly; computed once."""
        if not self.hidden:
            return {}
        if self._accuracy is None:
            judge = self._judge.to(device)
            halves = [examination(EXAMINED // 2, device, split=split) for split in ("train", "heldout")]
            frames = torch.cat([half[0] for half in halves])
            known = {name: torch.cat([half[1][name] for half in halves]) for name in halves[0][1]}
            right = share_right(judge, frames, known)
            self._accuracy = {name: right[name] for name in self.hidden}
        return self._accuracy

    def shows(self, told: Mapping[str, str]) -> bool:
        """Whether the object has a pattern: a plain one's second colour is nowhere to be seen."""
        return told["pattern"] != PLAIN_WORD

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
