"""`streamingt2v ablate`: the paper's ablations on a model."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streaming.cli import checks
from streaming.cli.options import DEFAULT_MODEL, check_sampling
from streaming.cli.progress import Stage, display, note
from streaming.errors import UserError

if TYPE_CHECKING:
    import torch

    from streaming.ablation.plan import Table
    from streaming.ablation.run import Found
    from streaming.ablation.study import Study
    from streaming.ablation.videos import Sampled

DATASETS = "streaming.datasets"


def ablate(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for results.json, report.md and the variants.")],
    model: Annotated[str, typer.Option(metavar="NAME|DIR", help="The base model.")] = DEFAULT_MODEL,
    memories: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with the trained cam, conc-cond, add-cond, apm and append.  [default: the model's]",
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="short-term, long-term or blending; may be given several times.  [default: all]"
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts, drawn from the dataset.")] = 64,
    prompts_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt a line, in place of drawn ones.")
    ] = None,
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Whose prompts are drawn.")] = "procedural-world",
    told_once: Annotated[
        bool,
        typer.Option(
            "--told-once",
            help="The first chunk's prompt names, besides, what later prompts leave to long-term memory, if the "
            "dataset knows.",
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(help="Videos of every prompt.")] = 3,
    frames: Annotated[int, typer.Option(help="Frames of every video.")] = 240,
    steps: Annotated[int | None, typer.Option(help="Denoising steps a chunk.  [default: the model's]")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly the prompt is followed.  [default: the model's]")
    ] = None,
    anchor_guidance: Annotated[
        float | None,
        typer.Option(help="Scale of the anchor on top of the prompt's, by a third evaluation, as in the paper."),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(metavar="NAME", help="CLIP model for the distance from the first frame, as `evaluate`; or none."),
    ] = "embedded",
    lpips: Annotated[
        str | None,
        typer.Option(metavar="NET:FILE", help="Also the LPIPS distance from the first frame, as `evaluate`."),
    ] = None,
    judge: Annotated[
        str, typer.Option(metavar="NAME", help="Who tells the hidden pattern: embedded, embedded:DIR, or none.")
    ] = "embedded",
    no_track: Annotated[
        bool, typer.Option("--no-track", help="Do not look for an object of the tiny model's world.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Videos made together.  [default: 64 on a GPU, 8 elsewhere]")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes that measure.  [default: as many as processors, 16 at most]")
    ] = None,
    keep: Annotated[int, typer.Option(help="Videos of each variant that are kept as mp4.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "float32",
) -> int:
    """Repeat the paper's ablations: make each variant's videos, measure them, compare them prompt by prompt.

    Variants that are finished in --output are not made again; memories without weights, and variants whose videos
    cannot be made, are skipped and told. Exit code 0 if every variant asked for is there, 2 if not.
    """
    for option, value, low, high in (
        ("--prompts", prompts, 2, 10_000), ("--seeds", seeds, 1, 1000), ("--frames", frames, 2, checks.MOST_FRAMES),
        ("--keep", keep, 0, 10_000), ("--batch", 1 if batch is None else batch, 1, 10_000),
        ("--jobs", 1 if jobs is None else jobs, 1, 256),
    ):  # fmt: skip
        checks.whole(option, value, low, high)
    check_sampling(steps, guidance, None)
    if anchor_guidance is not None:
        checks.number("--anchor-guidance", anchor_guidance, 0.0, 100.0)
    checks.model(model)
    _check_output(output)
    from streaming.ablation.plan import TABLES
    from streaming.ablation.videos import Sampled

    for name in table or ():
        checks.choice("--table", name, (each.name for each in TABLES))
    tables = [each for each in TABLES if not table or each.name in table]
    sampled = Sampled(
        prompts=_prompts(prompts_file, dataset, prompts), seeds=seeds, frames=frames, steps=steps, guidance=guidance,
        anchor_guidance=anchor_guidance,
        openings=_openings(prompts_file, dataset, prompts) if told_once else None,
    )  # fmt: skip
    where = checks.device(device)
    study = _study(
        model, where, checks.dtype(dtype, where), memories, sampled, (clip, lpips), judge, not no_track, output,
        batch or (64 if where.type == "cuda" else 8), jobs or min(16, _processors()), keep,
    )  # fmt: skip
    try:
        found = _run(study, tables)
    except KeyboardInterrupt:
        note(f"stopped: finished variants are kept in {output / 'variants'}, the same command goes on from there")
        return 130
    if not found.rows:
        raise UserError(f"nothing could be made: {next(iter(found.skipped.values()))}")
    _write(tables, found, study)
    if others := sorted({path.stem for path in (output / "variants").glob("*.json")} - set(found.rows)):
        note(f"not in the report, as no table asked for has them: {', '.join(others)}")
    return 2 if found.skipped else 0


def _check_output(folder: Path) -> None:
    """Makes the folder. Raises UserError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"--output {folder} cannot be written ({reason}): choose another folder") from error


