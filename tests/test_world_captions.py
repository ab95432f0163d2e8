"""Captions: known words only, short, true to the scene, and different from draw to draw."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.world import COLOURS, VOCABULARY, canonical_captions, captions, sample_scenes, specified_scenes
from backends.world.scene import PLAIN


def _words(caption: str) -> list[str]:
    return caption.replace(",", " ").split()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_captions_are_short_and_of_known_words(seed: int) -> None:
    generator = _generator(seed)
    scenes = sample_scenes(200, generator)
    for caption in captions(scenes, generator) + canonical_captions(scenes):
        assert 2 <= len(_words(caption)) <= 22  # as many as the text encoder reads
        assert not set(_words(caption)) - set(VOCABULARY), caption
        assert caption == caption.lower().strip() and ", ," not in caption


def test_every_word_is_used() -> None:
    generator = _generator(1)
    used = {word for caption in captions(sample_scenes(6000, generator), generator) for word in _words(caption)}
    assert used == set(VOCABULARY)
    assert len(VOCABULARY) < 110


@pytest.mark.parametrize(
    "prompt",
    [
        "a red ball rolls over a green meadow",
        "a blue star spins over the ocean",
        "the big pink heart flies in circles above the snow, the camera pans to the right",
        "an orange cube bounces on the grey moon",
        "a small white ring zigzags over a city at night, static camera",
        "the yellow triangle floats above a sandy desert",
    ],
)
def test_common_prompts_are_known(prompt: str) -> None:
    assert not set(_words(prompt)) - set(VOCABULARY)


def test_common_prompts_are_drawn() -> None:
    generator = _generator(2)
    scenes = specified_scenes(
        generator, n=3000, place="meadow", shape="ball", colour="red", action="rolls", camera="static"
    )
    drawn = captions(scenes, generator)
    assert "a red ball rolls over a green meadow" in drawn
    assert len(set(drawn)) > 500


def test_what_is_left_out() -> None:
    generator = _generator(3)
    scenes = sample_scenes(4000, generator)
    drawn = captions(scenes, generator, looks=False)  # "a white band" is no colour of the object
    camera = torch.tensor(["camera" in caption for caption in drawn]).float()
    still = scenes.camera == 0
    assert abs(camera[still].mean() - 0.5) < 0.05 and abs(camera[~still].mean() - 0.95) < 0.05
    sizes = {"small", "little", "tiny", "medium", "big", "large", "huge"}
    assert abs(torch.tensor([bool(sizes & set(_words(c))) for c in drawn]).float().mean() - 0.5) < 0.05
    coloured = torch.tensor([bool({*COLOURS, "violet"} & set(_words(c.split(" over")[0]))) for c in drawn])
    assert 0.9 < coloured.float().mean() < 0.99


def test_looks_are_told_now_and_then() -> None:
    scenes = specified_scenes(_generator(6), n=2000, pattern="band", second_colour="cyan", outline="dark")
    told = captions(scenes, _generator(7))
    silent = captions(scenes, _generator(7), looks=False)
    bands = [line for line in told if " with a cyan band" in line]
    edges = [line for line in told if " a dark edge" in line]
    assert 0.4 < len(bands) / 2000 < 0.55 and 0.2 < len(edges) / 2000 < 0.3
    assert any(" with a cyan band and a dark edge" in line for line in told)
    assert not any(" with " in line for line in silent)
    without = [line.replace(" with a cyan band and a dark edge", "").replace(" with a cyan band", "") for line in told]
    assert [line.replace(" with a dark edge", "") for line in without] == silent
    plain = replace(scenes, pattern=torch.full_like(scenes.pattern, PLAIN))
    assert not any("cyan" in line for line in captions(plain, _generator(7)))


def test_captions_do_not_tell_what_is_hidden() -> None:
    scenes = sample_scenes(50, _generator(4))
    other = replace(
        scenes, pattern=(scenes.pattern + 1) % 4, second_colour=(scenes.second_colour + 1) % 4,
        outline=1 - scenes.outline, layout=scenes.layout + 1, hidden=1 - scenes.hidden,
    )  # fmt: skip
    assert captions(scenes, _generator(5), looks=False) == captions(other, _generator(5), looks=False)
    assert canonical_captions(scenes) == canonical_captions(other)


def test_canonical_caption() -> None:
    fixed = {"place": "meadow", "shape": "ball", "colour": "red", "action": "rolls"}
    moving = specified_scenes(_generator(), n=1, size="big", camera="pans left", **fixed)
    assert canonical_captions(moving) == ["a big red ball rolls over a green meadow, the camera pans left"]
    still = specified_scenes(_generator(), n=1, size="medium", camera="static", **{**fixed, "colour": "orange"})
    assert canonical_captions(still) == ["an orange ball rolls over a green meadow"]
