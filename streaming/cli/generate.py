"""`streamingt2v generate`: a long video from text."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from streaming.cli import checks
from streaming.cli.options import Options, check, merge
from streaming.errors import UserError

MODELS = "  [default: the model's]"

OFFICIAL = (
    "what the published code computes (noise from one generator, seed 33; ddim, 50 steps, guidance 7.5; first chunk: "
    "dpm++, 50 steps, guidance 9; colours cut to 8 bits; float32); options that are given come first"
)
"""What the preset sets; docs/presets.md says more."""


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What is to be seen.")] = None,
    frames: Annotated[
        int | None, typer.Option(help=f"Frames of the video; with --video those added.  [default: {Options.frames}]")
    ] = None,
    prompt_at: Annotated[
        list[str] | None,
        typer.Option(metavar="FRAME:TEXT", help="Another prompt from that frame on; may be given several times."),
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Image that the video begins with.")] = None,
    video: Annotated[str | None, typer.Option(metavar="FILE", help="Video that is continued.")] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"The same seed gives the same video.  [default: {Options.seed}]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps a chunk." + MODELS)] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly the prompt is followed; 1: no guidance." + MODELS)
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What is not to be seen.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help=f"Base model, see `models`.  [default: {Options.model}]")
    ] = None,
    short_term: Annotated[str | None, typer.Option(metavar="NAME", help="Memory of the last chunk." + MODELS)] = None,
    long_term: Annotated[str | None, typer.Option(metavar="NAME", help="Memory of the anchor frame." + MODELS)] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="What the memory sees the anchor frame with: a folder, or LIBRARY:MODEL:FILE, such as "
            "open_clip:ViT-H-14:weights.safetensors or timm:..." + MODELS,
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="ddim, dpm++, dpm++sde or euler." + MODELS)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"paper, or official: {OFFICIAL}.  [default: {Options.preset}]"),
    ] = None,
    anchor_policy: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help=f"Renew the anchor frame: never, prompt (as it changes) or scene.  [default: {Options.anchor_policy}]",
        ),
    ] = None,
    enhance: Annotated[
        bool | None, typer.Option("--enhance/--no-enhance", help="Let the model's enhancer make it larger and finer.")
    ] = None,
    enhance_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help=f"joint (all chunks together) or causal (each at once).  [default: {Options.enhance_mode}]",
        ),
    ] = None,
    blender: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How enhanced chunks are joined.  [default: randomized, as the preset]"),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much the enhancer may change, above 0, at most 1." + MODELS)
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"auto, cpu, cuda or cuda:NUMBER.  [default: {Options.device}]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"auto, {', '.join(checks.DTYPES[1:])}.  [default: {Options.dtype}]"),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile", help="Compile the model first: pays for long videos of large models on a GPU."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go on with a video: its .checkpoint; more --frames: a longer one."),
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="The mp4.  [default: PROMPT's words]")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace an existing output.")] = None,
) -> int:
    """Make a long video from text.

    It is written while it is made. Ctrl-C keeps what exists and says how to go on.
    """
    said: dict[str, Any] = dict(
        prompt=prompt, frames=frames, prompt_at=tuple(prompt_at or ()) or None, image=image, video=video, seed=seed,
        steps=steps, guidance=guidance, negative_prompt=negative_prompt, model=model, short_term=short_term,
        long_term=long_term, image_encoder=image_encoder, sampler=sampler, preset=preset,
        anchor_policy=anchor_policy, enhance=enhance, enhance_mode=enhance_mode, blender=blender, strength=strength,
        device=device, dtype=dtype, compile=compile, output=output, overwrite=overwrite,
    )  # fmt: skip
    given = {name: value for name, value in said.items() if value is not None}
    for name in ("output", "image", "video"):
        if name in given and not given[name].strip():
            raise UserError(f"--{name} is empty: name a file or leave --{name} out")
    return _begin(Options(**given)) if resume is None else _resume(resume, given)


def _begin(options: Options) -> int:
    check(options)
    if not options.overwrite:
        _check_unfinished(options)
    checks.output(options.path, options.overwrite)
    from streaming.cli.production import produce

    return produce(options, None)


def _check_unfinished(options: Options) -> None:
    """Raises UserError if an earlier run left a checkpoint, or frames that wait for enhancement."""
    if options.checkpoint.exists():
        there = options.path if options.path.exists() else options.checkpoint
        raise UserError(
            f"{there} exists already: choose another --output, replace it with --overwrite, "
            f"or go on with it by --resume {shlex.quote(str(options.checkpoint))}"
        )
    if options.enhance and options.base.exists():
        raise UserError(f"{options.base} exists already: choose another --output, or replace it with --overwrite")


def _resume(checkpoint: Path, given: dict[str, Any]) -> int:
    from streaming.cli.production import produce
    from streaming.cli.rollout import check_goal, load

    last, first = load(checkpoint, given.pop("output", None))
    options = merge(first, given)
    check(options)
    check_goal(options, last)
    checks.output(options.path, overwrite=True)
    return produce(options, last)
