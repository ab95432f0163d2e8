"""Prompts that change over time."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from streaming.errors import UserError

LONGEST = 4000
"""Characters of a prompt; no text encoder reads as many."""


@final
@dataclass(frozen=True)
class PromptSchedule:
    """Which prompt holds at which pixel frame. A chunk follows the prompt that holds at its first new frame."""

    entries: tuple[tuple[int, str], ...]
    """(first pixel frame, prompt) in ascending order, the first at frame 0."""

    def __post_init__(self) -> None:
        frames = [frame for frame, _ in self.entries]
        if not frames or frames[0] != 0:
            raise UserError(_beginning(frames))
        if any(later <= earlier for earlier, later in zip(frames, frames[1:], strict=False)):
            raise UserError(f"two prompts at one frame, or out of order: {', '.join(map(str, frames))}")
        for frame, text in self.entries:
            _check_text(frame, text)

    @classmethod
    def fixed(cls, text: str) -> "PromptSchedule":
        """One prompt for the whole video. Raises UserError for an empty or an endless one."""
        return cls(((0, text),))

    @classmethod
    def of(cls, prompts: Mapping[int, str]) -> "PromptSchedule":
        """Prompts by the pixel frame from which they hold; one must be at 0. Raises UserError otherwise."""
        return cls(tuple(sorted(prompts.items())))

    @classmethod
    def of_seconds(cls, prompts: Mapping[float, str], fps: float) -> "PromptSchedule":
        """Prompts by the second from which they hold, at `fps` frames a second, rounded to the nearest frame.

        Raises UserError as `of` does, and for two prompts that fall onto one frame.
        """
        if not fps > 0:
            raise UserError(f"{fps} frames a second: choose more than 0")
        return cls(tuple((round(second * fps), text) for second, text in sorted(prompts.items())))

    def at(self, frame: int) -> str:
        """The prompt that holds at a pixel frame (0 or later)."""
        if frame < 0:
            raise ValueError(f"there is no frame {frame}")
        return self.entries[bisect_right(self.entries, frame, key=lambda entry: entry[0]) - 1][1]

    def before(self, frame: int) -> tuple[tuple[int, str], ...]:
        """The entries that lie before a pixel frame."""
        return tuple(entry for entry in self.entries if entry[0] < frame)


def _beginning(frames: list[int]) -> str:
    if not frames:
        return "no prompt: give at least one"
    if frames[0] < 0:
        return f"a prompt at frame {frames[0]}: frames count from 0"
    return f"no prompt at frame 0: the first one is at frame {frames[0]}"


def _check_text(frame: int, text: str) -> None:
    if not text.strip():
        raise UserError(f"the prompt at frame {frame} is empty: say what is to be seen")
    if len(text) > LONGEST:
        raise UserError(f"the prompt at frame {frame} has {len(text)} characters: at most {LONGEST} are read")
