"""What every memory keeps, short-term or long-term, trained or not."""
# ruff: noqa: D102 - the names of tests are sentences

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streaming.backbone import Call, Guided, NoiseLevel
from streaming.conformance.probe import sites_of, unit, unzeroed
from streaming.keys import Key
from streaming.memory import LongTermMemory, ShortTermMemory, Tail
from streaming.model import Model
from streaming.types import Frames

KEY = Key(0).fold("memory conformance")
BOTH, NEITHER = Guided(text=True, anchor=True), Guided(text=False, anchor=False)


class _MemoryConformance(ABC):
    """What short-term and long-term memories have in common."""

    identity_at_init: bool = True
    """Whether, untrained, it leaves the base model's prediction as it is, bit for bit."""
    remembers: bool = True
    """Whether, once its zeros are gone, what it remembers changes the prediction."""

    @abstractmethod
    def model(self) -> Model:
        """A small model, the same weights every time."""

    @abstractmethod
    def memory(self, model: Model) -> nn.Module:
        """The memory under test, untrained, the same weights every time."""

    @abstractmethod
    def _state(self, memory: Any, model: Model, videos: int, seed: int) -> Any:
        """What it remembers of so many videos."""

    @abstractmethod
    def _predict(self, memory: Any, model: Model, state: Any, call: Call) -> Tensor:
        """The prediction of the base model with this memory."""

    def test_untrained_it_changes_no_bit(self) -> None:
        if not self.identity_at_init:
            pytest.skip("it works without training")
        model, call = self.model(), _call(self.model())
        memory = self.memory(model).eval()
        with torch.no_grad():
            plain = model.backbone(call, {})
            assert torch.equal(self._predict(memory, model, self._state(memory, model, 2, 0), call), plain)

    def test_untrained_it_can_learn(self) -> None:
        model = self.model()
        memory = self.memory(model)
        if not any(weight.requires_grad for weight in memory.parameters()):
            pytest.skip("nothing in it is trained")
        prediction = self._predict(memory, model, self._state(memory, model, 2, 0), _call(model))
        (prediction * unit(KEY, prediction)).sum().backward()
        assert any(weight.grad is not None and bool(weight.grad.any()) for weight in memory.parameters())

    def test_it_names_sites_that_there_are(self) -> None:
        model = self.model()
        memory = self._trained(model)
        names = {site.name for site in sites_of(model.backbone)}
        with torch.no_grad():
            deltas = memory.deltas(self._state(memory, model, 2, 0), _call(model))
        assert set(deltas) <= names

    def test_what_it_remembers_matters(self) -> None:
        if not self.remembers:
            pytest.skip("it remembers nothing")
        model, call = self.model(), _call(self.model())
        memory = self._trained(model)
        with torch.no_grad():
            one, other = (self._predict(memory, model, self._state(memory, model, 2, seed), call) for seed in (0, 1))
        assert not torch.allclose(one, other)

    def test_its_state_is_a_value(self) -> None:
        model, call = self.model(), _call(self.model())
        memory = self._trained(model)
        with torch.no_grad():
            state = self._state(memory, model, 2, 0)
            first = self._predict(memory, model, state, call)
            self._predict(memory, model, self._state(memory, model, 2, 1), call)
            assert torch.equal(self._predict(memory, model, state, call), first)

    def test_rows_are_all_videos_of_the_first_part_then_of_the_second(self) -> None:
        model = self.model()
        memory, call = self._trained(model), _call(model)
        with torch.no_grad():
            together = self._predict(memory, model, self._state(memory, model, 2, 0), call)
            for video in range(2):
                rows = [video, video + 2]
                alone = self._predict(memory, model, self._single(memory, model, video), _rows(call, rows))
                torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-5)

    def test_one_state_may_serve_all_rows(self) -> None:
        model = self.model()
        memory, call = self._trained(model), _call(model)
        with torch.no_grad():
            one = self._predict(memory, model, self._single(memory, model, 0), call)
            rows = [0, 2]
            both = self._predict(memory, model, self._state(memory, model, 2, 0), call)
        torch.testing.assert_close(one[rows], both[rows], rtol=1e-5, atol=1e-5)

    @abstractmethod
    def _single(self, memory: Any, model: Model, video: int) -> Any:
        """The state of one of the two videos of seed 0, remembered alone."""

    def _trained(self, model: Model) -> Any:
        return unzeroed(self.memory(model), KEY.fold("weights")).eval()


