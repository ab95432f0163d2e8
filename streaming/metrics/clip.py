"""What embeddings of frames tell: how well they fit the prompt, and how far they go from the first frame."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.errors import UserError
from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.described import Described
from streaming.metrics.running import Curve, check_share


class ClipEncoder(Described):
    """Frames and texts in one space.

    Its `settings` name the model, the file of its weights, and as "sha256" their identity (`metrics.fingerprint`).
    """

    @abstractmethod
    def images(self, frames: UInt8[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Embeddings of RGB frames of any size, on the CPU; their lengths don't matter."""

    @abstractmethod
    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "batch width"]:
        """Embeddings of prompts, likewise. Raises UserError for words that the model cannot know."""


def unit(embeddings: Float[Tensor, "batch width"], what: str) -> Float[Tensor, "batch width"]:
    """Embeddings of length 1 in float32. Raises UserError, naming `what`, for NaN, infinity and zero vectors."""
    embeddings = embeddings.detach().float()
    lengths = embeddings.norm(dim=-1)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise UserError(f"the CLIP model gives no usable embedding of {what}: are its weights those of this model?")
    return functional.normalize(embeddings, dim=-1)


@final
@dataclass(frozen=True, kw_only=True)
class CLIPScore(Metric):
    """100 x the mean over frames of the cosine between frame and prompt [StreamingT2V §5.1]."""

    prompt: str
    """What the video should show."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("the CLIP score needs a prompt that says something: give one, or leave the score out")

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One."""
        return {"clip_score": Number(meaning="100 x cosine of frames and prompt", better="higher")}

    @property
    def needs(self) -> frozenset[Need]:
        """Embeddings."""
        return frozenset({"embedding"})

    def start(self, tools: Tools) -> Meter:
        """Embeds the prompt. Raises UserError as the encoder does."""
        assert tools.clip is not None, "evaluate_stream gives what a metric needs"
        return _ScoreMeter(unit(tools.clip.texts([self.prompt]), "the prompt")[0])


@final
class _ScoreMeter(Meter):
    def __init__(self, text: Float[Tensor, " width"]) -> None:
        self._text, self._scores = text, Curve()

    def add(self, seen: Observation) -> None:
        if seen.embedding is not None:
            self._scores.add(100 * float(seen.embedding @ self._text))

    def result(self) -> Values:
        return {"clip_score": self._scores.mean()}

    def curves(self) -> Mapping[str, Curve]:
        return {"clip_score": self._scores}


@final
@dataclass(frozen=True, kw_only=True)
class AnchorDistance(Metric):
    """1 - cosine between the embeddings of a frame and of the first frame, over the later frames and at the end."""

    share: float = 0.15
    """Of the later frames: the end."""

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Two."""
        told = "distance of the embeddings from the first frame's"
        return {
            "anchor_distance": Number(meaning=told, better="lower", frozen="absent"),
            "anchor_distance_end": Number(meaning=f"{told}, at the end", better="lower", frozen="absent"),
        }

    @property
    def needs(self) -> frozenset[Need]:
        """Embeddings."""
        return frozenset({"embedding"})

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _AnchorMeter(self.share)


@final
class _AnchorMeter(Meter):
    def __init__(self, share: float) -> None:
        self._share, self._distances = share, Curve(first=1)
        self._anchor: Tensor | None = None

    def add(self, seen: Observation) -> None:
        if seen.embedding is None:
            return
        if self._anchor is None:
            self._anchor = seen.embedding
        else:
            self._distances.add(max(0.0, 1 - float(seen.embedding @ self._anchor)))

    def result(self) -> Values:
        ends = self._distances.ends(self._share)
        mean = self._distances.mean()
        return {"anchor_distance": mean, "anchor_distance_end": mean if ends is None else ends[1]}

    def curves(self) -> Mapping[str, Curve]:
        return {"anchor_distance": self._distances}
