"""A chunk is a function of the checkpoint before it, and a batch equals runs of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.anchor import AtChunks, Never, OnPromptChange
from streaming.backbone import Window
from streaming.checkpoint import Checkpoint
from streaming.errors import UserError
from streaming.guidance import ClassifierFree
from streaming.injection import Injection
from streaming.keys import Key
from streaming.loop import stream
from streaming.memory import NoShortTerm
from streaming.openings import TextOpening
from streaming.prompts import PromptSchedule
from streaming.sample import Sampler
from tests.toys import BALL, OPENINGS, TailMean, Toy, run, toy, video


@settings(max_examples=15)
@given(
    stop=st.integers(0, 3),
    opening=st.sampled_from(sorted(OPENINGS)),
    kind=st.sampled_from(["ddim", "dpm++", "dpm++sde"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    policy=st.sampled_from([Never(), OnPromptChange(), AtChunks(frozenset({2}))]),
)
def test_a_resumed_run_is_bit_identical_to_the_unbroken_one(tmp_path_factory, stop, opening, kind, dtype, policy):
    def fresh():
        kit = toy(sampler=Sampler(kind, 3), dtype=dtype, anchors=policy)
        kit.backbone.to(dtype)
        return kit

    prompts = PromptSchedule.of({0: "a ball", 7: "a cube"})
    whole = run(fresh(), 5, prompts, OPENINGS[opening])
    path = tmp_path_factory.mktemp("resume") / "state.safetensors"
    whole[stop].checkpoint.save(path)
    rest = run(fresh(), 5, prompts, OPENINGS[opening], resume=Checkpoint.load(path))
    assert [chunk.index for chunk in rest] == list(range(stop + 1, 5))
    for resumed, unbroken in zip(rest, whole[stop + 1 :], strict=True):
        assert torch.equal(resumed.frames, unbroken.frames)
        assert torch.equal(resumed.checkpoint.tail.latents, unbroken.checkpoint.tail.latents)
        assert torch.equal(resumed.checkpoint.anchor, unbroken.checkpoint.anchor)
        assert resumed.checkpoint.frames_done == unbroken.checkpoint.frames_done


def test_a_chunk_can_be_made_again_alone():
    whole = run(toy(), 5)
    again = run(toy(), 4, resume=whole[2].checkpoint)
    assert len(again) == 1 and torch.equal(again[0].frames, whole[3].frames)


def test_a_resumed_run_may_change_the_prompts_to_come():
    first = run(toy(), 2)
    longer = PromptSchedule.of({0: "a ball", 6: "a cube"})
    rest = run(toy(), 4, longer, resume=first[-1].checkpoint)
    assert torch.equal(rest[-1].frames, run(toy(), 4, longer)[-1].frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": Sampler("ddim", 4)}, "another steps: it was '3', now it is '4'"),
        ({"sampler": Sampler("dpm++", 3)}, "another sampler: it was 'ddim', now it is 'dpm[+][+]'"),
        ({"sampler": Sampler("ddim", 3, eta=0.0)}, "another eta: it was '1', now it is '0'"),
        ({"guidance": ClassifierFree(9.0)}, "another guidance: it was .*scale=2.0.*, now it is .*scale=9.0"),
        ({"height": 16}, "another size: it was '12x8', now it is '12x16'"),
        ({"short": NoShortTerm()}, "another short-term memory: it was 'TailMean', now it is 'NoShortTerm'"),
        ({"short": Injection(TailMean())}, "it was 'TailMean', now it is 'Injection\\(TailMean\\)'"),
        ({"memories": False, "short": TailMean()}, "another long-term memory: it was 'AnchorMean'"),
        ({"dtype": torch.bfloat16}, "another dtype: it was 'float32', now it is 'bfloat16'"),
        ({"negative_prompt": "fog"}, "another negative prompt: it was '', now it is 'fog'"),
        ({"anchors": OnPromptChange()}, "another anchors: it was 'Never\\(\\)', now it is 'OnPromptChange\\(\\)'"),
        ({"name": "other"}, "another model: it was '', now it is 'other'"),
        ({"window": Window(5, 2)}, "another window: it was '4 latent frames, overlap 2'"),
        ({"fps": 12.0}, "another fps: it was '8', now it is '12'"),
    ],
)
def test_resuming_with_another_setting_names_it(changes, message):
    saved = run(toy(), 2)[-1].checkpoint
    with pytest.raises(UserError, match=message):
        stream(toy(**changes).parts, BALL, TextOpening(), key=Key(0), resume=saved)


def test_resuming_with_another_seed_is_refused_before_anything_runs():
    saved = run(toy(), 1)[-1].checkpoint
    with pytest.raises(UserError, match="cannot resume with another seed: it was 0, now it is 5"):
        stream(toy().parts, BALL, TextOpening(), key=Key(5), resume=saved)


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_batch_equals_runs_of_its_own(opening):
    """Bit for bit here; a big model's kernels may round differently at another batch size."""
    schedules = [BALL, PromptSchedule.of({0: "a red cube", 6: "two"}), PromptSchedule.fixed("fog")]
    keys = [Key(4), Key(5), Key(4)]
    policy = OnPromptChange()
    batch = run(toy(anchors=policy), 5, schedules, OPENINGS[opening], key=keys)
    for b, (schedule, key) in enumerate(zip(schedules, keys, strict=True)):
        alone = run(toy(anchors=policy), 5, schedule, OPENINGS[opening], key=key)
        torch.testing.assert_close(video(batch)[b : b + 1], video(alone), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(batch[-1].checkpoint.anchor[b : b + 1], alone[-1].checkpoint.anchor)


def test_one_key_for_a_batch_gives_every_video_its_own_noise():
    batch = video(run(toy(), 3, [BALL, BALL]))
    assert torch.equal(batch[:1], video(run(toy(), 3)))
    assert not torch.allclose(batch[0], batch[1])


def test_another_seed_is_another_video_and_the_global_seed_is_none():
    torch.manual_seed(1)
    first = video(run(toy(), 3))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(video(run(toy(), 3)), first)
    assert not torch.allclose(video(run(toy(), 3, key=Key(1))), first)
    torch.set_rng_state(state)


def test_steps_and_chunks_never_share_noise():
    """Start noise of every chunk and every step's fresh noise: all different."""
    kit = toy(window=Window(4, 0), memories=False)
    seen = [(chunk, step) for chunk in range(4) for step in ("start", 0, 1, 2)]
    key = Key(0).fold("video", 0)
    paths = [key.fold("chunk", c, "start") if s == "start" else key.fold("chunk", c, "step", s) for c, s in seen]
    numbers = {tuple(path.normal(4).tolist()) for path in paths}
    assert len(numbers) == len(seen)
    starts = {tuple(call.start.flatten().tolist()) for call in (run(kit, 4), kit.backbone.calls)[1]}
    assert len(starts) == 4


def test_other_weights_of_the_same_memory_are_refused() -> None:
    """They would go on with another video than the one that was begun."""

    def weighing(weight: float) -> Toy:
        kit = toy()
        kit.short.register_parameter("scale", torch.nn.Parameter(torch.full((3,), weight)))
        return kit

    begun = run(weighing(1.0), 1)[0].checkpoint
    assert len(run(weighing(1.0), 2, resume=begun)) == 1
    with pytest.raises(UserError, match="cannot resume with another short-term memory: it was 'TailMean "):
        run(weighing(2.0), 2, resume=begun)
