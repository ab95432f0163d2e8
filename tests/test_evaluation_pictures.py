"""What is kept of a video for its pictures, against keeping it all; what is drawn of it."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from streaming.evaluation.pictures import JOINS, PAIRS, REACH, ROWS, SHEET, Gatherer, Thinned, _colours
from streaming.metrics import DIS, EveryChunk, How
from tests.test_metrics_contract import moving, noise

HOW = How(size=(24, 24), flow=DIS(preset="ultrafast"))


def gathered(video: Tensor, borders: EveryChunk | None = None, how: How = HOW) -> Gatherer:
    found = Gatherer(how, borders)
    for piece in video.split(5):
        found.add(piece)
    return found


@given(st.integers(1, 12).map(lambda half: 2 * half), st.integers(1, 300))
def test_thinned_items_are_evenly_spaced(limit: int, count: int) -> None:
    kept = Thinned[int](limit)
    for index in range(count):
        if kept.wants(index):
            kept.add(index, index)
    assert [index for index, _ in kept.items] == list(range(0, count, kept.stride))
    assert len(kept.items) <= limit and (len(kept.items) >= limit // 2 or kept.stride == 1)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))
def test_joins_are_those_with_most_change_and_their_surroundings(count: int, window: int, new: int) -> None:
    video, borders = noise(count, 12, 14), EveryChunk(window, new)
    found = gathered(video, borders)
    found._close(end=True)
    rows = [int((row + 0.5) / ROWS * 12) for row in range(ROWS)]
    change = {
        index: float((video[index, :, ::2, ::2].float() - video[index - 1, :, ::2, ::2].float()).abs().mean())
        for index in range(1, count)
        if borders.begins(index)
    }
    assert {index for _, index, _ in found._joins} == set(sorted(change, key=lambda index: -change[index])[:JOINS])
    for told, index, columns in found._joins:
        expected = [video[i][:, rows] for i in range(max(0, index - REACH), min(count, index + REACH))]
        assert told == pytest.approx(change[index]) and torch.equal(torch.stack(columns), torch.stack(expected))


def test_what_is_kept_does_not_grow() -> None:
    found = gathered(noise(300, 12, 12), EveryChunk(3, 1))
    assert len(found._sheet.items) <= SHEET and len(found._pairs.items) <= PAIRS and len(found._joins) <= JOINS
    assert len(found._recent) == 2 * REACH and len(found._open) <= REACH
    large = gathered(noise(2, 40, 500))
    assert all(column.shape == (3, ROWS, 224) for _, column in large._columns.items)
    assert all(thumb.height == 112 for _, thumb in large._sheet.items)


def test_pictures_are_files_of_their_kind() -> None:
    made = gathered(moving(30, 40, 60, step=2), EveryChunk(8, 4)).pictures()
    assert [each.name for each in made] == ["sheet", "flow", "change", "slice", "joins"]
    for each in made:
        image = Image.open(io.BytesIO(each.data))
        image.load()
        assert image.format == each.kind.upper() and each.caption and each.pixelated == (each.kind == "png")
    assert made[0].caption == "Every 2nd frame" and made[3].caption.endswith("ticks: chunk joins")
    names = [each.name for each in gathered(moving(3), how=How()).pictures()]
    assert names == ["sheet", "slice"]  # no flow is asked for, no joins are known


def test_the_slice_shows_the_row_where_most_moves() -> None:
    video = torch.zeros(10, 3, 90, 20, dtype=torch.uint8)
    video[:, :, 63:67] = torch.arange(10, dtype=torch.uint8)[:, None, None, None] * 20
    image = Image.open(io.BytesIO(gathered(video).pictures()[-1].data))
    assert image.getpixel((image.width - 2, image.height // 2)) == (180, 180, 180)


def test_a_join_shows_as_an_edge_under_its_tick() -> None:
    video = torch.zeros(12, 3, 18, 20, dtype=torch.uint8)
    video[6:] = 200
    (picture,) = [each for each in gathered(video, EveryChunk(6, 20)).pictures() if each.name == "slice"]
    image = Image.open(io.BytesIO(picture.data))
    ticks = [x for x in range(image.width) if image.getpixel((x, 0)) != (255, 255, 255)]
    edge = next(x for x in range(image.width) if image.getpixel((x, image.height // 2)) == (200, 200, 200))
    assert ticks == [edge - 1, edge]


def test_flow_has_one_scale_and_outliers_do_not_set_it() -> None:
    flows = torch.zeros(2, 2, 20, 20)
    flows[0, 0], flows[1, 0] = 1.0, 2.0
    flows[1, 0, 0, 0] = 500.0
    (slow, fast), full = _colours(flows)
    assert full == 2.0 and int(slow[1].float().mean()) > int(fast[1].float().mean())  # paler
    (still,), full = _colours(torch.zeros(1, 2, 4, 4))
    assert full == pytest.approx(1e-3) and bool((still == 255).all())
