"""The toy backends beyond what every backbone keeps (tests/test_conformance.py)."""

from pathlib import Path

import pytest
import torch

from backends.toy_dit import ToyDiTBackend
from backends.toy_unet import ToyUNetBackend
from streaming.conformance.probe import plain_call
from streaming.errors import UserError
from streaming.keys import Key

CPU = torch.device("cpu")
BACKENDS = pytest.mark.parametrize("backend", [ToyUNetBackend(), ToyDiTBackend()], ids=["unet", "dit"])


def load(backend, part="load"):
    return getattr(backend, part)(None, device=CPU, dtype=torch.float32)


@BACKENDS
@pytest.mark.parametrize("part", ["load", "enhancer"])
def test_weights_are_the_same_every_time_and_no_global_number_is_drawn(backend, part):
    before = torch.random.get_rng_state()
    once, again = load(backend, part).backbone.state_dict(), load(backend, part).backbone.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(once[name], again[name]) for name in once)


@BACKENDS
def test_the_enhancer_is_another_model_of_twice_the_size(backend):
    base, enhancer = load(backend), load(backend, "enhancer")
    assert (enhancer.defaults.height, enhancer.defaults.width) == (2 * base.defaults.height, 2 * base.defaults.width)
    pairs = zip(base.backbone.parameters(), enhancer.backbone.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


@BACKENDS
def test_a_folder_is_refused(backend):
    with pytest.raises(UserError, match=r"has no files, so somewhere cannot be one: name it toy-(unet|dit)"):
        backend.load(Path("somewhere"), device=CPU, dtype=torch.float32)
    assert not backend.matches(Path("somewhere"))


@BACKENDS
def test_the_codec_gives_back_what_it_can_hold(backend):
    model = load(backend)
    latents = model.codec.encode(Key(0).normal(2, 3, 3, 16, 24).sigmoid())
    assert latents.shape == (2, model.codec.channels, 3, 16 // model.codec.factor, 24 // model.codec.factor)
    torch.testing.assert_close(model.codec.encode(model.codec.decode(latents)), latents)


@BACKENDS
def test_every_word_counts_however_long_the_prompt(backend):
    text = load(backend).text
    words = [f"word{n}" for n in range(30)]
    whole = text([" ".join(words)]).tokens
    for missing in (0, 7, 8, 29):
        assert not torch.equal(text([" ".join(words[:missing] + words[missing + 1 :])]).tokens, whole)


@BACKENDS
def test_images_of_any_size_become_embeddings_that_tell_colours_apart(backend):
    image = load(backend).image
    red, small_red, blue = (torch.zeros(1, 3, side, side) for side in (32, 8, 32))
    red[:, 0], small_red[:, 0], blue[:, 2] = 1, 1, 1
    torch.testing.assert_close(image(red), image(small_red))
    assert image(red).shape == (1, image.width) and not torch.allclose(image(red), image(blue))


def test_masked_words_are_not_read():
    model = load(ToyDiTBackend())
    encoded = model.text(["a ball", "a ball"])
    call = plain_call(Key(0).normal(2, 12, 6, 4, 4), encoded.tokens, 500.0).with_(context_mask=encoded.mask)
    noisy = encoded.tokens + 9 * ~encoded.mask[..., None]
    assert encoded.mask.sum().item() == 6
    torch.testing.assert_close(model.backbone(call, {}), model.backbone(call.with_(context=noisy), {}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mask", "the toy UNet generates all frames; it has no mask for given ones"),
        ("context_mask", "the toy UNet reads all text tokens; it has no mask for them"),
    ],
)
def test_the_unet_refuses_masks_that_hide_something(name, message):
    backbone = load(ToyUNetBackend()).backbone
    encoder, nothing = backbone.feature_encoder(), torch.zeros(1, 8, 16, 16)
    call = plain_call(Key(0).normal(1, 3, 8, 4, 4), torch.zeros(1, 8, 16), 500.0)
    everything = torch.ones(1, 8, dtype=torch.bool)
    assert torch.equal(backbone(call.with_(**{name: everything}), {}), backbone(call, {}))
    hiding = call.with_(**{name: everything.clone().index_fill_(1, torch.tensor([0]), False)})
    for evaluate in (lambda: backbone(hiding, {}), lambda: encoder(hiding, nothing)):
        with pytest.raises(ValueError, match=message):
            evaluate()


def test_latents_that_do_not_divide_into_patches_are_refused():
    model = load(ToyDiTBackend())
    with pytest.raises(UserError, match="latents of 4x5 cells: the toy DiT needs multiples of 2"):
        model.backbone(plain_call(torch.zeros(1, 12, 6, 5, 4), model.text([""]).tokens, 0.0), {})
