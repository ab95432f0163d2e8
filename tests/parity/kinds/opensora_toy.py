"""The toy networks of Open-Sora's samplers: a formula of the latents, the time and one number for each sample."""

import ast
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from tests.parity.fixture import Fixture
from tests.parity.toy import evaluate, find_formula

Toy: TypeAlias = Callable[[Tensor, Tensor | float, Tensor], Tensor]
"""Latents [batch, C, F, h, w], time (one, or one a sample), y [batch] -> what the formula gives."""


def toy(fixture: Fixture, documented: str, *, spelled: str = "") -> Toy:
    """The formula of the metadata, if there is one, else the documented one; spelled: what stands before its "="."""
    texts = list(fixture.meta.values())
    if spelled:
        texts = [f"v = {rest}" for text in texts for rest in re.findall(rf"{spelled}\s*=\s*([^;\n]+)", text)]
    found = next((formula for text in texts if (formula := find_formula(text)) is not None), None)
    formula = (found or find_formula(documented) or fixture.give_up(f"no formula: {documented}"))[1]
    return lambda latents, time, y: _evaluated(fixture, formula, latents, time, y)


def _evaluated(fixture: Fixture, formula: ast.expr, latents: Tensor, time: Tensor | float, y: Tensor) -> Tensor:
    times = torch.as_tensor(time, dtype=torch.float32).view(-1, 1, 1, 1, 1)
    names: Mapping[str, Tensor] = {"x": latents, "z": latents, "t": times, "y": y.view(-1, 1, 1, 1, 1)}
    try:
        return evaluate(formula, names).expand_as(latents)
    except KeyError as error:
        return fixture.give_up(f"its formula {ast.unparse(formula)} speaks of {error.args[0]}")


def within(fixture: Fixture, name: str, value: Tensor, atol: float) -> None:
    """Compares absolutely; `Fixture.check` allows as much again of every number's own size."""
    fixture.check(name, value, tolerance=atol)
    if fixture.worst.get(name, 0.0) > atol:
        fixture.errors.append(f"{name}: differs by up to {fixture.worst[name]:.3g}, allowed is {atol:g}")
