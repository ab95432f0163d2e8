"""How a video begins."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.backbone import Window
from streaming.errors import UserError
from streaming.keys import Key
from streaming.openings import ImageOpening, VideoOpening, fit
from tests.toys import IMAGE, OPENINGS, SQUEEZED, VIDEO, MeanCodec, run, toy


def test_an_image_is_emitted_once_and_remembered_over_the_whole_overlap():
    kit = toy(**SQUEEZED)
    chunks = run(kit, 2, opening=OPENINGS["image"])
    image = fit(IMAGE[None], 8, 12)[None]
    assert torch.equal(chunks[0].frames, image)
    (tail,) = kit.short.tails
    assert torch.equal(tail.frames, image.expand(-1, 17, -1, -1, -1))
    assert torch.equal(tail.latents, kit.parts.codec.encode(tail.frames))
    assert torch.equal(kit.long.anchors[0], image)


def test_a_video_is_emitted_and_continued():
    kit = toy()
    chunks = run(kit, 2, opening=OPENINGS["video"])
    assert torch.equal(chunks[0].frames, VIDEO[None])
    (tail,) = kit.short.tails
    assert torch.equal(tail.frames, VIDEO[None, -2:])
    assert torch.equal(tail.latents, kit.parts.codec.encode(VIDEO[None, -2:]))
    assert torch.equal(kit.long.anchors[0], VIDEO[None, :1])


def test_a_video_of_exactly_the_overlap_will_do_and_one_frame_less_will_not():
    setup = {"codec": MeanCodec((17, 5)), "window": Window(15, 5)}
    frames = Key(3).normal(17, 3, 8, 12).sigmoid()
    assert len(run(toy(**setup), 2, opening=VideoOpening(frames))) == 2
    with pytest.raises(UserError) as caught:
        run(toy(**setup), 2, opening=VideoOpening(frames[1:]))
    assert str(caught.value) == "a video of 16 frames is too short to be continued: this model needs at least 17"


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_fitting_gives_the_size_and_keeps_a_plain_colour(rows, cols, height, width):
    images = torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, -1, rows, cols)
    fitted = fit(images, height, width)
    assert fitted.shape == (2, 3, height, width)
    torch.testing.assert_close(fitted, images[..., :1, :1].expand_as(fitted))


def test_fitting_crops_the_centre_and_leaves_the_right_size_alone():
    wide = torch.zeros(1, 3, 8, 24)
    wide[..., 8:16] = 1
    assert torch.equal(fit(wide, 8, 8), torch.ones(1, 3, 8, 8))
    assert torch.equal(fit(VIDEO, 8, 12), VIDEO)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageOpening(torch.full((3, 4, 4), 255.0)), "the opening image has values outside"),
        (lambda: VideoOpening(torch.full((1, 3, 4, 4), float("nan"))), "the opening video has values outside"),
        (lambda: VideoOpening(torch.zeros(0, 3, 4, 4)), "the opening video is empty"),
    ],
)
def test_impossible_pixels_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
