"""What a scheduler means for training: how clean latents are noised, and what the network is to predict."""

from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.errors import UserError
from streaming.types import Latents

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Times = Float[Tensor, " batch"]


@final
class Diffusion:
    """x_t = signal(t) * x_0 + noise(t) * eps, and the target that goes with the scheduler's prediction type.

    Serves diffusers' schedulers with `alphas_cumprod` (epsilon, v_prediction, sample) and the flow-matching ones, whose
    signal is 1 - t and whose target is eps - x_0.
    """

    def __init__(self, scheduler: "SchedulerMixin") -> None:
        """Raises UserError for a prediction type that is none of these."""
        config: Any = scheduler.config  # pyright: ignore[reportAttributeAccessIssue]
        self.steps = int(config["num_train_timesteps"])
        kept = getattr(scheduler, "alphas_cumprod", None)
        self.kept: Tensor | None = None if kept is None else kept.float()
        self.kind = "flow" if kept is None else str(config["prediction_type"])
        if self.kind not in ("flow", "epsilon", "v_prediction", "sample"):
            raise UserError(f'a scheduler with prediction type "{self.kind}" cannot be trained with')

    def times(self, n: int, generator: torch.Generator, *, shift: float = 1.0) -> Times:
        """n times in the scheduler's unit, on the generator's device.

        Together they are spread evenly: a calmer loss than that of independent ones. shift: 1 for uniform times; above
        1 for more of them in noise, t to shift t / (1 + (shift - 1) t) with t in [0, 1] (Esser et al. 2024).
        """
        offset = torch.rand((), generator=generator, device=generator.device)
        share = (torch.arange(n, device=generator.device) + offset) / n
        time = shift * share / (1 + (shift - 1) * share) * self.steps
        return time if self.kind == "flow" else time.floor().clamp(max=self.steps - 1)

    def noised(self, clean: Latents, noise: Latents, time: Times) -> Latents:
        """x_t."""
        signal, share = self.levels(time)
        return signal * clean + share * noise

    def target(self, clean: Latents, noise: Latents, time: Times) -> Latents:
        """What the network should give for `noised(clean, noise, time)`."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return clean
        if self.kind == "flow":
            return noise - clean
        signal, share = self.levels(time)
        return signal * noise - share * clean

    def levels(self, time: Times) -> tuple[Float[Tensor, "batch 1 1 1 1"], Float[Tensor, "batch 1 1 1 1"]]:
        """signal(t) and noise(t)."""
        if self.kept is None:
            share = time / self.steps
            signal = 1 - share
        else:
            self.kept = self.kept.to(time.device)
            kept = self.kept[time.long()]
            signal, share = kept.sqrt(), (1 - kept).sqrt()
        return signal.view(-1, 1, 1, 1, 1), share.view(-1, 1, 1, 1, 1)
