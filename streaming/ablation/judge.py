"""What somebody says who looks at clips: plugins of the group `streaming.clip_judges`.

An entry point refers to a function that takes what follows its name in a SPEC, NAME[:REST], and gives a `ClipJudge`.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import UInt8
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics.described import Described
from streaming.registry import discover, load

CLIP_JUDGES = "streaming.clip_judges"
REQUIRED = 0.95
"""Share of clips with known answers that a judge must read rightly to be asked about an attribute."""
Ends: TypeAlias = tuple[str, str]
"""Words for the first and the last frames of a video."""


class ClipJudge(Described):
    """Reads attributes off clips, for videos of a world in which there are such."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """Of a clip."""

    @property
    @abstractmethod
    def hidden(self) -> tuple[str, ...]:
        """Attributes that no prompt after the first chunk's names, as far as it knows any."""

    @abstractmethod
    def accuracy(self, device: torch.device) -> Mapping[str, float]:
        """Share of clips with known answers that it reads rightly, by hidden attribute; computed on that device."""

    @abstractmethod
    def shows(self, told: Mapping[str, str]) -> bool:
        """Whether a clip of which it says this has anything to be kept: the one rule for all hidden attributes."""

    @abstractmethod
    def ask(self, clips: UInt8[Tensor, "clips time 3 rows cols"], device: torch.device) -> Mapping[str, Sequence[str]]:
        """A word for every clip, by attribute; computed on that device."""


def make_judge(spec: str) -> ClipJudge:
    """The judge that a SPEC names, NAME[:REST]. Raises UserError for an unknown or broken one, and as plugins do."""
    name, _, rest = spec.partition(":")
    if name not in (known := discover(CLIP_JUDGES)):
        names = ", ".join(known) or "none that is installed"
        raise UserError(f"no judge '{spec}': name one as NAME or NAME:WHICH, the name one of {names}; or none")
    try:
        return load(CLIP_JUDGES, name)(rest)
    except UserError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the plugin '{name}' ({known[name].value}) does not work: {reason}") from error


def examined(judge: ClipJudge, name: str, device: torch.device) -> str | None:
    """Why the judge is not asked about a hidden attribute; None if it may be."""
    if name not in judge.hidden:
        return f"the judge does not know the hidden attribute {name}"
    share = judge.accuracy(device).get(name, 0.0)
    if share >= REQUIRED:
        return None
    return f"the judge reads {name} rightly in {share:.3f} of known clips only, {REQUIRED:g} are required"


def ends(
    judge: ClipJudge, name: str, videos: Sequence[UInt8[Tensor, "_ 3 rows cols"]], device: torch.device
) -> list[Ends | None]:
    """The judge's words for the first and the last frames of each video; None for a video shorter than two clips and
    where the first frames show nothing to be kept."""
    length = judge.frames
    long = [i for i, video in enumerate(videos) if len(video) >= 2 * length]
    found: list[Ends | None] = [None] * len(videos)
    if not long:
        return found
    first, last = (judge.ask(torch.stack([videos[i][cut] for i in long]), device)
                   for cut in (slice(length), slice(-length, None)))  # fmt: skip
    for place, i in enumerate(long):
        if judge.shows({attribute: words[place] for attribute, words in first.items()}):
            found[i] = first[name][place], last[name][place]
    return found


def kept(name: str, seen: Sequence[Ends | None]) -> list[dict[str, float | None]]:
    """For each video, `NAME_kept`: whether its end shows what its beginning did, 1 or 0, and `NAME_kept_chance`: the
    share of the other videos whose end shows that; None for a video that shows nothing to be kept."""
    last = Counter(pair[1] for pair in seen if pair is not None)
    others = last.total() - 1
    found: list[dict[str, float | None]] = []
    for pair in seen:
        same = None if pair is None else float(pair[0] == pair[1])
        chance = None if pair is None or same is None or not others else (last[pair[0]] - same) / others
        found.append({f"{name}_kept": same, f"{name}_kept_chance": chance})
    return found
