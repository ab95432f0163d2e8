"""Which files are to be evaluated, what they show, and where their chunks begin."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from streaming.errors import UserError
from streaming.metrics.borders import Borders, BordersAt, EveryChunk
from streaming.prompts import PromptSchedule

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
"""Of the files that count as videos in a folder; a file that is named may end in anything."""
OTHERS = (
    ".txt", ".md", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".html", ".log", ".png", ".jpg", ".jpeg",
    ".webp", ".bmp", ".svg", ".pdf", ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".srt", ".vtt", ".py", ".sh",
    ".zip", ".gz", ".tar", ".pt", ".npz", ".npy", ".safetensors", ".checkpoint",
)  # fmt: skip
"""Of files that are no videos: nothing is said of them. Of all others in a folder it is said that they are left out."""
_TOLD = 5  # names in one line


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """One file to evaluate."""

    path: Path
    """As it was given."""
    prompts: PromptSchedule | None = None
    """What it should show; None: not known."""
    borders: Borders | None = None
    """Where its chunks begin; None: not known."""
    warnings: tuple[str, ...] = ()
    """Lines about what could not be found out."""


@final
@dataclass(frozen=True, kw_only=True)
class Failed:
    """A file without results."""

    file: str
    """Its path, or what else was named."""
    error: str
    """One line: what is wrong, and what to do."""
    defect: bool = False
    """Whether it is ours (or a plugin's) to mend, not the user's."""


def expand(given: Sequence[Path]) -> list[Path]:
    """The files that are meant: a folder stands for the videos in it, by name.

    Raises UserError for a folder without any, and for a file that is named twice. Other files are taken as they are.
    """
    found: list[Path] = []
    for path in given:
        if os.path.isdir(path):  # pathlib's own raises for names that no file can have
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise UserError(f"{path} holds no video ({', '.join(SUFFIXES)}): name the files")
            found += inside
        else:
            found.append(path)
    seen: set[Path] = set()
    for path in found:
        if path.absolute() in seen:
            raise UserError(f"{path} is named twice: name every video once")
        seen.add(path.absolute())
    return found


def skipped(given: Sequence[Path]) -> list[str]:
    """A line for each folder with files that may be videos, but are not taken as such."""
    lines = []
    for folder in given:
        if not os.path.isdir(folder):
            continue
        inside = sorted(
            each.name
            for each in folder.iterdir()
            if each.suffix.lower() not in (*SUFFIXES, *OTHERS) and not each.name.startswith(".") and each.is_file()
        )
        if inside:
            more = f" and {len(inside) - _TOLD} more" if len(inside) > _TOLD else ""
            lines.append(
                f"{folder}: {', '.join(inside[:_TOLD])}{more} left out, as in a folder only {', '.join(SUFFIXES)} "
                "count as videos: name them if they are"
            )
    return lines


def ask(
    paths: Sequence[Path], prompts: Path | None, borders: Borders | None
) -> tuple[list[Asked | Failed], list[Failed]]:
    """What is to be done, in order; and what the prompt file says too much, which belongs to no video.

    What is not given is read from the checkpoint beside a video that `generate` wrote.
    Raises UserError for a prompt file that cannot be read at all.
    """
    given: dict[Path, PromptSchedule | Failed] = {}
    rest: list[Failed] = []
    if prompts is not None:
        given, rest = assign(paths, prompts)
    asked: list[Asked | Failed] = []
    for path in paths:
        said = given.get(path)
        if not _is_text(str(path)):
            name = os.fsencode(path).decode("ascii", "backslashreplace")
            asked.append(Failed(file=name, error="has a name that is no UTF-8, which reports cannot hold: rename it"))
        elif isinstance(said, Failed):
            asked.append(said)
        else:
            asked.append(_completed(Asked(path=path, prompts=said, borders=borders)))
    return asked, rest


def _is_text(name: str) -> bool:
    """False for the half characters that stand for bytes that are no text."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def _completed(asked: Asked) -> Asked:
    checkpoint = asked.path.with_name(asked.path.name + ".checkpoint")
    if (asked.prompts is not None and asked.borders is not None) or not os.path.isfile(checkpoint):
        return asked
    try:
        prompts, borders = beside(checkpoint)
    except UserError as error:
        return replace(asked, warnings=(f"{asked.path} is evaluated without its checkpoint: {error}",))
    return replace(asked, prompts=asked.prompts or prompts, borders=asked.borders or borders)


def beside(checkpoint: Path) -> tuple[PromptSchedule, Borders]:
    """Prompts and chunks of a video by its checkpoint. Raises UserError for one that `generate` did not write."""
    from streaming.checkpoint import Checkpoint
    from streaming.cli.options import recall

    last = Checkpoint.load(checkpoint)
    options = recall(last.settings, checkpoint)
    overlap = last.tail.frames.shape[1]
    if options.image or options.video:
        first = 1 if options.image else options.opening_frames
        new = (last.frames_done - first) // max(last.index, 1)
    else:
        new = (last.frames_done - overlap) // (last.index + 1)
        first = overlap + new
    # a video that is only opened so far has one border at most: where the next chunk would begin
    return last.prompts[0], EveryChunk(first, new) if new else BordersAt((first,))


def assign(paths: Sequence[Path], file: Path) -> tuple[dict[Path, PromptSchedule | Failed], list[Failed]]:
    """The prompt of each video, or what is wrong with it; and what in the file belongs to no video.

    The file is a text with one prompt a line, in the order of the videos, or JSON (.json): an object with, for each
    file name, a prompt, or an object with prompts by the frame from which they hold.
    Raises UserError if it is neither.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(f"--prompts {file} cannot be read ({reason.lower()}): give a text or JSON file") from error
    return _by_name(paths, file, text) if file.suffix.lower() == ".json" else _by_line(paths, file, text)


def _by_line(paths: Sequence[Path], file: Path, text: str) -> tuple[dict[Path, PromptSchedule | Failed], list[Failed]]:
    lines = text.rstrip().split("\n")  # other signs that Unicode calls line ends are none in an editor
    found: dict[Path, PromptSchedule | Failed] = {}
    for number, path in enumerate(paths, start=1):
        if number > len(lines):
            wrong = f"{file} has {len(lines)} prompts for {len(paths)} videos, none for this one: give one a line"
            found[path] = Failed(file=str(path), error=wrong)
        else:
            found[path] = _schedule(path, f"{file}, line {number}", lines[number - 1].strip())
    over = f"belongs to no video: there are {len(lines)} prompts for {len(paths)} videos; give one a line for each"
    rest = [Failed(file=str(file), error=f"line {i} {over}") for i in range(len(paths) + 1, len(lines) + 1)]
    return found, rest


def _by_name(paths: Sequence[Path], file: Path, text: str) -> tuple[dict[Path, PromptSchedule | Failed], list[Failed]]:
    try:
        told = json.loads(text, object_pairs_hook=_once)
    except UserError as error:
        raise UserError(f"--prompts {file}: {error}") from error
    except ValueError as error:
        raise UserError(
            f"--prompts {file} is no JSON ({error}): mend it, or give a text with a prompt a line"
        ) from error
    if not isinstance(told, dict):
        raise UserError(f'--prompts {file} is no JSON object: write {{"video.mp4": "what it shows"}}')
    found: dict[Path, PromptSchedule | Failed] = {}
    used: set[str] = set()
    for path in paths:
        name = next((name for name in (str(path), path.name, path.stem) if name in told), None)
        if name is None:
            found[path] = Failed(file=str(path), error=f'{file} has no prompt for it: add "{path.name}": "PROMPT"')
        else:
            used.add(name)
            found[path] = _schedule(path, str(file), told[name])
    wrong = f"{file} has a prompt for it, but it is not among the videos: name it, or take the prompt out"
    return found, [Failed(file=name, error=wrong) for name in told if name not in used]


def _schedule(path: Path, where: str, told: object) -> PromptSchedule | Failed:
    try:
        if isinstance(told, str):
            return PromptSchedule.fixed(told)
        if isinstance(told, Mapping) and all(isinstance(text, str) for text in told.values()):
            return PromptSchedule.of(_once([(_frame(frame), text) for frame, text in told.items()]))
        raise UserError('write a prompt, or prompts by frame: {"0": "first", "40": "then"}')
    except UserError as error:
        return Failed(file=str(path), error=f"{where}: {error}")


def _once(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UserError(f"{json.dumps(name)} stands there twice: keep one of the two")
        found[name] = value
    return found


def _frame(word: str) -> int:
    if not word.isdecimal() or len(word) > 9:
        raise UserError(f"'{word[:20]}' is no frame: write a whole number below a thousand million")
    return int(word)
