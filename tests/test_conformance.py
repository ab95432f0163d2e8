"""The conformance suites on everything that ships: toys, the ModelScope UNet, all blenders and memories."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from diffusers import UNet3DConditionModel
from torch import nn

from adapters.apm import new_apm
from adapters.cam import new_cam
from backends.modelscope_unet import UNet3DBackbone
from backends.toy_dit import ToyDiTBackend
from backends.toy_unet import ToyUNetBackend, seeded
from streaming.backbone import Backbone, Window
from streaming.blend import ChunkBlender, cross_fade, naive, randomized, randomized_official, shared_noise
from streaming.conformance import (
    BackboneConformance,
    BlenderConformance,
    LongTermMemoryConformance,
    ShortTermMemoryConformance,
)
from streaming.frame_mask import frame_mask
from streaming.injection import inject
from streaming.keys import Key
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.model import Model

CPU = torch.device("cpu")
Memory = TypeVar("Memory", bound=nn.Module)


def toy_unet() -> Model:
    return ToyUNetBackend().load(None, device=CPU, dtype=torch.float32)


def toy_dit() -> Model:
    return ToyDiTBackend().load(None, device=CPU, dtype=torch.float32)


class TestToyUNet(BackboneConformance):
    channels = 3

    def make(self) -> Backbone:
        return toy_unet().backbone


class TestToyDiT(BackboneConformance):
    channels = 12
    encoder_continues_backbone = False  # it is the first half, the sites are in the second

    def make(self) -> Backbone:
        return toy_dit().backbone


def unet3d() -> Model:
    """ModelScope's UNet at its smallest, with weights that no initialisation leaves at zero, among the toy's parts."""
    unet = seeded(
        lambda: UNet3DConditionModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
        Key(0).fold("unet3d"),
    )
    return replace(toy_unet(), backbone=UNet3DBackbone(unet, tokens=8, window=Window(frames=4, overlap=2)))


class TestModelScopeUNet(BackboneConformance):
    channels = 3

    def make(self) -> Backbone:
        return unet3d().backbone


def steady(make: Callable[[Model], Memory], model: Model) -> Memory:
    """A new memory, whose layers begin with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(model)


class TestCAMOnToyDiT(ShortTermMemoryConformance):
    def model(self) -> Model:
        return toy_dit()

    def memory(self, model: Model) -> nn.Module:
        return steady(new_cam, model)


class TestCAMOnModelScopeUNet(ShortTermMemoryConformance):
    def model(self) -> Model:
        return unet3d()

    def memory(self, model: Model) -> nn.Module:
        return steady(new_cam, model)


class TestInjection(ShortTermMemoryConformance):
    identity_at_init = False

    def model(self) -> Model:
        return toy_unet()

    def memory(self, model: Model) -> nn.Module:
        return inject(model, None)


class TestFrameMask(ShortTermMemoryConformance):
    identity_at_init = False

    def model(self) -> Model:
        return toy_dit()

    def memory(self, model: Model) -> nn.Module:
        return frame_mask(model, None)


class TestNoShortTerm(ShortTermMemoryConformance):
    remembers = False

    def model(self) -> Model:
        return toy_unet()

    def memory(self, model: Model) -> nn.Module:
        return NoShortTerm()


class TestAPMOnModelScopeUNet(LongTermMemoryConformance):
    def model(self) -> Model:
        return unet3d()

    def memory(self, model: Model) -> nn.Module:
        return steady(new_apm, model)


class TestNoLongTerm(LongTermMemoryConformance):
    remembers = False

    def model(self) -> Model:
        return toy_unet()

    def memory(self, model: Model) -> nn.Module:
        return NoLongTerm()


class TestRandomized(BlenderConformance):
    def make(self, chunk: int, overlap: int) -> ChunkBlender:
        return randomized(chunk, overlap)


class TestRandomizedOfficial(BlenderConformance):
    def make(self, chunk: int, overlap: int) -> ChunkBlender:
        return randomized_official(chunk, overlap)


class TestNaive(BlenderConformance):
    def make(self, chunk: int, overlap: int) -> ChunkBlender:
        return naive(chunk, overlap)


class TestSharedNoise(BlenderConformance):
    def make(self, chunk: int, overlap: int) -> ChunkBlender:
        return shared_noise(chunk, overlap)


class TestCrossFade(BlenderConformance):
    def make(self, chunk: int, overlap: int) -> ChunkBlender:
        return cross_fade(chunk, overlap)
