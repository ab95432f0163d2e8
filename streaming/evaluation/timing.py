"""What a file says of its frames without decoding them: how many there are, how they are spaced, when they end."""

import re
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from math import inf
from pathlib import Path
from typing import Any, Literal, final

from streaming.read import film

UNEVEN, SURELY, ROUNDED = 1.1, 1.5, 0.002
"""The longest step in time by the shortest, from which on steps count as different: if it is also longer by more than
two of the container's units of time, to which it rounds, and by `ROUNDED` seconds; and without that."""
_REORDERED = 32
"""Packets that may come in another order than they are shown."""


@final
@dataclass(frozen=True, kw_only=True)
class Timing:
    """Of a file's first video stream."""

    frames: int
    """Packets, which is frames for an intact file; 0 if it cannot be read."""
    shortest: float
    """Step from one frame to the next, seconds; 0 for less than two frames."""
    longest: float
    """The longest one, seconds."""
    unit: float = 0.0
    """In which the container counts time, seconds."""
    end: float = 0.0
    """When the last frame ends, as `declared` counts, seconds."""
    declared: float | None = None
    """When it should end by the file's header or tags, seconds; None: nothing is declared, or not reliably."""

    @property
    def variable(self) -> bool:
        """Whether the frame rate varies."""
        apart = self.longest - self.shortest > max(2 * self.unit, ROUNDED) * (1 + 1e-6)
        return self.shortest > 0 and self.longest > (UNEVEN if apart else SURELY) * self.shortest


def timing(path: Path) -> Timing:
    """Reads the packets; what is wrong with the file is told by those who decode it."""
    import av
    from av.error import FFmpegError

    found = _Packets()
    try:
        if not path.is_file():  # a pipe would make us wait
            return Timing(frames=0, shortest=0.0, longest=0.0)
        with av.open(path) as container:
            found.read(container)
    except (FFmpegError, OSError, IndexError, ValueError):
        pass
    return found.told()


@final
class _Packets:
    """What is seen of a file's packets. Memory does not grow with the video."""

    def __init__(self) -> None:
        self.frames, self.shortest, self.longest, self.unit = 0, 0.0, 0.0, 0.0
        self._last: float | None = None
        self._waiting: list[int] = []
        self._first, self._end, self._any_end = inf, 0.0, 0.0  # of the video, and the end of any stream
        self._declared: tuple[float, Literal["video", "length", "any"]] | None = None

    def read(self, container: Any) -> None:
        stream = film(container)
        if stream is None:
            return
        self._declared = _declared(container, stream)
        base = stream.time_base or Fraction(1)
        self.unit = float(base)
        for packet in container.demux():
            mine = packet.stream.index == stream.index
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                self._reach(float(time * packet.time_base), float((packet.duration or 0) * packet.time_base), mine)
            if not mine or not packet.size:
                continue
            self.frames += 1
            if packet.pts is None:
                self._last = None
                continue
            heappush(self._waiting, packet.pts)
            if len(self._waiting) > _REORDERED:
                self._show(float(heappop(self._waiting) * base))
        while self._waiting:
            self._show(float(heappop(self._waiting) * base))

    def _reach(self, time: float, duration: float, mine: bool) -> None:
        self._any_end = max(self._any_end, time + duration)
        if mine:
            self._first, self._end = min(self._first, time), max(self._end, time + duration)

    def _show(self, time: float) -> None:
        if self._last is not None and time > self._last:
            step = time - self._last
            self.shortest, self.longest = min(self.shortest or step, step), max(self.longest, step)
        self._last = time

    def told(self) -> Timing:
        told: dict[str, Any] = dict(frames=self.frames, shortest=self.shortest, longest=self.longest, unit=self.unit)
        if self._declared is None:
            return Timing(**told)
        declared, what = self._declared
        length = self._end - self._first if self._first < inf else 0.0
        return Timing(**told, end={"video": self._end, "length": length, "any": self._any_end}[what], declared=declared)


def _declared(container: Any, stream: Any) -> tuple[float, Literal["video", "length", "any"]] | None:
    """Seconds that the file declares, and of what: when the video ends, how long it is, or when its last stream ends.

    Of containers whose durations are not estimated (from bit rates, or by what is there).
    """
    kind = container.format.name
    if "mp4" in kind and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base), "length"
    if "matroska" in kind and (tagged := _seconds(stream.metadata.get("DURATION", ""))):
        return tagged, "video"
    if ("matroska" in kind or kind == "flv") and container.duration:
        return container.duration / 1e6, "any"
    return None


def _seconds(told: str) -> float:
    """Of hours:minutes:seconds; 0 for anything else."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", told)
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3]) if found else 0.0
