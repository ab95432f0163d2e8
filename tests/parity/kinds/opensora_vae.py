"""Open-Sora 1.2's temporal autoencoder: clips of several lengths there and back, in pieces."""

import re

import torch

from backends.opensora_codec import PIECE, PieceVAE
from backends.opensora_vae import TemporalVAE
from tests.parity.fixture import Fixture
from tests.parity.registry import handles

TOLERANCE = 1e-5


@handles("opensora_v12_vae_temporal", "opensora_v12_vae_temporal*", "opensora_v12_vae_temporal_*")
def temporal_vae(fixture: Fixture) -> None:
    """fN.in.x [B, C, N, h, w] -> fN.z -> fN.y; fN.moments are those of its pieces, before shift and scale."""
    config, state = fixture.config, fixture.state()
    clips = [name.removesuffix(".in.x") for name in fixture.names(r"\w+\.in\.x")]
    longest = max((fixture.tensors[f"{clip}.in.x"].shape[2] for clip in clips), default=1)
    piece = config.get("micro_frame_size", PIECE) or longest
    vae = PieceVAE.of(state, groups=int(config.get("num_groups", 32)), piece=int(piece)).eval()
    _check_config(fixture, vae.temporal_vae)
    for clip in clips:
        maps = fixture.read(re.escape(f"{clip}.in.x"))
        latents = vae.encode(maps)
        fixture.check(f"{clip}.z", latents, tolerance=TOLERANCE)
        if f"{clip}.moments" in fixture.tensors:
            moments = [vae.temporal_vae.moments(one) for one in maps.split(vae.piece, dim=2)]
            fixture.check(f"{clip}.moments", torch.cat(moments, dim=2), tolerance=TOLERANCE)
        if f"{clip}.y" in fixture.tensors:
            given = fixture.tensors.get(f"{clip}.z", latents).float()
            fixture.check(f"{clip}.y", vae.decode(given, maps.shape[2]), tolerance=TOLERANCE)


def _check_config(fixture: Fixture, vae: TemporalVAE) -> None:
    """What the tensors' shapes tell is what the config says, as far as it says something."""
    sizes, config = vae.sizes, fixture.config
    multiples = config.get("channel_multipliers", [])
    shortened = [i for i, yes in enumerate(config.get("temporal_downsample", [])) if yes]
    expected = {
        "in_out_channels": sizes.channels,
        "latent_embed_dim": sizes.inner,
        "embed_dim": sizes.latents,
        "filters": sizes.entry,
        "num_res_blocks": sizes.blocks,
    }
    wrong = [f"{name} {value}" for name, value in expected.items() if config.get(name, value) != value]
    if multiples and tuple(config["filters"] * n for n in multiples) != sizes.widths:
        wrong.append(f"channel_multipliers {sizes.widths}")
    if "temporal_downsample" in config and tuple(shortened) != sizes.shortened:
        wrong.append(f"temporal_downsample {sizes.shortened}")
    if wrong:
        fixture.give_up(f"its tensors tell {', '.join(wrong)}, its config something else")
