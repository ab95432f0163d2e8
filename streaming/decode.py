"""Frames of a video stream, decoded so that damage is told instead of patched over.

Decoders conceal what they cannot read: they copy from other frames, leave frames out, and report no error. A video that
is read that way would be measured, or enhanced, as if it had been made like that.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer

ONE_EACH = ("h264", "hevc", "vp8", "vp9", "av1")
"""Codecs, by FFmpeg's names, of which every packet gives one frame unless it says that it is not shown."""


@final
class Damage(OSError):
    """What is wrong with a stream though no decoder says so; its message is the reason."""


def decoded(container: "InputContainer", index: int) -> Iterator["VideoFrame"]:
    """The frames of a stream in the order in which they are shown.

    What comes before the first key frame, in time or in the file, is left out: excerpts of a recording begin so.
    Raises FFmpegError for what cannot be decoded, Damage for frames that are marked as corrupt or are missing.
    """
    from av import VideoFrame

    stream = container.streams[index]
    assert stream.type == "video"
    stream.codec_context.options = {"err_detect": "explode"}
    tally = _Tally(stream.codec_context.name in ONE_EACH)
    for packet in container.demux(stream):
        for frame in tally.packet(packet):
            assert isinstance(frame, VideoFrame)
            tally.frame(frame)
            yield frame
    tally.end()


@final
class _Tally:
    """How many frames there should be, and how many there are. Holds what is needed of a few packets only."""

    def __init__(self, counts: bool) -> None:
        """counts: whether packets tell the number of frames."""
        self._counts = counts
        self._key: int | None = None  # when the first key frame is shown
        self._keyed = False
        self._torn = 0  # packets in which a key frame must come, as one was not whole
        self._first: int | None = None  # when the first frame was shown
        self._waiting: list[int] = []  # when packets are shown that came before that was known
        self._due = self._shown = 0

    def packet(self, packet: "Packet") -> "list[VideoFrame]":
        """Its frames."""
        from av.error import FFmpegError

        self._whole(packet)
        if packet.is_keyframe and packet.size and not self._keyed:
            self._key, self._keyed = packet.pts, True
        if packet.size and not packet.is_discard and not (self._counts and hidden(packet)):
            self._expect(packet.pts)
        try:
            return packet.decode()  # pyright: ignore[reportReturnType]
        except FFmpegError:
            if not self._early(packet.pts):
                raise
            return []

    def _whole(self, packet: "Packet") -> None:
        """Raises Damage if data is missing, unless a key frame follows: two streams may be joined end to end there.

        FFmpeg marks the packet before the gap, or that before it.
        """
        if packet.is_keyframe and packet.size:
            self._torn = 0
        elif self._torn:
            self._torn = self._torn - 1 if packet.size else 0
            if not self._torn:
                raise Damage("data is missing")
        if packet.is_corrupt:
            self._torn = 2

    def _early(self, time: int | None) -> bool:
        """Whether what is shown then may lack the frames that it builds on."""
        if self._shown or not self._keyed:
            return not self._shown
        return time is not None and self._key is not None and time < self._key

    def _expect(self, time: int | None) -> None:
        self._counts &= time is not None
        if self._counts and time is not None:
            if self._first is None:
                self._waiting.append(time)
            else:
                self._due += time >= self._first

    def frame(self, frame: "VideoFrame") -> None:
        """Takes note of one. Raises Damage if it is corrupt."""
        if frame.is_corrupt:
            raise Damage("the next frame is corrupt")
        self._counts &= frame.pts is not None and not frame.interlaced_frame  # two packets may make one frame then
        self._shown += 1
        if self._first is None and frame.pts is not None:
            self._first = frame.pts
            self._due, self._waiting = sum(time >= frame.pts for time in self._waiting), []

    def end(self) -> None:
        """Raises Damage if frames are missing."""
        if self._counts and self._shown and self._due > self._shown:
            raise Damage(f"{self._due - self._shown} of {self._due} frames are missing")


def hidden(packet: "Packet") -> bool:
    """Whether a packet of VP8 or VP9 holds a frame that others build on and nobody sees [RFC 6386 §9.1; VP9 §6.2]."""
    name = packet.stream.codec_context.name
    if name not in ("vp8", "vp9"):
        return False
    data = bytes(packet)
    if name == "vp8":
        return not data[0] & 0x10
    several = data[-1] & 0xE0 == 0xC0  # one of them is shown
    return data[0] >> 6 == 2 and data[0] & 0x30 != 0x30 and not data[0] & 0x0A and not several
