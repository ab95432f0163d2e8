"""MAWE, the motion-aware warp error: inconsistency between frames for the motion there is [StreamingT2V §5.1].

Lower is better. A frame is carried along the optical flow onto the next one; what differs there is the error. Divided
by the motion, so that a frozen video does not win.

Three formulas are in the world. The paper's main text: the video's mean error by c times its mean flow, here
`ratio_of_means`. The paper's supplement: mean error by mean *squared* flow, without a constant (`mawe_paper` of
`streaming.metrics.motion_aware`). The published code: the mean of the pairs' ratios, here `mean_of_ratios`.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from streaming.errors import UserError

COEFFICIENT = 9.5
"""c: brings the motion to the scale of the error [StreamingT2V §5.1]."""

Video = Num[Tensor, "time 3 rows cols"]
Flows = Float[Tensor, "pairs 2 rows cols"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Warped:
    """Frames carried along a flow."""

    frames: Float[Tensor, "pairs 3 rows cols"]
    """The values that arrived; 0 where none did."""
    known: Bool[Tensor, "pairs rows cols"]
    """True where a pixel arrived."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class MAWE:
    """The measure of one video, and what it consists of."""

    errors: Float[Tensor, " pairs"]
    """Mean squared difference over the pixels that the warp reaches, colours in 0..255; 0 if it reaches none."""
    motions: Float[Tensor, " pairs"]
    """Mean length of the flow over all pixels, in pixels."""
    known: Int[Tensor, " pairs"]
    """Pixels that the warp reaches."""
    mean_of_ratios: float
    """Mean over pairs of error / (c * motion) (published code). One pair without any motion makes it infinite, or NaN
    if the pair has no error either. A pair that the warp does not reach counts as no error, as in that code."""
    ratio_of_means: float
    """Mean error / (c * mean motion) of all pairs: the measure of the video as a whole (the paper's main text).
    Infinite, or NaN if there is no error either, for a video without any motion. Pairs that the warp does not reach
    count as above; `MotionAwareWarpError` leaves them out."""


def mawe(video: Video, flows: Flows) -> MAWE:
    """MAWE of one video with values in 0..255, given the flow from each frame to the next one.

    Flows are in pixels of the video, (x, y). Computed in float32, but errors are summed in float64.
    Raises UserError for a video of less than two frames, or another number of flows than of pairs.
    """
    pairs = video.shape[0] - 1
    if pairs < 1 or flows.shape[0] != pairs:
        raise UserError(f"{video.shape[0]} frames and {flows.shape[0]} flows: give two frames or more, a flow a pair")
    found = [_error(video[i : i + 2], flows[i : i + 1]) for i in range(pairs)]  # one by one: a pair takes 49 MB at 720p
    errors, known = torch.stack([error for error, _ in found]), torch.stack([count for _, count in found])
    motions = torch.stack([torch.hypot(flow[0], flow[1]).mean() for flow in flows.float()])
    return MAWE(
        errors=errors,
        motions=motions,
        known=known,
        mean_of_ratios=float((errors / (COEFFICIENT * motions)).mean()),
        ratio_of_means=float(errors.mean() / (COEFFICIENT * motions.mean())),
    )


def _error(
    pair: Num[Tensor, "2 3 rows cols"], flow: Float[Tensor, "1 2 rows cols"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Mean squared difference over the pixels that the warp reaches, and their number."""
    warped = warp_forward(pair[:1], flow)
    known = warped.known.sum()
    squares = (warped.frames.double() - pair[1:].double()).square() * warped.known[:, None]
    return (squares.sum() / (3 * known).clamp(min=1)).float(), known


def warp_forward(frames: Num[Tensor, "pairs 3 rows cols"], flows: Flows) -> Warped:
    """Every pixel goes to the nearest place that the flow, (x, y) in pixels, names; halves go to the even one.

    Of several that arrive at one place the last in row-major order stays; what leaves the frame, or has a flow that is
    not finite, is lost (convention of the published code).
    """
    rows, cols = frames.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(rows, device=flows.device), torch.arange(cols, device=flows.device), indexing="ij"
    )
    there_x, there_y = (x + flows[:, 0]).round(), (y + flows[:, 1]).round()
    inside = (there_x >= 0) & (there_x < cols) & (there_y >= 0) & (there_y < rows)  # False for NaN
    place = torch.where(inside, there_y * cols + there_x, rows * cols).long().flatten(1)
    source = torch.arange(rows * cols, device=flows.device).expand_as(place)
    last = torch.full((len(flows), rows * cols + 1), -1, device=flows.device)  # one place more for what is lost
    last = last.scatter_reduce(1, place, source, "amax")[:, :-1]
    values = frames.float().flatten(2).gather(2, last.clamp(min=0)[:, None].expand(-1, 3, -1))
    known = last >= 0
    return Warped(frames=(values * known[:, None]).unflatten(2, (rows, cols)), known=known.unflatten(1, (rows, cols)))
