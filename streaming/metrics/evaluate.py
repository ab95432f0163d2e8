"""One pass over a video: flow and embeddings once a frame, every metric shown them, little kept."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.errors import UserError
from streaming.metrics.clip import ClipEncoder, unit
from streaming.metrics.contract import Meter, Metric, Need, Number, Observation, Tools
from streaming.metrics.described import Plain, plain, versions
from streaming.metrics.flow import OpticalFlow
from streaming.metrics.results import Results, Series, checked
from streaming.metrics.still import Stillness

Piece: TypeAlias = Float[Tensor, "1 _ 3 _ _"] | UInt8[Tensor, "1 _ 3 _ _"]
"""Frames in order, [1, time, 3, rows, cols]."""

_GROUP = 4
"""Frames that are looked at together."""
_MODULES = ("streamingt2v", "torch", "numpy")


@final
@dataclass(frozen=True, kw_only=True)
class How:
    """What a video is looked at with, beside the metrics."""

    size: tuple[int, int] | None = None
    """Rows and columns that frames are resized to, bilinearly, for all metrics but those that resize themselves (cuts,
    CLIP); None: as the video is."""
    antialias: bool = True
    """Whether shrinking filters first. The published MAWE does not (at 720x720); the aliasing counts as error there."""
    flow: OpticalFlow | None = None
    """For metrics that need optical flow."""
    clip: ClipEncoder | None = None
    """For metrics that need embeddings."""
    stillness: Stillness = Stillness()
    """Where motion begins."""


def evaluate_stream(pieces: Iterable[Piece], metrics: Sequence[Metric], how: How, *, fps: float = 8.0) -> Results:
    """The metrics' numbers for a video that comes in pieces of frames, floats in [0, 1] or bytes.

    Memory does not grow with the video. Frames are seen as 8-bit colours, as files hold them. fps: only reported.
    Raises UserError for a video without frames, with NaN or frames of different sizes, and for metrics that need what
    `how` does not give; ValueError if two metrics give a number the same name.
    """
    meanings = _meanings(metrics)
    needs = _needs(metrics, how)
    tools = Tools(flow=how.flow, clip=how.clip)
    meters = [metric.start(tools) for metric in metrics]
    frames, stills, shown = 0, 0, (0, 0)
    for seen in observe(pieces, how, needs):
        for meter in meters:
            meter.add(seen)
        frames, stills, shown = frames + 1, stills + seen.still, (seen.shown.shape[1], seen.shown.shape[2])
    if not frames:
        raise UserError("the video has no frame: give one with two frames or more")
    frozen = frames > 1 and stills >= how.stillness.share * (frames - 1)
    numbers: dict[str, float | None] = {}
    for metric, meter in zip(metrics, meters, strict=True):
        numbers |= checked(meter.result(), metric.numbers, frozen)
    return Results(
        numbers=numbers,
        meanings=meanings,
        series=_series(meters),
        events={name: tuple(found) for meter in meters for name, found in meter.events().items()},
        frames=frames,
        fps=fps,
        shown=shown,
        frozen=frozen,
        settings=settings_of(metrics, how),
    )


def observe(pieces: Iterable[Piece], how: How, needs: frozenset[Need]) -> Iterator[Observation]:
    """Every frame with what is needed, a few at a time. Raises UserError as `evaluate_stream` does."""
    previous: Tensor | None = None
    index, watch = 0, how.stillness.start()
    for shown in _groups(pieces):
        frames = resized(shown, how.size, how.antialias)
        before = frames[:-1] if previous is None else torch.cat((previous[None], frames[:-1]))
        after = frames[1:] if previous is None else frames
        flows = _flows(how.flow, before, after, "flow" in needs)
        backward = _flows(how.flow, after, before, "backward" in needs)
        clip = how.clip if "embedding" in needs else None
        embeddings = None if clip is None else unit(clip.images(shown), f"frames {index}..{index + len(shown) - 1}")
        late = len(frames) - len(after)  # 1 for the first group, whose first frame has no pair
        for i, frame in enumerate(frames):
            pair = i - late
            made = Observation(
                index=index + i,
                shown=shown[i],
                frame=frame,
                previous=before[pair] if pair >= 0 else None,
                flow=flows[pair] if flows is not None and pair >= 0 else None,
                backward=backward[pair] if backward is not None and pair >= 0 else None,
                embedding=None if embeddings is None else embeddings[i],
            )
            if watch.still(made):
                object.__setattr__(made, "still", True)  # not a copy: what it has computed of the flow is kept
            yield made
        previous, index = frames[-1], index + len(frames)


def settings_of(metrics: Sequence[Metric], how: How) -> dict[str, Plain]:
    """Everything that changes a number, with the versions of what computed it."""
    modules = [*_MODULES, *(name for metric in metrics for name in metric.modules)]
    for tool in (how.flow, how.clip):
        modules += tool.modules if tool is not None else ()
    return {
        "size": plain(how.size),
        "antialias": how.antialias,
        "flow": plain(how.flow),
        "clip": plain(how.clip),
        "stillness": plain(how.stillness),
        "metrics": [plain(metric) for metric in metrics],
        "versions": dict(versions(modules)),
    }


def resized(
    frames: UInt8[Tensor, "time 3 rows cols"], size: tuple[int, int] | None, antialias: bool
) -> UInt8[Tensor, "time 3 some_rows some_cols"]:
    """Frames of that size, bilinear, rounded to bytes; as they are for None."""
    if size is None or tuple(frames.shape[-2:]) == size:
        return frames
    small = functional.interpolate(frames.float(), size, mode="bilinear", antialias=antialias)
    return small.round_().clamp_(0, 255).to(torch.uint8)


def _groups(pieces: Iterable[Piece]) -> Iterator[UInt8[Tensor, "time 3 rows cols"]]:
    """Frames as bytes, a few at a time, all of one size."""
    size: tuple[int, ...] | None = None
    count = 0
    for piece in pieces:
        if size is not None and tuple(piece.shape[-2:]) != size:
            rows, cols = piece.shape[-2:]
            raise UserError(
                f"frame {count} has {rows}x{cols} pixels, those before {size[0]}x{size[1]}: give frames of one size"
            )
        size = tuple(piece.shape[-2:])
        for group in piece[0].split(_GROUP) if piece.shape[1] else ():
            yield _bytes(group, count)
            count += len(group)


def _bytes(group: Tensor, start: int) -> UInt8[Tensor, "time 3 rows cols"]:
    if group.dtype == torch.uint8:
        return group.cpu()
    if not bool(torch.isfinite(group.sum(dtype=torch.float32))):
        raise UserError(f"frames {start}..{start + len(group) - 1} hold NaN or infinity: give values in [0, 1]")
    return (group.float() * 255).round_().clamp_(0, 255).to(torch.uint8).cpu()


def _flows(flow: OpticalFlow | None, before: Tensor, after: Tensor, wanted: bool) -> Tensor | None:
    if flow is None or not wanted:
        return None
    found = flow.flows(before, after)
    if not bool(torch.isfinite(found).all()):
        raise UserError(f"the optical flow by {type(flow).__name__} has NaN or infinity: use another one")
    return found


def _meanings(metrics: Sequence[Metric]) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for metric in metrics:
        for name, number in metric.numbers.items():
            if name in found:
                raise ValueError(f"two metrics give a number named {name}: leave one of them out")
            found[name] = number
    return found


def _needs(metrics: Sequence[Metric], how: How) -> frozenset[Need]:
    for metric in metrics:
        name = type(metric).__name__
        if metric.needs & {"flow", "backward"} and how.flow is None:
            raise UserError(f"{name} needs optical flow: choose one, or leave {name} out")
        if "embedding" in metric.needs and how.clip is None:
            raise UserError(f"{name} needs a CLIP model: choose one, or leave {name} out")
    return frozenset().union(*(metric.needs for metric in metrics))


def _series(meters: Sequence[Meter]) -> dict[str, Series]:
    return {
        name: Series(first=curve.first, stride=curve.stride, points=tuple(curve.points))
        for meter in meters
        for name, curve in meter.curves().items()
    }
