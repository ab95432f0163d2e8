"""The object's track, read off pixels, beside the renderer's truth."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.world import object_mask, render, sample_scenes, specified_scenes
from backends.world.render import _COLOURS, _SECOND_COLOURS
from backends.world.scene import COLOURS as WORDS
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import BordersAt, EveryChunk, How, ObjectTrack, evaluate_stream
from streaming.metrics.track import COLOURS, SECOND_COLOURS
from streaming.metrics.track_find import find, has_colour
from tests.test_metrics_contract import measure, noise

RADII = (0.26, 0.32, 0.40)


def centres(mask):
    """Of the object's pixels, [frames, 2] as (x, y)."""
    at = torch.arange(mask.shape[-1]) + 0.5
    return torch.stack(((mask.sum(-2) * at).sum(-1), (mask.sum(-1) * at).sum(-1)), -1) / mask.sum((-1, -2))[..., None]


def track(video, **settings):
    """Positions from the first frame on, [frames, 2] as (x, y)."""
    series = evaluate_stream([video[None]], [ObjectTrack(**settings)], How()).series
    return torch.tensor([series["object_x"].points, series["object_y"].points]).T


def test_the_palette_is_the_renderers():
    assert tuple(COLOURS) == WORDS and tuple(COLOURS.values()) == _COLOURS
    assert SECOND_COLOURS == _SECOND_COLOURS


@pytest.mark.parametrize("known", [True, False])
def test_the_track_follows_the_object(known):
    """Of scenes of all kinds but white objects; a few are lost against backgrounds of their own colour."""
    scenes = sample_scenes(60, Key(5).generator())
    scenes = scenes[(scenes.colour != WORDS.index("white")).nonzero()[:, 0]]
    videos, truth = render(scenes, frames=8), centres(object_mask(scenes, frames=8))
    off, jumps = [], []
    for video, true, colour in zip(videos, truth, scenes.colour.tolist(), strict=True):
        found = track(video, colour=WORDS[colour] if known else None)
        off.append((found - true).norm(dim=-1))
        jumps.append(found.diff(dim=0).norm(dim=-1) - true.diff(dim=0).norm(dim=-1))
    every = torch.cat(off)
    assert float(every.median()) < 1.2 and float((every < 5).float().mean()) > 0.9
    assert float(torch.cat(jumps).abs().median()) < 0.3


def test_a_jump_at_a_border_is_measured_in_pixels():
    scenes = specified_scenes(Key(2).generator(), n=6, action="floats", place="moon", colour="red", camera="static")
    calm = render(scenes, frames=24)
    truth = centres(object_mask(scenes, frames=24))
    for video, true in zip(calm, truth, strict=True):
        jumping = torch.cat([video[:12], video[12:].roll(9, dims=-1)])
        steps = true.diff(dim=0).norm(dim=-1)
        found = measure(jumping, ObjectTrack(borders=BordersAt((12,)), colour="red"))
        way = true[12] - true[11] + torch.tensor([9.0, 0.0])
        assert found["object_jump_border"] == pytest.approx(float(way.norm()), abs=1.0)
        inside = float(torch.cat([steps[:11], steps[12:]]).mean())
        assert found["object_jump_inside"] == pytest.approx(inside, abs=0.5)
        assert found["object_jump_ratio"] == pytest.approx(
            found["object_jump_border"] / found["object_jump_inside"], rel=1e-6
        )
        assert found["object_jump_departure"] == pytest.approx(abs(math.log(found["object_jump_ratio"])))
        assert found["object_found"] == 1


def test_an_object_that_stands_still_at_borders_is_no_better():
    scenes = specified_scenes(Key(2).generator(), n=4, action="zigzags", place="moon", colour="red", camera="static")
    for video in render(scenes, frames=26):
        stutter = video.clone()
        stutter[12], stutter[18] = stutter[11], stutter[17]
        metric = ObjectTrack(borders=BordersAt((12, 18)), colour="red")
        steady, standing = (measure(each, metric) for each in (video, stutter))
        assert standing["object_jump_ratio"] < 0.1 and standing["object_jump_departure"] > 2.3
        assert steady["object_jump_departure"] < 1.5
    assert metric.numbers["object_jump_ratio"].better is None
    assert metric.numbers["object_jump_departure"].better == "lower"


def test_smooth_videos_do_not_jump_at_borders():
    scenes = specified_scenes(Key(4).generator(), n=8, action="rolls", colour="yellow", place="city at night")
    ratios = [
        measure(video, ObjectTrack(borders=EveryChunk(16, 8), colour="yellow"))["object_jump_ratio"]
        for video in render(scenes, frames=32)
    ]
    assert 0.6 < sum(ratios) / len(ratios) < 1.6


def test_a_larger_picture_gives_larger_pixels():
    scenes = specified_scenes(Key(6).generator(), n=1, action="zigzags", place="moon", colour="pink", camera="static")
    small, large = (measure(render(scenes, frames=8, size=size)[0], ObjectTrack(colour="pink")) for size in (64, 128))
    assert large["object_jump_inside"] == pytest.approx(2 * small["object_jump_inside"], rel=0.1)
    assert large["object_size"] == pytest.approx(2 * small["object_size"], rel=0.1)


