"""Pictures of a video: what is kept while it goes by, in a memory that does not grow, and what is drawn of it.

Contact sheet, optical flow as colours, and X-T slices: one row of pixels over time, in which a chunk join shows as an
edge [StreamingT2V, figures of the ablations].
"""

from collections import deque
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from streaming.metrics.borders import Borders
from streaming.metrics.evaluate import How, resized

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

SHEET, PAIRS, COLUMNS, JOINS = 24, 8, 1024, 6
"""At most: frames of the contact sheet, flow pictures, columns of the X-T slice, joins looked at closely."""
REACH = 8
"""Frames on either side of a join."""
ROWS = 9
"""Rows of a frame, evenly spaced, of which the slices show the one where most moves."""
FULL = 0.98
"""Share of the flow's vectors that are shorter than what is drawn in full colour."""
_SIDE, _LABEL, _GAP, _TICK = 112, 13, 3, 6  # pixels


@final
@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded image."""

    name: str
    """sheet, flow, change, slice or joins."""
    caption: str
    """What it shows."""
    kind: str
    """png or jpeg."""
    data: bytes
    """The file's content."""
    pixelated: bool = False
    """Whether it is meant to be shown pixel by pixel."""


@final
class Thinned(Generic[T]):
    """Evenly spaced items of a sequence whose length is not known: every one, then every 2nd, 4th, 8th ..."""

    def __init__(self, limit: int) -> None:
        """limit: items that are kept at most; at least half as many are kept if there are so many."""
        self.limit, self.stride, self.items = limit, 1, list[tuple[int, T]]()

    def wants(self, index: int) -> bool:
        """Whether an item would be kept now."""
        return index % self.stride == 0

    def add(self, index: int, item: T) -> None:
        """Take in an item that is wanted."""
        if len(self.items) == self.limit:
            self.stride *= 2
            self.items = [each for each in self.items if each[0] % self.stride == 0]
            if not self.wants(index):
                return
        self.items.append((index, item))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two neighbouring frames."""

    thumbs: "tuple[Image, Image]"
    """As tiles."""
    sized: UInt8[Tensor, "2 3 rows cols"]
    """As the metrics see them."""


@final
class Gatherer:
    """Shown all frames of a video in order, keeps what its pictures are drawn from."""

    def __init__(self, how: How, borders: Borders | None) -> None:
        """how: for pictures of the flow; borders: joins, for the slices."""
        self._how, self._borders, self._count = how, borders, 0
        self._last: Tensor | None = None
        self._sheet, self._pairs = Thinned["Image"](SHEET), Thinned[Pair](PAIRS)
        self._columns = Thinned[Tensor](COLUMNS)
        self._change: tuple[float, int, Pair] | None = None
        self._moved = torch.zeros(ROWS)  # how much changed in each row so far
        self._recent: deque[Tensor] = deque(maxlen=2 * REACH)
        self._joins: list[tuple[float, int, list[Tensor]]] = []  # (change, frame, columns), the largest changes
        self._open: list[tuple[int, float]] = []  # joins whose later frames are still to come

    def add(self, frames: UInt8[Tensor, "time 3 rows cols"]) -> None:
        """The next frames."""
        for frame in frames:
            self._add(frame)

    def _add(self, frame: UInt8[Tensor, "3 rows cols"]) -> None:
        index, last = self._count, self._last
        column = _rows(frame)
        if self._recent:
            self._moved += (column.float() - self._recent[-1].float()).abs().mean(dim=(0, 2))
        if self._sheet.wants(index):
            self._sheet.add(index, _small(frame))
        if self._columns.wants(index):
            self._columns.add(index, column)
        self._recent.append(column)
        if last is not None:
            if self._pairs.wants(index - 1):
                self._pairs.add(index - 1, self._pair(last, frame))
            self._look_at(index, last, frame)
        self._close()
        self._last, self._count = frame, index + 1

    def _look_at(self, index: int, last: Tensor, frame: Tensor) -> None:
        """The largest change, and joins."""
        change = float((frame[:, ::2, ::2].to(torch.int16) - last[:, ::2, ::2].to(torch.int16)).abs().float().mean())
        if self._change is None or change > self._change[0]:
            self._change = change, index, self._pair(last, frame)
        if self._borders is not None and self._borders.begins(index):
            self._open.append((index, change))

    def _pair(self, before: UInt8[Tensor, "3 rows cols"], after: UInt8[Tensor, "3 rows cols"]) -> Pair:
        sized = resized(torch.stack((before, after)), self._how.size, self._how.antialias)
        return Pair(thumbs=(_small(before), _small(after)), sized=sized)

    def _close(self, end: bool = False) -> None:
        """Keeps the columns around joins behind which enough frames have come."""
        count = self._count if end else self._count + 1
        while self._open and (end or count >= self._open[0][0] + REACH):
            index, change = self._open.pop(0)
            columns = list(self._recent)
            start = count - len(columns)
            around = columns[max(0, index - REACH - start) : index + REACH - start]
            self._joins = sorted([*self._joins, (change, index, around)], key=lambda join: -join[0])[:JOINS]

    def pictures(self) -> tuple[Picture, ...]:
        """What there is to see; flow is computed anew for the few pairs that are shown."""
        self._close(end=True)
        found = [self._contact_sheet(), *self._flows(), self._slice()]
        return tuple([*found, *([self._close_ups()] if self._joins else [])])

    def _contact_sheet(self) -> Picture:
        tiles = [(f"{index}", [thumb]) for index, thumb in self._sheet.items]
        return _jpeg("sheet", f"Every {_th(self._sheet.stride)} frame", _tiled(tiles))

    def _flows(self) -> list[Picture]:
        flow = self._how.flow
        if flow is None or self._change is None:
            return []
        _, index, change = self._change
        pairs = [*(pair for _, pair in self._pairs.items), change]
        flows = torch.cat([flow.flows(pair.sized[:1], pair.sized[1:]) for pair in pairs])
        colours, longest = _colours(flows[:-1])
        tiles = [
            (f"{start} to {start + 1}", [pair.thumbs[0], _like(colour, pair)])
            for (start, pair), colour in zip(self._pairs.items, colours, strict=True)
        ]
        (colour,), _ = _colours(flows[-1:])
        parts = [(f"{index - 1}", change.thumbs[0]), (f"{index}", change.thumbs[1]), ("flow", _like(colour, change))]
        told = f"Optical flow to the next frame. Hue: direction, saturation: length, full from {longest:.1f} pixels on"
        largest = f"The largest change from a frame to the next, to frame {index}, and its flow"
        return [
            _jpeg("flow", told, _tiled(tiles)),
            _jpeg("change", largest, _tiled([(label, [part]) for label, part in parts])),
        ]

    def _chosen(self, columns: list[UInt8[Tensor, "3 rows cols"]]) -> list[Tensor]:
        """Of each frame's rows that where most moves in the video."""
        row = int(self._moved.argmax())
        return [column[:, row] for column in columns]

    def _slice(self) -> Picture:
        stride, columns = self._columns.stride, self._chosen([column for _, column in self._columns.items])
        zoom = max(1, min(8, 960 // len(columns)))
        found = (index for index in range(1, self._count) if self._borders is not None and self._borders.begins(index))
        places = sorted({index // stride * zoom for index in found})
        told = "X-T slice: the row of pixels where most moves (top to bottom: left to right in the frame) over time"
        steps = f", every {_th(stride)} frame" if stride > 1 else ""
        marks = "; ticks: chunk joins" if places else ""
        return _png("slice", told + steps + marks, _ticked(_strip(columns, zoom), places))

    def _close_ups(self) -> Picture:
        joins = sorted(self._joins, key=lambda join: join[1])
        zoom = 8
        images = [
            _ticked(_strip(self._chosen(columns), zoom), [min(REACH, index) * zoom]) for _, index, columns in joins
        ]
        tiles = [(f"frame {index}", [image]) for (_, index, _), image in zip(joins, images, strict=True)]
        told = f"X-T slices of {REACH} frames before and after the chunk joins at which most changes"
        return _png("joins", told, _tiled(tiles, JOINS))


def _colours(flows: Float[Tensor, "pairs 2 rows cols"]) -> tuple[list[UInt8[Tensor, "3 rows cols"]], float]:
    """Flows on the colour wheel of Baker et al. (by torchvision), and the length from which on colours are full."""
    from torchvision.utils import flow_to_image

    lengths = flows.norm(dim=1, keepdim=True)
    full = max(float(lengths.flatten().sort().values[int(FULL * (lengths.numel() - 1))]), 1e-3)
    cut = flows * (full / lengths.clamp(min=full))
    corner = torch.zeros_like(cut[:1])  # so that the scale is ours, not that of what happens to be longest
    corner[0, 0, 0, 0] = full
    return list(flow_to_image(torch.cat((cut, corner)))[:-1]), full


def _image(frame: UInt8[Tensor, "3 rows cols"]) -> "Image":
    from PIL import Image

    return Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())


def _small(frame: UInt8[Tensor, "3 rows cols"]) -> "Image":
    """As high as a tile; small frames are enlarged pixel by pixel."""
    image = _image(frame)
    return _resized(image, max(1, min(3 * _SIDE, round(image.width * _SIDE / image.height))))


def _like(frame: UInt8[Tensor, "3 rows cols"], pair: Pair) -> "Image":
    """As large as the pair's tiles."""
    return _resized(_image(frame), pair.thumbs[0].width)


def _resized(image: "Image", wide: int) -> "Image":
    from PIL import Image

    return image.resize((wide, _SIDE), Image.Resampling.NEAREST if image.height < _SIDE else Image.Resampling.BOX)


def _rows(frame: UInt8[Tensor, "3 rows cols"]) -> UInt8[Tensor, "3 some some_cols"]:
    """Some rows of a frame, no longer than the slices are high."""
    some = frame[:, [int((row + 0.5) / ROWS * frame.shape[1]) for row in range(ROWS)]]
    if frame.shape[2] <= 2 * _SIDE:
        return some
    return functional.interpolate(some[None].float(), (ROWS, 2 * _SIDE), mode="area")[0].round().to(torch.uint8)


def _strip(columns: list[UInt8[Tensor, "3 cols"]], zoom: int) -> "Image":
    """Columns side by side, each `zoom` pixels wide, as high as two tiles."""
    from PIL import Image

    image = _image(torch.stack(columns, dim=-1))
    return image.resize((image.width * zoom, 2 * _SIDE), Image.Resampling.NEAREST)


def _ticked(strip: "Image", places: list[int]) -> "Image":
    """With red ticks above and below."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (strip.width, strip.height + 2 * _TICK), "white")
    canvas.paste(strip, (0, _TICK))
    draw = ImageDraw.Draw(canvas)
    for place in places:
        for top in (0, strip.height + _TICK):
            draw.rectangle((place - 1, top, place, top + _TICK - 1), fill=(200, 30, 30))
    return canvas


def _tiled(tiles: "list[tuple[str, list[Image]]]", in_row: int = 8) -> "Image":
    """Labelled stacks of images, so many in a row."""
    from PIL import Image, ImageDraw

    wide = max(image.width for _, stack in tiles for image in stack) + _GAP
    high = max(sum(image.height + _GAP for image in stack) for _, stack in tiles) + _LABEL
    rows = -(-len(tiles) // in_row)
    canvas = Image.new("RGB", (wide * min(in_row, len(tiles)), high * rows), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (label, stack) in enumerate(tiles):
        left, top = place % in_row * wide, place // in_row * high
        draw.text((left + 1, top), label, fill=(60, 60, 60))
        top += _LABEL
        for image in stack:
            canvas.paste(image, (left, top))
            top += image.height + _GAP
    return canvas


def _jpeg(name: str, caption: str, image: "Image") -> Picture:
    return _encoded(name, caption, image, "jpeg", quality=88)


def _png(name: str, caption: str, image: "Image") -> Picture:
    return _encoded(name, caption, image, "png", optimize=True)


def _encoded(name: str, caption: str, image: "Image", kind: str, **options: Any) -> Picture:
    file = BytesIO()
    image.save(file, kind, **options)
    return Picture(name=name, caption=caption, kind=kind, data=file.getvalue(), pixelated=kind == "png")


def _th(number: int) -> str:
    return "" if number == 1 else f"{number}th" if number > 3 else f"{number}nd"
