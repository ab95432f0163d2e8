"""CAM's merger and its image encoder E_cond, alone."""

import re

from torch import Tensor

from adapters.condition import ConditionEncoder
from adapters.merger import Merger
from adapters.official_names import merger_to_official, merger_to_ours
from tests.parity.fixture import Fixture
from tests.parity.network import MERGER_HEAD, maps_like
from tests.parity.registry import handles

_AXES = "batch frames channels rows cols".split()
_MEANT = {"b": "batch", "f": "frames", "f_cond": "frames", "c": "channels", "h": "rows", "w": "cols"}


def _order(fixture: Fixture, name: str, default: str) -> list[int]:
    """Axes of a tensor in the order of `_AXES`, from the layout `sample [B,F,C,H,W]` of the metadata."""
    match = re.search(rf"\b{name} \[([\w, ]+)\]", fixture.meta.get("layout", ""))
    axes = [_MEANT.get(axis.strip().lower()) for axis in (match[1] if match else default).split(",")]
    if sorted(map(str, axes)) != sorted(_AXES):
        fixture.give_up(f"the layout of {name} is not understood: {fixture.meta.get('layout')}")
    return [axes.index(axis) for axis in _AXES]


def _features(value: Tensor, order: list[int]) -> Tensor:
    """[batch, frames, positions, channels]."""
    return value.permute(order).flatten(3).transpose(2, 3)


@handles("st2v_merger_*")
def merger(fixture: Fixture) -> None:
    """out.sample = in.sample + merger(in.sample, in.conditioning)."""
    sample, memory = fixture.read(r"in\.sample"), fixture.read(r"in\.conditioning")
    order = _order(fixture, "sample", "B,F,C,H,W")
    features, remembered = _features(sample, order), _features(memory, _order(fixture, "conditioning", "B,F,C,H,W"))
    config = fixture.config
    width = features.shape[-1]
    module = Merger(width, int(config.get("attention_head_dim", MERGER_HEAD)), int(config.get("norm_num_groups", 32)))
    theirs = {merger_to_official(name): value.shape for name, value in module.state_dict().items()}
    state = fixture.state() or fixture.drawn(fixture.meta.get("weights_formula_prefix", ""), theirs)
    module.load_state_dict({merger_to_ours(name): value for name, value in state.items()})
    if config.get("norm_eps", module.norm.eps) != module.norm.eps:
        fixture.give_up(f"a merger's norm with eps {config['norm_eps']}, not {module.norm.eps}")
    merged = (features + module(features, remembered)).transpose(2, 3)
    shape = sample.permute(order).shape
    result = merged.reshape(shape).permute([order.index(axis) for axis in range(5)])
    fixture.check("out.sample", result)


@handles("st2v_cond_embedding_*")
def cond_embedding(fixture: Fixture) -> None:
    """E_cond of images [(B F), 3, H, W] in [-1, 1]."""
    config, image = fixture.config, fixture.read(r"in\.image")
    encoder = ConditionEncoder(
        int(config.get("conditioning_channels", image.shape[-3])),
        tuple(config["block_out_channels"]),
        int(config["conditioning_embedding_channels"]),
        shrink=bool(config.get("downsample", True)),
    )
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(fixture.state() or fixture.drawn(fixture.meta.get("weights_formula_prefix", ""), shapes))
    video = image.transpose(0, 1)[None] if image.ndim == 4 else image.transpose(1, 2)
    embedding = encoder(video)
    shape = fixture.shape("out.embedding")
    if shape is not None:
        fixture.check("out.embedding", maps_like(embedding, shape))
