"""Statistics of pairs against naive references, and what makes a p-value a p-value and an interval an interval."""

import itertools
import math
from statistics import NormalDist, fmean

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics.paired import Procedure, bootstrap, compare_pairs, holm, sign_flip, signed_ranks

FAST = Procedure(resamples=1000)
KEY = Key(0).fold("test")
SMALL = st.lists(st.integers(-9, 9), min_size=1, max_size=9)
"""Whole numbers, whose sums are exact in any order: ties are ties."""
SPREAD = st.lists(st.floats(-50, 50), min_size=2, max_size=12)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def naive_p(differences):
    """Every sign pattern, as the definition has it."""
    seen = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return fmean(total >= seen for total in sums)


# --- p-values --------------------------------------------------------------------------------------------------------


@given(SMALL)
def test_enumerated_patterns_are_exact(differences):
    assert sign_flip(doubles(differences), FAST, KEY) == (pytest.approx(naive_p(differences), abs=1e-12), True)


@given(st.permutations(range(6)))
def test_under_the_null_the_p_value_is_uniform(order):
    """Signs equally likely, sums all different: each attainable p-value, 2/64 ... 1, is that of one pair of signs."""
    sizes = [2.0**i for i in order]
    patterns = itertools.product((1, -1), repeat=6)
    found = sorted(
        sign_flip(doubles([s * d for s, d in zip(signs, sizes, strict=True)]), FAST, KEY)[0] for signs in patterns
    )
    assert found == pytest.approx([2 * (i // 2 + 1) / 64 for i in range(64)])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_with_ties_it_is_no_smaller_than_uniform(sizes):
    patterns = list(itertools.product((1, -1), repeat=len(sizes)))
    found = [sign_flip(doubles([s * d for s, d in zip(signs, sizes, strict=True)]), FAST, KEY)[0] for signs in patterns]
    for level in found:
        assert sum(p <= level for p in found) <= level * len(patterns) + 1e-9


@given(st.integers(0, 99))
def test_drawn_patterns_come_close_to_all_of_them(seed):
    differences = Key(seed).normal(12).double() + 0.4
    exact, _ = sign_flip(differences, Procedure(), KEY)
    drawn, all_tried = sign_flip(differences, Procedure(exact=0), KEY.fold(seed))
    assert not all_tried
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-4)


def test_a_drawn_p_value_is_never_nothing_and_uniform_under_the_null():
    assert sign_flip(torch.ones(40, dtype=torch.float64), FAST, KEY)[0] == 1 / 1001
    values = [sign_flip(Key(i).normal(20).double(), FAST, KEY.fold(i))[0] for i in range(400)]
    for level in (0.05, 0.2, 0.5, 0.8):
        assert fmean(p <= level for p in values) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 400))


@given(SMALL, st.floats(1e-6, 1e6), st.sampled_from([0, 16]))
def test_units_and_directions_do_not_matter_to_p(differences, scale, exact):
    how = Procedure(resamples=1000, exact=exact)
    p = sign_flip(doubles(differences), how, KEY)
    assert sign_flip(scale * doubles(differences), how, KEY) == p
    if exact:
        assert sign_flip(-doubles(differences), how, KEY) == p


def test_what_never_differs_tells_nothing():
    assert sign_flip(torch.zeros(5, dtype=torch.float64), FAST, KEY) == (1.0, True)
    assert sign_flip(torch.zeros(0, dtype=torch.float64), FAST, KEY) == (1.0, True)


@given(SMALL)
def test_ranks(differences):
    sizes = sorted(abs(d) for d in differences)
    place = {size: fmean(i + 1 for i, each in enumerate(sizes) if each == size) for size in sizes}
    naive = [math.copysign(place[abs(d)], d) if d else 0.0 for d in differences]
    assert signed_ranks(doubles(differences)).tolist() == naive


def test_infinity_has_the_highest_rank():
    assert signed_ranks(doubles([-1.0, math.inf, 0.5, -math.inf])).tolist() == [-2, 3.5, 1, -3.5]


