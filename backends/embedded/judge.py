"""An attribute judge: reads place, shape, colour and the rest off a clip of 16 frames; for evaluation only."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streaming.errors import UserError


@final
@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Sizes of a judge and what it tells apart."""

    attributes: Mapping[str, tuple[str, ...]]
    """Words of each attribute, in the order of the logits."""
    widths: tuple[int, int, int] = (24, 48, 96)
    """Channels at 1/2, 1/4 and 1/8 of the picture's size."""
    heads: int = 4
    """Places that each frame's summary looks at."""
    hidden: int = 128
    """Width of the temporal part."""
    size: int = 64
    """Rows and columns it works at, pixels."""
    frames: int = 16
    """Frames of a clip."""


@final
class Judge(nn.Module):
    """Convolutions in space and time, attention pooling in each frame (so positions count), one head an attribute.

    Every layer sees the frames' differences through its temporal kernel; that is how it tells actions and cameras.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third = config.widths
        cells = (config.size // 8) ** 2
        self.stem = nn.Conv2d(9, first, 5, stride=2, padding=2)
        self.levels = nn.ModuleList([_Level(first, second), _Level(second, third)])
        self.time, self.space = _Time(third), _Space(third)
        self.place_bias = nn.Parameter(torch.zeros(third, config.size // 8, config.size // 8))
        self.looks = nn.Conv2d(third, config.heads, 1)
        self.cells = nn.Parameter(torch.randn(cells, 16) * 0.5)
        self.summary = nn.Linear(config.heads * (third + 16) + third, config.hidden)
        self.times = nn.ModuleList([_Temporal(config.hidden, dilation) for dilation in (1, 2, 4)])
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * config.hidden, len(words)) for name, words in config.attributes.items()}
        )

    def forward(self, frames: Float[Tensor, "batch time 3 rows cols"]) -> dict[str, Float[Tensor, "batch words"]]:
        """Logits of every attribute for clips of RGB in [0, 1]; other picture sizes are resized first."""
        length = frames.shape[1]
        x = 2 * frames - 1
        if x.shape[-2:] != (self.config.size, self.config.size):
            x = F.interpolate(x.flatten(0, 1), (self.config.size, self.config.size), mode="area")
            x = x.unflatten(0, (-1, length))
        change = F.pad(4 * (x[:, 1:] - x[:, :-1]), (0, 0, 0, 0, 0, 0, 1, 1))
        x = self.stem(torch.cat((x, change[:, :-1], change[:, 1:]), dim=2).flatten(0, 1))
        for level in self.levels:
            x = level(x, length)
        return self._decide(self.space(self.time(x + self.place_bias, length)), length)

    def _decide(
        self, x: Float[Tensor, "frames width rows cols"], length: int
    ) -> dict[str, Float[Tensor, "batch words"]]:
        flat = x.flatten(2)
        look = self.looks(x).flatten(2).softmax(dim=-1).to(x.dtype)  # frames heads cells
        seen = torch.einsum("fhp,fcp->fhc", look, flat).flatten(1)
        where = torch.einsum("fhp,pc->fhc", look, self.cells.to(x.dtype)).flatten(1)
        y = self.summary(torch.cat((seen, where, flat.mean(dim=-1)), dim=-1))
        y = y.unflatten(0, (-1, length)).transpose(1, 2)
        for block in self.times:
            y = block(y)
        pooled = torch.cat((y.mean(dim=-1), y.amax(dim=-1)), dim=-1)
        return {name: head(pooled).float() for name, head in self.heads.items()}

    @torch.no_grad()
    def classify(self, frames: Float[Tensor, "batch time 3 rows cols"]) -> dict[str, Int[Tensor, " batch"]]:
        """The likeliest word of every attribute, as its index."""
        return {name: logits.argmax(dim=-1) for name, logits in self(frames).items()}

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` (float16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        save_file(
            {name: v.detach().cpu().half() for name, v in self.state_dict().items()}, folder / "model.safetensors"
        )

    @staticmethod
    def load(folder: Path) -> "Judge":
        """Read what `save` wrote, as float32. Raises UserError if it isn't a judge."""
        try:
            fields = json.loads((folder / "config.json").read_text())
            fields["widths"] = tuple(fields["widths"])
            fields["attributes"] = {name: tuple(words) for name, words in fields["attributes"].items()}
            judge = Judge(JudgeConfig(**fields))
            judge.load_state_dict(load_file(folder / "model.safetensors"))
        except Exception as error:
            raise UserError(
                f"{folder} holds no attribute judge ({error}); train one: streamingt2v train judge"
            ) from error
        return judge.eval()


@final
class _Space(nn.Module):
    """A residual convolution in each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "frames width rows cols"]) -> Float[Tensor, "frames width rows cols"]:
        return x + self.conv(F.silu(self.norm(x)))


@final
class _Time(nn.Module):
    """A residual convolution along time, alike at every place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, (3, 1), padding=(1, 0))

    def forward(
        self, x: Float[Tensor, "frames width rows cols"], length: int
    ) -> Float[Tensor, "frames width rows cols"]:
        y = F.silu(self.norm(x)).unflatten(0, (-1, length)).transpose(1, 2).flatten(3)
        return x + self.conv(y).transpose(1, 2).flatten(0, 1).view_as(x)


@final
class _Level(nn.Module):
    """Half the size; then a temporal and a spatial residual convolution."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.down = nn.Conv2d(width, wider, 3, stride=2, padding=1)
        self.time, self.space = _Time(wider), _Space(wider)

    def forward(
        self, x: Float[Tensor, "frames width rows cols"], length: int
    ) -> Float[Tensor, "frames wider low_rows low_cols"]:
        return self.space(self.time(self.down(F.silu(self.norm(x))), length))


@final
class _Temporal(nn.Module):
    """A residual convolution along time."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Float[Tensor, "batch width time"]) -> Float[Tensor, "batch width time"]:
        return x + self.conv(F.silu(self.norm(x)))
