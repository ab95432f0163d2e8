"""`streamingt2v enhance`: stage 3 for a video that exists."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streaming.cli import checks
from streaming.cli.options import DEFAULT_MODEL, check_sampling
from streaming.cli.progress import display, note
from streaming.errors import UserError
from streaming.prompts import PromptSchedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streaming.enhance import Enhancer
    from streaming.read import Video
    from streaming.types import Frames


def enhance(
    video: Annotated[Path, typer.Argument(help="The video.")],
    prompt: Annotated[str | None, typer.Argument(help="What it shows.  [default: as it was generated]")] = None,
    model: Annotated[str, typer.Option(metavar="NAME|DIR", help="Model whose enhancer is used.")] = DEFAULT_MODEL,
    mode: Annotated[
        str, typer.Option(metavar="joint|causal", help="Enhance all chunks together, or one after the other.")
    ] = "joint",
    preset: Annotated[
        str, typer.Option(metavar="paper|official", help="The paper's enhancement, or the published code's.")
    ] = "paper",
    blender: Annotated[
        str | None, typer.Option(metavar="NAME", help="How chunks are joined.  [default: randomized, as the preset]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.  [default: the model's]")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much may change, above 0, at most 1.  [default: the model's]")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly the prompt is followed.  [default: the model's]")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What is not to be seen.", show_default=False)] = "",
    seed: Annotated[int, typer.Option(help="Another seed, other details.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="The mp4.  [default: VIDEO.enhanced.mp4]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> int:
    """Make a video larger and finer."""
    path = output or video.with_name(video.stem + ".enhanced.mp4")
    check_sampling(steps, guidance, strength)
    checks.whole("--seed", seed, 0, 2**63 - 1)
    checks.choice("--mode", mode, ("joint", "causal"))
    checks.model(model)
    from streaming.cli import stage3
    from streaming.cli.rollout import made
    from streaming.keys import Key
    from streaming.presets import PRESETS
    from streaming.read import read_video
    from streaming.registry import BLENDERS

    checks.choice("--preset", preset, PRESETS)
    if blender is not None:
        checks.plugin(BLENDERS, blender)
    source, prompts = read_video(video), _prompts(video, prompt)
    if path.exists() and path.samefile(video):
        raise UserError(f"--output {path} is the video itself: choose another name")
    checks.output(path, overwrite)
    where = checks.device(device)
    kind = checks.dtype(dtype, where)
    note(f"loading the enhancer of {model} on {where}")
    enhancer = stage3.shaped(
        stage3.load(model, where, kind, blender=blender, preset=preset, steps=steps, strength=strength,
                    guidance=guidance, negative_prompt=negative_prompt),
        source.height, source.width,
    )  # fmt: skip
    replaces = path.exists()
    try:
        with display() as show:
            pieces = stage3.enhanced(enhancer, mode, _small(source, enhancer), prompts, Key(seed), None, show)
            stage3.write(pieces, path, source.fps, enhancer)
    except KeyboardInterrupt:
        note(f"stopped: {_left(path, replaces)}")
        return 130
    height, width = enhancer.made
    print(f"{path}: {made(path)} frames of {width}x{height} at {source.fps:g} frames/s")
    return 0


def _left(path: Path, replaces: bool) -> str:
    """One line: what a stopped run leaves."""
    from streaming.cli.rollout import made

    if replaces:
        return f"{path} is the old one still, nothing of the new one is kept"
    kept = made(path)
    return f"{path} holds {kept} frames" if kept else "nothing was finished yet, nothing is kept"


def _prompts(video: Path, prompt: str | None) -> PromptSchedule:
    """The given prompt, or those of the checkpoint beside the video."""
    if prompt is not None:
        return checks.schedule(prompt, (), checks.MOST_FRAMES)
    from streaming.checkpoint import Checkpoint

    checkpoint = video.with_name(video.name + ".checkpoint")
    if not checkpoint.exists():
        raise UserError(f"what does {video} show? Say it in words behind the file name")
    return Checkpoint.load(checkpoint).prompts[0]


def _small(video: "Video", enhancer: "Enhancer") -> "Iterator[Frames]":
    """The frames; those that are larger than the result are scaled down at once, as fewer pixels wait in memory."""
    from torch.nn import functional

    size = (enhancer.height, enhancer.width)
    for piece in video.pieces:
        if video.height <= size[0]:
            yield piece
        else:
            yield functional.interpolate(piece[0], size, mode="bicubic", antialias=True).clamp(0, 1)[None]
