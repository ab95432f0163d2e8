"""Stages 1 and 2 on the command line: from options to a video on disk and a checkpoint beside it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch

from streaming.anchor import AnchorPolicy, Never, OnPromptChange, OnSceneChange
from streaming.checkpoint import Checkpoint, check_resume
from streaming.cli import checks
from streaming.cli.options import SETTING, Options, recall
from streaming.cli.progress import Display, note
from streaming.errors import UserError
from streaming.keys import Key
from streaming.loop import stream
from streaming.openings import ImageOpening, Opening, TextOpening, VideoOpening, fit
from streaming.parts import Parts, assemble
from streaming.presets import make_preset
from streaming.prompts import PromptSchedule
from streaming.read import Video, read_image, read_video
from streaming.registry import make_long_term, make_short_term, open_model, with_image_encoder
from streaming.types import Frames
from streaming.video import VideoWriter, piece_ends

if TYPE_CHECKING:
    from streaming.model import Model

LONGEST_OPENING = 10_000
"""Frames of a video that is continued; it is held in memory."""


@final
@dataclass(frozen=True, kw_only=True)
class Rollout:
    """All that is needed to make the frames before stage 3."""

    options: Options
    """Checked; `opening_frames` and `dtype` filled in."""
    parts: Parts
    """Model and memories."""
    opening: Opening
    """How the video begins; not looked at if there is a checkpoint."""
    last: Checkpoint | None
    """Where an earlier run ended."""

    @property
    def prompts(self) -> PromptSchedule:
        """By frame of the finished video."""
        options = self.options
        return checks.schedule(options.prompt, options.prompt_at, options.frames, options.opening_frames)

    @property
    def path(self) -> Path:
        """Where the frames go: the output, or beside it if stage 3 follows."""
        return self.options.base if self.options.enhance else self.options.path

    @property
    def kept(self) -> int:
        """Frames of the earlier run that stay: those that its checkpoint goes on from."""
        return self.last.frames_done if self.last else 0

    def writer(self, keep: int) -> VideoWriter:
        """Writes behind the first `keep` frames; without loss if stage 3 is to read them."""
        parts = self.parts
        return VideoWriter(
            self.path, fps=parts.fps, height=parts.height, width=parts.width, lossless=self.options.enhance,
            truncate=parts.truncate, keep=keep,
        )  # fmt: skip


def prepare(options: Options, last: Checkpoint | None) -> Rollout:
    """Opens the opening, loads the model and reads the prompts: what is wrong is known before the first frame."""
    opened = _open(options) if last is None else None
    device = checks.device(options.device)
    dtype = checks.dtype(_dtype(options), device)
    note(f"loading {options.model} on {device} ({str(dtype).removeprefix('torch.')})")
    model = open_model(options.model, device=device, dtype=dtype)
    if options.image_encoder is not None:
        note(f"loading the image encoder {options.image_encoder}")
        model = with_image_encoder(model, options.image_encoder)
    parts = build(options, model)
    opening = _opening(opened, parts)
    if isinstance(opening, VideoOpening):
        options = replace(options, opening_frames=len(opening.frames))
    options = replace(options, dtype=str(dtype).removeprefix("torch."))
    rollout = Rollout(options=options, parts=parts, opening=opening, last=_plain(last))
    if rollout.last is not None:
        check_resume(rollout.last, parts.settings, Key(options.seed), (rollout.prompts,))
    with torch.inference_mode():
        parts.text([*(text for _, text in rollout.prompts.entries), options.negative_prompt])
    return rollout


def _dtype(options: Options) -> str:
    """The published code streams in float32, also on a GPU."""
    return "float32" if (options.preset, options.dtype) == ("official", "auto") else options.dtype


def _open(options: Options) -> torch.Tensor | Video | None:
    if options.image:
        return read_image(options.image)
    return read_video(options.video) if options.video else None


def _opening(opened: torch.Tensor | Video | None, parts: Parts) -> Opening:
    if opened is None:
        return TextOpening()
    if isinstance(opened, torch.Tensor):
        return ImageOpening(opened)
    return VideoOpening(_at_rate(opened, parts))


def _at_rate(video: Video, parts: Parts) -> torch.Tensor:
    """A video's frames at the model's size and frame rate: the nearest in time, so that it plays as fast as before."""
    kept: list[torch.Tensor] = []
    seen = made = 0
    for piece in video.pieces:
        times = range(seen, seen := seen + piece.shape[1])
        wanted = []
        while round(made * video.fps / parts.fps) in times:
            wanted.append(round(made * video.fps / parts.fps) - times.start)
            made += 1
        kept.append(fit(piece[0][wanted], parts.height, parts.width))
        if made > LONGEST_OPENING:
            raise UserError(f"--video has more than {LONGEST_OPENING} frames: cut off its end and continue that")
    return torch.cat(kept)


def build(options: Options, model: "Model") -> Parts:
    """A model with what the options say."""
    defaults, preset = model.defaults, make_preset(options.preset, model)
    return assemble(
        model,
        short=make_short_term(options.short_term or defaults.short_term, model),
        long=make_long_term(options.long_term or defaults.long_term, model),
        preset=preset.but(kind=options.sampler, steps=options.steps, scale=options.guidance),
        negative_prompt=options.negative_prompt,
        anchors=_anchors(options.anchor_policy),
        compile=options.compile,
    )


def _anchors(policy: str) -> AnchorPolicy:
    return {"never": Never, "prompt": OnPromptChange, "scene": OnSceneChange}[policy]()


def _plain(last: Checkpoint | None) -> Checkpoint | None:
    """A checkpoint without the command line's own entry among its settings."""
    if last is None:
        return None
    return replace(last, settings={name: value for name, value in last.settings.items() if name != SETTING})


