"""The loop on a backbone of one parameter: lengths, what it hands to whom, prompts, what goes wrong, memory."""

import gc
from itertools import count, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.anchor import AnchorPolicy, AtChunks, Never, OnPromptChange, OnSceneChange
from streaming.backbone import Call, Guided, Window
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, TextThenAnchor, Unguided
from streaming.keys import Key
from streaming.loop import chunk_lengths, chunks_needed, stream
from streaming.openings import TextOpening, VideoOpening
from streaming.prompts import PromptSchedule
from streaming.rows import encode_rows, guided_denoiser
from tests.toys import (
    BALL,
    OPENINGS,
    SQUEEZED,
    AnchorMean,
    MeanCodec,
    OneParameter,
    run,
    toy,
    video,
)

# ---- lengths


@pytest.mark.parametrize(
    ("setup", "lengths"),
    [
        ({}, [4, 2, 2]),
        ({"window": Window(5, 4)}, [5, 1, 1]),
        ({"window": Window(3, 0), "memories": False}, [3, 3, 3]),
        (SQUEEZED, [51, 34, 34]),
        ({"codec": MeanCodec(causal=True), "window": Window(5, 2)}, [17, 12, 12]),
    ],
)
def test_window_and_codec_say_how_many_frames_are_new(setup, lengths):
    kit = toy(**setup)
    chunks = run(kit, 3)
    assert [chunk.frames.shape for chunk in chunks] == [(1, n, 3, 8, 12) for n in lengths]
    assert [chunk.checkpoint.frames_done for chunk in chunks] == [sum(lengths[: i + 1]) for i in range(3)]
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    overlap = kit.backbone.window.overlap
    pixels = kit.parts.codec.pixel_frames(overlap) if overlap else 0
    for chunk in chunks:
        assert chunk.checkpoint.tail.latents.shape == (1, 2, overlap, 2, 3)
        assert chunk.checkpoint.tail.frames.shape == (1, pixels, 3, 8, 12)
        assert chunk.frames.min() >= 0 and chunk.frames.max() <= 1


@pytest.mark.parametrize("opening", OPENINGS)
@given(frames=st.integers(1, 40), window=st.sampled_from([Window(4, 2), Window(5, 4), Window(3, 0)]))
def test_chunks_needed_is_enough_and_not_one_too_many(opening, frames, window):
    parts = toy(window=window).parts
    first, later = chunk_lengths(parts, OPENINGS[opening])
    count = chunks_needed(parts, OPENINGS[opening], frames)
    made = first + (count - 1) * later
    assert made >= frames
    assert count == 1 or made - later < frames


@pytest.mark.parametrize("opening", OPENINGS)
def test_chunk_lengths_foretell_the_run(opening):
    kit = toy()
    lengths = [chunk.frames.shape[1] for chunk in run(kit, 3, opening=OPENINGS[opening])]
    first, later = chunk_lengths(kit.parts, OPENINGS[opening])
    assert lengths == [first, later, later]


def test_without_a_number_of_chunks_it_is_endless():
    endless = stream(toy().parts, BALL, TextOpening(), key=Key(0))
    assert [chunk.index for chunk in islice(endless, 9)] == list(range(9))


# ---- what memories and backbone see


def test_the_first_chunk_is_the_base_model_alone():
    with_memories, without = toy(), toy(memories=False)
    assert torch.equal(run(with_memories, 1)[0].frames, run(without, 1)[0].frames)
    assert with_memories.backbone.seen == [frozenset()] * 3
    assert not with_memories.short.tails and not with_memories.long.anchors


def test_later_chunks_get_the_deltas_of_both_memories():
    kit = toy()
    chunks = run(kit, 3)
    assert kit.backbone.seen[3:] == [frozenset({"mid", "text"})] * 6
    assert not torch.equal(video(chunks), video(run(toy(memories=False), 3)))


@pytest.mark.parametrize("setup", [{}, SQUEEZED, {"window": Window(5, 4)}])
def test_a_memory_gets_the_end_of_what_was_made(setup):
    """Also where the overlap is longer than a chunk's new frames, and where latents hold several frames each."""
    kit = toy(**setup)
    chunks = run(kit, 4)
    assert len(kit.short.tails) == 3
    codec, overlap = kit.parts.codec, kit.backbone.window.overlap
    for i, tail in enumerate(kit.short.tails):
        so_far = video(chunks[: i + 1])
        assert torch.equal(tail.frames, so_far[:, so_far.shape[1] - codec.pixel_frames(overlap) :])
        assert torch.equal(codec.decode(tail.latents), tail.frames)


def test_the_anchor_is_the_first_frame_and_its_state_is_computed_once():
    kit = toy()
    chunks = run(kit, 5)
    assert len(kit.long.anchors) == 1
    assert torch.equal(kit.long.anchors[0], chunks[0].frames[:, :1])
    assert all(torch.equal(chunk.checkpoint.anchor, chunks[0].frames[:, :1]) for chunk in chunks)


