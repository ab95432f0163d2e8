"""What the loop runs with: a base model, two memories, guidance, sampler and sizes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from streaming.anchor import AnchorPolicy, Never
from streaming.backbone import Backbone, FeatureEncoder
from streaming.codec import Codec, TextEncoder
from streaming.errors import UserError
from streaming.guidance import Guidance
from streaming.memory import LongTermMemory, NoShortTerm, ShortTermMemory
from streaming.model import Model, check_size
from streaming.noise import Keyed, Noise
from streaming.presets import FirstChunk, Preset, make_preset
from streaming.sample import Sampler, Solver

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


@final
@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that stays the same over a video. Holds no state of a rollout."""

    backbone: Backbone
    """The denoiser."""
    codec: Codec
    """Pixels to latents and back."""
    text: TextEncoder
    """Prompts to tokens."""
    short: ShortTermMemory[Any]
    """What a chunk knows of the one before it."""
    long: LongTermMemory[Any]
    """What every chunk knows of the anchor frame."""
    guidance: Guidance
    """Which conditionings are evaluated and how they are combined."""
    sampler: Solver
    """Solver and steps."""
    scheduler: "SchedulerMixin"
    """The diffusers scheduler that gives the noise schedule and the prediction type."""
    height: int
    """Pixels, a multiple of the codec's factor."""
    width: int
    """Pixels, a multiple of the codec's factor."""
    fps: float
    """Frames a second."""
    device: torch.device
    """Where all modules are."""
    dtype: torch.dtype
    """The modules' type; the solver itself computes in float32."""
    negative_prompt: str = ""
    """What rows without a prompt read."""
    anchors: AnchorPolicy = Never()
    """When the anchor frame is renewed."""
    noise: Noise = Keyed()
    """Where random numbers come from."""
    first: FirstChunk | None = None
    """How the first chunk of a video from text is made; None: like the later ones, without memories."""
    truncate: bool = False
    """Whether colours are cut to 8 bits in a file (True) or rounded; the loop itself speaks of floats only."""
    compile: bool = False
    """Whether denoiser and memories are compiled: chunks after the first come faster, once that is done."""
    name: str = ""
    """The model's, as the user gave it."""

    def __post_init__(self) -> None:
        factor = self.codec.factor
        if self.height <= 0 or self.width <= 0 or self.height % factor or self.width % factor:
            raise UserError(
                f"a size of {self.width}x{self.height}: width and height must be positive multiples of {factor}"
            )
        for backbone in (self.backbone, *(() if self.first is None else (self.first.backbone,))):
            check_size(backbone, factor, self.height, self.width, "this model")
        if not self.fps > 0:
            raise UserError(f"{self.fps} frames a second: choose more than 0")
        if self.first is not None and self.first.backbone.window.frames != self.backbone.window.frames:
            raise UserError(
                f"a first chunk of {self.first.backbone.window.frames} latent frames does not fit later ones of "
                f"{self.backbone.window.frames}: give both networks the same window"
            )

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """All that a resumed run must share with the broken one to continue it bit for bit."""
        window = self.backbone.window
        return {
            "model": self.name,
            "size": f"{self.width}x{self.height}",
            "fps": f"{self.fps:g}",
            "dtype": str(self.dtype).removeprefix("torch."),
            "window": f"{window.frames} latent frames, overlap {window.overlap}",
            "short-term memory": f"{_describe_memory(self.short)}{_fingerprint(self.short)}",
            "long-term memory": f"{_describe_memory(self.long)}{_fingerprint(self.long)}",
            "image encoder": _borrowed(self.long),
            "guidance": _describe(self.guidance),
            "negative prompt": self.negative_prompt,
            **_solver(self.sampler),
            "anchors": _describe(self.anchors),
            "noise schedule": _schedule(self.scheduler),
            "noise": _describe(self.noise),
            "first chunk": _first(self.first),
            "compiled": "yes" if self.compile else "no",
            "8-bit colours": "truncated" if self.truncate else "rounded",
        }


