import json
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from streaming.checkpoint import Checkpoint, check_resume
from streaming.errors import UserError
from streaming.keys import Key
from streaming.memory import Tail
from streaming.prompts import PromptSchedule

SETTINGS = {"model": "toy", "steps": "50", "guidance": "ClassifierFree(scale=7.5, rescale=0.0)"}


def make(**changes):
    values = {
        "index": 3,
        "frames_done": 40,
        "tail": Tail(Key(0).normal(2, 8, 3, 4, 4), Key(1).normal(2, 2, 4, 2, 2)),
        "anchor": Key(2).normal(2, 1, 3, 4, 4),
        "key": Key(7),
        "prompts": (PromptSchedule.of({0: "a ball", 20: "ein Würfel 🎲"}), PromptSchedule.fixed("a cube")),
        "settings": SETTINGS,
    }
    return Checkpoint(**values | changes)


names = st.one_of(st.integers(-9, 9), st.text(max_size=4))
keys = st.tuples(st.integers(-(2**40), 2**40), st.lists(names, max_size=3))
prompts = st.text(min_size=1, max_size=6).filter(str.strip)


@given(
    st.integers(0, 10**6),
    st.lists(keys, min_size=1, max_size=2),
    st.dictionaries(st.integers(1, 99), prompts, max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_is_saved_is_loaded(tmp_path_factory, index, keys, later, settings):
    several = tuple(Key(seed, tuple(path)) for seed, path in keys)
    key = several if len(several) > 1 else several[0]
    path = tmp_path_factory.mktemp("saved") / "state.safetensors"
    original = make(index=index, key=key, prompts=(PromptSchedule.of({0: "x", **later}),), settings=settings)
    original.save(path)
    loaded = Checkpoint.load(path)
    for name in ("index", "frames_done", "key", "prompts", "settings"):
        assert getattr(loaded, name) == getattr(original, name), name
    for one, other in zip(tensors(loaded), tensors(original), strict=True):
        assert torch.equal(one, other)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def tensors(checkpoint):
    return checkpoint.tail.frames, checkpoint.tail.latents, checkpoint.anchor


def test_saving_over_an_old_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    make(index=1).save(path)

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=rf"cannot write the checkpoint {path}: No space left on device; make room"):
        make(index=2).save(path)
    assert Checkpoint.load(path).index == 1
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_the_data_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    happened, fsync, move = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("replace"), move(a, b))[1])
    make().save(tmp_path / "state.safetensors")
    assert happened[:2] == ["fsync", "replace"]


def test_an_unwritable_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*nowhere/state: No such file or directory"):
        make().save(tmp_path / "nowhere" / "state")


@given(st.integers(0, 6000))
def test_a_truncated_file_is_refused(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "state.safetensors"
    make().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: min(length, len(data) - 1)])
    with pytest.raises(UserError, match="is truncated or not a checkpoint: start again without --resume"):
        Checkpoint.load(path)


def rewrite(path, change):
    """The file with other metadata."""
    tensors = {"frames": torch.zeros(1, 1, 3, 2, 2), "latents": torch.zeros(1, 1, 1, 1, 1)}
    metadata = make()._metadata() | change
    save_file(tensors | {"anchor": torch.zeros(1, 1, 3, 2, 2)}, path, {"streamingt2v.checkpoint": json.dumps(metadata)})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no checkpoint .*: give a file that an earlier run wrote"),
        (lambda path: path.mkdir(), "cannot read the checkpoint .*state|is truncated or not a checkpoint"),
        (lambda path: path.write_bytes(b""), "is truncated or not a checkpoint"),
        (lambda path: path.write_text("hello " * 99), "is truncated or not a checkpoint"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "is truncated or not a checkpoint"),
        (lambda path: save_file({"w": torch.ones(2)}, path), "is not a checkpoint of this program"),
        (lambda path: save_file({"w": torch.ones(2)}, path, {"format": "pt"}), "is not a checkpoint of this program"),
        (
            lambda path: rewrite(path, {"version": 9}),
            "is a checkpoint of version 9, this program reads version 1: resume with the program that wrote it",
        ),
        (lambda path: rewrite(path, {"keys": None}), "is a damaged checkpoint"),
        (lambda path: rewrite(path, {"prompts": [[[5, "a"]]]}), "no prompt at frame 0"),
        (lambda path: make(anchor=torch.full((2, 1, 3, 4, 4), float("nan"))).save(path), "NaN .* in its anchor"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, write, message):
    path = tmp_path / "state.safetensors"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_named_with_both_values(name):
    saved = make()
    check_resume(saved, dict(SETTINGS), Key(7), saved.prompts)
    with pytest.raises(UserError) as caught:
        check_resume(saved, {**SETTINGS, name: "else"}, Key(7), saved.prompts)
    assert str(caught.value) == f"cannot resume with another {name}: it was '{SETTINGS[name]}', now it is 'else'"


def test_another_seed_or_number_of_videos_is_refused():
    saved = make()
    with pytest.raises(UserError, match="cannot resume with another seed: it was 7, now it is 8"):
        check_resume(saved, SETTINGS, Key(8), saved.prompts)
    with pytest.raises(UserError, match="another seed: it was 7, now it is 7/a, 9"):
        check_resume(saved, SETTINGS, (Key(7).fold("a"), Key(9)), saved.prompts)
    with pytest.raises(UserError, match="cannot resume 2 videos with prompts for 1"):
        check_resume(saved, SETTINGS, Key(7), saved.prompts[:1])


@given(
    st.dictionaries(st.integers(1, 80), prompts, max_size=4), st.dictionaries(st.integers(1, 80), prompts, max_size=4)
)
def test_prompts_may_change_from_the_next_frame_on_only(old, new):
    old, new = (PromptSchedule.of({0: "x", **entries}) for entries in (old, new))
    saved = replace(make(), prompts=(old,), frames_done=40)
    same_past = [e for e in old.entries if e[0] < 40] == [e for e in new.entries if e[0] < 40]
    if same_past:
        check_resume(saved, SETTINGS, Key(7), (new,))
    else:
        with pytest.raises(UserError, match=r"cannot resume with another prompt at frame \d+: it was '"):
            check_resume(saved, SETTINGS, Key(7), (new,))


def test_a_changed_past_is_told_with_both_prompts():
    saved = replace(make(), prompts=(PromptSchedule.of({0: "a", 20: "b"}),), frames_done=40)
    with pytest.raises(UserError) as caught:
        check_resume(saved, SETTINGS, Key(7), (PromptSchedule.of({0: "a", 20: "c", 60: "d"}),))
    assert str(caught.value) == (
        "cannot resume with another prompt at frame 20: it was 'b', now it is 'c'; "
        "only from frame 40 on can prompts be changed"
    )


@pytest.mark.parametrize("changes", [{"frames_done": -5}, {"index": -1}])
def test_impossible_counters_are_refused(tmp_path, changes):
    path = tmp_path / "state.safetensors"
    make(**changes).save(path)
    with pytest.raises(UserError, match="damaged checkpoint .* frames at chunk"):
        Checkpoint.load(path)
