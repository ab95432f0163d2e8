"""How Open-Sora 1.2's transformer begins its training: temporal blocks and the frame rate say nothing yet."""

import torch
from torch import nn

from backends.opensora_layers import NumberEmbedder
from backends.opensora_stdit3 import STDiT3

SPREAD = 0.02
"""Standard deviation of the weights that embed times and text."""


@torch.no_grad()
def begin(net: STDiT3) -> STDiT3:
    """Initial weights as published, drawn from torch's generator: what is 0 leaves a model of single pictures."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(net.x_embedder.proj.weight.flatten(1))
    embedders = [net.t_embedder, net.fps_embedder, net.t_block, net.y_embedder]
    for module in [module for part in embedders for module in part.modules() if isinstance(module, nn.Linear)]:
        nn.init.normal_(module.weight, std=SPREAD)
    silent = [net.final_layer.linear, _last(net.fps_embedder)]
    for block in net.temporal_blocks:
        silent += [block.attn.proj, block.cross_attn.proj, block.mlp.fc2]  # pyright: ignore
    for layer in silent:
        nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
    return net


def _last(embedder: NumberEmbedder) -> nn.Module:
    return embedder.mlp[2]
