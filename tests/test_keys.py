import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.keys import Key, initial_weights

names = st.one_of(st.integers(-5, 2000), st.text(max_size=6))
paths = st.lists(names, max_size=4)


@given(st.integers(-(2**70), 2**70), paths, paths)
def test_a_key_depends_on_its_path_alone(seed, left, right):
    whole, parts = Key(seed).fold(*left, *right), Key(seed)
    for name in left:
        parts = parts.fold(name)
    parts = parts.fold(*right)
    assert whole == parts
    assert torch.equal(whole.normal(3, 2), parts.normal(3, 2))


@given(st.tuples(st.integers(0, 9), paths), st.tuples(st.integers(0, 9), paths))
def test_different_keys_give_different_numbers(left, right):
    same = left == right
    a, b = (Key(seed).fold(*path) for seed, path in (left, right))
    assert torch.equal(a.normal(8), b.normal(8)) == same


@given(st.integers(0, 99))
def test_the_kind_of_a_name_counts(number):
    assert Key(0).fold(number) != Key(0).fold(str(number))
    assert not torch.equal(Key(0).fold(number).normal(4), Key(0).fold(str(number)).normal(4))
    assert Key(0).fold(bool(number)) == Key(0).fold(int(bool(number)))


def test_drawing_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = Key(1).fold("a").normal(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(Key(1).fold("a").normal(5), first)


def test_golden_numbers():
    """The same in every process, on every machine and for ever: seeds are quoted in papers and bug reports."""
    key = Key(2024).fold("video", 0).fold("chunk", 3, "start")
    torch.testing.assert_close(key.normal(4), torch.tensor(GOLDEN_NORMAL), rtol=1e-5, atol=1e-6)
    assert key.integers(0, 1000, 6).tolist() == GOLDEN_INTEGERS
    program = (
        "import numpy; from streaming.keys import Key;"
        "print(Key(2024).fold('video', numpy.int64(0)).fold('chunk', 3, 'start').integers(0, 1000, 6).tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert printed.stdout.strip() == str(GOLDEN_INTEGERS)


GOLDEN_NORMAL = [0.46703893, 0.82189143, -0.32160535, 0.03727137]
GOLDEN_INTEGERS = [148, 297, 659, 47, 58, 891]


def test_numbers_are_standard_normal():
    numbers = Key(3).normal(200, 100)
    assert numbers.mean().item() == pytest.approx(0, abs=0.03)
    assert numbers.std().item() == pytest.approx(1, abs=0.03)
    assert numbers.dtype == torch.float32 and numbers.device.type == "cpu"
    drawn = Key(3).integers(2, 6, 400)
    assert set(drawn.tolist()) == {2, 3, 4, 5}


def test_initial_weights_come_from_the_seed_and_move_no_generator() -> None:
    def weights(seed: int) -> torch.Tensor:
        with initial_weights(seed):
            return torch.nn.Linear(3, 4).weight.detach()

    torch.manual_seed(11)
    following = torch.rand(3)
    torch.manual_seed(11)
    first, same, other = weights(5), weights(5), weights(6)
    assert torch.equal(torch.rand(3), following)
    assert torch.equal(first, same) and not torch.equal(first, other)
    torch.manual_seed(5)  # what a recipe's seed has always meant
    assert torch.equal(torch.nn.Linear(3, 4).weight, first)
