"""A folder as VBench's and VBench-Long's own programs take it [Huang et al., CVPR 2024].

    DIR/videos/PROMPT-0.mp4      the videos, named after their prompts and numbered from 0 for each
    DIR/prompts.json             each file's whole prompt: what --prompt_file of mode custom_input takes
    DIR/VBench_full_info.json    prompts and dimensions: what --full_json_dir takes, with mode long_custom_input

Nothing but videos may lie among the videos (the programs take any file's suffix for that of all). They make clips of 2
seconds themselves, in DIR/videos/split_clip; clips are only as comparable as published ones are if nobody made them
beforehand.

VBench knows one prompt a file. A video whose prompts change stays one file, as what is asked of it is whether it stays
consistent from its beginning to its end, and is named after all its prompts: "FIRST, then SECOND". None of the six
dimensions reads prompts, so the name changes no score.
"""

import json
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from streaming.errors import UserError
from streaming.evaluation.run import Evaluated
from streaming.folders import save_folder
from streaming.read import read_video
from streaming.video import VideoWriter

DIMENSIONS = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip
"""What VBench measures of prompts that are not its own. All take clips of 2 seconds; one that takes 10 would make
clips of 10 seconds for all of them."""
CLIP_SECONDS = 2
"""Length of the clips that VBench-Long makes; shorter videos stay one clip, which has no other to be compared with."""
THEN = ", then "
"""Stands between prompts that follow each other in a video."""
LONGEST_NAME = 180
"""Bytes of a prompt in a file's name: programs append to it, and file systems take 255."""

WRITTEN = {"videos", "prompts.json", "VBench_full_info.json"}
"""What an export holds."""
_QUALITY = 12  # x264's crf of a video that must be encoded again


def export(evaluated: Sequence[Evaluated], folder: Path) -> list[str]:
    """Writes the folder, whole or not at all; gives a line about each video that will be of little use.

    Raises UserError if it exists and holds something else, or cannot be written.
    """
    check(folder)
    names = named(evaluated)

    def write(into: Path) -> None:
        (into / "videos").mkdir()
        for each, name in zip(evaluated, names, strict=True):
            _place(Path(each.file), into / "videos" / f"{name}.mp4")
        prompts = {f"{name}.mp4": _prompt(each) for each, name in zip(evaluated, names, strict=True)}
        _write(into / "prompts.json", prompts)
        _write(into / "VBench_full_info.json", [
            {"prompt_en": prompt, "dimension": list(DIMENSIONS)}
            for prompt in dict.fromkeys(name.rpartition("-")[0] for name in names)
        ])  # fmt: skip

    try:
        save_folder(folder, write)
    except OSError as error:
        raise UserError(
            f"--export-vbench {folder} cannot be written ({(error.strerror or str(error)).lower()}): choose another"
        ) from error
    return [line for each in evaluated for line in _doubts(each)]


def check(folder: Path) -> None:
    """Raises UserError for a file, and for a folder that holds anything but an earlier export: it would be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--export-vbench {folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise UserError(f"--export-vbench {folder} holds something else: name a new or an empty folder")


def _is_ours(folder: Path) -> bool:
    """Whether it holds what `export` writes, and nothing else."""
    try:
        prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        videos = {path.name for path in (folder / "videos").iterdir()}
    except (OSError, ValueError):
        return False
    return {path.name for path in folder.iterdir()} == WRITTEN and isinstance(prompts, dict) and videos == set(prompts)


def named(evaluated: Sequence[Evaluated]) -> list[str]:
    """File names without suffix: PROMPT-0, PROMPT-1 ... for each prompt.

    Prompts that differ in the case of letters only are numbered together, as many file systems don't tell them apart.
    """
    counts: Counter[str] = Counter()
    found = []
    for each in evaluated:
        prompt = file_name(_prompt(each))
        alike = unicodedata.normalize("NFC", prompt).casefold()
        found.append(f"{prompt}-{counts[alike]}")
        counts[alike] += 1
    return found


def file_name(prompt: str) -> str:
    """A prompt as VBench's programs can find it again in a file name, of at most 180 bytes.

    Underscores, "-Scene" and ".mp4" end a prompt for them, slashes do so for file systems.
    """
    text = re.sub(r"[\x00-\x1f\x7f/\\:_]+", " ", prompt).replace("-Scene", " Scene").replace(".mp4", " mp4")
    text = " ".join(text.split()).encode()[:LONGEST_NAME].decode(errors="ignore")
    return text.strip(" .") or "video"


def _prompt(each: Evaluated) -> str:
    """What it should show; of prompts that change all, without any the file's name."""
    if each.prompts is None:
        return Path(each.file).stem
    texts = [text.strip() for _, text in each.prompts.entries]
    return THEN.join([*(text.rstrip(". ") or text for text in texts[:-1]), texts[-1]])


def _place(source: Path, target: Path) -> None:
    """The file as it is; another container than mp4 is decoded, and encoded again."""
    if _is_copied(source):
        shutil.copyfile(source, target)
        return
    video = read_video(source)
    with VideoWriter(target, fps=video.fps, height=video.height, width=video.width, crf=_QUALITY) as writer:
        for piece in video.pieces:
            writer.write(piece)


def _is_copied(source: Path) -> bool:
    return source.suffix.lower() == ".mp4"


def _doubts(each: Evaluated) -> Iterator[str]:
    results = each.results
    rows, cols = results.shown
    if not _is_copied(Path(each.file)) and (rows % 2 or cols % 2):
        yield (
            f"{each.file} is exported as {cols + cols % 2}x{rows + rows % 2}, not {cols}x{rows}: H.264 wants even "
            "sides, so the last column or row is there twice"
        )
    if each.prompts is not None and len(each.prompts.entries) > 1:
        yield (
            f"{each.file} has prompts that change, and VBench knows one a file: it is named after all of them, "
            "so measure no dimension that reads prompts"
        )
    if int(results.fps) < 1:
        yield f"{each.file} has {results.fps:g} frames a second: VBench-Long cannot cut it into clips"
    elif results.frames < 2 * CLIP_SECONDS * int(results.fps):
        yield (
            f"{each.file} is shorter than two of VBench-Long's clips ({2 * CLIP_SECONDS} s): "
            "its consistency over long times will not be measured"
        )


def _write(path: Path, told: object) -> None:
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
