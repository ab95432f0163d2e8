"""Optical flow: the contract, and OpenCV's DIS, which needs no weights."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from streaming.errors import UserError
from streaming.metrics.described import Described
from streaming.metrics.missing import need

Images: TypeAlias = UInt8[Tensor, "pairs 3 rows cols"]
Flows: TypeAlias = Float[Tensor, "pairs 2 rows cols"]

SMALLEST = 12
"""Rows and columns that DIS needs."""


class OpticalFlow(Described):
    """Says where the pixels of one frame are in another."""

    @abstractmethod
    def flows(self, before: Images, after: Images) -> Flows:
        """Flow from each frame to the one after it: (x, y) in pixels, finite, on the CPU.

        The pixel at p of `before` is at p + flow[:, p] of `after`. Raises UserError for frames that it cannot take.
        """


@final
@dataclass(frozen=True, kw_only=True)
class DIS(OpticalFlow):
    """Dense inverse search on grey values, by OpenCV [Kroeger et al., ECCV 2016]. The same on any number of threads."""

    preset: Literal["ultrafast", "fast", "medium"] = "medium"
    """OpenCV's name of its settings, from fast to accurate."""

    @property
    def modules(self) -> tuple[str, ...]:
        """OpenCV."""
        return ("cv2",)

    def flows(self, before: Images, after: Images) -> Flows:
        """Pair by pair. Raises UserError for frames under 12 pixels a side, and without OpenCV."""
        cv2: Any = need("cv2", "optical flow by DIS", "opencv-python-headless")
        rows, cols = before.shape[-2:]
        if min(rows, cols) < SMALLEST:
            raise UserError(
                f"frames of {rows}x{cols} pixels are too small for optical flow: measure at {SMALLEST} a side or more"
            )
        search = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{self.preset.upper()}"))
        found = torch.empty(len(before), 2, rows, cols)
        for index, pair in enumerate(zip(before, after, strict=True)):
            grey = [cv2.cvtColor(each.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY) for each in pair]
            found[index] = torch.from_numpy(search.calc(*grey, None)).permute(2, 0, 1)
        return found
