"""The second training of the embedded text encoder: which way the camera moves, and what an object looks like."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backends.embedded import train_text as text
from backends.embedded.config import build_text_encoder
from backends.embedded.tokenizer import build_tokenizer, token_numbers
from backends.embedded.train_clip import train_clip
from backends.world import HIDDEN_ATTRIBUTES, VOCABULARY, captions, complete_captions, sample_scenes
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.training import TrainOptions


def toy(work: Path, **options) -> TrainOptions:
    return TrainOptions(work=work, toy=True, device="cpu", batch=4, steps=2, **options)


def test_what_captions_say():
    scenes = sample_scenes(4000, Key(0).generator())
    unsaid = {name: len(words) for name, words in text.TOLD.items()}
    whole = text.said(complete_captions(scenes))
    assert torch.equal(whole["camera"], scenes.camera)
    assert all((whole[name] == unsaid[name]).all() for name in HIDDEN_ATTRIBUTES)
    told = text.said(captions(scenes, Key(1).generator()))
    assert all(set(told[name].tolist()) == set(range(unsaid[name] + 1)) for name in text.TOLD)  # all words, and none
    for name, share in (("camera", 0.8), ("pattern", 0.5), ("second_colour", 0.5), ("outline", 0.25)):
        known = told[name] != unsaid[name]
        assert torch.equal(told[name][known], scenes.attribute(name)[known]), name
        assert abs(known.double().mean() - share) < 0.08, name
    lines = [
        "",
        "a white ball spins, camera pans right",
        "the white ring with a cyan band and a dark edge spins",
        "the ball with a light edge rolls over the white snow",  # of places nothing is read
        "a red ball with cyan halves spins over a dark city",
    ]
    words = {name: value.tolist() for name, value in text.said(lines).items()}
    assert words == {
        "camera": [3, 2, 3, 3, 3], "pattern": [4, 4, 2, 4, 1], "second_colour": [4, 4, 2, 4, 2],
        "outline": [2, 2, 0, 1, 2],
    }  # fmt: skip


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
    assert before["pattern"] < 0.5
    assert before["left_right"] == before["left_right_before"] and before["others"] == 0
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=800)
    first = learner(text.drawn(tokenizer, 64, Key(0), torch.device("cpu")))
    assert first["states"] == 0 < first["embeds"] < 0.6 and first["tell"] > 0.5  # looks are words, if unread as yet
    kept = text.KEEP_STATES * first["states"] + text.KEEP_EMBEDS * first["embeds"]
    torch.testing.assert_close(first["loss"], first["tell"] + kept)
    for step in range(schedule.total_steps):
        optimizer.zero_grad()
        learner(text.drawn(tokenizer, 32, Key(step), torch.device("cpu")))["loss"].backward()
        optimizer.step()
        schedule.step()
    after = text.moves(learner, tokenizer, n=64)
    assert after["camera"] > 0.9 > before["camera"]
    assert all(after[name] > max(0.85, before[name]) for name in HIDDEN_ATTRIBUTES)
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
    assert set(told) == {*text.TOLD, "left_right", "left_right_before", "others"}
