"""RAFT by torchvision as optical flow: what the published figures were measured with. Weights from a file."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from streaming.errors import UserError
from streaming.keys import initial_weights
from streaming.metrics.described import Plain
from streaming.metrics.fingerprint import file_sha256
from streaming.metrics.flow import Flows, Images, OpticalFlow
from streaming.weights import Checkpoint

_STRIDE = 8
_SMALLEST = 128


@final
@dataclass(frozen=True, kw_only=True)
class RAFT(OpticalFlow):
    """Recurrent all-pairs field transforms [Teed and Deng, ECCV 2020].

    The published MAWE is measured with the large one, torchvision's weights C_T_SKHT_V2 and frames of 720x720.
    """

    weights: Path
    """File with torchvision's weights (safetensors or PyTorch); named in the results."""
    size: Literal["large", "small"] = "large"
    """Which of torchvision's two networks."""
    updates: int = 12
    """Refinements of the flow."""
    device: str = "cpu"
    """Where it computes."""

    @property
    def modules(self) -> tuple[str, ...]:
        """torchvision, whose network it is."""
        return ("torch", "torchvision")

    def settings(self) -> dict[str, Plain]:
        """Without the device; of the file its name and the SHA-256 of its bytes."""
        told: dict[str, Plain] = {"weights": self.weights.name, "sha256": file_sha256(self.weights)}
        return {"kind": "RAFT", **told, "size": self.size, "updates": self.updates}

    @cached_property
    def _network(self) -> nn.Module:
        from torchvision.models import optical_flow

        checkpoint = Checkpoint(self.weights)
        names = list(checkpoint.meta)
        with initial_weights(0):
            network = getattr(optical_flow, f"raft_{self.size}")(weights=None)
        try:
            network.load_state_dict(dict(zip(names, checkpoint.read(names), strict=True)))
        except RuntimeError as error:
            raise UserError(
                f"{self.weights} does not hold torchvision's raft_{self.size}: give its weights or the other size"
            ) from error
        return network.to(self.device).eval().requires_grad_(False)

    def flows(self, before: Images, after: Images) -> Flows:
        """One pair at a time. Frames whose sides are no multiples of 8 are continued with their last rows and columns.

        Raises UserError for frames under 128 pixels a side, and for a file with other weights.
        """
        rows, cols = before.shape[-2:]
        if min(rows, cols) < _SMALLEST:
            raise UserError(f"frames of {rows}x{cols} pixels are too small for RAFT: measure at {_SMALLEST} or more")
        found = [self._flow(one, two) for one, two in zip(before.split(1), after.split(1), strict=True)]
        return torch.cat(found)[..., :rows, :cols] if found else torch.empty(0, 2, rows, cols)

    def _flow(self, before: Tensor, after: Tensor) -> Tensor:
        pair = [_padded(2 * (each.to(self.device).float() / 255) - 1) for each in (before, after)]
        with torch.no_grad():
            return self._network(*pair, num_flow_updates=self.updates)[-1].float().cpu()


def _padded(images: Tensor) -> Tensor:
    rows, cols = images.shape[-2:]
    return functional.pad(images, (0, -cols % _STRIDE, 0, -rows % _STRIDE), mode="replicate")
