"""Whether the parts of a file lie as its container says, all the way through; nothing is decoded.

Readers of mkv, webm, gif and .ts skip what they cannot make sense of, up to the next thing that they can: frames are
lost and nobody is told. What the parts hold is only checked where the file has checksums (mkv, as FFmpeg writes it).
"""

import mmap
import zlib
from pathlib import Path
from typing import TypeAlias

from streaming.errors import UserError
from streaming.evaluation.intact import CLUSTER, SEGMENT, gif_end, number

Bytes: TypeAlias = mmap.mmap

_EBML, _VOID, _CRC, _TRACKS = 0x1A45DFA3, 0xEC, 0xBF, 0x1654AE6B
_IN_SEGMENT = {0x114D9B74, 0x1549A966, _TRACKS, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, _VOID, _CRC}
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, _VOID, _CRC}
_PACKET = 188  # bytes, in .ts
_PACKETS = 1 << 16  # looked at together
_NOTHING = 0x1FFF  # a packet that only fills


def check_structure(path: Path) -> None:
    """Raises UserError for a file whose parts do not lie as they say, or do not have their checksum."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = _broken(data)
    except (OSError, ValueError):
        return
    if place is not None:
        raise UserError(f"{path} is damaged at byte {place} or behind: give an intact copy")


def _broken(data: Bytes) -> int | None:
    """Where the first part begins that cannot be right."""
    if data[:4] == b"\x1aE\xdf\xa3":
        return _matroska(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        end, known = gif_end(data, len(data))
        return None if known else end
    if len(data) >= 3 * _PACKET and data[0] == data[_PACKET] == data[2 * _PACKET] == 0x47:
        return _transport(data)
    return None


def _matroska(data: Bytes) -> int | None:
    """In mkv and webm [RFC 9559 §5; RFC 8794 §11.3.1]: elements of names that may stand there, within their parents."""
    place = 0
    while place < len(data):
        name, start, end = _element(data, place)
        if name == SEGMENT:
            return _children(data, start, len(data) if end is None else end, _IN_SEGMENT)
        if name not in (_EBML, _VOID) or end is None:
            return place
        place = end
    return None


def _children(data: Bytes, place: int, stop: int, names: set[int]) -> int | None:
    while place < stop:
        name, start, end = _element(data, place)
        if name is None and not any(data[place : place + 16]):
            return None  # room that was never written to
        if name not in names or (end is not None and end > stop):
            return place
        if end is None:  # a live stream: it ends where the next one of its level begins
            names = names | _IN_CLUSTER
        elif name in (CLUSTER, _TRACKS):
            if _wrong_sum(data, start, end):
                return place
            if name == CLUSTER and (inside := _children(data, start, end, _IN_CLUSTER)) is not None:
                return inside
        place = start if end is None else end
    return None


def _element(data: Bytes, place: int) -> tuple[int | None, int, int | None]:
    """Name, where its content begins, and where it ends; None: no element, an end that is not told."""
    name, name_length = number(data, place, keep=True)
    length, length_length = number(data, place + name_length, keep=False)
    if not name_length or not length_length:
        return None, place, None
    start = place + name_length + length_length
    return name, start, None if length is None else start + length


def _wrong_sum(data: Bytes, start: int, end: int) -> bool:
    """Whether the content begins with a checksum, and it is that of something else."""
    if data[start : start + 2] != b"\xbf\x84":
        return False
    with memoryview(data) as all_of_it, all_of_it[start + 6 : end] as content:
        return zlib.crc32(content) != int.from_bytes(data[start + 2 : start + 6], "little")


def _transport(data: Bytes) -> int | None:
    """In .ts [ISO/IEC 13818-1 §2.4.3]: packets that begin as such, and frames that begin with a start code."""
    for place in range(0, len(data) // _PACKET * _PACKET, _PACKETS * _PACKET):
        some = data[place : place + _PACKETS * _PACKET]
        wrong = _wrong_packet(some[: len(some) // _PACKET * _PACKET])
        if wrong is not None:
            return place + wrong * _PACKET
    return None


def _wrong_packet(data: bytes) -> int | None:
    """Number of the first one of these packets that is wrong."""
    import numpy

    packets = numpy.frombuffer(data, numpy.uint8).reshape(-1, _PACKET)
    wrong = (packets[:, 0] != 0x47) | (packets[:, 1] & 0x80 != 0)
    kinds = (packets[:, 1] & 0x1F).astype(int) << 8 | packets[:, 2]
    begins = (packets[:, 1] & 0x40 != 0) & (packets[:, 3] & 0x10 != 0) & (kinds != _NOTHING)
    extra = packets[:, 3] & 0x20 != 0
    starts = numpy.minimum(numpy.where(extra, 5 + packets[:, 4].astype(int), 4), _PACKET - 3)
    rows = numpy.arange(len(packets))
    coded = (packets[rows, starts] == 0) & (packets[rows, starts + 1] == 0) & (packets[rows, starts + 2] == 1)
    for kind in numpy.unique(kinds[begins]):
        mine = begins & (kinds == kind)
        if 2 * (coded & mine).sum() > mine.sum():  # tables have none
            wrong |= mine & ~coded
    return int(wrong.argmax()) if wrong.any() else None