def test_forgetting_shows_as_drift():
    kinds = {"place": "snow", "shape": "ball", "pattern": "core", "colour": "red"}
    small, big = (
        render(specified_scenes(Key(7).generator(), n=1, size=size, **kinds), frames=20)[0] for size in ("small", "big")
    )
    grown = measure(torch.cat([small, big]), ObjectTrack(colour="red"))
    same = measure(torch.cat([small, small]), ObjectTrack(colour="red"))
    assert grown["object_size_drift"] > 0.3 > 0.1 > same["object_size_drift"]
    faded = torch.cat([small, (0.7 * small.float() + 0.3 * 128).to(torch.uint8)])
    assert measure(faded, ObjectTrack(colour="red"))["object_colour_drift"] > 15 > same["object_colour_drift"] + 5


def test_an_object_that_is_gone_is_not_found():
    scenes = specified_scenes(Key(8).generator(), n=1, place="moon", colour="green")
    video = render(scenes, frames=10)[0]
    video[5:] = 90
    found = measure(video, ObjectTrack(colour="green"))
    assert found["object_found"] == 0.5


@pytest.mark.parametrize("colour", [None, "blue"])
def test_where_there_is_no_object_nothing_is_told(colour):
    grey = torch.full((4, 3, 64, 64), 90, dtype=torch.uint8)
    grey[1::2] += 40
    found = measure(grey, ObjectTrack(colour=colour, borders=EveryChunk(2, 1)))
    assert found.pop("object_found") == 0 and set(found.values()) == {None}


@given(st.sampled_from([name for name in COLOURS if name != "white"]), st.integers(18, 46), st.integers(18, 46))
def test_a_disc_is_found_where_it_is(name, x, y):
    at = torch.arange(64) + 0.5
    disc = torch.hypot(at[:, None] - y, at[None] - x) < 10
    picture = torch.where(disc, torch.tensor(COLOURS[name])[:, None, None], torch.full((3, 1, 1), 0.5))
    found = find(picture, COLOURS[name], RADII, None)
    assert math.hypot(found.x - x, found.y - y) < 0.1 and found.area == float(disc.sum()) and found.score > 0.9
    assert found.colour == pytest.approx(tuple(255 * c for c in COLOURS[name]), abs=0.01)


def halved(main, second, *, x=30, y=34, radius=10, away=0.5):
    """A disc whose left half has one colour and whose right half has another."""
    at = torch.arange(64) + 0.5
    disc = torch.hypot(at[:, None] - y, at[None] - x) < radius
    sides = torch.where(at < x, torch.tensor(main)[:, None, None], torch.tensor(second)[:, None, None])
    return torch.where(disc, sides, torch.full((3, 1, 1), away))


@pytest.mark.parametrize("second", SECOND_COLOURS)
def test_both_colours_make_the_object(second):
    picture = halved(COLOURS["red"], second)
    both = find(picture, COLOURS["red"], RADII, None, (None, *SECOND_COLOURS))
    assert both.second == second and math.hypot(both.x - 30, both.y - 34) < 0.1 and both.score > 0.9
    one = find(picture, COLOURS["red"], RADII, None)
    assert one.second is None and one.x < 27 and one.score < both.score


def test_a_second_colour_alone_is_no_object():
    second = SECOND_COLOURS[2]
    found = find(halved(second, second), COLOURS["red"], RADII, None, (None, *SECOND_COLOURS))
    assert found.second is None and found.score <= 0


def test_the_look_of_the_first_frame_stays():
    """An object whose second half goes is still the first half; its size tells it."""
    red, cyan = COLOURS["red"], SECOND_COLOURS[2]
    frames = [halved(red, cyan)] * 3 + [halved(red, (0.5, 0.5, 0.5))] * 3 + [halved(red, SECOND_COLOURS[1])] * 3
    video = (255 * torch.stack(frames)).round().to(torch.uint8)
    x = track(video, colour="red")[:, 0].tolist()
    assert x[:3] == pytest.approx([30] * 3, abs=0.2) and max(x[3:]) < 27
    assert measure(video, ObjectTrack(colour="red"))["object_found"] == 1


@given(st.sampled_from(list(COLOURS)), st.floats(0.45, 1.0))
def test_shade_does_not_change_a_colour(name, shade):
    if name == "white" and shade < 0.8:
        return
    pixel = shade * torch.tensor(COLOURS[name])[:, None, None]
    assert [other for other in COLOURS if bool(has_colour(pixel, COLOURS[other]))] == [name]


def test_a_place_far_from_the_last_one_loses():
    at = torch.arange(64) + 0.5
    picture = torch.full((3, 64, 64), 0.5)
    for x in (14.0, 50.0):
        disc = torch.hypot(at[:, None] - 32, at[None] - x) < 9
        picture = torch.where(disc, torch.tensor(COLOURS["red"])[:, None, None], picture)
    for x in (14.0, 50.0):
        assert abs(find(picture, COLOURS["red"], RADII, (x, 32.0)).x - x) < 0.2


def test_odd_sizes_and_names():
    assert measure(noise(2, 40, 90), ObjectTrack(colour="red"))["object_found"] is not None
    with pytest.raises(UserError, match="no object is 'mauve': choose one of red, orange, yellow"):
        ObjectTrack(colour="mauve")
