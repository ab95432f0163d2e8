"""The options of `generate` as a value: checked, kept in the checkpoint, and merged when a video is continued."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from streaming.cli import checks
from streaming.errors import UserError

DEFAULT_MODEL = "tiny-modelscope"

SETTING = "command"
"""Under which the options stand among a checkpoint's settings, as JSON."""

FREE = frozenset({"frames", "prompt_at", "device", "overwrite", "enhance_mode", "strength", "blender"})
"""Options that may differ from the first run's when a video is continued."""


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """What `generate` was asked for. None: the model's own default."""

    prompt: str = ""
    """What is to be seen."""
    frames: int = 80
    """Frames of the video; with `video` those that are added to it."""
    prompt_at: tuple[str, ...] = ()
    """Later prompts, FRAME:TEXT."""
    image: str | None = None
    """Image that the video begins with."""
    video: str | None = None
    """Video that is continued."""
    seed: int = 0
    """Names the randomness."""
    steps: int | None = None
    """Denoising steps a chunk."""
    guidance: float | None = None
    """Classifier-free guidance scale."""
    negative_prompt: str = ""
    """What is not to be seen."""
    model: str = DEFAULT_MODEL
    """Registered name or folder."""
    short_term: str | None = None
    """Registered short-term memory."""
    long_term: str | None = None
    """Registered long-term memory."""
    image_encoder: str | None = None
    """What the long-term memory sees the anchor frame with, as `registry.image_encoder_spec` reads it."""
    sampler: str | None = None
    """Solver."""
    preset: str = "paper"
    """Settings that the method or the published code has; options that are given come first."""
    anchor_policy: str = "never"
    """When the anchor frame is renewed."""
    enhance: bool = False
    """Whether stage 3 follows."""
    enhance_mode: str = "joint"
    """Whether it couples the whole video or streams."""
    blender: str | None = None
    """Registered chunk blender of stage 3; None: the preset's."""
    strength: float | None = None
    """Share of the noise schedule that stage 3 goes through."""
    device: str = "auto"
    """Where it computes."""
    dtype: str = "auto"
    """Type of the weights."""
    compile: bool = False
    """Whether denoiser and memories are compiled."""
    output: str | None = None
    """The mp4; None: named after the prompt."""
    overwrite: bool = False
    """Whether an existing output is replaced."""
    opening_frames: int = 0
    """Frames of `video` at the model's frame rate; known once it was read."""

    @property
    def goal(self) -> int:
        """Frames of the finished video."""
        return self.opening_frames + self.frames

    @property
    def path(self) -> Path:
        """The mp4."""
        return Path(self.output or checks.slug(self.prompt))

    @property
    def checkpoint(self) -> Path:
        """What a later run continues from, beside the mp4."""
        return self.path.with_name(self.path.name + ".checkpoint")

    @property
    def base(self) -> Path:
        """The video before stage 3, without loss, beside the mp4."""
        return self.path.with_name(self.path.stem + ".base.mp4")

    def settings(self) -> dict[str, str]:
        """For a checkpoint's settings."""
        return {SETTING: json.dumps(asdict(self))}


def check(options: Options) -> None:
    """Raises UserError for the first option that cannot be; reads no model."""
    checks.whole("--frames", options.frames, 1, checks.MOST_FRAMES)
    checks.schedule(options.prompt, options.prompt_at, options.frames)
    checks.whole("--seed", options.seed, 0, 2**63 - 1)
    check_sampling(options.steps, options.guidance, options.strength)
    if options.image and options.video:
        raise UserError("--image and --video both say how the video begins: keep one of them")
    check_names(options)


def check_sampling(steps: int | None, guidance: float | None, strength: float | None) -> None:
    """The numbers that `generate` and `enhance` share."""
    if steps is not None:
        checks.whole("--steps", steps, 1, 1000)
    if guidance is not None:
        checks.number("--guidance", guidance, 0.0, 100.0)
    if strength is not None:
        checks.number("--strength", strength, 0.0, 1.0, above=True)


def check_names(options: Options) -> None:
    """Words that stand for something registered or built in."""
    from streaming import registry
    from streaming.presets import PRESETS
    from streaming.sample import KINDS

    checks.choice("--anchor-policy", options.anchor_policy, ("never", "prompt", "scene"))
    checks.choice("--enhance-mode", options.enhance_mode, ("joint", "causal"))
    checks.choice("--preset", options.preset, PRESETS)
    if options.sampler:
        checks.choice("--sampler", options.sampler, KINDS)
    checks.model(options.model)
    if options.image_encoder is not None:
        registry.image_encoder_spec(options.image_encoder)
    for group, name in (
        (registry.SHORT_TERM_MEMORIES, options.short_term),
        (registry.LONG_TERM_MEMORIES, options.long_term),
        (registry.BLENDERS, options.blender),
    ):
        if name is not None:
            checks.plugin(group, name)


def recall(settings: Mapping[str, str], path: Path) -> Options:
    """The options of the run that wrote a checkpoint. Raises UserError if it was not written by `generate`."""
    try:
        saved: dict[str, Any] = json.loads(settings[SETTING])
        return Options(**{**saved, "prompt_at": tuple(saved["prompt_at"])})
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} was not written by this version of 'streamingt2v generate': continue it with the one that wrote it"
        ) from error


def merge(first: Options, given: Mapping[str, Any]) -> Options:
    """The first run's options with those `given` now. Raises UserError if one of them cannot change any more."""
    for name, new in given.items():
        old = getattr(first, name)
        if name not in FREE and old != new:
            raise UserError(
                f"{_flag(name)} cannot change when a video is continued: "
                f"it was {_shown(old)}, now it is {_shown(new)}; leave it out or start a new video"
            )
    if "prompt_at" in given:
        given = {**given, "prompt_at": _later(first.prompt_at, given["prompt_at"])}
    return replace(first, **given)


def _later(first: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, ...]:
    """Both runs' later prompts; at the same frame the new one counts."""
    return tuple({text.partition(":")[0].strip(): text for text in (*first, *now)}.values())


def _flag(name: str) -> str:
    return "PROMPT" if name == "prompt" else "--" + name.replace("_", "-")


def _shown(value: object) -> str:
    return "left out" if value is None else f"'{value}'"
