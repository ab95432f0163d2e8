"""Open-Sora's transformers: their predictions for given latents, times, texts and masks."""

import inspect

import torch.nn.functional as F
from torch import Tensor

from backends.opensora_config import SQUARE, version_of
from backends.opensora_stdit import STDiT
from backends.opensora_stdit2 import STDiT2
from backends.opensora_stdit3 import STDiT3
from backends.opensora_weights import load_stdit
from streaming.errors import UserError
from tests.parity.fixture import Fixture
from tests.parity.registry import handles

CLOSE = 1e-5
"""Relative and absolute."""
NUMBERS = {"fps": "fps", "height": "height", "width": "width", "aspect": "ar", "num_frames": "num_frames"}
"""Our names and the published ones."""
UNKNOWN = ("skip_y_embedder", "no_temporal_pos_emb")
"""Settings of the published classes that no published model has."""


@handles("opensora_v10_*", "opensora_v11_*", "opensora_v12_*")
def transformer(fixture: Fixture) -> None:
    """out [B, 8, T, H, W]; out_nomask reads all of the text; out_noxmask generates all frames."""
    network, latents = _load(fixture), _latents(fixture)
    batch = len(latents)
    time, text = (_rows(fixture, rf"in\.{name}", batch) for name in ("timestep", "y"))
    text = text.flatten(1, text.ndim - 2)  # [B, 1, L, D]
    masks = {"text_mask": _mask(fixture, "mask", batch), "generated": _mask(fixture, "x_mask", batch)}
    numbers = {
        ours: _rows(fixture, rf"in\.{name}", batch) for ours, name in NUMBERS.items() if fixture.find(rf"in\.{name}")
    }
    taken = inspect.signature(network.forward).parameters  # 1.2 takes no notice of what only 1.1 is told

    def check(name: str, **changes: None) -> None:
        if name in fixture.tensors:
            given = {key: value for key, value in {**masks, **numbers, **changes}.items() if key in taken}
            fixture.check(
                name, network(latents, time.float(), text.flatten(1, text.ndim - 2), **given), tolerance=CLOSE
            )

    if masks["generated"] is not None and "generated" not in taken:
        fixture.give_up("a mask of frames for Open-Sora 1.0, which has none")
    check("out")
    check("out_nomask", text_mask=None)
    check("out_noxmask", generated=None)


def _load(fixture: Fixture) -> STDiT | STDiT2 | STDiT3:
    """The network of the stored weights, whose sizes must be those of the config."""
    config, state = fixture.config, fixture.state()
    for name in UNKNOWN:
        if config.get(name):
            fixture.give_up(f"a transformer with {name} is not known")
    try:
        version = version_of(state, fixture.name)
        square = int(config.get("input_sq_size", 32 if version == "1.1" else SQUARE))  # the published classes' defaults
        network = load_stdit(state, fixture.name, heads=config.get("num_heads"), square=square)
    except UserError as error:
        return fixture.give_up(str(error))
    if f"v{version.replace('.', '')}_" not in fixture.name:
        fixture.give_up(f"the weights are those of Open-Sora {version}")
    made = {"hidden_size": network.config.width, "depth": network.config.depth}
    if any(config.get(name, value) != value for name, value in made.items()):
        fixture.give_up(f"its weights are those of {made}, its config tells {config}")
    return network


def _latents(fixture: Fixture) -> Tensor:
    """in.x, filled up where the published code (1.0) gives back what it filled up."""
    latents, wanted = fixture.read(r"in\.x"), fixture.shape("out") or fixture.shape("out_nomask")
    if wanted is None:
        return latents
    return F.pad(latents, (0, wanted[3] - latents.shape[4], 0, wanted[2] - latents.shape[3]))


def _rows(fixture: Fixture, pattern: str, batch: int) -> Tensor:
    """An input whose rows are repeated, one after the other, until there are as many as latents."""
    value = fixture.read(pattern)
    if batch % len(value):
        fixture.give_up(f"{pattern}: {len(value)} rows for a batch of {batch}")
    return value.repeat(batch // len(value), *[1] * (value.ndim - 1))


def _mask(fixture: Fixture, name: str, batch: int) -> Tensor | None:
    return _rows(fixture, rf"in\.{name}", batch).bool() if fixture.find(rf"in\.{name}") else None
