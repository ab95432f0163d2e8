"""When nothing moves: stagnant pairs of frames, and videos that are frozen."""

from dataclasses import dataclass
from typing import final

import torch

from streaming.metrics.contract import Observation
from streaming.metrics.described import Described


@final
@dataclass(frozen=True, kw_only=True)
class Stillness(Described):
    """Where motion begins. Small objects move in large still pictures, so the fastest pixels count."""

    pixels: float = 0.2
    """Mean length of the longest flow vectors below which a pair is still, in pixels of a frame whose shorter side has
    256; scaled for others."""
    fastest: float = 0.05
    """Share of the pixels that are the fastest ones [VBench's dynamic degree looks at as many]."""
    levels: float = 0.1
    """Mean absolute difference, grey levels of 255, up to which a pair is still whatever the flow says: some
    estimators see motion between equal frames."""
    share: float = 0.95
    """Share of still pairs from which on a video is frozen."""

    def still(self, seen: Observation) -> bool:
        """Whether nothing moved since the previous frame. By the flow, if there is one; False for the first frame."""
        if seen.previous is None:
            return False
        if seen.difference <= self.levels:
            return True
        if seen.flow is None:
            return False
        lengths = seen.lengths.flatten()
        longest = torch.topk(lengths, max(1, round(self.fastest * len(lengths))), sorted=False).values
        return float(longest.mean()) < self.pixels * min(seen.frame.shape[-2:]) / 256
