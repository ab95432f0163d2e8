"""Whether a video tells its prompts, each in its place: scores for videos whose prompt changes over time.

A segment is the stretch of frames in which one prompt of the schedule holds. Its embedding, the mean of its frames', is
compared with every prompt of the schedule; that is the mean of the frames' cosines, so one pass keeps a few sums.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics.clip import ClipEncoder, unit
from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools, Values
from streaming.metrics.described import Plain
from streaming.metrics.evaluate import How, Piece, observe
from streaming.metrics.running import Curve, ratio
from streaming.prompts import PromptSchedule

NUMBERS: Mapping[str, Number] = {
    "narrative_fit": Number(meaning="100 x cosine of segments and their own prompts", better="higher"),
    "narrative_margin": Number(meaning="its distance from the best other prompt's fit", better="higher"),
    "narrative_accuracy": Number(meaning="share of segments that fit their own prompt best", better="higher"),
    "narrative_order": Number(meaning="Kendall's tau of the prompts that fit best, 1: in order", better="higher"),
}
"""What the metric reports, by name. All are absent for schedules without two different prompts, and for videos that end
before each prompt of theirs had a frame."""


@final
@dataclass(frozen=True, kw_only=True)
class SegmentScore:
    """How one segment fits the prompts of the schedule."""

    start: int
    """First frame that counts."""
    frames: int
    """That count."""
    prompt: str
    """Its own."""
    best: str
    """The prompt that it fits best; its own only if it is better than all others."""
    fit: float
    """100 x cosine with its own prompt."""
    margin: float
    """By which this is above the best other prompt's; negative if another one fits better."""


@final
@dataclass(frozen=True, kw_only=True)
class NarrativeScore:
    """How a video tells its prompts. Scores are None where `NUMBERS` says that they are absent."""

    fit: float | None
    """Mean of the segments'."""
    margin: float | None
    """Mean of the segments'."""
    accuracy: float | None
    """Share of segments that fit their own prompt best."""
    order: float | None
    """Over pairs of pieces with different prompts: share in which the prompts that fit best are in the right order,
    minus the share in which they are in the wrong one; -1 to 1. A prompt that returns keeps its first place."""
    segments: tuple[SegmentScore, ...]
    """Those that the video reaches, in its order."""


@final
@dataclass(frozen=True, kw_only=True)
class Narrative(Metric):
    """Does each segment fit its own prompt better than the others', are the prompts told in their order."""

    prompts: PromptSchedule
    """The schedule that the video was made with."""
    settle: int = 0
    """Frames after a change of prompt that count for nothing, while the change takes place."""
    piece: int = 8
    """Frames that are looked at together for the order; segments begin new ones."""

    def __post_init__(self) -> None:
        if self.settle < 0 or self.piece < 1:
            raise UserError(f"pieces of {self.piece} frames, {self.settle} to settle: at least 1, and 0 or more")
        for (start, _), (end, prompt) in zip(self.prompts.entries, self.prompts.entries[1:], strict=False):
            if start and end - start <= self.settle:
                raise UserError(
                    f"the prompt at frame {start} holds for {end - start} frames only, up to '{prompt}', and "
                    f"{self.settle} are left out for it to settle: leave out fewer"
                )

    def settings(self) -> dict[str, Plain]:
        """The fields, the schedule as [frame, prompt] pairs."""
        entries: list[Plain] = [[frame, text] for frame, text in self.prompts.entries]
        return {"kind": "Narrative", "prompts": entries, "settle": self.settle, "piece": self.piece}

    @property
    def numbers(self) -> Mapping[str, Number]:
        """Four, see `NUMBERS`."""
        return NUMBERS

    @property
    def needs(self) -> frozenset[Need]:
        """Embeddings."""
        return frozenset({"embedding"})

    def start(self, tools: Tools) -> "NarrativeMeter":
        """Embeds the prompts. Raises UserError as the encoder does."""
        assert tools.clip is not None, "evaluate_stream gives what a metric needs"
        texts = tuple(dict.fromkeys(prompt for _, prompt in self.prompts.entries))
        return NarrativeMeter(self, texts, unit(tools.clip.texts(texts), "the prompts"))


