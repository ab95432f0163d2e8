"""The conformance suite on the model that ships, with its trained weights."""

from functools import cache

from streaming.backbone import Backbone
from streaming.conformance import BackboneConformance
from streaming.registry import open_model


@cache
def backbone() -> Backbone:
    return open_model("tiny-modelscope").backbone


class TestEmbedded(BackboneConformance):
    channels = 16
    high = wide = 4

    def make(self) -> Backbone:
        return backbone()
