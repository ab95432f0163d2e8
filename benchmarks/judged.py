"""What an attribute judge says of clips, and of which attributes it may be asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from backends.embedded import packaged_weights
from backends.embedded.judge import Judge
from backends.embedded.train_judge import examination, share_right
from streaming.codec import Codec

REQUIRED = 0.95
"""Share of renders that a judge must read rightly to be asked about an attribute."""
AT_ONCE = 64
"""Clips that are judged or coded together."""
Clips = UInt8[Tensor, "clips time 3 rows cols"]


@final
@dataclass(frozen=True, kw_only=True)
class Referee:
    """A judge with what it has been found to know."""

    judge: Judge
    """In eval mode."""
    renders: Mapping[str, float]
    """Share of renders that it reads rightly, by attribute: half of them of pairs of shape and colour that no training
    shows."""
    coded: Mapping[str, float]
    """The same of these renders after the model's autoencoder: what the best denoiser could get."""

    def may(self, name: str) -> bool:
        """Whether it has learned the attribute and reads it well enough in renders."""
        return self.renders.get(name, 0.0) >= REQUIRED

    def ask(self, clips: Clips) -> dict[str, Int[Tensor, " clips"]]:
        """Indices of words for every attribute, on the CPU."""
        device = next(self.judge.parameters()).device
        told = [self.judge.classify(part.to(device).float() / 255) for part in clips.split(AT_ONCE)]
        return {name: torch.cat([each[name] for each in told]).cpu() for name in self.judge.config.attributes}

    def words(self, name: str) -> tuple[str, ...]:
        """What the indices mean."""
        return self.judge.config.attributes[name]


def judge_folder(given: str | None, model: Path | None) -> Path:
    """The folder that holds `judge/`: as given, else the model's, else that of the packaged tiny-modelscope."""
    if given is not None:
        return Path(given)
    return model if model is not None and (model / "judge").is_dir() else packaged_weights()


@torch.inference_mode()
def appoint(folder: Path, codec: Codec, device: torch.device, *, clips: int) -> Referee:
    """The judge of a model folder, examined on as many renders. Raises UserError if there is none."""
    judge = Judge.load(folder / "judge").to(device)
    halves = [examination(clips // 2, device, split=split) for split in ("train", "heldout")]
    frames = torch.cat([half[0] for half in halves])
    known = {name: torch.cat([half[1][name] for half in halves]) for name in halves[0][1]}
    return Referee(
        judge=judge,
        renders=share_right(judge, frames, known),
        coded=share_right(judge, through(codec, frames), known),
    )


def through(codec: Codec, frames: Clips) -> Clips:
    """Clips after the autoencoder."""
    device = next(codec.parameters()).device
    parts = [codec.decode(codec.encode(part.to(device).float() / 255)) for part in frames.split(AT_ONCE // 4)]
    return torch.cat(parts).mul_(255).round_().clamp_(0, 255).to(torch.uint8).to(frames.device)


def tell(referee: Referee) -> None:
    """Prints what it knows, an attribute each."""
    print("the judge on renders (after the autoencoder):", flush=True)
    for name, share in referee.renders.items():
        print(f"  {name:14}{share:.3f} ({referee.coded[name]:.3f}){'' if referee.may(name) else ': not judged'}")
