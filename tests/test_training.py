"""The training loop: plans, resuming, bad gradients, pools; and the embedded model's trainers at toy size."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from streaming.cli.train import train
from streaming.datasets import RollingPool, draw
from streaming.errors import UserError
from streaming.keys import Key
from streaming.train_state import Progress, lighten, read_state, write_state
from streaming.training import (
    NOT_FINITE_LIMIT,
    RESTART_WARMUP,
    Recipe,
    Result,
    TrainOptions,
    fit,
    learning_rate,
    training_device,
)

RECIPE = Recipe(steps=12, batch=4, learning_rate=0.05, warmup=2, ema=0.5, log_every=1, weight_decay=0.0)
CPU = torch.device("cpu")


class Line(nn.Module):
    """Fits y = 3 x - 1."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, 1)
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.linear(x) - (3 * x - 1)).square().mean() * self.frozen}


def numbers(step: int, rank: int, world: int, device: torch.device) -> Iterator[Tensor]:
    while True:
        yield Key(7).fold(rank, step).normal(4, 1).to(device)
        step += 1


def run(work: Path, objective: nn.Module | None = None, recipe: Recipe = RECIPE, **options) -> Result:
    given_options = TrainOptions(work=work, device="cpu", **options)
    return fit("line", objective or Line(), numbers, recipe, given_options, export=lambda: None)