def test_rows_are_row_major_and_carry_prompt_level_and_start():
    kit = toy(guidance=TextThenAnchor(2.0, 3.0), negative_prompt="blurred")
    schedules = [BALL, PromptSchedule.fixed("a red cube")]
    run(kit, 2, prompts=schedules)
    assert kit.text.asked == [("blurred", "blurred", "a ball", "a red cube", "a ball", "a red cube")]
    off, text, both = Guided(False, False), Guided(True, False), Guided(True, True)
    for call in kit.backbone.calls:
        assert call.guided == (off, off, text, text, both, both)
        assert call.latents.shape == call.start.shape == (6, 2, 4, 2, 3)
        for row in (2, 4):
            assert torch.equal(call.latents[:2], call.latents[row : row + 2])
        assert torch.equal(call.context, kit.text(kit.text.asked[0]).tokens)
        assert call.time.tolist() == [call.time[0].item()] * 6
        assert call.level.signal**2 + call.level.noise**2 == pytest.approx(1)
    starts = [call.start for call in kit.backbone.calls]
    assert all(torch.equal(start, starts[0]) for start in starts[:3])
    assert torch.equal(kit.backbone.calls[0].latents, starts[0])
    assert not torch.equal(starts[3], starts[0])


@pytest.mark.parametrize("guidance", [Unguided(), ClassifierFree(3.0), TextThenAnchor()])
def test_a_chunk_is_what_a_loop_written_out_gives(guidance):
    """Chunk 1, evaluation by evaluation, row by row."""
    kit = toy(guidance=guidance)
    zero, one = run(kit, 2)
    parts, tail = kit.parts, zero.checkpoint.tail
    key = Key(0).fold("video", 0).fold("chunk", 1)
    state, anchor = parts.short.remember(tail), parts.long.remember(zero.frames[:, :1])

    def denoise(latents, step):
        rows = []
        for row in guidance.rows:
            text = parts.text(["a ball" if row.text else ""]).tokens
            call = Call(latents=latents, time=torch.tensor([step.time]), context=text, guided=(row,))
            rows.append(parts.backbone(call, {**parts.short.deltas(state, call), **parts.long.deltas(anchor, call)}))
        return guidance.combine(torch.stack(rows))

    def noise(step):
        return key.fold("step", step).normal(2, 4, 2, 3)[None]

    with torch.no_grad():
        latents = parts.sampler(denoise, key.fold("start").normal(2, 4, 2, 3)[None], noise, parts.scheduler)
    torch.testing.assert_close(one.frames, parts.codec.decode(latents[:, :, 2:]))


# ---- prompts over time


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("switch", range(1, 12))
def test_a_chunk_follows_the_prompt_at_its_first_new_frame(opening, switch):
    kit = toy(guidance=Unguided())
    chunks = run(kit, 5, prompts=PromptSchedule.of({0: "before", switch: "after"}), opening=OPENINGS[opening])
    starts = [0] + [chunk.checkpoint.frames_done for chunk in chunks[:-1]]
    asked = ["before" if start < switch else "after" for start in starts]
    contexts = [call.context for call in kit.backbone.calls[::3]]
    expected = [kit.text([text]).tokens for text in asked]
    if opening != "text":
        expected = expected[1:]
    assert len(contexts) == len(expected)
    for context, tokens in zip(contexts, expected, strict=True):
        assert torch.equal(context, tokens)


def test_a_prompt_is_encoded_only_when_it_changes():
    kit = toy(guidance=Unguided())
    run(kit, 6, prompts=PromptSchedule.of({0: "a", 8: "b"}))
    assert kit.text.asked == [("a",), ("b",)]


def test_what_was_made_before_a_switch_does_not_depend_on_it():
    switched = run(toy(), 4, prompts=PromptSchedule.of({0: "a ball", 6: "a cube"}))
    steady = run(toy(), 4)
    equal = [torch.equal(a.frames, b.frames) for a, b in zip(switched, steady, strict=True)]
    assert equal == [True, True, False, False]


# ---- what goes wrong


def test_nan_is_told_with_its_place_and_what_was_made_stays():
    kit, made, evaluations = toy(), [], count()

    def poison(module, inputs, output):
        return output * (float("nan") if next(evaluations) >= 2 * 3 + 1 else 1)

    kit.backbone.register_forward_hook(poison)
    with pytest.raises(UserError) as caught:
        for chunk in stream(kit.parts, BALL, TextOpening(), key=Key(0), chunks=5):
            made.append(chunk)
    assert str(caught.value) == ("latents became NaN in chunk 2 at step 1: lower --guidance or use --dtype float32")
    assert [chunk.index for chunk in made] == [0, 1]
    assert run(toy(), 3, resume=made[-1].checkpoint)[0].index == 2


