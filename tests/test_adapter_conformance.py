"""CAM and APM keep what every memory keeps, on both kinds of toy model."""

import torch

from adapters.apm import new_apm
from adapters.cam import new_cam
from backends.toy_dit import ToyDiTBackend
from backends.toy_unet import ToyUNetBackend
from streaming.conformance import LongTermMemoryConformance, ShortTermMemoryConformance
from streaming.frame_mask import FrameMask
from streaming.injection import Injection
from tests.adapter_toys import seeded


def loaded(backend):
    return backend.load(None, device=torch.device("cpu"), dtype=torch.float32)


class TestCAMOnTheUNet(ShortTermMemoryConformance):
    def model(self):
        return loaded(ToyUNetBackend())

    def memory(self, model):
        return seeded(lambda: new_cam(model))


class TestCAMOnTheDiT(ShortTermMemoryConformance):
    def model(self):
        return loaded(ToyDiTBackend())

    def memory(self, model):
        return seeded(lambda: new_cam(model, condition="latents"))


class TestCAMWithInjection(ShortTermMemoryConformance):
    identity_at_init = False

    def model(self):
        return loaded(ToyUNetBackend())

    def memory(self, model):
        return Injection(seeded(lambda: new_cam(model)))


class TestCAMWithFrameMask(ShortTermMemoryConformance):
    identity_at_init = False

    def model(self):
        return loaded(ToyDiTBackend())

    def memory(self, model):
        return FrameMask(seeded(lambda: new_cam(model)))


class TestAPMOnTheUNet(LongTermMemoryConformance):
    def model(self):
        return loaded(ToyUNetBackend())

    def memory(self, model):
        return seeded(lambda: new_apm(model))


class TestAPMOnTheDiT(LongTermMemoryConformance):
    def model(self):
        return loaded(ToyDiTBackend())

    def memory(self, model):
        return seeded(lambda: new_apm(model))
