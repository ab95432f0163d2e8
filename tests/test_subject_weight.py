"""Properties of the weight of a subject's cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.subject_weight import FULL, SEEN, SUBJECT, subject_weight

SHARES = st.floats(0, 1)


def weight(share: float, signal: float, most: float = SUBJECT) -> float:
    """Signal and noise keep the variance."""
    cell = torch.ones(1, 1, 1, 1, 1)
    return float(subject_weight(share * cell, signal * cell, (1 - signal**2) ** 0.5 * cell, most))


@given(share=SHARES, signal=SHARES, most=st.floats(1, 10))
def test_between_one_and_most(share: float, signal: float, most: float) -> None:
    assert 1 <= weight(share, signal, most) <= most + 1e-4
    assert weight(0, signal, most) == weight(share, 0, most) == weight(share, signal, 1.0) == 1


@given(share=st.floats(FULL, 1), signal=SHARES)
def test_a_quarter_of_a_cell_is_all_of_it(share: float, signal: float) -> None:
    seen = signal**2 / (signal**2 + SEEN * (1 - signal**2))
    assert abs(weight(share, signal) - (1 + (SUBJECT - 1) * seen)) < 1e-5


def test_half_of_it_at_the_ratio_where_a_subject_is_seen() -> None:
    cell = torch.ones(1, 1, 1, 1, 1)
    assert abs(float(subject_weight(cell, SEEN**0.5 * cell, cell)) - (1 + SUBJECT) / 2) < 1e-6
    assert weight(1, 0.9) > 0.98 * SUBJECT and weight(1, 0.05) < 1.3


def test_a_weight_computed_by_hand() -> None:
    """As much signal as noise: 1 / 1.02 of what a cell may count more, and of that .1 / .25."""
    assert weight(0.1, 0.5**0.5) == pytest.approx(1.784314, abs=1e-5)
    assert weight(1, 0.5**0.5) == pytest.approx(2.960784, abs=1e-5)


@given(shares=st.tuples(SHARES, SHARES), signals=st.tuples(SHARES, SHARES))
def test_more_subject_and_less_noise_never_count_less(
    shares: tuple[float, float], signals: tuple[float, float]
) -> None:
    assert weight(min(shares), min(signals)) <= weight(max(shares), max(signals))
    assert weight(FULL / 2, 1) == (1 + SUBJECT) / 2


def test_rows_have_their_own_signal() -> None:
    signal, noise = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 2, 1, 1, 1, 1)
    made = subject_weight(torch.ones(2, 1, 3, 2, 2), signal, noise, 3.0)
    assert made.shape == (2, 1, 3, 2, 2) and (made[0] == 1).all() and (made[1] == 3).all()