def assemble(
    model: Model,
    *,
    short: ShortTermMemory[Any],
    long: LongTermMemory[Any],
    guidance: Guidance | None = None,
    sampler: Solver | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    negative_prompt: str = "",
    anchors: AnchorPolicy | None = None,
    preset: str | Preset = "paper",
    compile: bool = False,
) -> Parts:
    """Parts of a loaded model and two memories; what is not given is the model's default.

    preset: "paper", "official" (see `streaming.presets`) or one of your own; `guidance` and `sampler`, where they are
    given, replace the preset's, in the first chunk as well. compile: chunks after the first are made by compiled code,
    see `streaming.rows.compiled`; the model's weights are rearranged for that, which stays so. The memories are moved
    to the model's device and type.
    The model's own noise schedule is that of the size asked for, if it depends on the size (`Model.schedule`).
    Raises UserError for sizes that codec or network cannot hold, and for a preset that does not suit the model.
    """
    if not model.backbone.window.overlap and not isinstance(short, NoShortTerm):
        raise UserError(
            "the windows of this model do not overlap, so there is nothing for a short-term memory to remember: "
            "give it an overlap, or choose the short-term memory none"
        )
    if compile:
        _optimize(model.backbone, short, long)
    defaults = model.defaults
    chosen = make_preset(preset, model) if isinstance(preset, str) else preset
    height = defaults.height if height is None else height
    width = defaults.width if width is None else width

    def for_size(scheduler: "SchedulerMixin", owner: Model) -> "SchedulerMixin":
        return owner.scheduler_for(height, width) if scheduler is owner.scheduler else scheduler

    first = chosen.first and replace(
        chosen.first,
        guidance=guidance or chosen.first.guidance,
        sampler=sampler or chosen.first.sampler,
        scheduler=for_size(chosen.first.scheduler, model.first or model),
    )
    return Parts(
        backbone=model.backbone,
        codec=model.codec,
        text=model.text,
        short=short.to(model.device, model.dtype).eval(),
        long=long.to(model.device, model.dtype).eval(),
        guidance=guidance or chosen.guidance,
        sampler=sampler or chosen.sampler,
        scheduler=for_size(chosen.scheduler, model),
        height=height,
        width=width,
        fps=defaults.fps if fps is None else fps,
        device=model.device,
        dtype=model.dtype,
        negative_prompt=negative_prompt,
        anchors=anchors or Never(),
        noise=chosen.noise,
        first=first,
        truncate=chosen.truncate,
        compile=compile,
        name=model.name,
    )


def _optimize(*parts: nn.Module) -> None:
    for module in [module for part in parts for module in part.modules()]:
        if isinstance(module, Backbone | FeatureEncoder):
            module.optimize()


def _solver(sampler: Solver) -> Mapping[str, str]:
    steps = {"steps": str(sampler.steps)}
    if isinstance(sampler, Sampler):
        return {"sampler": sampler.kind, "eta": f"{sampler.eta:g}", **steps}
    return {"sampler": _describe(sampler), **steps}


def _first(first: FirstChunk | None) -> str:
    if first is None:
        return "like the others"
    network = f"{type(first.backbone).__qualname__}{_fingerprint(first.backbone)}"
    return f"{network}, {_describe(first.guidance)}, {_describe(first.sampler)}, {_schedule(first.scheduler)}"


def _describe(value: object) -> str:
    return repr(value) if is_dataclass(value) else type(value).__qualname__


def _describe_memory(memory: torch.nn.Module) -> str:
    inner = getattr(memory, "inner", None)
    name = type(memory).__qualname__
    return f"{name}({_describe_memory(inner)})" if isinstance(inner, torch.nn.Module) else name


def _borrowed(memory: LongTermMemory[Any]) -> str:
    return ", ".join(f"{type(module).__qualname__}{_fingerprint(module)}" for module in memory.borrowed) or "none"


def _fingerprint(module: torch.nn.Module) -> str:
    """Tells weights apart by a few numbers of each tensor; reading them all would take seconds at full size."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        some = value.flatten()[:: max(1, value.numel() // 16)].float().cpu()
        digest.update(f"{name} {tuple(value.shape)} {some.tolist()}".encode())
    return f" {digest.hexdigest()[:8]}" if module.state_dict() else ""


def _schedule(scheduler: "SchedulerMixin") -> str:
    config = dict(scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
    told = {name: value for name, value in sorted(config.items()) if not name.startswith("_")}
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]
