"""Layouts that make convolutions fast; what they compute stays the same up to rounding."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@final
class TemporalConv(nn.Module):
    """What a `Conv3d` with a kernel of (span, 1, 1) computes, as a `Conv2d` over [frames, positions].

    Libraries have few kernels for such three-dimensional convolutions, and slow ones: on a CPU this takes less than
    half the time, and channels-last layouts, which tensor cores want, pass through. Parameters keep names and shapes.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        """Takes over the parameters of `conv`; see `is_temporal`."""
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.padding = int(conv.padding[0])

    def forward(self, x: Float[Tensor, "batch channels frames high wide"]) -> Tensor:
        """[batch, out channels, frames', high, wide]."""
        high = x.shape[3]
        y = functional.conv2d(x.flatten(3), self.weight.flatten(3), self.bias, padding=(self.padding, 0))
        return y.unflatten(3, (high, -1))


def is_temporal(module: nn.Module) -> bool:
    """Whether it is a plain convolution along time alone, with a stride of one."""
    return (
        isinstance(module, nn.Conv3d)
        and module.kernel_size[1:] == (1, 1)
        and module.padding[1:] == (0, 0)
        and module.padding_mode == "zeros"
        and (module.stride, module.dilation, module.groups) == ((1, 1, 1), (1, 1, 1), 1)
    )


def flatten_temporal(model: nn.Module) -> None:
    """Replaces all such convolutions in a model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_temporal(child):
                setattr(module, name, TemporalConv(child))  # pyright: ignore[reportArgumentType]


def channels_last(model: nn.Module) -> None:
    """Stores the weights of two-dimensional convolutions as tensor cores want them; names and shapes stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
