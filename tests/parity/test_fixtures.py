"""Every fixture is met; a file that nothing handles is a failure."""

from pathlib import Path

import torch

from tests.parity.fixture import Fixture
from tests.parity.registry import check


def test_fixture(fixture_path: Path) -> None:
    with torch.no_grad():
        check(Fixture(fixture_path))
