"""How much more the cells of a video's subject count in a training loss than its background."""

from jaxtyping import Float
from torch import Tensor

SUBJECT = 3.0
"""How often a cell of the subject counts where no noise hides it: small subjects would else have little of the loss."""
FULL = 0.25
"""Share of a cell from which on it is the subject's."""


def subject_weight(
    share: Float[Tensor, "n 1 time high wide"], signal: Float[Tensor, "n 1 1 1 1"], most: float = SUBJECT
) -> Float[Tensor, "n 1 time high wide"]:
    """Weights of latent cells, from 1 to `most`.

    share: of each cell, that the subject covers. signal: factor of the clean latents in the noisy ones. In proportion
    to its square, as the weight knows the clean video: where noise hides it, a denoiser that looks for the subject's
    cells would expect it everywhere.
    """
    return 1 + (most - 1) * (share / FULL).clamp(max=1) * signal.square()
