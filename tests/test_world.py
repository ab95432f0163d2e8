"""The world: pictures are functions of scene and time, smooth, endless, and what their attributes say."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.world import (
    ATTRIBUTES,
    COLOURS,
    HELD_OUT,
    HIDDEN_ATTRIBUTES,
    PLACES,
    SHAPES,
    Scenes,
    object_mask,
    object_track,
    render,
    sample_scenes,
    specified_scenes,
)
from streaming.errors import UserError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _every_place(**attributes: str) -> Scenes:
    """Six scenes, one a place, otherwise alike."""
    one = specified_scenes(_generator(3), n=1, **attributes)
    return replace(one[torch.zeros(6, dtype=torch.int64)], place=torch.arange(6))


def _difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def test_same_generator_same_pictures() -> None:
    first, second = (render(sample_scenes(6, _generator(1)), frames=2, size=32) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (6, 2, 3, 32, 32) and first.dtype == torch.uint8
    assert not torch.equal(first, render(sample_scenes(6, _generator(2)), frames=2, size=32))


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), start=st.integers(0, 8 * 3600), frame=st.integers(0, 5))
def test_a_frame_depends_on_its_time_only(seed: int, start: int, frame: int) -> None:
    scenes = sample_scenes(3, _generator(seed))
    video = render(scenes, frames=6, start=start / 8, size=16)
    alone = render(scenes, frames=1, start=torch.full((3,), (start + frame) / 8, dtype=torch.float64), size=16)
    assert _difference(video[:, frame], alone[:, 0]) <= 1


def test_a_scene_does_not_depend_on_its_batch() -> None:
    scenes = sample_scenes(13, _generator(4))
    starts = torch.linspace(0, 50, 13, dtype=torch.float64)
    together = render(scenes, frames=2, start=starts, size=32)
    masks = object_mask(scenes, frames=2, start=starts, size=32)
    for i in range(13):
        assert (
            _difference(together[i : i + 1], render(scenes[i : i + 1], frames=2, start=starts[i].item(), size=32)) <= 1
        )
        alone = object_mask(scenes[torch.tensor([i])], frames=2, start=starts[i].item(), size=32)
        assert torch.allclose(masks[i : i + 1], alone, atol=1e-4)


def test_batches_are_split_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, starts = sample_scenes(7, _generator(5)), torch.arange(7) * 1.5
    whole = render(scenes, frames=3, start=starts, size=16), object_mask(scenes, frames=3, start=starts, size=16)
    # By import_module: the name backends.world.render is the function.
    monkeypatch.setattr(import_module("backends.world.render"), "PIXELS_AT_ONCE", 3 * 16 * 16 * 2)
    split = render(scenes, frames=3, start=starts, size=16), object_mask(scenes, frames=3, start=starts, size=16)
    assert _difference(whole[0], split[0]) <= 1
    assert torch.allclose(whole[1], split[1], atol=1e-4)


@pytest.mark.parametrize("start", [0.0, 3600.0])
def test_paths_are_smooth_and_stay_in_the_frame(start: float) -> None:
    scenes = sample_scenes(120, _generator(6))
    fine = object_track(scenes, frames=2400, start=start, fps=200.0)
    # 4 half frames a second: faster than the fastest bounce; a jump would show at once.
    assert (fine[:, 1:] - fine[:, :-1]).norm(dim=-1).max() < 4 / 200
    assert fine.abs().max() < 0.85
    # Everybody moves.
    assert (fine.amax(1) - fine.amin(1)).amax(-1).min() > 0.03


def test_pictures_are_smooth_after_an_hour_and_where_layers_repeat() -> None:
    scenes = _every_place(camera="pans right", action="floats", size="small")
    shifts = {}
    for start in (10.0, 256 / 0.8, 3600.0):
        video = render(scenes, frames=240, start=start, fps=60.0, size=16).float()
        shifts[start] = (video[:, 1:] - video[:, :-1]).abs().mean(dim=(2, 3, 4)).amax(dim=1)
    assert (shifts[3600.0] < 1.6 * shifts[10.0] + 0.5).all()
    assert (shifts[256 / 0.8] < 1.6 * shifts[10.0] + 0.5).all()


@pytest.mark.parametrize(("camera", "step"), [("pans right", -1), ("pans left", 1), ("static", 0)])
def test_the_background_moves_against_the_camera(camera: str, step: int) -> None:
    """The lower rows of two frames agree best when the later one is shifted back along the expected direction."""
    scenes = _every_place(camera=camera, action="spins", size="small")
    a, b = render(scenes, frames=2, fps=8.0, start=5.0, size=64)[..., 46:, :].float().unbind(1)
    errors = []
    for shift in range(-6, 7):
        moved = torch.roll(a, shift, dims=-1)[..., 8:-8]
        errors.append((moved - b[..., 8:-8]).abs().mean(dim=(1, 2, 3)))
    best = torch.stack(errors).argmin(0) - 6
    assert (best.sign() == step).all(), best


def test_near_layers_pass_faster_than_far_ones() -> None:
    scenes = _every_place(camera="pans right", action="spins", size="small")
    change = (
        render(scenes, frames=5, start=2.0)[:, 4].float() - render(scenes, frames=1, start=2.0)[:, 0].float()
    ).abs()
    assert (change[..., 44:, :].mean() > change[..., :16, :].mean())  # fmt: skip


@pytest.mark.parametrize("name", [*ATTRIBUTES, *HIDDEN_ATTRIBUTES])
def test_every_attribute_changes_the_picture(name: str) -> None:
    one = specified_scenes(_generator(8), n=1, colour="red", second_colour="cyan", outline="dark", pattern="halves")
    words = {**ATTRIBUTES, **HIDDEN_ATTRIBUTES}[name]
    scenes = replace(one[torch.zeros(len(words), dtype=torch.int64)], **{name: torch.arange(len(words))})
    video = render(scenes, frames=4, start=3.3, size=32).float()
    for i in range(len(words)):
        for j in range(i):
            assert (video[i] - video[j]).abs().mean() > 0.2, (words[i], words[j])


@pytest.mark.parametrize("colour", COLOURS)
def test_the_object_has_its_colour(colour: str) -> None:
    """Under the mask, more pixels are nearest to the named colour than to any other (white gloss aside)."""
    scenes = specified_scenes(_generator(9), n=24, colour=colour, pattern="core", shape="ball", size="big")
    from backends.world.render import _COLOURS

    inside = object_mask(scenes, frames=1)[:, 0] > 0.99
    pixels = render(scenes, frames=1)[:, 0].permute(0, 2, 3, 1)[inside].float() / 255
    palette = torch.tensor(_COLOURS)
    counts = torch.bincount(torch.cdist(pixels, palette).argmin(-1), minlength=len(COLOURS))
    assert counts.argmax() == COLOURS.index(colour), counts


def test_the_mask_is_where_the_object_is() -> None:
    scenes = sample_scenes(60, _generator(10))
    mask, track = object_mask(scenes, frames=2, start=1.0), object_track(scenes, frames=2, start=1.0)
    assert 0 <= mask.min() and mask.max() == 1
    grid = (torch.arange(64) + 0.5) / 32 - 1
    x = (mask.sum(-2) * grid).sum(-1) / mask.sum((-1, -2))
    y = (mask.sum(-1) * grid).sum(-1) / mask.sum((-1, -2))
    assert (x - track[..., 0]).abs().max() < 0.12 and (y - track[..., 1]).abs().max() < 0.12
    area = mask.mean((1, 2, 3))
    assert area[scenes.size == 0].mean() < area[scenes.size == 1].mean() < area[scenes.size == 2].mean()


def test_a_larger_picture_is_the_same_picture() -> None:
    scenes = replace(sample_scenes(36, _generator(11)), place=torch.arange(36) % 6, shape=torch.arange(36) // 6)
    small = render(scenes, frames=1, start=2.0, size=64)[:, 0].float()
    large = torch.nn.functional.avg_pool2d(render(scenes, frames=1, start=2.0, size=128)[:, 0].float(), 2)
    assert (small - large).abs().mean(dim=(1, 2, 3)).max() < 2.5


def test_objects_on_the_ground_touch_it() -> None:
    from backends.world.motion import GROUND

    scenes = specified_scenes(_generator(12), n=60, action="rolls")
    rows = object_mask(scenes, frames=8, size=64).amax(-1)  # [n, frames, rows]
    lowest = 63 - (rows.flip(-1) > 0.5).float().argmax(-1)
    assert ((lowest + 1) / 32 - 1 - GROUND).abs().max() < 2 / 32 + 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", HIDDEN_ATTRIBUTES["pattern"])
def test_a_pattern_covers_much_of_the_object_but_not_most(shape: str, pattern: str) -> None:
    one = specified_scenes(_generator(16), n=1, shape=shape, pattern=pattern, colour="red", size="big", outline="dark")
    white, black = (render(replace(one, second_colour=torch.tensor([i])), size=128).float() for i in range(2))
    second = (white - black).amax(2) > 60
    assert 0.15 < second.sum() / object_mask(one, size=128).sum() < 0.5


def test_patterns_lie_where_their_names_say() -> None:
    """At the ends, above and below, and in the corners of a square around the middle, on every shape."""
    from backends.world.render import _pattern

    u, v = torch.tensor(
        [[-0.8, 0.0], [0.8, 0.0], [0.0, -0.8], [0.0, 0.8], [-0.8, -0.8], [0.8, 0.8], [0.8, -0.8], [-0.8, 0.8]]
    ).T
    wanted = {
        "core": [0, 0, 0, 0, 0, 0, 0, 0], "halves": [0, 0, 0, 1, 0, 1, 0, 1],
        "band": [1, 1, 0, 0, 0, 0, 0, 0], "quarters": [0, 0, 0, 0, 1, 1, 0, 0],
    }  # fmt: skip
    for shape in range(len(SHAPES)):
        for kind, name in enumerate(HIDDEN_ATTRIBUTES["pattern"]):
            second = _pattern(shape, torch.tensor([kind]), u.view(1, 1, 1, -1), v.view(1, 1, 1, -1)) < 0
            assert second.flatten().long().tolist() == wanted[name], (SHAPES[shape], name)


def test_cores_are_as_large_as_fits_on_their_shapes() -> None:
    """The smallest on the star, whose notches are near; on the ring it is the inner half of what there is."""
    from backends.world.render import _pattern

    u, v = torch.linspace(0, 1, 1001).view(1, 1, 1, -1), torch.zeros(1, 1, 1, 1001)
    radii = [(_pattern(shape, torch.tensor([0]), u, v) < 0).sum().item() / 1000 for shape in range(len(SHAPES))]
    assert radii == pytest.approx([0.50, 0.46, 0.38, 0.42, 0.40, 0.71], abs=2e-3)


def test_contact_sheet() -> None:
    from backends.world.__main__ import contact_sheet

    sheet = contact_sheet(sample_scenes(3, _generator()), columns=4, size=16, zoom=2, start=0.0, step=2)
    assert sheet.shape == (3 * (18 + 32 + 2), 4 * (32 + 2), 3) and sheet.dtype == torch.uint8
    frame = render(sample_scenes(3, _generator()), frames=1, start=0.5, size=16)[2, 0]
    assert torch.equal(sheet[2 * 52 + 18 : 3 * 52 - 2 : 2, 2 * 34 + 1 : 3 * 34 - 1 : 2], frame.permute(1, 2, 0))


def test_import_needs_nothing_heavy() -> None:
    code = "import sys, backends.world; print({'PIL', 'diffusers', 'transformers', 'streaming'} & set(sys.modules))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_held_out_pairs() -> None:
    pairs = {(SHAPES.index(shape), COLOURS.index(colour)) for shape, colour in HELD_OUT}
    seen = {}
    for split in ("train", "heldout"):
        scenes = sample_scenes(3000, _generator(13), split=split)
        seen[split] = set(zip(scenes.shape.tolist(), scenes.colour.tolist(), strict=True))
    assert seen["heldout"] == pairs
    assert len(seen["train"]) == 42 and not seen["train"] & pairs


def test_specified_scenes() -> None:
    scenes = specified_scenes(_generator(14), n=40, place="moon", shape="ring", pattern="band")
    assert (scenes.place == PLACES.index("moon")).all() and (scenes.pattern == 2).all()
    assert len(set(scenes.colour.tolist())) > 3
    assert scenes.attribute("shape").tolist() == [5] * 40
    with pytest.raises(UserError, match="unknown place 'mars'; choose one of: meadow, desert, city at night"):
        specified_scenes(_generator(), n=1, place="mars")
    with pytest.raises(UserError, match="unknown attribute 'mood'; choose one of: place, shape, colour"):
        specified_scenes(_generator(), n=1, mood="sad")
    with pytest.raises(UserError, match="unknown attribute 'layout'"):
        scenes.attribute("layout")


def test_hidden_attributes_are_not_lost_in_each_other() -> None:
    scenes = sample_scenes(2000, _generator(15))
    white = scenes.colour == COLOURS.index("white")
    assert not (white & (scenes.second_colour < 2)).any()
    assert not ((scenes.second_colour == 0) & (scenes.outline == 1)).any()
    assert not ((scenes.second_colour == 1) & (scenes.outline == 0)).any()