def test_a_decoder_that_gives_nan_is_told():
    kit = toy()
    object.__setattr__(kit.parts, "codec", replace_decode(kit.parts.codec))
    with pytest.raises(UserError, match="frames became NaN when chunk 0 was decoded: use --dtype float32"):
        run(kit, 1)


def replace_decode(codec):
    codec.decode = lambda latents: torch.full((1, 4, 3, 8, 12), float("nan"))
    return codec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompt: give at least one"),
        ({"chunks": 0}, "0 chunks: ask for at least 1"),
        ({"key": [Key(0)], "prompts": [BALL, BALL]}, "1 keys for 2 videos: give one for each"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    values = {"prompts": BALL, "key": Key(0), "chunks": 1} | arguments
    with pytest.raises(UserError, match=message):
        stream(toy().parts, values["prompts"], TextOpening(), key=values["key"], chunks=values["chunks"])


def test_bad_sizes_are_refused():
    for changes in ({"height": 10}, {"width": 0}, {"height": -4}):
        with pytest.raises(UserError, match="width and height must be positive multiples of 4"):
            toy(**changes)
    with pytest.raises(UserError, match="0.0 frames a second: choose more than 0"):
        toy(fps=0.0)
    with pytest.raises(UserError, match="0 frames: ask for at least 1"):
        chunks_needed(toy().parts, TextOpening(), 0)


# ---- memory


def live_bytes():
    """Of all storages that a live tensor holds on to."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and thing.device.type == "cpu":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values()), len(storages)


@pytest.mark.parametrize("opening", OPENINGS)
def test_memory_does_not_grow_with_the_length(opening):
    """Bytes held after 3 and after 12 chunks: the same, to the byte and to the tensor."""
    kit = toy(codec=MeanCodec((17, 5)), window=Window(15, 5), anchors=AtChunks(frozenset(range(1, 99))))
    for keep in (kit.backbone.calls, kit.backbone.seen, kit.short.tails, kit.long.anchors):
        keep.clear()
    frames = VideoOpening(Key(3).normal(20, 3, 8, 12).sigmoid()) if opening == "video" else OPENINGS[opening]
    held = {}
    for chunk in stream(kit.parts, BALL, frames, key=Key(0), chunks=12):
        for recorded in (kit.backbone.calls, kit.backbone.seen, kit.short.tails, kit.long.anchors):
            recorded.clear()
        if chunk.index + 1 in (3, 12):
            held[chunk.index + 1] = live_bytes()
    assert held[3] == held[12]


def test_frames_and_checkpoints_are_ordinary_tensors_of_their_own():
    """One may compute gradients through them and write into them; none keeps the whole chunk alive."""
    for chunk in run(toy(), 3):
        state = chunk.checkpoint
        for value in (chunk.frames, state.tail.frames, state.tail.latents, state.anchor):
            assert not value.is_inference() and value.dtype == torch.float32
            assert value.untyped_storage().nbytes() == value.numel() * 4
            value.mul_(1.0)
            (value * torch.ones((), requires_grad=True)).sum().backward()


def test_rounding_is_explicit():
    """bfloat16 for the networks, float32 in the solver and outside."""
    kit = toy(dtype=torch.bfloat16)
    kit.backbone.to(torch.bfloat16)
    chunks = run(kit, 2)
    assert {call.latents.dtype for call in kit.backbone.calls} == {torch.bfloat16}
    assert {call.context.dtype for call in kit.backbone.calls} == {torch.bfloat16}
    assert {call.time.dtype for call in kit.backbone.calls} == {torch.float32}
    assert kit.short.tails[0].latents.dtype == kit.long.anchors[0].dtype == torch.bfloat16
    assert chunks[1].frames.dtype == chunks[1].checkpoint.tail.latents.dtype == torch.float32


def test_a_guided_denoiser_without_memories_is_the_base_model():
    """What the enhancer builds on."""
    kit = toy()
    text = encode_rows(kit.text, ClassifierFree(2.0), ["a ball"], "", torch.device("cpu"), torch.float32)
    start = Key(0).fold("video", 0).fold("chunk", 0, "start").normal(2, 4, 2, 3)[None]
    denoise = guided_denoiser(kit.backbone, ClassifierFree(2.0), text, start, torch.float32, "in chunk 0")
    noise = lambda j: Key(0).fold("video", 0).fold("chunk", 0, "step", j).normal(2, 4, 2, 3)[None]  # noqa: E731
    with torch.no_grad():
        latents = kit.parts.sampler(denoise, start, noise, kit.parts.scheduler)
    assert torch.equal(run(toy(), 1)[0].frames, kit.parts.codec.decode(latents))


def test_policies_are_abstract_or_final():
    assert {Never, OnPromptChange, OnSceneChange, AtChunks} == set(AnchorPolicy.__subclasses__())
    assert isinstance(toy().backbone, OneParameter) and isinstance(toy().long, AnchorMean)
