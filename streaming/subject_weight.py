"""How much more the cells of a video's subject count in a training loss than its background."""

from jaxtyping import Float
from torch import Tensor

SUBJECT = 3.0
"""How often a cell of the subject counts where no noise hides it: small subjects would else have little of the loss."""
FULL = 0.25
"""Share of a cell from which on it is the subject's."""
SEEN = 0.02
"""Signal-to-noise ratio (of powers) at which the subject's cells count half of what they may count more."""


def subject_weight(
    share: Float[Tensor, "n 1 time high wide"],
    signal: Float[Tensor, "n 1 1 1 1"],
    noise: Float[Tensor, "n 1 1 1 1"],
    most: float = SUBJECT,
) -> Float[Tensor, "n 1 time high wide"]:
    """Weights of latent cells, from 1 to `most`.

    share: of each cell, that the subject covers. signal, noise: factors of the clean latents and of the noise in the
    noisy ones. Where noise hides the subject its cells count like others, as the weight knows the clean video: a
    denoiser that looks for them would expect them everywhere. A subject is seen long before its details are: the 16
    numbers of some hundred cells tell of it together.
    """
    seen = signal.square() / (signal.square() + SEEN * noise.square())
    return 1 + (most - 1) * (share / FULL).clamp(max=1) * seen
