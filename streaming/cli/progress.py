"""Progress for people: live lines on a terminal, plain lines in a log. Both go to standard error."""

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def note(text: str) -> None:
    """One line about what happens now."""
    print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@final
class Stage:
    """One stage of the work: counts frames and knows how fast it is."""

    def __init__(self, display: "Display", name: str, total: int | None, done: int) -> None:
        """total: frames at the end, None if unknown; done: frames that an earlier run made."""
        self.name, self.total, self.done, self.detail = name, total, done, ""
        self._display, self._before, self._started = display, done, time.monotonic()
        display.show(self)

    def reach(self, done: int, detail: str) -> None:
        """So many frames are done in all; `detail` says where it is, e.g. "chunk 3"."""
        self.done, self.detail = done, detail
        self._display.show(self)

    @property
    def facts(self) -> str:
        """Where it is, frames a second in this run and time that the rest will take; empty before the first frame."""
        rate = (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)
        if not rate:
            return self.detail
        left = "" if self.total is None else f", {clock((self.total - self.done) / rate)} left"
        return f"{self.detail}, {rate:.2f} frames/s{left}"


class Display(ABC):
    """Where stages are shown."""

    @abstractmethod
    def show(self, stage: Stage) -> None:
        """Called when a stage begins and whenever it has come further."""

    def stage(self, name: str, total: int | None, done: int = 0) -> Stage:
        """A new stage of `total` frames, `done` of which were made by an earlier run."""
        return Stage(self, name, total, done)


@contextmanager
def display() -> Iterator[Display]:
    """What fits standard error, for the time of a block."""
    if not sys.stderr.isatty():
        yield Log()
        return
    with _bars() as bars:
        yield Live(bars)


@final
class Log(Display):
    """Plain lines, one every few seconds at most and one at the end of a stage."""

    def __init__(self, pause: float = 2.0) -> None:
        """pause: seconds between two lines of a stage."""
        self.pause = pause
        self._shown: dict[Stage, float] = {}

    def show(self, stage: Stage) -> None:
        """Frames done, where it is, frames a second and time left."""
        now = time.monotonic()
        if stage.done != stage.total and now - self._shown.get(stage, -math.inf) < self.pause:
            return
        self._shown[stage] = now
        of = "" if stage.total is None else f" of {stage.total}"
        note(f"{stage.name}: {stage.done}{of} frames" + (f", {stage.facts}" if stage.facts else ""))


@final
class Live(Display):
    """A line for each stage, redrawn in place."""

    def __init__(self, bars: "Progress") -> None:
        self.bars = bars
        self._tasks: dict[Stage, TaskID] = {}

    def show(self, stage: Stage) -> None:
        """Draws a bar, frames done, where it is, frames a second, time left and time taken."""
        if stage not in self._tasks:
            self._tasks[stage] = self.bars.add_task(stage.name, total=stage.total, facts="")
        self.bars.update(self._tasks[stage], completed=stage.done, facts=stage.facts)


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    words, facts = TextColumn("{task.description}"), TextColumn("frames  {task.fields[facts]}")
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(), words, BarColumn(), MofNCompleteColumn(), facts, TimeElapsedColumn(), console=console
    )
