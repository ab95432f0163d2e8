"""Suites that a plugin's own tests import: what every backbone, memory and blender must keep (needs the `test` extra).

    from streaming.conformance import BackboneConformance

    class TestMine(BackboneConformance):
        def make(self):
            return MyBackbone(...)

Class attributes say which optional promises hold; each is explained where it is defined.
"""

import pytest

for _suite in ("backbone", "blender", "memory", "one_graph", "probe"):
    pytest.register_assert_rewrite(f"streaming.conformance.{_suite}")

from streaming.conformance.backbone import BackboneConformance as BackboneConformance  # noqa: E402
from streaming.conformance.blender import BlenderConformance as BlenderConformance  # noqa: E402
from streaming.conformance.memory import LongTermMemoryConformance as LongTermMemoryConformance  # noqa: E402
from streaming.conformance.memory import ShortTermMemoryConformance as ShortTermMemoryConformance  # noqa: E402
