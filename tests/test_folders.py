"""Folders that are replaced whole."""

import os
from pathlib import Path

import pytest

from streaming.folders import save_folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_new_folder_holds_nothing_of_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "part"
    save_folder(folder, lambda new: [(new / name).write_text("old") for name in ("a", "b")])
    assert content(folder) == {"a": "old", "b": "old"}
    save_folder(folder, lambda new: (new / "b").write_text("new"))
    assert content(folder) == {"b": "new"} and [path.name for path in folder.parent.iterdir()] == ["part"]


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    save_folder(folder, lambda new: (new / "a").write_text("old"))

    def fail(new: Path) -> None:
        (new / "a").write_text("new")
        assert content(folder) == {"a": "old"}  # until the swap
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_folder(folder, fail)
    assert content(folder) == {"a": "old"} and [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_link_to_a_folder_still_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    save_folder(tmp_path / "link", lambda new: (new / "a").write_text("1"))
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "there") == {"a": "1"}
    monkeypatch.chdir(tmp_path / "there")
    save_folder(Path("."), lambda new: (new / "a").write_text("2"))
    assert content(tmp_path / "there") == {"a": "2"}


def test_a_swap_that_fails_midway_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "part"
    save_folder(folder, lambda new: (new / "a").write_text("old"))
    rename = os.replace

    def stop(source: Path, target: Path) -> None:
        if str(source).endswith(".new"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("streaming.folders.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_folder(folder, lambda new: (new / "a").write_text("new"))
    assert content(folder) == {"a": "old"} and [path.name for path in tmp_path.iterdir()] == ["part"]


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="(?i)too many levels of symbolic links"):
        save_folder(tmp_path / "loop", lambda new: None)
