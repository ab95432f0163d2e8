"""Whether a file ends before it should, by what its container says of itself; nothing is decoded.

Decoders stop at the break of many containers without an error, and a video that ends early would be measured as if it
were whole. Where the container declares sizes of its parts, the bytes tell it exactly; else declared durations do.
"""

from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, TypeAlias

from streaming.errors import UserError
from streaming.evaluation.timing import Timing

Readable: TypeAlias = BinaryIO | mmap
"""A file that is read from some place on."""
SLACK = 0.1
"""Seconds by which a declared duration may be too long, at least: containers round, and guess the last frame's."""

SEGMENT, CLUSTER = 0x18538067, 0x1F43B675
"""Elements of mkv and webm: all of it, and some frames."""
_UNFINISHED = 0xFFFFFFF0
_KNOWN_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx", b"pnot"}


def check_whole(path: Path, times: Timing) -> None:
    """Raises UserError for a file that is cut off. Files that declare neither sizes nor a duration pass."""
    missing = missing_bytes(path)
    if missing:
        raise UserError(f"{path} is cut off: {missing} bytes or more are missing at its end; give an intact copy")
    if times.declared is None or not times.frames:
        return
    if times.end < times.declared - max(SLACK, times.longest):
        told = f"it ends after {times.end:.2f} of {times.declared:.2f} s"
        raise UserError(f"{path} is cut off: {told}; give an intact copy")


def missing_bytes(path: Path) -> int:
    """How many bytes are missing at least, by sizes in mp4, mov, mkv, webm, avi and gif; 0 for what tells nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
            size = file.seek(0, 2)
            walk = _walk(start)
            return max(0, walk(file, size) - size) if walk is not None else 0
    except (OSError, ValueError):
        return 0


def _walk(start: bytes) -> Callable[[BinaryIO, int], int] | None:
    """What finds the end that a file of this kind declares (the end of what is read, if it declares none)."""
    if start[:4] == b"\x1aE\xdf\xa3":
        return _matroska
    if start[:4] == b"RIFF" and start[8:] == b"AVI ":
        return _riff
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return _gif
    return _boxes if start[4:8] in _KNOWN_BOXES else None


def _boxes(file: BinaryIO, size: int) -> int:
    """Of ISO media (mp4, mov): top-level boxes, each of which says how long it is."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file
            return size
        place += length
    return place


def _riff(file: BinaryIO, size: int) -> int:
    """Of avi: chunks of the whole file; more than one where it is long.

    Unfinished recordings say 0, or as much as there can be.
    """
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or not length or length >= _UNFINISHED:
            return size
        place += 8 + length
    return place


def _matroska(file: BinaryIO, size: int) -> int:
    """Of mkv and webm: elements, each of which says how long it is or (as live streams do) that it does not know.

    What does not know is entered, so that its parts are gone through.
    """
    place = 0
    while place < size:
        name, name_length = number(file, place, keep=True)
        length, length_length = number(file, place + name_length, keep=False)
        if not name_length or not length_length:
            return size
        place += name_length + length_length + (length or 0)
        if name == SEGMENT and length is not None:
            return place
    return place


def number(file: Readable, place: int, *, keep: bool) -> tuple[int | None, int]:
    """A number of EBML and its bytes; None for "unknown", 0 bytes for what is none. keep: with its length marker."""
    file.seek(place)
    head = file.read(8)
    if not head or not head[0]:
        return None, 0
    length = 9 - head[0].bit_length()
    if len(head) < length:
        return None, 0
    value = int.from_bytes(head[:length], "big")
    if keep:
        return value, length
    value &= (1 << 7 * length) - 1
    return (None if value == (1 << 7 * length) - 1 else value), length


def _gif(file: BinaryIO, size: int) -> int:
    end, known = gif_end(file, size)
    return end if known else size


def gif_end(file: Readable, size: int) -> tuple[int, bool]:
    """Of gif: the end of its blocks (without the trailer, at least that byte is missing), and True.

    If one is met that there is not: where it begins, and False.
    """
    file.seek(10)
    flags = file.read(3)
    if len(flags) < 3:
        return size + 1, True
    file.seek(13 + _colours(flags[0]))
    while kind := file.read(1):
        if kind == b";":
            return file.tell(), True
        if kind == b"!":
            file.read(1)
        elif kind == b",":
            head = file.read(9)
            if len(head) < 9:
                return size + 1, True
            file.seek(_colours(head[8]) + 1, 1)
        elif kind != b"\0":
            return file.tell() - 1, False
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], 1)
    return size + 1, True


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