class ShortTermMemoryConformance(_MemoryConformance):
    """Subclass it as `TestMine`, define `model` and `memory`, and set the attributes that differ."""

    def tail(self, model: Model, videos: int, seed: int) -> Tail:
        """A tail that the memory can remember."""
        defaults, codec, overlap = model.defaults, model.codec, model.backbone.window.overlap
        shape = (videos, codec.pixel_frames(overlap), 3, defaults.height, defaults.width)
        frames = KEY.fold("tail", seed).normal(*shape).sigmoid()
        return Tail(frames, codec.encode(frames))

    def _state(self, memory: ShortTermMemory[Any], model: Model, videos: int, seed: int) -> Any:
        return memory.remember(self.tail(model, videos, seed))

    def _single(self, memory: ShortTermMemory[Any], model: Model, video: int) -> Any:
        both, one = self.tail(model, 2, 0), slice(video, video + 1)
        return memory.remember(Tail(both.frames[one], both.latents[one]))

    def _predict(self, memory: ShortTermMemory[Any], model: Model, state: Any, call: Call) -> Tensor:
        rewritten = memory.rewrite(state, call)
        return model.backbone(rewritten, memory.deltas(state, rewritten))


class LongTermMemoryConformance(_MemoryConformance):
    """Subclass it as `TestMine`, define `model` and `memory`, and set the attributes that differ."""

    def anchor(self, model: Model, videos: int, seed: int) -> Frames:
        """Anchor frames that the memory can remember."""
        defaults = model.defaults
        return KEY.fold("anchor", seed).normal(videos, 1, 3, defaults.height, defaults.width).sigmoid()

    def test_rows_without_anchor_know_nothing_of_it(self) -> None:
        model, call = self.model(), _call(self.model())
        memory = self._trained(model)
        with torch.no_grad():
            one, other = (self._predict(memory, model, self._state(memory, model, 2, seed), call) for seed in (0, 1))
        torch.testing.assert_close(one[:2], other[:2], rtol=1e-5, atol=1e-5)
        assert not self.remembers or not torch.allclose(one[2:], other[2:])

    def test_it_rewrites_nothing_but_the_text_alike_in_all_rows(self) -> None:
        model, call = self.model(), _call(self.model())
        memory = self._trained(model)
        with torch.no_grad():
            rewritten = memory.rewrite(self._state(memory, model, 2, 0), call)
        assert rewritten.with_(context=call.context, context_mask=call.context_mask) == call
        assert len(rewritten.context) == len(call.guided) and rewritten.context.dtype == call.context.dtype
        mask = rewritten.context_mask
        assert mask is None or mask.shape == rewritten.context.shape[:2]

    def _state(self, memory: LongTermMemory[Any], model: Model, videos: int, seed: int) -> Any:
        return memory.remember(self.anchor(model, videos, seed))

    def _single(self, memory: LongTermMemory[Any], model: Model, video: int) -> Any:
        return memory.remember(self.anchor(model, 2, 0)[video : video + 1])

    def _predict(self, memory: LongTermMemory[Any], model: Model, state: Any, call: Call) -> Tensor:
        rewritten = memory.rewrite(state, call)
        return model.backbone(rewritten, memory.deltas(state, rewritten))


def _call(model: Model) -> Call:
    """Two videos with two guidance rows each, as in sampling."""
    factor, defaults = model.codec.factor, model.defaults
    size = (model.codec.channels, model.backbone.window.frames, defaults.height // factor, defaults.width // factor)
    start = KEY.fold("start").normal(2, *size).repeat(2, 1, 1, 1, 1)
    with torch.no_grad():
        text = model.text(["", "", "a red ball", "a blue box"])
    return Call(
        latents=KEY.fold("latents").normal(2, *size).repeat(2, 1, 1, 1, 1),
        time=torch.full((4,), 500.0),
        context=text.tokens,
        context_mask=text.mask,
        guided=(NEITHER, NEITHER, BOTH, BOTH),
        level=NoiseLevel(0.6, 0.8),
        start=start,
    )


def _rows(call: Call, rows: list[int]) -> Call:
    def part(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    return call.with_(
        latents=call.latents[rows],
        time=call.time[rows],
        context=call.context[rows],
        context_mask=part(call.context_mask),
        guided=tuple(call.guided[row] for row in rows),
        start=part(call.start),
    )
