"""Known latents in place of noisy ones."""

from dataclasses import replace

import pytest
import torch

from streaming.backbone import Call, Guided, NoiseLevel
from streaming.injection import Injection
from streaming.keys import Key
from streaming.memory import NoShortTerm, Tail
from tests.toys import TailMean, run, toy


def test_injection_shows_the_known_overlap_at_the_current_level():
    kit = toy(short=Injection(TailMean()))
    zero, _ = run(kit, 2)
    known = zero.checkpoint.tail.latents
    for call in kit.backbone.calls[3:]:
        expected = call.level.signal * known + call.level.noise * call.start[:, :, :2]
        torch.testing.assert_close(call.latents[:, :, :2], expected.expand_as(call.latents[:, :, :2]))
    assert kit.backbone.seen[-1] == {"mid", "text"}
    assert not torch.equal(kit.backbone.calls[3].start, kit.backbone.calls[0].start)


def test_injection_leaves_the_other_frames_alone():
    call = make_call(level=NoiseLevel(0.6, 0.8), start=Key(2).normal(4, 2, 4, 2, 3))
    memory = Injection(NoShortTerm())
    state = memory.remember(Tail(torch.zeros(2, 2, 3, 8, 12), Key(3).normal(2, 2, 2, 2, 3)))
    rewritten = memory.rewrite(state, call)
    assert torch.equal(rewritten.latents[:, :, 2:], call.latents[:, :, 2:])
    expected = 0.6 * state.known.repeat(2, 1, 1, 1, 1) + 0.8 * call.start[:, :, :2]
    torch.testing.assert_close(rewritten.latents[:, :, :2], expected)
    assert torch.equal(call.latents, make_call().latents)
    assert memory.deltas(state, call) == {}


def test_injection_without_a_level_is_an_error():
    memory = Injection(NoShortTerm())
    state = memory.remember(Tail(torch.zeros(1, 2, 3, 8, 12), torch.zeros(1, 2, 2, 2, 3)))
    with pytest.raises(ValueError, match="injection is for sampling only"):
        memory.rewrite(state, make_call())


def make_call(**changes):
    guided = (Guided(False, False),) * 2 + (Guided(True, True),) * 2
    call = Call(latents=Key(1).normal(4, 2, 4, 2, 3), time=torch.zeros(4), context=torch.zeros(4, 2, 3), guided=guided)
    return replace(call, **changes)
