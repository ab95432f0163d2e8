"""The enhancer's UNet, ModelScope's Video-to-Video, by its native names."""

from typing import Any

import torch
from diffusers import UNet3DConditionModel

from backends.modelscope_keys import Sizes, native_names, read_sizes
from backends.modelscope_unet import UNet3DBackbone
from backends.modelscope_v2v import video_to_video
from streaming.backbone import Window
from tests.parity.fixture import Fixture
from tests.parity.network import call_of
from tests.parity.registry import handles

HOME = "v2v."
"""Before the names in the weights' formula."""


@handles("st2v_v2v_unet_*")
def v2v_unet(fixture: Fixture) -> None:
    """out.v of in.x [B, C, F, h, w] at in.t, with text in.y."""
    latents, text = fixture.read(r"in\.(x|sample)"), fixture.read(r"in\.(y|context)")
    with torch.device("meta"):
        unet: Any = UNet3DConditionModel(**_sizes(fixture).config())
    ours = unet.state_dict()
    native = native_names(ours, unet.config["layers_per_block"])
    found = fixture.weights({HOME + native[name]: value.shape for name, value in ours.items()}, HOME)
    unet.load_state_dict({name: found[HOME + native[name]] for name in ours}, assign=True)
    frames = latents.shape[2]
    backbone = UNet3DBackbone(video_to_video(unet).eval(), tokens=text.shape[1], window=Window(frames, 0)).eval()
    fixture.check(fixture.find(r"out\.v\w*", r"out\.\w+") or "out.v", backbone(call_of(fixture, latents, text), {}))


def _sizes(fixture: Fixture) -> Sizes:
    """From the shapes of stored weights, else from the native configuration."""
    stored = {name.removeprefix("state."): value for name, value in fixture.tensors.items() if "state." in name}
    if stored:
        return read_sizes({name.removeprefix(HOME): value for name, value in stored.items()})
    config = fixture.config
    if (
        not config.get("temporal_attention", True)
        or config.get("y_dim", config["context_dim"]) != config["context_dim"]
    ):
        fixture.give_up(f"a network with these settings is not known: {config}")
    multiples = config["dim_mult"]
    return Sizes(
        taken=int(config["in_dim"]),
        given=int(config["out_dim"]),
        channels=tuple(int(config["dim"] * multiple) for multiple in multiples),
        layers=int(config["num_res_blocks"]),
        attention=tuple(0.5**level in config["attn_scales"] for level in range(len(multiples))),
        depth=int(config["context_dim"]),
        head=int(config["head_dim"]),
    )
