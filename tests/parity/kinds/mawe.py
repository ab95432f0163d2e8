"""MAWE for given flows."""

import torch

from streaming.metrics.mawe import COEFFICIENT, mawe, warp_forward
from tests.parity.fixture import Fixture
from tests.parity.registry import handles

LAST_BITS = 5e-7
"""For means in float32, whose last bits depend on the order in which a machine adds; all else is exact."""


@handles("st2v_mawe_*")
def motion_aware_warp_error(fixture: Fixture) -> None:
    """Warped frames, masks and counts exactly; errors, motions and MAWE but for the last bits of float32."""
    if fixture.config.get("coeff", COEFFICIENT) != COEFFICIENT:
        fixture.give_up(f"a coefficient of {fixture.config['coeff']}: only {COEFFICIENT} is known")
    video, flows = fixture.read(r"in\.(video|frames)"), fixture.read(r"in\.flows?")
    warped, found = warp_forward(video[:-1], flows), mawe(video, flows)
    fixture.check("out.warped", warped.frames, tolerance=0)
    fixture.check("out.unknown_mask", (~warped.known).float(), tolerance=0)
    fixture.check("out.known_counts", 3.0 * found.known, tolerance=0)
    fixture.check("out.warp_errors", found.errors, tolerance=LAST_BITS)
    fixture.check("out.motions", found.motions, tolerance=LAST_BITS)
    for name, value in (("mawe", found.mean_of_ratios), ("mawe_ratio_of_means", found.ratio_of_means)):
        fixture.check(f"out.{name}", torch.tensor(value, dtype=torch.float64), tolerance=LAST_BITS)
