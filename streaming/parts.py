"""What the loop runs with: a base model, two memories, guidance, sampler and sizes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import torch

from streaming.anchor import AnchorPolicy, Never
from streaming.backbone import Backbone
from streaming.codec import Codec, TextEncoder
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, Guidance
from streaming.memory import LongTermMemory, ShortTermMemory
from streaming.model import Model
from streaming.sample import Sampler

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
    sampler: Sampler
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
    name: str = ""
    """The model's, as the user gave it."""

    def __post_init__(self) -> None:
        factor = self.codec.factor
        if self.height <= 0 or self.width <= 0 or self.height % factor or self.width % factor:
            raise UserError(
                f"a size of {self.width}x{self.height}: width and height must be positive multiples of {factor}"
            )
        if not self.fps > 0:
            raise UserError(f"{self.fps} frames a second: choose more than 0")

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
            "guidance": _describe(self.guidance),
            "negative prompt": self.negative_prompt,
            "sampler": self.sampler.kind,
            "steps": str(self.sampler.steps),
            "eta": f"{self.sampler.eta:g}",
            "anchors": _describe(self.anchors),
            "noise schedule": _schedule(self.scheduler),
        }


def assemble(
    model: Model,
    *,
    short: ShortTermMemory[Any],
    long: LongTermMemory[Any],
    guidance: Guidance | None = None,
    sampler: Sampler | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    negative_prompt: str = "",
    anchors: AnchorPolicy | None = None,
) -> Parts:
    """Parts of a loaded model and two memories; what is not given is the model's default.

    The memories are moved to the model's device and type. Raises UserError for sizes that the codec cannot hold.
    """
    defaults = model.defaults
    return Parts(
        backbone=model.backbone,
        codec=model.codec,
        text=model.text,
        short=short.to(model.device, model.dtype).eval(),
        long=long.to(model.device, model.dtype).eval(),
        guidance=guidance or ClassifierFree(defaults.guidance),
        sampler=sampler or Sampler(defaults.sampler, defaults.steps, defaults.eta),
        scheduler=model.scheduler,
        height=defaults.height if height is None else height,
        width=defaults.width if width is None else width,
        fps=defaults.fps if fps is None else fps,
        device=model.device,
        dtype=model.dtype,
        negative_prompt=negative_prompt,
        anchors=anchors or Never(),
        name=model.name,
    )


def _describe(value: object) -> str:
    return repr(value) if is_dataclass(value) else type(value).__qualname__


def _describe_memory(memory: torch.nn.Module) -> str:
    inner = getattr(memory, "inner", None)
    name = type(memory).__qualname__
    return f"{name}({_describe_memory(inner)})" if isinstance(inner, torch.nn.Module) else name


def _fingerprint(memory: torch.nn.Module) -> str:
    """Tells weights apart by a few numbers of each tensor; reading them all would take seconds at full size."""
    digest = hashlib.sha256()
    for name, value in memory.state_dict().items():
        some = value.flatten()[:: max(1, value.numel() // 16)].float().cpu()
        digest.update(f"{name} {tuple(value.shape)} {some.tolist()}".encode())
    return f" {digest.hexdigest()[:8]}" if memory.state_dict() else ""


def _schedule(scheduler: "SchedulerMixin") -> str:
    config = dict(scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
    told = {name: value for name, value in sorted(config.items()) if not name.startswith("_")}
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]
