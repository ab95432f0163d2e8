"""`streamingt2v train PART`: train one part of a model; found by the entry point group `streaming.trainers`."""

import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

import typer

from streaming.errors import UserError

MEMORIES = ("cam", "apm", "memories", "cam+frame-mask", "conc-cond", "add-cond", "append")
"""Parts that are trained on a base model that is there."""
ANCHORED = ("apm", "append", "memories")
"""Parts that see an anchor frame."""
BEGINNING = ("base", "enhancer", "judge", "transformer", "cam", "apm", "memories")
"""Parts that can begin from trained weights."""
SHOWN = ("cam", "cam+frame-mask", "add-cond", "memories")
"""Parts that are shown the last frames, as pixels or as latents."""
ATTENDING = ("cam", "cam+frame-mask", "memories")
"""Parts that attend to remembered frames."""


def train(
    part: Annotated[
        str,
        typer.Argument(
            help="What to train: vae, clip, text, image, judge, base, transformer, enhancer, memories, cam, apm, "
            "conc-cond, add-cond, append, cam+frame-mask or a plugin's."
        ),
    ],
    work: Annotated[Path, typer.Option(help="Model directory that grows part by part; training resumes from it.")],
    steps: Annotated[int | None, typer.Option(help="Steps of the whole plan.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Save and stop after these minutes; run again to go on.")
    ] = None,
    within: Annotated[float | None, typer.Option(help="Fit the whole plan into these minutes.")] = None,
    batch: Annotated[int | None, typer.Option(help="Clips per process and step.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile with torch.compile.")] = False,
    checkpoint_gradients: Annotated[
        bool, typer.Option("--checkpoint-gradients", help="Spare memory: compute activations twice.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    toy: Annotated[bool, typer.Option("--toy", help="Toy sizes, to rehearse.")] = False,
    dataset: Annotated[str, typer.Option(help="Captioned clips to train on.")] = "procedural-world",
    begin: Annotated[
        Path | None,
        typer.Option(
            help="For base, enhancer, judge, transformer, cam, apm and memories: a model directory whose weights they "
            "begin from."
        ),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="For apm, append and memories: what they see the anchor frame with. Give `generate` the same.",
        ),
    ] = None,
    condition: Annotated[
        Literal["pixels", "latents"] | None,
        typer.Option(
            help="For cam, cam+frame-mask, add-cond and memories: what they see of the last frames.  "
            "[default: pixels, as in the paper, unless the autoencoder packs frames]",
            show_default=False,
        ),
    ] = None,
    distances: Annotated[
        bool,
        typer.Option(
            "--distances",
            help="For cam, cam+frame-mask and memories: attention knows how far away a remembered frame lies, "
            "unlike the paper's.",
        ),
    ] = False,
) -> None:
    """Train one part of a model on captioned clips.

    Several GPUs: `accelerate launch --num_processes N -m streaming.cli.train PART --work DIR`.
    Raises UserError if no trainer has that name or an option is out of range.
    """
    from streaming.training import TrainOptions

    found = {point.name: point for point in entry_points(group="streaming.trainers")}
    if part not in found:
        raise UserError(f'no trainer is called "{part}"; there are: {", ".join(sorted(found))}')
    ours = found[part].value.startswith(("adapters.", "backends."))  # a plugin's part may take what it likes
    if image_encoder is not None and ours and part not in ANCHORED:
        raise UserError(f"{part} sees no anchor frame: leave --image-encoder out, it is for {_listed(ANCHORED)}")
    if condition is not None and ours and part not in SHOWN:
        raise UserError(f"{part} has no choice of what it sees: leave --condition out, it is for {_listed(SHOWN)}")
    if distances and ours and part not in ATTENDING:
        raise UserError(f"{part} does not attend to frames: leave --distances out, it is for {_listed(ATTENDING)}")
    if begin is not None and ours and part not in BEGINNING:
        raise UserError(f"{part} begins from random weights: leave --begin out, it is for {_listed(BEGINNING)}")
    _check_work(part, work)
    options = TrainOptions(
        work=work, steps=steps, minutes=minutes, within=within, batch=batch, compile=compile,
        checkpoint_gradients=checkpoint_gradients, device=device, toy=toy, dataset=dataset, begin=begin,
        image_encoder=image_encoder, condition=condition, distances=distances,
    )  # fmt: skip
    found[part].load()(options)


def _listed(parts: tuple[str, ...]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _check_work(part: str, work: Path) -> None:
    """Raises UserError if a folder cannot be written, or is new though a memory is trained for the model in it."""
    if part in MEMORIES and (not work.exists() or (work.is_dir() and not any(work.iterdir()))):
        raise UserError(f"--work {work} holds no base model yet: train vae, clip and base first")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"--work {work} cannot be written ({reason}): choose another folder") from error


def _main() -> None:
    import sys

    try:
        typer.run(train)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    _main()
