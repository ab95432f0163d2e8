"""Sizes that a model was not made for: noise schedules that depend on them, and those that it cannot do."""

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from streaming.cli.stage3 import shaped
from streaming.enhance import assemble_enhancer
from streaming.errors import UserError
from streaming.guidance import Unguided
from streaming.memory import NoLongTerm, NoShortTerm
from streaming.parts import assemble
from streaming.presets import FirstChunk, make_preset
from streaming.registry import make_backend
from streaming.sample import Sampler
from tests.toys import OneParameter, toy

CPU = torch.device("cpu")


def flow(height, width):
    return FlowMatchEulerDiscreteScheduler(shift=1 + height + width / 1000)


def model(part="load", **changes):
    made = getattr(make_backend("toy-dit"), part)(None, device=CPU, dtype=torch.float32)
    return replace(made, scheduler=flow(made.defaults.height, made.defaults.width), schedule=flow, **changes)


def assembled(made, **changes):
    return assemble(made, short=NoShortTerm(), long=NoLongTerm(), **changes)


def shift(parts):
    return round(parts.scheduler.config.shift, 3)


def test_the_schedule_is_that_of_the_size_asked_for():
    made = model()
    assert assembled(made).scheduler is made.scheduler is assembled(made, height=16, width=16).scheduler
    assert shift(assembled(made, height=24)) == 25.016
    assert shift(assembled(made, height=8, width=32)) == 9.032
    assert assembled(made, height=24).settings["noise schedule"] != assembled(made).settings["noise schedule"]


def test_one_schedule_for_all_sizes():
    made = replace(model(), schedule=None)
    assert assembled(made, height=24).scheduler is made.scheduler


def test_a_schedule_of_ones_own_stays():
    made, own = model(), flow(1, 1)
    preset = replace(make_preset("paper", made), scheduler=own)
    assert assembled(made, preset=preset, height=24).scheduler is own


def test_the_first_chunks_network_has_its_own():
    first = replace(model(), scheduler=flow(100, 0), schedule=lambda height, width: flow(100 + height, width))
    made = model(first=first)
    assert assembled(made).first.scheduler is first.scheduler
    parts = assembled(made, height=24)
    assert (shift(parts), shift(parts.first)) == (25.016, 125.016)


def test_enhancers_too():
    made = model("enhancer")
    side = made.defaults.height
    assert assemble_enhancer(made).scheduler is made.scheduler
    larger = assemble_enhancer(made, height=2 * side)
    assert shift(larger) == 1 + 2 * side + side / 1000
    assert shift(assemble_enhancer(made).sized(side, 2 * side)) == 1 + side + 2 * side / 1000
    assert shift(shaped(assemble_enhancer(made), 10, 20)) == 1 + side + 2 * side / 1000
    assert larger.sized(2 * side, side).scheduler is larger.scheduler
    canvas = replace(made, defaults=replace(made.defaults, canvas_height=side, canvas_width=2 * side))
    assert (
        assemble_enhancer(canvas, height=side // 2).sized(side, side).scheduler is made.scheduler
    )  # all of it is seen


def test_sizes_that_the_network_cannot_do(monkeypatch):
    monkeypatch.setattr(OneParameter, "fitting_size", lambda self, high, wide: (2, 3), raising=False)
    kit = toy()
    with pytest.raises(UserError, match="^this model cannot make 16x8: the nearest size that it can is 12x8$"):
        replace(kit.parts, width=16)
    with pytest.raises(UserError, match="width and height must be positive multiples of 4"):
        replace(kit.parts, width=15)


def test_sizes_that_the_first_chunks_network_cannot_do():
    kit, small = toy(), OneParameter()
    small.fitting_size = lambda high, wide: (high, 2)
    first = FirstChunk(backbone=small, guidance=Unguided(), sampler=Sampler("ddim", 2), scheduler=kit.parts.scheduler)
    with pytest.raises(UserError, match="this model cannot make 12x8: the nearest size that it can is 8x8"):
        replace(kit.parts, first=first)
