"""`streamingt2v evaluate`: videos are measured, and reports written."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streaming.cli import checks
from streaming.cli.progress import Display, display, note
from streaming.errors import UserError

if TYPE_CHECKING:
    from streaming.evaluation.document import Document
    from streaming.evaluation.equip import Wanted
    from streaming.evaluation.files import Asked, Failed
    from streaming.evaluation.run import Outcome
    from streaming.metrics.borders import Borders

FILES = ("results.json", "report.md", "report.html")
"""What is written."""


def evaluate(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEOS...", help="Files, or folders with videos.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What they show: a text with a prompt a line, in the order of the videos, or JSON "
            '{"a.mp4": "PROMPT", "b.mp4": {"0": "PROMPT", "40": "PROMPT"}}.  [default: as they were generated]',
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help=f"Folder for {', '.join(FILES)}.")] = Path("evaluation"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier evaluation there.")] = False,
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="Frames are resized to it first; video: as they are.")
    ] = "256x256",
    no_antialias: Annotated[
        bool, typer.Option("--no-antialias", help="Shrink without a filter, as the published MAWE does.")
    ] = False,
    flow: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Optical flow: dis, dis:fast, dis:ultrafast, raft:FILE or raft-small:FILE (torchvision's weights), "
            "or none.",
        ),
    ] = "dis",
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="CLIP model: embedded (the tiny model's world), folder:DIR, open_clip:MODEL:FILE, or none.",
        ),
    ] = "none",
    second_cuts: Annotated[
        str | None, typer.Option(metavar="NAME", help="A second opinion on scene cuts: transnetv2.")
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option(metavar="NET:FILE", help="LPIPS from the first frame: alex, vgg or squeeze, and its weights."),
    ] = None,
    track: Annotated[bool, typer.Option("--track", help="Follow the object of the tiny model's world.")] = False,
    window: Annotated[
        int | None, typer.Option(help="Frames of the first chunk.  [default: as it was generated]")
    ] = None,
    new: Annotated[
        int | None, typer.Option(help="Frames that each later chunk added.  [default: as it was generated]")
    ] = None,
    settle: Annotated[
        int, typer.Option(help="Frames after a change of prompt that count for nothing in the narrative score.")
    ] = 0,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where RAFT and TransNetV2 compute: auto, cpu, cuda or cuda:NUMBER.")
    ] = "cpu",
    jobs: Annotated[
        int | None, typer.Option(help="Videos at once, a process each.  [default: as many as processors]")
    ] = None,
    export_vbench: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write the folder that VBench's and VBench-Long's programs take."),
    ] = None,
) -> int:
    """Measure videos; write numbers as JSON, and reports as Markdown and one HTML page.

    A file that cannot be evaluated gets a line that says why, the others are evaluated, and the exit code is 2.
    """
    borders = _borders(window, new)
    if jobs is not None:
        checks.whole("--jobs", jobs, 1, 256)
    from streaming.evaluation import equip, files, vbench

    place = device if device == "cpu" else str(checks.device(device))
    wanted = equip.Wanted(
        size=size, antialias=not no_antialias, flow=flow, clip=clip, cuts=second_cuts, lpips=lpips, track=track,
        settle=settle, device=place,
    )  # fmt: skip
    equip.check(wanted)
    paths = files.expand(videos)
    for line in files.skipped(videos):
        note(f"warning: {line}")
    asked, unused = files.ask(paths, prompts, borders)
    if clip == "none" and (settle or (prompts is not None and export_vbench is None)):
        option = "--settle has no effect" if settle else "the prompts are only listed"
        note(f"warning: {option} without a CLIP model: name one with --clip for scores by prompts")
    if export_vbench is not None:
        vbench.check(export_vbench)
        one, other = output.resolve(), export_vbench.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise UserError(
                f"--export-vbench {export_vbench} and --output {output} lie in one another: name two folders"
            )
    equip.check_packages(wanted)
    _check_output(output, overwrite)
    for each in unused:
        note(f"error: {each.file}: {each.error}")
    return _run(asked, unused, wanted, jobs or _processors(), output, export_vbench)


def _borders(window: int | None, new: int | None) -> "Borders | None":
    from streaming.metrics.borders import EveryChunk

    if (window is None) != (new is None):
        raise UserError("--window and --new belong together: give both, for example --window 16 --new 8, or neither")
    if window is None or new is None:
        return None
    checks.whole("--window", window, 1, checks.MOST_FRAMES)
    checks.whole("--new", new, 1, checks.MOST_FRAMES)
    return EveryChunk(window, new)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_output(folder: Path, overwrite: bool) -> None:
    """Makes the folder. Raises UserError if it cannot be written to, or holds an evaluation."""
    there = next((name for name in FILES if (folder / name).exists()), None)
    if there is not None and not overwrite:
        raise UserError(f"{folder / there} exists already: choose another --output, or replace it with --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"--output {folder} cannot be written ({reason}): choose another folder") from error


def _run(
    asked: "Sequence[Asked | Failed]", unused: "Sequence[Failed]", wanted: "Wanted", jobs: int, output: Path,
    export: Path | None,
) -> int:  # fmt: skip
    from streaming.evaluation.document import Document
    from streaming.evaluation.files import Failed

    found: dict[int, Outcome] = {place: each for place, each in enumerate(asked) if isinstance(each, Failed)}
    stopped = False
    told: set[int] = set()
    try:
        lengths = _look(asked, found)
        told = set(found)
        with display() as show:
            _measure(asked, lengths, wanted, jobs, show, found)
    except KeyboardInterrupt:
        stopped = True
    document = Document([found[place] for place in sorted(found)], unused)
    if stopped and not document.evaluated:
        note("stopped: no video was finished, nothing is written")
        return 130
    if document.evaluated:
        _write(document, output)
    late = [each for place, each in sorted(found.items()) if place not in told and isinstance(each, Failed)]
    _tell(document, late, output, export)
    if stopped:
        note(f"stopped: {len(document.evaluated)} of {len(asked)} videos are in {output}")
        return 130
    if document.failed:
        where = f"see above or {output / FILES[1]}" if document.evaluated else "see above; nothing is written"
        note(f"{len(document.failed)} of {len(asked)} videos could not be evaluated, {where}")
    return 1 if any(each.defect for each in document.failed) else 2 if document.failed or unused else 0


def _look(asked: "Sequence[Asked | Failed]", found: "dict[int, Outcome]") -> dict[int, int]:
    """Frames of the files that can be evaluated, by place. What cannot be is told now, not after hours of work."""
    from streaming.evaluation.files import Asked
    from streaming.evaluation.run import refused
    from streaming.evaluation.timing import timing

    lengths: dict[int, int] = {}
    for place, each in enumerate(asked):
        wrong = each
        if isinstance(each, Asked):
            times = timing(each.path)
            wrong = refused(each, times)
            lengths[place] = times.frames
        if wrong is not None and not isinstance(wrong, Asked):
            found[place] = wrong
            note(f"error: {wrong.file}: {wrong.error}")
    return lengths


def _measure(
    asked: "Sequence[Asked | Failed]", frames: dict[int, int], wanted: "Wanted", jobs: int, show: Display,
    found: "dict[int, Outcome]",
) -> None:  # fmt: skip
    """Fills `found`, by place in `asked`. frames: of the files, by place."""
    from streaming.evaluation.files import Asked
    from streaming.evaluation.workers import outcomes

    places = [place for place in range(len(asked)) if place not in found]
    todo = [each for place in places if isinstance(each := asked[place], Asked)]
    if not todo:
        return
    lengths = [frames[place] for place in places]
    done, finished = [0] * len(todo), 0
    progress = show.stage("evaluating", sum(lengths))

    def reach(index: int, count: int) -> None:
        done[index] = min(count, lengths[index])
        progress.reach(sum(done), f"video {min(finished + 1, len(todo))} of {len(todo)}")

    for index, outcome in outcomes(todo, wanted, jobs, reach):
        found[places[index]] = outcome
        finished += 1
        reach(index, lengths[index])


def _write(document: "Document", output: Path) -> None:
    from streaming.evaluation.report_html import html
    from streaming.evaluation.report_markdown import markdown
    from streaming.files import replacing

    texts = [text.encode() for text in (document.to_json(), markdown(document), html(document))]  # all, or none
    for name, content in zip(FILES, texts, strict=True):
        with replacing(output / name, "the report") as waiting:
            waiting.write_bytes(content)


def _tell(document: "Document", failed: "Sequence[Failed]", output: Path, export: Path | None) -> None:
    """A line about each video; warnings, and errors that were not told before, go to standard error."""
    from streaming.evaluation.document import shown
    from streaming.evaluation.vbench import export as write

    for each, rated in zip(document.evaluated, document.verdicts, strict=True):
        for line in each.warnings:
            note(f"warning: {line}")
        told = "; ".join([f"{each.results.frames} frames, badness {shown(rated.badness)}", *rated.reasons])
        print(f"{each.file}: {told}")
    for each in failed:
        note(f"error: {each.file}: {each.error}")
    print(f"reports: {', '.join(str(output / name) for name in FILES)}")
    if export is not None and document.evaluated:
        for line in write(document.evaluated, export):
            note(f"warning: {line}")
        print(f"for VBench: {export}")
