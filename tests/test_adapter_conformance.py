"""CAM, APM and their rivals keep what every memory keeps, on both kinds of toy model."""

import torch

from adapters.add_cond import new_add_cond
from adapters.apm import new_apm
from adapters.append import new_append
from adapters.cam import new_cam
from adapters.conc_cond import new_conc_cond
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


class TestConcCondOnTheUNet(ShortTermMemoryConformance):
    def model(self):
        return loaded(ToyUNetBackend())

    def memory(self, model):
        return seeded(lambda: new_conc_cond(model))


class TestConcCondOnTheDiT(ShortTermMemoryConformance):
    def model(self):
        return loaded(ToyDiTBackend())

    def memory(self, model):
        return seeded(lambda: new_conc_cond(model))


class TestAddCondOnTheUNet(ShortTermMemoryConformance):
    def model(self):
        return loaded(ToyUNetBackend())

    def memory(self, model):
        return seeded(lambda: new_add_cond(model))


class TestAddCondOnTheDiT(ShortTermMemoryConformance):
    def model(self):
        return loaded(ToyDiTBackend())

    def memory(self, model):
        return seeded(lambda: new_add_cond(model))


class TestAppendOnTheUNet(LongTermMemoryConformance):
    identity_at_init = False

    def model(self):
        return loaded(ToyUNetBackend())

    def memory(self, model):
        return seeded(lambda: new_append(model))


class TestAppendOnTheDiT(LongTermMemoryConformance):
    identity_at_init = False

    def model(self):
        return loaded(ToyDiTBackend())

    def memory(self, model):
        return seeded(lambda: new_append(model))
