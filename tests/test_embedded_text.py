"""The second training of the embedded text encoder: which way the camera moves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backends.embedded import train_text as text
from backends.embedded.config import build_text_encoder
from backends.embedded.tokenizer import build_tokenizer, token_numbers
from backends.embedded.train_clip import train_clip
from backends.world import CAMERAS, VOCABULARY, captions, complete_captions, sample_scenes
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.training import TrainOptions


def toy(work: Path, **options) -> TrainOptions:
    return TrainOptions(work=work, toy=True, device="cpu", batch=4, steps=2, **options)


def test_what_captions_say_of_the_camera():
    scenes = sample_scenes(60, Key(0).generator())
    assert torch.equal(text.named_cameras(complete_captions(scenes)), scenes.camera)
    said = text.named_cameras(captions(scenes, Key(1).generator()))
    assert ((said == scenes.camera) | (said == text.UNSAID)).all() and (said == text.UNSAID).any()
    assert set(said.tolist()) == {*range(len(CAMERAS)), text.UNSAID}
    assert text.named_cameras(["", "a ball spins, camera pans right"]).tolist() == [text.UNSAID, 2]


def test_states_from_the_end_on_have_seen_all_words():
    numbers = token_numbers(build_tokenizer(VOCABULARY), ["a red ball", ""])
    ends = text.behind_end(numbers)
    assert ends[0, :4].tolist() == [False] * 4 and ends[0, 4:].all()  # <bos> a red ball <eos>
    assert not ends[1, 0] and ends[1, 1:].all()


def objective():
    with initial_weights(3):
        return text.TextObjective(build_text_encoder(len(build_tokenizer(VOCABULARY)), toy=True))


def test_training_tells_left_from_right_and_leaves_the_rest():
    tokenizer, learner = build_tokenizer(VOCABULARY), objective()
    before = text.moves(learner, tokenizer, n=64)
    assert before["left_right"] == before["left_right_before"] and before["others"] == 0
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    first = learner(text.drawn(tokenizer, 64, Key(0), torch.device("cpu")))
    assert first["states"] == first["embeds"] == 0 and first["loss"] == first["tell"] > 0.5
    for step in range(80):
        optimizer.zero_grad()
        learner(text.drawn(tokenizer, 32, Key(step), torch.device("cpu")))["loss"].backward()
        optimizer.step()
    after = text.moves(learner, tokenizer, n=64)
    assert after["camera"] > 0.9 > before["camera"]
    assert after["left_right"] > 2 * after["left_right_before"] == 2 * before["left_right"]
    assert after["others"] < after["left_right"]


def test_it_goes_on_from_clip_and_writes_the_encoder_again(tmp_path: Path):
    with pytest.raises(UserError, match="tokenizer is missing; train it first: streamingt2v train clip --work"):
        text.train_text(toy(tmp_path))
    train_clip(toy(tmp_path))
    before = load_file(tmp_path / "text_encoder" / "model.safetensors")
    text.train_text(toy(tmp_path))
    after = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    changed = [(before[name].float() - after[name].float()).abs().max() for name in before]
    assert 0 < max(changed) < 0.05
    told = json.loads((tmp_path / "logs" / "text.report.json").read_text())
    assert set(told) == {"camera", "left_right", "left_right_before", "others"}
