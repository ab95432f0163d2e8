import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.sites import ContextSite, FeatureSite, check_sites, combine

SITES = ("a", "b", "c")
parts = st.lists(st.dictionaries(st.sampled_from(SITES), st.integers(-4, 4), max_size=3), max_size=4)


def as_deltas(scales):
    return {name: (lambda value, k=k: k * value) for name, k in scales.items()}


@given(parts, st.randoms(use_true_random=False))
def test_combination_is_a_sum_whatever_the_order(scales, random):
    value = torch.arange(12.0).view(1, 3, 4)
    shuffled = random.sample(scales, len(scales))
    one, other = (combine(*map(as_deltas, order)) for order in (scales, shuffled))
    assert set(one) == set(other) == {name for part in scales for name in part}
    for name in one:
        total = sum(part.get(name, 0) for part in scales)
        assert torch.equal(one[name](value), total * value)
        assert torch.equal(other[name](value), one[name](value))


@given(parts)
def test_combining_is_associative(scales):
    value = torch.arange(6.0).view(1, 2, 3)
    nested = combine(combine(*map(as_deltas, scales[:2])), *map(as_deltas, scales[2:]))
    flat = combine(*map(as_deltas, scales))
    assert {n: d(value).tolist() for n, d in nested.items()} == {n: d(value).tolist() for n, d in flat.items()}


def test_a_lone_delta_is_handed_on_as_it_is():
    delta = torch.sin
    assert combine({}, {"a": delta}, {})["a"] is delta


def test_an_unknown_site_is_named_with_those_there_are():
    sites = (FeatureSite("skip.0", 8), FeatureSite("mid", 8), ContextSite("text.0", 16, 77))
    check_sites({"mid": torch.sin}, sites)
    with pytest.raises(KeyError, match="no such site: skip.7, text.9; this backbone has skip.0, mid, text.0"):
        check_sites({"text.9": torch.sin, "skip.7": torch.sin, "mid": torch.sin}, sites)
