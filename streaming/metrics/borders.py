"""Where chunks begin: numbers at chunk borders are compared with numbers inside chunks."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from streaming.errors import UserError
from streaming.metrics.described import Described


class Borders(Described):
    """The frames with which chunks begin, but for the first chunk."""

    @abstractmethod
    def begins(self, index: int) -> bool:
        """Whether the frame at `index` is the first one of a later chunk."""


@final
@dataclass(frozen=True)
class BordersAt(Borders):
    """Borders that are listed."""

    frames: tuple[int, ...]
    """The first frame of every chunk but the first, each above 0."""

    def __post_init__(self) -> None:
        if any(frame < 1 for frame in self.frames):
            raise UserError(f"a chunk cannot begin at frame {min(self.frames)}: list the later chunks' first frames")

    def begins(self, index: int) -> bool:
        """Whether it is listed."""
        return index in self.frames


@final
@dataclass(frozen=True)
class EveryChunk(Borders):
    """Borders of a video whose first chunk has `window` frames and all others add `new` ones (the paper: 16 and 8)."""

    window: int
    """Frames of the first chunk."""
    new: int
    """Frames that each later chunk adds."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.new < 1:
            raise UserError(f"chunks of {self.window} and {self.new} more frames: give numbers above 0")

    def begins(self, index: int) -> bool:
        """window, window + new, window + 2 new, and so on."""
        return index >= self.window and (index - self.window) % self.new == 0
