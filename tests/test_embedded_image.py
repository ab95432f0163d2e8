"""The second training of the embedded image encoder: an object's look, in the embedding that memories read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor

from backends.embedded import train_image as image
from backends.embedded.config import build_image_encoder, build_text_encoder
from backends.embedded.tokenizer import build_tokenizer
from backends.embedded.train_clip import train_clip
from backends.world import HIDDEN_ATTRIBUTES, VOCABULARY, sample_scenes
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.training import TrainOptions


def toy(work: Path, **options) -> TrainOptions:
    return TrainOptions(work=work, toy=True, device="cpu", batch=4, steps=2, **options)


def objective():
    with initial_weights(0):
        text = build_text_encoder(len(build_tokenizer(VOCABULARY)), toy=True)
        return image.ImageObjective(build_image_encoder(toy=True), text)


def batch(n):
    make = image._slices(build_tokenizer(VOCABULARY))
    with torch.no_grad():
        return make(sample_scenes(n, Key(1).generator()), Key(2).generator())


def test_readers_ask_for_what_no_caption_names():
    assert set(HIDDEN_ATTRIBUTES) < set(image.ASKED) and "action" not in image.ASKED
    drawn, learner = batch(6), objective()
    assert {name: tuple(drawn[name].shape) for name in image.ASKED} == dict.fromkeys(image.ASKED, (6,))
    assert not torch.equal(drawn["frames"], drawn["later"])
    told = learner(drawn)
    assert told["loss"].item() == pytest.approx(
        (told["frame_text"] + told["frame_frame"] + image.TELL * told["tell"]).item()
    )
    told["loss"].backward()
    assert all(value.grad is None for value in learner.text.parameters())
    assert all(value.grad.abs().sum() > 0 for name, value in learner.readers.named_parameters())


def test_what_the_readers_learn_is_in_the_embedding():
    learner, drawn = objective(), batch(12)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    first = learner(drawn)["tell"].item()
    for _ in range(40):
        optimizer.zero_grad()
        learner(drawn)["loss"].backward()
        optimizer.step()
    after = learner(drawn)["tell"].item()
    assert after < 0.5 * first
    with torch.no_grad():
        for part in learner.image.parameters():
            part.mul_(0.0)
    assert learner(drawn)["tell"].item() > after  # without the encoder the readers know nothing


def test_it_goes_on_from_clip_and_writes_the_encoder_again(tmp_path: Path):
    with pytest.raises(UserError, match="tokenizer is missing; train it first: streamingt2v train clip --work"):
        image.train_image(toy(tmp_path))
    train_clip(toy(tmp_path))
    before = load_file(tmp_path / "image_encoder" / "model.safetensors")
    text = (tmp_path / "text_encoder" / "model.safetensors").read_bytes()
    image.train_image(toy(tmp_path))
    after = load_file(tmp_path / "image_encoder" / "model.safetensors")
    assert before.keys() == after.keys()
    assert 0 < max((before[name].float() - after[name].float()).abs().max() for name in before) < 0.05
    assert (tmp_path / "text_encoder" / "model.safetensors").read_bytes() == text
    assert CLIPImageProcessor.from_pretrained(tmp_path / "image_encoder").image_mean[0] == 0.5
    told = json.loads((tmp_path / "logs" / "image.report.json").read_text())
    assert set(told) == set(image.ASKED) and all(0 <= value <= 1 for value in told.values())
