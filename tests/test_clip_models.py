"""CLIP models for the CLIP score: the embedded world's, a folder's, open_clip's."""

import hashlib
import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from backends.embedded import packaged_weights
from backends.world import canonical_captions, render, sample_scenes
from streaming.errors import UserError
from streaming.keys import Key, initial_weights
from streaming.metrics import CLIPScore, How, evaluate_stream
from streaming.metrics.clip_registry import make_clip

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_the_embedded_one_finds_each_clips_caption() -> None:
    encoder, scenes = make_clip("embedded"), sample_scenes(5, Key(0).generator())
    clips, lines = render(scenes, frames=2), canonical_captions(scenes)

    def score(clip: torch.Tensor, line: str) -> float | None:
        return evaluate_stream([clip[None]], [CLIPScore(prompt=line)], How(clip=encoder)).numbers["clip_score"]

    scores = [[score(clip, line) for line in lines] for clip in clips]
    assert torch.tensor(scores).argmax(dim=1).tolist() == list(range(5))
    assert encoder.settings()["model"] == "embedded"


def test_a_folder_is_read_like_the_embedded_one() -> None:
    frames = (255 * Key(1).normal(2, 3, 64, 64).sigmoid()).to(torch.uint8)
    one, other = make_clip("embedded"), make_clip(f"folder:{packaged_weights()}")
    assert torch.equal(one.images(frames), other.images(frames))
    assert torch.equal(one.texts(["a red ball"]), other.texts(["a red ball"]))


def test_open_clips_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    with initial_weights(0):
        network = open_clip.CLIP(**TINY).eval()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "w.safetensors")
    made = make_clip(f"open_clip:tiny-for-tests:{tmp_path / 'w.safetensors'}")
    frames = (255 * Key(1).normal(2, 3, 32, 32).sigmoid()).to(torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        images = network.encode_image((frames / 255 - mean) / std)
        words = network.encode_text(open_clip.get_tokenizer("tiny-for-tests")(["a red ball"]))
    torch.testing.assert_close(made.images(frames), images)
    torch.testing.assert_close(made.texts(["a red ball"]), words)
    told = made.settings()
    assert told.pop("sha256") == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert told == {"kind": "OpenCLIP", "model": "tiny-for-tests", "weights": "w.safetensors"}
    with pytest.raises(UserError, match="not this model's"):
        make_clip(f"open_clip:ViT-B-32:{tmp_path / 'w.safetensors'}")


@pytest.mark.parametrize(
    "spec, told",
    [
        ("embedded:x", "there is one embedded CLIP model: say 'embedded' without ':x'"),
        ("folder:", "no CLIP model 'folder:': there is no such folder; name one, folder:DIR"),
        ("open_clip:ViT-B-32", "names no model and file: say open_clip:MODEL:FILE"),
        ("open_clip:ViT-B-32:nowhere.pt", "there is no file nowhere.pt with its weights"),
        ("clap", "no CLIP model 'clap': name one as NAME or NAME:WHICH, the name one of embedded, folder, open_clip"),
    ],
)
def test_what_is_wrong_is_told(spec: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make_clip(spec)