# --- intervals -------------------------------------------------------------------------------------------------------


def naive_interval(differences, how, key):
    """The textbook's steps in plain Python, on the same draws."""
    count, mean, normal = len(differences), fmean(differences), NormalDist()
    picked = key.fold("block", 0).integers(0, count, how.resamples, count).tolist()
    means = sorted(fmean(differences[i] for i in row) for row in picked)
    low, high = (1 - how.level) / 2, (1 + how.level) / 2
    if how.interval == "bca":
        below = fmean((m < mean - 1e-9) + (abs(m - mean) <= 1e-9) / 2 for m in means)
        bias = normal.inv_cdf(min(max(below, 0.5 / len(means)), 1 - 0.5 / len(means)))
        left_out = [fmean(differences[:i] + differences[i + 1 :]) for i in range(count)]
        centre = fmean(left_out)
        skew = sum((centre - x) ** 3 for x in left_out) / (6 * sum((centre - x) ** 2 for x in left_out) ** 1.5)
        shifts = [bias + normal.inv_cdf(q) for q in (low, high)]
        low, high = (normal.cdf(bias + shift / (1 - skew * shift)) for shift in shifts)

    def quantile(q):
        place = q * (len(means) - 1)
        i = min(int(place), len(means) - 2)
        return means[i] + (place - i) * (means[i + 1] - means[i])

    return quantile(low), quantile(high)


@pytest.mark.parametrize("kind", ["bca", "percentile"])
@pytest.mark.parametrize("differences", [[1.0, 2, 4, 8, 16, 3, 0.5], [-3.0, 0.1, 0.2, 0.4], [5.0, 7]])
def test_intervals_equal_the_textbook(kind, differences):
    how = Procedure(resamples=1000, interval=kind, level=0.9)
    assert bootstrap(doubles(differences), how, KEY) == pytest.approx(naive_interval(differences, how, KEY), abs=1e-9)


@given(SPREAD, st.sampled_from(["bca", "percentile"]), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_holds_the_mean_and_stays_within_the_values(differences, kind, level):
    found = bootstrap(doubles(differences), Procedure(resamples=1000, interval=kind, level=level), KEY)
    slack = 1e-9 * max(map(abs, differences))
    assert found is not None and found[0] <= fmean(differences) + slack and fmean(differences) <= found[1] + slack
    assert min(differences) - slack <= found[0] and found[1] <= max(differences) + slack


@given(SPREAD, st.floats(0.01, 100), st.floats(-10, 10))
def test_the_interval_moves_with_its_unit_and_place(differences, scale, shift):
    assume(max(differences) - min(differences) > 0.1)
    low, high = bootstrap(doubles(differences), FAST, KEY) or (math.nan, math.nan)
    moved = bootstrap(scale * doubles(differences) + shift, FAST, KEY)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-5 * scale)


def test_equal_differences_have_an_interval_without_width_and_one_pair_has_none():
    assert bootstrap(doubles([0.1] * 7), FAST, KEY) == pytest.approx((0.1, 0.1))
    assert bootstrap(doubles([0.1]), FAST, KEY) is None


def test_no_difference_within_the_interval_is_exactly_that():
    """Resampled zeros, not a rounding error beside them."""
    how = Procedure(resamples=2000, level=0.99)
    for sizes in ([0.7, 379.1], [0.3, 379.1], [0.1, 1.1]):
        low, high = bootstrap(doubles([0.0, *(-size for size in sizes)]), how, KEY) or (0, 1)
        assert low == pytest.approx(-max(sizes)) and high == 0


def test_a_wider_confidence_gives_a_wider_interval():
    values = Key(3).normal(15).double()
    found = [bootstrap(values, Procedure(resamples=2000, level=level), KEY) for level in (0.8, 0.95, 0.99)]
    assert found[0][0] > found[1][0] > found[2][0] and found[0][1] < found[1][1] < found[2][1]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for i in range(300):
        low, high = bootstrap(Key(i).normal(25).double() + 1, Procedure(resamples=1000, level=0.9), KEY.fold(i)) or (
            0,
            0,
        )
        hits += low <= 1 <= high
    assert 0.83 <= hits / 300 <= 0.95  # somewhat too narrow for few pairs, as is known of the bootstrap


