"""`generate` from checked options to the finished video."""

import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from streaming.checkpoint import Checkpoint
from streaming.cli import stage3
from streaming.cli.options import Options
from streaming.cli.progress import Display, display, note
from streaming.cli.rollout import Rollout, is_complete, made, prepare, roll
from streaming.enhance import Enhancer
from streaming.errors import UserError
from streaming.keys import Key
from streaming.parts import Parts
from streaming.read import read_video
from streaming.types import Frames
from streaming.video import to_bytes


def produce(options: Options, last: Checkpoint | None) -> int:
    """Makes the video, or what is missing of it. Returns the exit code: 0, or 130 if it was stopped by Ctrl-C."""
    rollout = prepare(options, last)
    complete = is_complete(rollout)
    enhancer = _enhancer(rollout) if options.enhance else None
    old = None if last else _stamp(rollout.path)
    try:
        with display() as show:
            _make(rollout, complete, enhancer, show)
    except KeyboardInterrupt:
        note(f"stopped: {what_exists(rollout.options, _stamp(rollout.path) != old)}")
        return 130
    except UserError as error:
        if _stamp(rollout.path) == old:
            raise
        raise UserError(f"{error}; {what_exists(rollout.options, True)}") from error
    height, width = enhancer.made if enhancer else (rollout.parts.height, rollout.parts.width)
    print(describe(rollout.options, rollout.parts.fps, width, height))
    return 0


def describe(options: Options, fps: float, width: int, height: int) -> str:
    """One line about the finished video."""
    return f"{options.path}: {options.goal} frames of {width}x{height}, {options.goal / fps:.1f} s at {fps:g} frames/s"


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells whether a file was written to; None if there is none."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def what_exists(options: Options, began: bool) -> str:
    """One line: what an unfinished run leaves, and how to go on with it. began: whether it wrote a frame."""
    file = options.base if options.enhance else options.path
    if not began and options.path.exists():
        return f"no chunk was finished yet, {options.path} is the old one still"
    if not began or not made(file):
        return "no chunk was finished yet, nothing is kept"
    if not options.checkpoint.exists():
        return f"{file} holds {made(file)} frames, start again with --overwrite"
    before = " (before enhancement)" if options.enhance else ""
    return (
        f"{file} holds {made(file)} of {options.goal} frames{before}, "
        f"go on with: streamingt2v generate --resume {shlex.quote(str(options.checkpoint))}"
    )


def _enhancer(rollout: Rollout) -> Enhancer:
    options, parts = rollout.options, rollout.parts
    if options.enhance_mode == "joint" and options.goal > stage3.MOST_JOINT:
        raise UserError(stage3.too_long())
    enhancer = stage3.load(
        options.model, parts.device, parts.dtype, blender=options.blender, preset=options.preset,
        strength=options.strength, negative_prompt=options.negative_prompt,
    )  # fmt: skip
    return stage3.shaped(enhancer, parts.height, parts.width)


def _make(rollout: Rollout, complete: bool, enhancer: Enhancer | None, show: Display) -> None:
    options = rollout.options
    if complete:
        with rollout.writer(options.goal):
            pass
    missing = iter(()) if complete else roll(rollout, show)
    if enhancer is None:
        _all(missing)
        return
    if options.enhance_mode == "joint":
        _all(missing)
        source = read_video(options.base).pieces
    else:
        source = chain(_earlier(rollout, options.goal if complete else rollout.kept), _as_read(missing, rollout.parts))
    pieces = stage3.enhanced(
        enhancer, options.enhance_mode, source, rollout.prompts, Key(options.seed).fold("enhance"), options.goal, show
    )
    stage3.write(pieces, options.path, rollout.parts.fps, enhancer)


def _all(frames: Iterator[Frames]) -> None:
    for _ in frames:
        pass


def _earlier(rollout: Rollout, count: int) -> Iterator[Frames]:
    """The first frames of the video that an earlier run wrote."""
    if not count:
        return
    for piece in read_video(rollout.path).pieces:
        yield piece[:, :count]
        count -= piece.shape[1]
        if count <= 0:
            return


def _as_read(pieces: Iterator[Frames], parts: Parts) -> Iterator[Frames]:
    """Frames as they would come back from the file, so that an interrupted enhancement sees the same ones."""
    return (to_bytes(frames, truncate=parts.truncate).float() / 255 for frames in pieces)
