"""Values of one frame brought back along the optical flow to the frame before it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def bring_back(
    values: Float[Tensor, "channels rows cols"], flow: Float[Tensor, "2 rows cols"]
) -> tuple[Float[Tensor, "channels rows cols"], Bool[Tensor, "rows cols"]]:
    """For each pixel p the values at p + flow, between pixels linearly; and whether that is inside the frame."""
    rows, cols = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    there_x, there_y = x + flow[0], y + flow[1]
    inside = (there_x >= 0) & (there_x <= cols - 1) & (there_y >= 0) & (there_y <= rows - 1)
    grid = torch.stack((2 * there_x / max(cols - 1, 1) - 1, 2 * there_y / max(rows - 1, 1) - 1), dim=-1)
    found = functional.grid_sample(values[None], grid[None], padding_mode="border", align_corners=True)[0]
    return found, inside
