import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.prompts import PromptSchedule

texts = st.text(min_size=1, max_size=8).filter(str.strip)
schedules = st.builds(
    lambda first, later: {0: first, **later}, texts, st.dictionaries(st.integers(1, 200), texts, max_size=6)
)


@given(schedules, st.integers(0, 250))
def test_at_equals_a_naive_scan(prompts, frame):
    expected = prompts[0]
    for start in sorted(prompts):
        if start <= frame:
            expected = prompts[start]
    assert PromptSchedule.of(prompts).at(frame) == expected


@given(schedules)
def test_a_prompt_holds_from_its_own_frame_on_and_not_before(prompts):
    schedule = PromptSchedule.of(prompts)
    starts = sorted(prompts)
    for earlier, start in zip(starts, starts[1:], strict=False):
        assert schedule.at(start) == prompts[start]
        assert schedule.at(start - 1) == prompts[earlier]


@given(schedules, st.sampled_from([1.0, 8.0, 12.5, 24.0, 29.97]))
def test_seconds_are_frames_divided_by_the_rate(prompts, fps):
    seconds = {frame / fps: text for frame, text in prompts.items()}
    assert PromptSchedule.of_seconds(seconds, fps) == PromptSchedule.of(prompts)


@given(schedules, st.integers(0, 250))
def test_before_keeps_the_entries_that_lie_before(prompts, frame):
    schedule = PromptSchedule.of(prompts)
    assert dict(schedule.before(frame)) == {start: text for start, text in prompts.items() if start < frame}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "no prompt: give at least one"),
        ({5: "a ball"}, "no prompt at frame 0: the first one is at frame 5"),
        ({-3: "a ball", 0: "b"}, "a prompt at frame -3: frames count from 0"),
        ({0: "a", 16: " \n"}, "the prompt at frame 16 is empty: say what is to be seen"),
        ({0: ""}, "the prompt at frame 0 is empty: say what is to be seen"),
        ({0: "a" * 10_000}, "the prompt at frame 0 has 10000 characters: at most 4000 are read"),
    ],
)
def test_what_is_wrong_is_said(prompts, message):
    with pytest.raises(UserError) as caught:
        PromptSchedule.of(prompts)
    assert str(caught.value) == message


def test_seconds_that_fall_onto_one_frame_are_refused():
    with pytest.raises(UserError, match="two prompts at one frame, or out of order: 0, 8, 8"):
        PromptSchedule.of_seconds({0.0: "a", 1.0: "b", 1.01: "c"}, 8.0)
    with pytest.raises(UserError, match="0.0 frames a second: choose more than 0"):
        PromptSchedule.of_seconds({0.0: "a"}, 0.0)


def test_there_is_nothing_before_the_first_frame():
    with pytest.raises(ValueError, match="there is no frame -1"):
        PromptSchedule.fixed("a").at(-1)
