"""Products with weight matrices on a CPU, by the faster of torch's two libraries.

torch multiplies float32 matrices by MKL, which uses half of the vector width (AVX2, not AVX-512) on processors that are
not Intel's; convolutions are oneDNN's, which uses all of it. A linear layer is a convolution of 1 x 1 pixels: the same
sums, twice as fast there. Differences are of float rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LEAST = 256
"""Rows from which on a convolution is worth its set-up."""


@final
class FastProducts(TorchFunctionMode):
    """While it is active, `linear` takes the place of torch's in all modules; gradients are not its affair."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`linear` for `torch.nn.functional.linear`; everything else as it is."""
        if func is functional.linear:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def linear(
    input: Float[Tensor, "*rows inputs"], weight: Float[Tensor, "outputs inputs"], bias: Tensor | None = None
) -> Float[Tensor, "*rows outputs"]:
    """As `torch.nn.functional.linear`."""
    rows = input.numel() // max(1, input.shape[-1])
    if rows < LEAST or input.dtype != torch.float32 or weight.dtype != torch.float32 or torch.is_grad_enabled():
        return functional.linear(input, weight, bias)
    # One picture of one row; its channels lie side by side already, so nothing is copied.
    picture = input.reshape(1, 1, rows, -1).permute(0, 3, 1, 2)
    # By name: with one thread, `conv2d` would choose MKL again.
    made = torch.mkldnn_convolution(picture, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return made.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))


def fast_products(device: torch.device) -> AbstractContextManager[object]:
    """`FastProducts` where it helps, else a context that does nothing; never inside a compiled graph."""
    helps = device.type == "cpu" and not torch.compiler.is_compiling() and worthwhile()
    return FastProducts() if helps else nullcontext()


@cache
def worthwhile() -> bool:
    """Whether this processor has vectors that MKL may leave idle, and this torch the other library."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
