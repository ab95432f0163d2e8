"""Fixtures of other sizes, made from our own modules: what a handler computes for given inputs becomes the outputs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.fixture import Fixture
from tests.parity.registry import check

FORMULA = {
    "weights_formula": "value = bf16(o + h*u[i]), u from splitmix64: z=(crc32(name)<<32)+i+1; "
    "z*=0x9E3779B97F4A7C15 and so on; (o,h)=(0.4,1.0) for 0-d, (1,0.2) for 1-d '*.weight', (0,0.2) for other 1-d, "
    "else (0,1.5/sqrt(prod(shape[1:])))"
}
SCHEDULER = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
UNET = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [64, 64], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"], "norm_num_groups": 32, "cross_attention_dim": 8,
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"], "attention_head_dim": 8,
    "merging_mode": "attention_cross_attention", "use_image_embedding": True,
}  # fmt: skip
CAM = {"conditioning_embedding_out_channels": [8, 16], "merging_mode": "addition"}
VAE = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 8], "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.18215,
}  # fmt: skip


class Filling(Fixture):
    """Takes what a handler computes as the outputs, and remembers the weights that it asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: dict[str, Tensor] = {}

    def _compare(self, name: str, value: Tensor, tolerance: float) -> None:
        assert value.shape == self.tensors[name].shape, (name, value.shape)
        self.tensors[name] = value.detach().to(self.tensors[name].dtype).contiguous().clone()
        self.used.add(name)
        self.worst[name] = 0.0

    def _weight(self, name: str, shape: tuple[int, ...], home: str) -> Tensor | None:
        found = super()._weight(name, shape, home)
        if found is not None:
            self.asked[f"state.{name.removeprefix(home)}"] = found.contiguous()
        return found


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """A fixture file; metadata that is no text is written as JSON."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in meta.items()}
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata=texts)
    return path


def synthesise(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, stored: bool = False) -> Path:
    """A fixture whose outputs, in `tensors` as empty tensors of the right shapes, are what its handler computes.

    stored: with the weights instead of their formula.
    """
    filling = Filling(write(path, tensors, meta))
    with torch.no_grad():
        check(filling)
    made = {name: value for name, value in filling.tensors.items() if name in tensors}
    if stored:
        made |= filling.asked
        meta = {name: value for name, value in meta.items() if not name.startswith("weights_formula")}
    return write(path, made, meta)


def met(path: Path) -> None:
    """Raises AssertionError unless the fixture is met."""
    with torch.no_grad():
        check(Fixture(path))


def changed(path: Path, name: str, by: float = 1e-2) -> Path:
    """The file with one entry of one tensor changed."""
    fixture = Fixture(path)
    fixture.tensors[name] = fixture.tensors[name].clone()
    fixture.tensors[name].view(-1)[-1] += by
    return write(path, fixture.tensors, fixture.meta)


def numbers(seed: int, *shape: int) -> Tensor:
    """Standard normal ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