def _prompts(file: Path | None, dataset: str, count: int) -> tuple[str, ...]:
    """Those of a file, else drawn from a dataset."""
    if file is not None:
        try:
            lines = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts-file {file} cannot be read ({error}): name a text with a prompt a line"
            ) from error
        if len(lines) < 2:
            raise UserError(f"--prompts-file {file} has {len(lines)} prompts: intervals need 2 at least")
        return lines
    from streaming.registry import load

    return tuple(load(DATASETS, dataset)().prompts(count, _drawing()))


def _openings(file: Path | None, dataset: str, count: int) -> tuple[str, ...]:
    """What first chunks are asked for. Raises UserError if nobody knows."""
    if file is not None:
        raise UserError("--told-once: a file of prompts says nothing of first chunks: leave out one of the two")
    from streaming.registry import load

    told = load(DATASETS, dataset)().openings(count, _drawing())
    if told is None:
        raise UserError(f"--told-once: the dataset {dataset} does not know what prompts leave open: leave it out")
    if len(told) != count:
        raise UserError(f"--told-once: the dataset {dataset} gave {len(told)} openings for {count} prompts: mend it")
    return tuple(told)


def _drawing() -> "torch.Generator":
    """What draws the prompts."""
    from streaming.keys import Key

    return Key(0).fold("ablation", "prompts").generator()


def _study(
    name: str, device: "torch.device", dtype: "torch.dtype", memories: Path | None, sampled: "Sampled",
    anchor: tuple[str, str | None], judge: str, track: bool, output: Path, batch: int, jobs: int, keep: int,
) -> "Study":  # fmt: skip
    from streaming.ablation.judge import make_judge
    from streaming.ablation.measure import Measures
    from streaming.ablation.study import Study
    from streaming.evaluation.equip import Wanted, check
    from streaming.metrics.clip_registry import make_clip
    from streaming.metrics.missing import need
    from streaming.registry import open_model

    need("cv2", "an ablation", "opencv-python-headless")
    need("scenedetect", "an ablation")
    clip, lpips = anchor
    if clip != "none":
        make_clip(clip)
    if lpips is not None:
        wanted = Wanted(flow="none", lpips=lpips)
        check(wanted)
        need("lpips", "--lpips")
    asked = None if judge == "none" else make_judge(judge)
    if memories is not None and not memories.is_dir():
        raise UserError(f"--memories {memories} is no folder: name one with trained memories, or leave it out")
    note(f"loading {name} on {device}")
    model = open_model(name, device=device, dtype=dtype)
    if sampled.openings is not None:
        try:
            model.text(list(sampled.openings))
        except UserError as error:
            raise UserError(f"--told-once asks {name} for what it has no words for: {error}") from error
    return Study(
        model=model, memories=memories, sampled=sampled,
        measures=Measures(clip=clip, track=track, lpips=lpips), judge=asked, batch=batch, jobs=jobs,
        output=output, keep=keep,
    )  # fmt: skip


def _run(study: "Study", tables: "list[Table]") -> "Found":
    from streaming.ablation.run import run

    stages: dict[str, Stage] = {}
    with display() as show:

        def report(name: str, done: int, total: int) -> None:
            if name not in stages:
                stages[name] = show.stage(name, total)
            stages[name].reach(done, "all videos together")

        return run(study, tables, report, note)


def _write(tables: "list[Table]", found: "Found", study: "Study") -> None:
    from streaming.ablation import report
    from streaming.ablation.figures import figures
    from streaming.files import replacing
    from streaming.metrics.paired import Procedure

    how = Procedure()
    every = [figures(each, found, how) for each in tables]
    about = (every, found, study.sampled, study.model.name, how)
    text = report.markdown(*about)
    for name, content in (("results.json", report.as_json(*about)), ("report.md", text)):
        with replacing(study.output / name, "the report") as waiting:
            waiting.write_text(content, encoding="utf-8")
    print(text, end="")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