def test_the_loss_falls_and_frozen_parameters_stay(tmp_path: Path) -> None:
    line = Line()
    run(tmp_path, line, replace(RECIPE, steps=150, log_every=10))
    losses = [json.loads(text)["loss"] for text in (tmp_path / "logs" / "line.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.01 * losses[0]
    assert line.frozen == 1


def test_pieces_equal_an_unbroken_run_bit_for_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    results = [run(tmp_path / "pieces", minutes=1e-9) for _ in range(3)]
    assert [result.step for result in results] == [1, 2, 3] and not results[-1].finished
    assert run(tmp_path / "pieces").finished
    (whole, a), (pieces, b) = (
        read_state(tmp_path / kind / "state" / "line.safetensors") for kind in ("whole", "pieces")
    )
    assert whole.keys() == pieces.keys() and len(whole) == 8
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert (a.step, a.clips, a.adam) == (b.step, b.clips, b.adam) == (12, 48, 12.0)


def test_a_finished_plan_only_exports_the_average(tmp_path: Path) -> None:
    run(tmp_path)
    line, seen = Line(), []
    options = TrainOptions(work=tmp_path, device="cpu")
    result = fit("line", line, numbers, RECIPE, options, export=lambda: seen.append(line.linear.weight.item()))
    tensors, _ = read_state(tmp_path / "state" / "line.safetensors")
    assert result.finished and not result.losses
    assert seen == [tensors["ema/linear.weight"].item()]
    assert line.linear.weight.item() == tensors["model/linear.weight"].item() != seen[0]


def test_a_plan_counts_clips_so_that_another_batch_goes_on_at_the_same_place(tmp_path: Path) -> None:
    assert run(tmp_path, minutes=1e-9, steps=6).step == 1
    path = tmp_path / "state" / "line.safetensors"
    tensors, progress = read_state(path)
    write_state(path, tensors, replace(progress, step=4, clips=16))
    result = run(tmp_path, batch=8)
    assert (result.step, result.steps) == (3, 3)


def test_within_shortens_the_plan(tmp_path: Path) -> None:
    result = run(tmp_path, recipe=replace(RECIPE, steps=10**6), within=1e-6)
    assert result.finished and result.steps < 10


def test_a_finished_plan_goes_on_if_more_time_is_given(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.finished
    assert run(tmp_path).step == first.step
    longer = run(tmp_path, within=1.0, minutes=1e-9)
    assert first.step < longer.step < longer.steps


def test_gradients_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    def sometimes(step: int, rank: int, world: int, device: torch.device) -> Iterator[Tensor]:
        for index, batch in enumerate(numbers(step, rank, world, device)):
            yield batch * (math.nan if index == 5 else 1)

    fit("line", Line(), sometimes, RECIPE, TrainOptions(work=tmp_path, device="cpu"), export=lambda: None)
    lines = [json.loads(text) for text in (tmp_path / "logs" / "line.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 0, 0, 0, 1] + [0] * 6
    tensors, progress = read_state(tmp_path / "state" / "line.safetensors")
    assert progress.adam == 11 and all(tensor.isfinite().all() for tensor in tensors.values())


def test_nothing_but_nan_stops_with_a_clear_line(tmp_path: Path) -> None:
    def never(step: int, rank: int, world: int, device: torch.device) -> Iterator[Tensor]:
        while True:
            yield torch.full((4, 1), math.nan)

    recipe = replace(RECIPE, steps=100)
    with pytest.raises(UserError, match=rf"{NOT_FINITE_LIMIT} steps in a row .* lower the learning rate"):
        fit("line", Line(), never, recipe, TrainOptions(work=tmp_path, device="cpu"), export=lambda: None)


def test_a_light_state_goes_on_from_the_average_with_a_warm_up(tmp_path: Path) -> None:
    run(tmp_path, minutes=1e-9)
    path = tmp_path / "state" / "line.safetensors"
    before, _ = read_state(path)
    lighten(path, path)
    light, _ = read_state(path)
    assert light.keys() == {"model/linear.weight", "model/linear.bias"}
    assert torch.equal(light["model/linear.weight"], before["ema/linear.weight"].half())
    run(tmp_path, minutes=1e-9)
    assert read_state(path)[1] == replace(read_state(path)[1], step=2, restarted=1, adam=1.0)


def test_a_state_of_another_model_or_no_state_is_told(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="training state of another model .*give another --work or move it away"):
        run(tmp_path, Line(width=2))
    (tmp_path / "state" / "line.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="is no training state .*move it away to begin afresh"):
        run(tmp_path)


def test_a_state_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state" / "a.safetensors"
    write_state(path, {"model/a": torch.ones(2)}, Progress(step=1))
    with pytest.raises(Exception, match="."):
        write_state(path, {"model/a": None}, Progress(step=2))  # type: ignore[dict-item]
    assert read_state(path)[1].step == 1


@given(st.integers(1, 500), st.integers(1, 10**5), st.one_of(st.none(), st.integers(0, 10**5)), st.data())
def test_the_learning_rate_stays_below_one_cosine(warmup: int, steps: int, restarted: int | None, data) -> None:
    step = data.draw(st.integers(restarted or 0, steps + (restarted or 0)))
    recipe = replace(RECIPE, learning_rate=1.0, warmup=warmup)
    rate = learning_rate(recipe, step, steps, restarted)
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1, step / steps))
    assert 0 <= rate <= cosine + 1e-12
    if step + 1 >= warmup and (restarted is None or step - restarted + 1 >= RESTART_WARMUP):
        assert rate == pytest.approx(cosine, abs=1e-12)


@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_a_pool_is_a_function_of_the_step_alone(slices: int, period: int, steps: list[int]) -> None:
    def make(index: int) -> dict[str, Tensor]:
        return {"index": torch.full((3,), index)}

    pool = RollingPool(make, slices=slices, period=period)
    for step in steps:
        newest = step // period
        expected = sorted(list(range(newest - slices + 1, newest + 1)) * 3)
        assert pool.at(step)["index"].sort().values.tolist() == expected
        fresh = RollingPool(make, slices=slices, period=period).at(step)
        assert torch.equal(draw(pool.at(step), 5, Key(1))["index"], draw(fresh, 5, Key(1))["index"])


def test_a_pool_makes_every_slice_once() -> None:
    made: list[int] = []

    def make(index: int) -> dict[str, Tensor]:
        made.append(index)
        return {"x": torch.zeros(1)}

    pool = RollingPool(make, slices=3, period=2)
    for step in range(10):
        pool.at(step)
    assert made == [-2, -1, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("minutes", -1.0), ("within", math.nan), ("batch", -1)])
def test_options_must_be_above_0(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--{name} must be above 0, not {value}"):
        TrainOptions(work=tmp_path, **{name: value})


def test_every_process_has_its_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    free, cpu = TrainOptions(work=tmp_path), TrainOptions(work=tmp_path, device="cpu")
    assert training_device(cpu) == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert training_device(free) == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device(free) == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device(free) == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda: no CUDA device is to be seen"):
        training_device(TrainOptions(work=tmp_path, device="cuda"))


def test_unknown_parts_and_devices_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no trainer is called "hat"; there are: .*base, .*vae'):
        train("hat", tmp_path)
    with pytest.raises(UserError, match='--device must be "cpu" or "cuda", not "tpu"'):
        TrainOptions(work=tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device is to be seen"):
            fit("x", Line(), numbers, RECIPE, TrainOptions(work=tmp_path, device="cuda"), export=lambda: None)