def load(path: Path, output: str | None) -> tuple[Checkpoint, Options]:
    """A checkpoint and the options of the run that wrote it; its video lies beside it, or is named."""
    last = Checkpoint.load(path)
    if output is None and path.suffix != ".checkpoint":
        raise UserError(f"--resume {path} does not end in .checkpoint: say with --output which video it belongs to")
    return last, replace(recall(last.settings, path), output=output or str(path.with_suffix("")))


def made(path: Path) -> int:
    """Frames in a video that `VideoWriter` wrote; 0 if there is none."""
    return max(piece_ends(path), default=0)


def check_goal(options: Options, last: Checkpoint) -> None:
    """Raises UserError if an earlier run has made more frames than are asked for."""
    if last.frames_done > options.goal:
        path = options.base if options.enhance else options.path
        raise UserError(f"{path} has {last.frames_done} frames already: choose more --frames than {options.frames}")


def is_complete(rollout: Rollout) -> bool:
    """Whether an earlier run has made all frames that are asked for, with these prompts.

    Raises UserError if the video that it wrote is not there any more.
    """
    rollout.writer(rollout.kept)
    last = rollout.last
    return last is not None and made(rollout.path) == rollout.options.goal and last.prompts == (rollout.prompts,)


def roll(rollout: Rollout, display: Display) -> Iterator[Frames]:
    """Makes the frames that are still missing, writes them and hands them on, chunk by chunk.

    After every chunk its checkpoint is on disk, behind its frames. A last chunk that is cut leaves the checkpoint
    before it in place, so that a longer video makes that chunk again, whole. What is overwritten stays until the first
    chunk is there.
    """
    options, goal = rollout.options, rollout.options.goal
    if rollout.last is not None:
        save(rollout.last, options)
    with rollout.writer(rollout.kept) as video:
        progress = display.stage("generating", goal, video.frames)
        for chunk in stream(
            rollout.parts, rollout.prompts, rollout.opening, key=Key(options.seed), resume=rollout.last
        ):
            frames = chunk.frames[:, : goal - video.frames]
            if not video.frames:  # an old checkpoint must not stand beside new frames
                options.checkpoint.unlink(missing_ok=True)
            video.write(frames)
            if frames.shape[1] == chunk.frames.shape[1]:
                save(chunk.checkpoint, options)
            progress.reach(video.frames, f"chunk {chunk.index + 1}")
            yield frames
            if video.frames == goal:
                return


def save(checkpoint: Checkpoint, options: Options) -> None:
    """The checkpoint with the options beside its own settings."""
    replace(checkpoint, settings={**checkpoint.settings, **options.settings()}).save(options.checkpoint)
