"""What a file says of its frames without decoding them: how many there are, and whether they are evenly spaced."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, final

UNEVEN = 1.5
"""The longest step in time by the shortest, from which on steps count as different (containers round them)."""
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

    @property
    def variable(self) -> bool:
        """Whether the frame rate varies."""
        return self.longest > UNEVEN * self.shortest > 0


def timing(path: Path) -> Timing:
    """Reads the packets; what is wrong with the file is told by those who decode it."""
    import av
    from av.error import FFmpegError

    frames, steps = 0, [0.0, 0.0]
    last: float | None = None
    try:
        if not path.is_file():  # a pipe would make us wait
            return Timing(frames=0, shortest=0.0, longest=0.0)
        with av.open(path) as container:
            for time in _in_order(container):
                frames += 1
                if time is not None and last is not None and time > last:
                    step = time - last
                    steps = [min(steps[0] or step, step), max(steps[1], step)]
                last = time
    except (FFmpegError, OSError, IndexError, ValueError):
        pass
    return Timing(frames=frames, shortest=steps[0], longest=steps[1])


def _in_order(container: Any) -> Iterator[float | None]:
    """Times at which frames are shown, seconds; None where the file has none."""
    stream = container.streams.video[0]
    base = stream.time_base or Fraction(1)
    waiting: list[int] = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.pts is None:
            yield None
            continue
        heappush(waiting, packet.pts)
        if len(waiting) > _REORDERED:
            yield float(heappop(waiting) * base)
    while waiting:
        yield float(heappop(waiting) * base)