# --- several numbers -------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm(values):
    found, counted = holm(values), [p for p in values if p is not None]
    for p, corrected in zip(values, found, strict=True):
        if p is None:
            assert corrected is None
            continue
        # the definition: the largest of (number of those not smaller) x p over all that are not larger
        steps = [(len(counted) - sum(q < other for q in counted)) * other for other in counted if other <= p]
        assert corrected == pytest.approx(min(1.0, max(steps)))
        assert corrected >= p


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_two_lists_compared():
    found = compare_pairs([1.0, 2.0, None, 4.0], [2.0, 4.0, 5.0, None], FAST, name="x")
    assert (found.pairs, found.left_out, found.means, found.difference) == (2, 2, (1.5, 3.0), 1.5)
    assert found.absent == (1, 1)
    assert found.interval == (1.0, 2.0) and found.p == 0.5 and found.exact and not found.ranks


def test_the_same_values_give_the_same_figures_whatever_else_is_compared():
    values = [Key(i).normal(30).tolist() for i in (1, 2)]
    one = compare_pairs(*values, FAST, name="x")
    assert one == compare_pairs(*values, FAST, name="x") and not one.exact
    other = compare_pairs(*values, Procedure(resamples=1000, seed=1), name="x")
    assert other.difference == one.difference and other.interval != one.interval
    assert compare_pairs(*values, FAST, name="y").interval != one.interval


@given(st.lists(st.tuples(*[st.none() | st.just(math.inf) | st.integers(-5, 5).map(float)] * 2), max_size=9))
def test_nothing_is_ever_nan(pairs):
    found = compare_pairs([a for a, _ in pairs], [b for _, b in pairs], FAST)
    told = [*found.means, found.difference, found.p, *(found.interval or ())]
    assert not any(value != value for value in told if value is not None)
    assert found.pairs + found.left_out == len(pairs)
    assert (found.p is None) == (found.pairs == 0) and (found.p is None or 0 < found.p <= 1)
    if any(found.infinite):
        assert found.ranks and found.difference is None and found.interval is None and math.inf in found.means


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_infinity_is_worse_than_any_value(better):
    """The first is infinite in one pair and worse by the sign in all others: all differences agree."""
    worse, good = (2.0, 1.0) if better == "lower" else (1.0, 2.0)
    found = compare_pairs([math.inf, *[worse] * 5], [good] * 6, FAST, better=better)
    assert found.means == (math.inf, good) and found.infinite == (1, 0)
    assert found.p == pytest.approx(2 / 2**6)
    mixed = compare_pairs([math.inf, *[good] * 5], [good, *[worse] * 5], FAST, better=better)
    assert mixed.p is not None and mixed.p > 2 / 2**6


def test_infinite_in_both_is_no_difference():
    found = compare_pairs([math.inf] * 3, [math.inf] * 3, FAST)
    assert found.p == 1 and found.infinite == (3, 3) and found.means == (math.inf, math.inf)


def test_bad_input():
    with pytest.raises(ValueError, match="a value is NaN: give None for what is not defined"):
        compare_pairs([math.nan], [1.0], FAST)
    with pytest.raises(ValueError, match="zip"):
        compare_pairs([1.0], [], FAST)


@pytest.mark.parametrize(
    ("settings", "wording"),
    [
        ({"level": 1.0}, "a confidence level of 1: choose one from 0.5 to 0.999"),
        ({"resamples": 10}, "10 resamples: choose a number from 1000 to 1000000"),
        ({"exact": 40}, "exact tests of up to 40 pairs: choose a number from 0 to 20"),
    ],
)
def test_settings_that_cannot_be(settings, wording):
    with pytest.raises(UserError, match=wording):
        Procedure(**settings)
