"""What somebody says who looks at clips: plugins of the group `streaming.clip_judges`.

An entry point refers to a function that takes what follows its name in a SPEC, NAME[:REST], and gives a `ClipJudge`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics.described import Described
from streaming.registry import discover, load

CLIP_JUDGES = "streaming.clip_judges"


class ClipJudge(Described):
    """Reads attributes off clips, for videos of a world in which there are such."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """Of a clip."""

    @property
    @abstractmethod
    def hidden(self) -> Mapping[str, tuple[str, ...]]:
        """Attributes that no prompt names, with the words for "there is nothing to be kept"; empty: it knows none."""

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


def kept(
    judge: ClipJudge, videos: Sequence[UInt8[Tensor, "_ 3 rows cols"]], device: torch.device
) -> list[dict[str, float | None]]:
    """For each video, whether its last frames show the hidden attributes of its first ones: 1, 0, or None if the
    first show none. Numbers are called `NAME_kept`. Videos shorter than two clips have None."""
    length, names = judge.frames, judge.hidden
    if not names:
        return [{} for _ in videos]
    absent = {f"{name}_kept": None for name in names}
    long = [i for i, video in enumerate(videos) if len(video) >= 2 * length]
    found: list[dict[str, float | None]] = [dict(absent) for _ in videos]
    if long:
        first, last = (judge.ask(torch.stack([videos[i][cut] for i in long]), device)
                       for cut in (slice(length), slice(-length, None)))  # fmt: skip
        for place, i in enumerate(long):
            for name, nothing in names.items():
                before, after = first[name][place], last[name][place]
                found[i][f"{name}_kept"] = None if before in nothing else float(before == after)
    return found