@final
class NarrativeMeter(Meter):
    """What was seen of a video; it grows with the number of prompts only."""

    def __init__(self, metric: Narrative, texts: Sequence[str], embeddings: Float[Tensor, "texts width"]) -> None:
        """texts: the different prompts in the order in which they first hold; embeddings: theirs, of length 1."""
        self._metric, self._texts, self._embeddings = metric, texts, embeddings
        self._segments: list[SegmentScore] = []
        self._places: Counter[tuple[int, int]] = Counter()  # (own prompt, prompt that fits best) of finished pieces
        self._segment, self._start = -1, 0
        self._whole, self._part = _Sum(len(texts)), _Sum(len(texts))
        self._curve = Curve()

    def add(self, seen: Observation) -> None:
        """Show it the next frame."""
        if seen.embedding is None:
            return
        fits = 100 * (self._embeddings @ seen.embedding).double()
        entries = self._metric.prompts.entries
        if self._segment + 1 < len(entries) and seen.index >= entries[self._segment + 1][0]:
            self._close()
            self._segment += 1
            self._start = entries[self._segment][0] + (self._metric.settle if self._segment else 0)
        self._curve.add(_margin(fits, self._own))
        if seen.index < self._start:
            return
        self._whole.add(fits)
        self._part.add(fits)
        if self._part.count == self._metric.piece:
            self._places[self._own, self._part.best] += 1
            self._part = _Sum(len(self._texts))

    def score(self) -> NarrativeScore:
        """For the frames shown so far."""
        segments, places = list(self._segments), self._places.copy()
        if self._whole.count:
            segments.append(self._told())
        if self._part.count:
            places[self._own, self._part.best] += 1
        if len(self._texts) < 2 or len(segments) < len(self._metric.prompts.entries):
            return NarrativeScore(fit=None, margin=None, accuracy=None, order=None, segments=tuple(segments))
        return NarrativeScore(
            fit=sum(each.fit for each in segments) / len(segments),
            margin=sum(each.margin for each in segments) / len(segments),
            accuracy=sum(each.best == each.prompt for each in segments) / len(segments),
            order=_order(places),
            segments=tuple(segments),
        )

    def result(self) -> Values:
        """The numbers of `score`."""
        score = self.score()
        return {name: getattr(score, name.removeprefix("narrative_")) for name in NUMBERS}

    def curves(self) -> Mapping[str, Curve]:
        """For each frame by how much its own prompt fits better than the others; nothing for one prompt alone."""
        return {"narrative_margin": self._curve} if len(self._texts) > 1 else {}

    @property
    def _own(self) -> int:
        return self._texts.index(self._metric.prompts.entries[self._segment][1])

    def _close(self) -> None:
        """The segment so far is finished, and its last piece."""
        if self._whole.count:
            self._segments.append(self._told())
        if self._part.count:
            self._places[self._own, self._part.best] += 1
        self._whole, self._part = _Sum(len(self._texts)), _Sum(len(self._texts))

    def _told(self) -> SegmentScore:
        fits, own = self._whole.mean, self._own
        rivals = fits.clone()
        rivals[own] = -torch.inf
        margin = _margin(fits, own)
        best = own if margin > 0 or len(fits) == 1 else int(rivals.argmax())
        return SegmentScore(
            start=self._start,
            frames=self._whole.count,
            prompt=self._texts[own],
            best=self._texts[best],
            fit=float(fits[own]),
            margin=margin,
        )


def narrative_score(
    pieces: Iterable[Piece], prompts: PromptSchedule, clip: ClipEncoder, *, settle: int = 0, piece: int = 8
) -> NarrativeScore:
    """The score of a video that comes in pieces of frames, with its segments one by one; see `Narrative`.

    Memory does not grow with the video. Raises UserError as `Narrative` and `observe` do.
    """
    metric = Narrative(prompts=prompts, settle=settle, piece=piece)
    meter = metric.start(Tools(clip=clip))
    for seen in observe(pieces, How(clip=clip), metric.needs):
        meter.add(seen)
    return meter.score()


@final
class _Sum:
    def __init__(self, width: int) -> None:
        self.count, self._total = 0, torch.zeros(width, dtype=torch.float64)

    def add(self, fits: Float64[Tensor, " texts"]) -> None:
        self._total += fits
        self.count += 1

    @property
    def mean(self) -> Float64[Tensor, " texts"]:
        return self._total / self.count

    @property
    def best(self) -> int:
        """The prompt that fits best; the first of equals."""
        return int(self._total.argmax())


def _margin(fits: Float64[Tensor, " texts"], own: int) -> float:
    """By how much a prompt fits better than the best other one; 0 without another one."""
    others = torch.cat((fits[:own], fits[own + 1 :]))
    return float(fits[own] - others.max()) if len(others) else 0.0


def _order(places: Mapping[tuple[int, int], int]) -> float | None:
    """(pairs in order - pairs out of order) / pairs, of pieces whose own prompts differ; None without such a pair."""
    pairs = balance = 0
    for (own, best), count in places.items():
        for (later_own, later_best), later_count in places.items():
            if own < later_own:
                pairs += count * later_count
                balance += count * later_count * ((later_best > best) - (later_best < best))
    return ratio(balance, pairs)
