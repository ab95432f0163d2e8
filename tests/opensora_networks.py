"""Small Open-Sora transformers in which every parameter counts. Run as a script, it compiles them (see the tests)."""

from dataclasses import replace
from functools import cache

import torch

from backends.opensora_config import Grid, STDiTConfig
from backends.opensora_stdit import STDiT
from backends.opensora_stdit2 import STDiT2
from backends.opensora_stdit3 import STDiT3
from streaming.keys import Key, initial_weights

VERSIONS = ("1.0", "1.1", "1.2")
SMALL = STDiTConfig(width=48, depth=4, heads=4, hidden=64, text_depth=16, text_tokens=6)


@cache
def network(version, depth=SMALL.depth):
    """Frozen, of a small size; 1.0 takes 3 frames of 6x8."""
    config = replace(SMALL, depth=depth, qk_norm=version != "1.0")
    with initial_weights(0):
        if version == "1.0":
            return drawn(STDiT(config, Grid(frames=3, rows=3, cols=4), space_scale=0.5))
        return drawn((STDiT2 if version == "1.1" else STDiT3)(config))


@torch.no_grad()
def drawn(net):
    """Frozen, with all weights drawn anew but for the frequencies of rotations."""
    for name, value in net.named_parameters():
        if name != "rope.freqs":
            shift, gain = (1.0, 0.2) if "_norm" in name else (0.0, 0.5)
            gain = gain if value.ndim == 1 else 0.8 / value[0].numel() ** 0.5
            value.copy_(shift + gain * Key(1).fold(name).normal(*value.shape))
    return net.eval().requires_grad_(False)


def inputs(version):
    """Two rows with times, text lengths and frame masks of their own."""
    draw = lambda name, *shape: Key(2).fold(name).normal(*shape)  # noqa: E731
    given = {
        "latents": draw("latents", 2, 4, 3, 6, 8),
        "time": torch.tensor([731.0, 12.0]),
        "text": draw("text", 2, 6, 16),
        "text_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]).bool(),
    }
    if version == "1.0":
        return given
    given |= {"fps": torch.tensor([24.0, 8.0]), "height": torch.full((2,), 96.0), "width": torch.full((2,), 128.0)}
    given["generated"] = torch.tensor([[0, 1, 1], [1, 0, 1]]).bool()
    if version == "1.1":
        given |= {"aspect": given["height"] / given["width"], "num_frames": torch.tensor([3.0, 9.0])}
    return given


@torch.no_grad()
def _compile():
    from torch._dynamo.testing import CompileCounter

    for version in ("1.0", "1.2"):
        net, given, counter = network(version, depth=2), inputs(version), CompileCounter()
        given["latents"] = given["latents"][..., :5, :7]
        sites = (*net.feature_sites, *net.context_sites)
        given["deltas"] = {site.name: torch.nn.Linear(48, 48) for site in sites}
        graph = torch.compile(net, fullgraph=True, dynamic=False, backend=counter)
        for time in (731.0, 12.0):
            given["time"] = torch.tensor([time, 5.0])
            torch.testing.assert_close(graph(**given), net(**given), rtol=1e-4, atol=1e-4)
        print(f"{version}: {counter.frame_count} graph")


if __name__ == "__main__":
    _compile()
