"""The identity of weights: the same for the same numbers, another for any other."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import UserError
from streaming.metrics import fingerprint
from streaming.metrics.clip_registry import make_clip
from streaming.metrics.fingerprint import file_sha256, tensors_sha256


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads = tmp_path / "w.pth", []
    file.write_bytes(b"one")
    real = hashlib.file_digest
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *told: reads.append(1) or real(*told))
    assert file_sha256(file) == file_sha256(file) == hashlib.sha256(b"one").hexdigest() and len(reads) == 1
    file.write_bytes(b"other")
    assert file_sha256(file) == hashlib.sha256(b"other").hexdigest() and len(reads) == 2
    with pytest.raises(UserError, match=r"the weights .*gone cannot be read \(no such file.*\): give another file"):
        file_sha256(tmp_path / "gone")


@given(st.integers(0, 5), st.sampled_from(["name", "value", "shape", "type"]))
def test_every_difference_of_tensors_shows(place: int, what: str) -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.zeros(2, 3), "c": torch.tensor(1), "d": torch.zeros(0)}
    known = tensors_sha256(tensors)
    assert tensors_sha256(dict(reversed(tensors.items()))) == known
    assert tensors_sha256(tensors | {"b": torch.zeros(3, 2).T}) == known  # however they lie in memory
    other = dict(tensors)
    if what == "name":
        other["e"] = other.pop("b")
    elif what == "value":
        other["a"] = other["a"].clone()
        other["a"][place] += 1e-6 * (1 + place)
    elif what == "shape":
        other["b"] = torch.zeros(3, 2)
    else:
        other["a"] = other["a"].view(torch.int32)
    assert tensors_sha256(other) != known


def test_other_dtypes_have_bytes_too() -> None:
    found = {tensors_sha256({"a": torch.zeros(2, dtype=kind)}) for kind in (torch.bfloat16, torch.float16, torch.bool)}
    assert len(found) == 3


def test_a_clip_of_other_weights_has_another_identity() -> None:
    one, same, other = (make_clip("embedded") for _ in range(3))
    with torch.no_grad():
        next(iter(other._text.model.parameters())).view(-1)[0] += 1  # pyright: ignore[reportAttributeAccessIssue]
    assert one.settings() == same.settings() and one.settings()["sha256"] != other.settings()["sha256"]
