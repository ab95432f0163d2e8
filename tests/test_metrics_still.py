"""Where motion begins by default: just below and just above each limit of `Stillness`."""

import pytest
import torch

from streaming.metrics import Motion, Observation, Stillness
from tests.test_metrics_contract import ShiftFlow, measure, noise

GREY = torch.full((3, 64, 96), 100)
"""Cells of 4 x 6 pixels, 256 of them; those that change most are 5."""
NOTHING, FAST = torch.zeros(2, 64, 96), torch.ones(2, 64, 96)
"""Flows that see no motion and much of it."""


def moves(*frames, flow):
    """Whether anything moved in each pair of frames."""
    watch, previous, found = Stillness().start(), None, []
    for index, frame in enumerate(each.to(torch.uint8) for each in frames):
        seen = Observation(index=index, shown=frame, frame=frame, previous=previous, flow=flow)
        found.append(not watch.still(seen))
        previous = frame
    return found[1:]


def last_moves(*changes, flow):
    """Whether anything moved in the last pair, where five frames of grey come before these changes of it."""
    return moves(*[GREY] * 5, *(GREY + change for change in changes), flow=flow)[-1]


def cells(count, levels):
    """Up to eight cells, far from each other, change by so many levels."""
    change = torch.zeros(64, 96, dtype=torch.int64)
    for k in range(count):
        change[8 * k : 8 * k + 4, 12 * k : 12 * k + 6] = levels
    return change


def checks(levels):
    """A check of 2 x 3 pixels whose sign alternates: a quarter of a cell, of which each one's mean stays."""
    rows, cols = torch.arange(64).view(-1, 1) // 2, torch.arange(96) // 3
    return ((rows + cols) % 2 * 2 - 1) * levels


def test_a_few_cells_move_from_a_mean_difference_of_a_tenth_level_on():
    """Whatever the flow sees below it. The mean difference of five cells is 0.098 or 0.117."""
    assert not last_moves(cells(5, 5), flow=FAST)
    assert last_moves(cells(5, 6), flow=FAST)


def test_a_small_object_moves_if_its_cells_change_by_more_than_six_levels():
    """On average over the 2 % of the cells that change most, though the flow sees nothing."""
    assert not last_moves(cells(5, 6), flow=NOTHING) and last_moves(cells(5, 7), flow=NOTHING)
    assert not last_moves(cells(4, 7), flow=NOTHING) and last_moves(cells(4, 8), flow=NOTHING)


def test_a_small_object_that_changes_hardly_any_pixel_moves_if_it_did_so_just_now():
    """By more than one of four parts of six levels."""
    five, six, seven = (cells(5, levels) for levels in (5, 6, 7))
    assert last_moves(five, five, five, seven, flow=NOTHING)
    assert not last_moves(six, six, six, seven, flow=NOTHING)


def test_where_all_cells_change_the_flow_decides():
    """Of three stripes one brightens and one darkens, which no light does; a few cells change twice as fast."""
    stripes = (torch.arange(96) // 6 % 3 - 1).expand(64, -1)
    frames = [GREY + t * (stripes + stripes * (cells(8, 1) > 0)) for t in range(6)]
    assert not any(moves(*frames, flow=NOTHING)) and all(moves(*frames, flow=FAST))


def test_cells_that_change_by_less_than_two_levels_are_still():
    half = torch.arange(96) // 48
    assert not last_moves(half, flow=FAST) and last_moves(2 * half, flow=FAST)


def test_a_pattern_finer_than_a_cell_moves_if_the_frames_differ_by_more_than_four_levels():
    assert not last_moves(checks(4), flow=FAST) and last_moves(checks(5), flow=FAST)


def test_changes_add_up_over_four_frames():
    """A half of the picture gets brighter by a level every two frames, or every four."""
    half = torch.arange(96) // 48
    two, four = ([GREY + t // slow * half + (-1) ** t * checks(1) for t in range(24)] for slow in (2, 4))
    assert all(moves(*two, flow=FAST)[4:]) and not any(moves(*four, flow=FAST)[4:])


@pytest.mark.parametrize(("share", "length"), [(1.0, 0.0475), (0.05, 0.0475), (0.0251, 0.09), (0.01, 0.24)])
def test_the_fastest_twentieth_moves_from_a_fifth_pixel_on(share, length):
    """On average, and of a frame whose shorter side has 256; here 0.05 of 64."""
    video = [GREY, GREY + 10]  # a change of light: not still by its difference, nor a small object
    flow = torch.zeros(2, 64, 96)
    flow[1].view(-1)[: round(share * 64 * 96)] = length
    assert moves(*video, flow=flow) == [False] and moves(*video, flow=1.15 * flow) == [True]


def test_frames_of_a_few_pixels():
    """They have a cell that changes most and a pixel that is the fastest, too."""
    grey, flow = GREY[:, :3, :3], torch.ones(2, 3, 3)
    assert moves(grey, grey + 10, flow=flow) == [True] and moves(grey, grey + 10, flow=0 * flow) == [False]
    assert moves(*[grey] * 4, grey + 1, flow=flow)[-1] is False


@pytest.mark.parametrize("cuts", [1, 2])
def test_a_video_is_frozen_if_nineteen_of_twenty_pairs_are_still(cuts):
    pictures = noise(cuts + 1, 32, 40)
    video = torch.cat([pictures, pictures[-1:].expand(20 - cuts, -1, -1, -1)])
    found = measure(video, Motion(), flow=ShiftFlow(x=1.0))
    assert found["stagnant"] == pytest.approx(1 - cuts / 20)
    assert (found["drift_motion"] is None) == (cuts == 1)
