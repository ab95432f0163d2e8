"""Just enough of the MP4 container (ISO/IEC 14496-12) to append fragments to a file and to cut it at one.

A fragmented MP4 is a header (`ftyp`, `moov`) followed by fragments (`moof`, `mdat`); each fragment says how many
samples it holds and when it starts. So a file can grow by whole fragments, and plays whenever it stops growing.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

File: TypeAlias = io.BufferedReader | io.BytesIO
"""A file that is read, or one in memory."""


@final
@dataclass(frozen=True)
class Box:
    """One box of the container."""

    kind: bytes
    """Its four letters."""
    start: int
    """Offset of its header, bytes."""
    body: int
    """Offset behind its header, bytes."""
    end: int
    """Offset behind it, bytes."""


def boxes(file: File, start: int, end: int) -> Iterator[Box]:
    """The boxes between two offsets; stops quietly before one that is cut off."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if size == 1:
            size, body = struct.unpack(">Q", file.read(8))[0], start + 16
        if size < body - start or start + size > end:
            return
        yield Box(kind, start, body, start + size)
        start += size


def find(file: File, inside: Box, *path: bytes) -> Iterator[Box]:
    """All boxes at a path of kinds below a box."""
    for box in boxes(file, inside.body, inside.end):
        if box.kind == path[0]:
            yield from [box] if len(path) == 1 else find(file, box, *path[1:])


def is_fragmented(path: Path) -> bool:
    """Whether fragments can be appended to this file."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        return any(box.kind == b"moov" and any(find(file, box, b"mvex")) for box in boxes(file, 0, end))


def fragments(path: Path) -> list[tuple[int, int]]:
    """After the header and after every whole fragment: (samples so far, offset in bytes)."""
    found: list[tuple[int, int]] = []
    samples = 0
    with path.open("rb") as file:
        for box in boxes(file, 0, file.seek(0, 2)):
            if box.kind == b"moov":
                found.append((0, box.end))
            elif box.kind == b"moof":
                samples += _samples(file, box)
            elif box.kind == b"mdat" and found:
                found.append((samples, box.end))
    return found


def _samples(file: File, fragment: Box) -> int:
    total = 0
    for run in find(file, fragment, b"traf", b"trun"):
        file.seek(run.body + 4)
        total += struct.unpack(">I", file.read(4))[0]
    return total


def split(segment: io.BytesIO) -> tuple[bytes, bytes]:
    """A fragmented file's header and its fragments."""
    end = segment.seek(0, 2)
    first = next(box.start for box in boxes(segment, 0, end) if box.kind == b"moof")
    segment.seek(0)
    return segment.read(first), segment.read()


def delay(segment: io.BytesIO, ticks: int) -> None:
    """Moves the start of every fragment, in units of the track's time scale (`tfdt`, version 1)."""
    for box in boxes(segment, 0, segment.seek(0, 2)):
        if box.kind != b"moof":
            continue
        for time in find(segment, box, b"traf", b"tfdt"):
            segment.seek(time.body + 4)
            start = struct.unpack(">Q", segment.read(8))[0]
            segment.seek(time.body + 4)
            segment.write(struct.pack(">Q", start + ticks))
