"""Products with weight matrices on a CPU, by the faster of torch's two libraries.

torch multiplies float32 matrices by MKL, which uses half of the vector width (AVX2, not AVX-512) on processors that are
not Intel's; convolutions are oneDNN's, which uses all of it. A linear layer is a convolution of 1 x 1 pixels: the same
sums, twice as fast there. Differences are of float rounding.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LEAST = 4_000_000
"""Multiplications from which on a convolution is worth its set-up (one AMD core: equal at 3 million, 1.2 times as fast
here, 2.2 times as fast with 100 million)."""


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
    floats = input.dtype == weight.dtype == torch.float32
    if rows * weight.numel() < LEAST or not floats or torch.is_grad_enabled():
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
    """Whether this processor has vectors that MKL leaves idle (AMD, under Linux), and this torch the other library."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.backends.mkldnn.is_available() and wide and "AuthenticAMD" in _processor()


def _processor() -> str:
    """What the system says of the first processor; nothing where it cannot be asked cheaply."""
    path = Path("/proc/cpuinfo")
    return path.read_text().partition("\n\n")[0] if platform.system() == "Linux" and path.is_file() else ""
