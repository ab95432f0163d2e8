"""Stage 3's parts: a video-to-video model, and what both modes of enhancement do with a single chunk."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from streaming.backbone import Backbone
from streaming.blend import ChunkBlender, randomized, randomized_official
from streaming.codec import Codec, EncodedText, TextEncoder
from streaming.errors import UserError
from streaming.guidance import Guidance, scaled
from streaming.keys import Key
from streaming.model import Model, check_size
from streaming.presets import PRESETS
from streaming.rows import encode_rows, guided_denoiser
from streaming.sample import Solver, Step
from streaming.sample_sde import TRAILING_SDE, make_solver
from streaming.types import Frames, Latents

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Clip: TypeAlias = Float[Tensor, "_ _ 3 _ _"]
"""RGB frames of a video in [0, 1] before enhancement [batch, time, 3, rows, cols], of any number and size."""

Size: TypeAlias = tuple[int, int]
"""Rows and columns."""


@final
@dataclass(frozen=True, kw_only=True)
class Enhancer:
    """Everything that stays the same over an enhancement [StreamingT2V §4.3]. Holds no state of a video."""

    backbone: Backbone
    """The video-to-video denoiser."""
    codec: Codec
    """Pixels to latents and back."""
    text: TextEncoder
    """Prompts to tokens."""
    guidance: Guidance
    """Which conditionings are evaluated and how they are combined."""
    sampler: Solver
    """Solver and steps; all steps fall into the part of the schedule that `strength` names."""
    scheduler: "SchedulerMixin"
    """The diffusers scheduler that gives the noise schedule and the prediction type."""
    blender: ChunkBlender
    """How chunks overlap and agree."""
    strength: float
    """In (0, 1]: how much of the noise schedule is gone back; little keeps the video, much invents detail."""
    height: int
    """Pixels of the enhanced video, a multiple of the codec's factor."""
    width: int
    """Pixels of the enhanced video, a multiple of the codec's factor."""
    device: torch.device
    """Where the modules are; latents that wait stay on the host."""
    dtype: torch.dtype
    """The modules' type; the solver itself computes in float32."""
    negative_prompt: str = ""
    """What rows without a prompt read."""
    prompt_suffix: str = ""
    """Put behind every prompt."""
    canvas: Size | None = None
    """Rows and columns of the frames that the model sees, with the video in the middle, on black; None: the video's."""
    bars: bool = False
    """Whether the black around the video stays in the result."""
    schedule: "Callable[[int, int], SchedulerMixin] | None" = None
    """Rows and columns of `seen` -> the scheduler for such frames, see `Model.schedule`; None: `scheduler` for all."""

    def __post_init__(self) -> None:
        rows, cols = self.seen
        factor = self.codec.factor
        if rows <= 0 or cols <= 0 or rows % factor or cols % factor:
            raise UserError(f"enhancement to {cols}x{rows}: width and height must be positive multiples of {factor}")
        if not (0 < self.height <= rows and 0 < self.width <= cols):
            raise UserError(f"enhancement to {self.width}x{self.height}: this model takes at most {cols}x{rows}")
        check_size(self.backbone, factor, rows, cols, "this enhancer")
        if not 0 < self.strength <= 1:
            raise UserError(f"an enhancement of strength {self.strength}: choose more than 0 and at most 1")
        self.sampler.plan(self.scheduler, self.strength)  # what cannot be is to be known before a frame is made

    @property
    def seen(self) -> Size:
        """Rows and columns of the frames that the model sees."""
        return self.canvas or (self.height, self.width)

    def sized(self, height: int, width: int) -> "Enhancer":
        """The enhancer for a video of this size in pixels. Raises UserError as the constructor does."""
        if self.schedule is None or self.canvas is not None or (height, width) == self.seen:
            return replace(self, height=height, width=width)
        return replace(self, height=height, width=width, scheduler=self.schedule(height, width))

    @property
    def made(self) -> Size:
        """Rows and columns of the resulting frames."""
        return self.seen if self.bars else (self.height, self.width)


def assemble_enhancer(
    model: Model,
    blender: ChunkBlender | None = None,
    *,
    preset: str = "paper",
    steps: int | None = None,
    strength: float | None = None,
    guidance: Guidance | float | None = None,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
) -> Enhancer:
    """An enhancer from a loaded model (`Backend.enhancer`); what is not given is the model's default, or the preset's.

    guidance: a scale, with the rescaling of the model or preset, or anything else. Preset "official" is the published
    code's enhancement: its probabilities of randomized blending, its solver and start with 30 steps, strength 0.6,
    guidance 7.5 of which 0.2 is rescaled, a comma behind the prompt, and black bars that stay. A noise schedule that
    depends on the size is that of the size asked for.
    Raises UserError for an unknown preset, and as `Enhancer` does.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}': choose {' or '.join(PRESETS)}")
    defaults, window = model.defaults, model.backbone.window
    published = preset == "official"
    if published and "beta_schedule" not in model.scheduler.config:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError("preset 'official' is for diffusions; this enhancer is a rectified flow: choose preset 'paper'")
    if published:
        own = {"steps": 30, "strength": 0.6, "guidance": 7.5, "rescale": 0.2, "sampler": TRAILING_SDE, "eta": 1.0}
        defaults = replace(defaults, **own)
    solver = make_solver(
        defaults.sampler, defaults.steps if steps is None else steps, defaults.eta, published_start=published
    )
    chosen = defaults.guidance if guidance is None else guidance
    canvas = (defaults.canvas_height, defaults.canvas_width)
    height = defaults.height if height is None else height
    width = defaults.width if width is None else width
    return Enhancer(
        backbone=model.backbone,
        codec=model.codec,
        text=model.text,
        guidance=chosen if isinstance(chosen, Guidance) else scaled(chosen, defaults.rescale),
        sampler=solver,
        scheduler=model.scheduler if all(canvas) else model.scheduler_for(height, width),
        blender=blender or (randomized_official if published else randomized)(window.frames, window.overlap),
        strength=defaults.strength if strength is None else strength,
        height=height,
        width=width,
        device=model.device,
        dtype=model.dtype,
        negative_prompt=negative_prompt,
        prompt_suffix=", " if published else "",
        canvas=canvas if all(canvas) else None,
        bars=published,
        schedule=model.schedule,
    )


def check_frames(frames: Frames) -> None:
    """Raises UserError unless it is one video, finite, with at least one frame."""
    if frames.shape[0] != 1:
        raise UserError(f"{frames.shape[0]} videos at once: enhancement takes one")
    if not bool(torch.isfinite(frames).all()):
        raise UserError("the video to be enhanced has frames that are NaN or infinite: make it again")


def first_pixel(codec: Codec, latent_frame: int) -> int:
    """The first pixel frame of a latent frame."""
    return codec.pixel_frames(latent_frame) if latent_frame else 0


@torch.inference_mode()
def encode(enhancer: Enhancer, frames: Clip, span: range) -> Latents:
    """A chunk's latents [1, channels, len(span), high, wide] on the host, from its frames scaled up to the target size
    and laid into the middle of the canvas, if there is one.

    Raises UserError where a codec that packs frames in time would pack the chunk's otherwise than the whole video's.
    """
    codec, begin = enhancer.codec, first_pixel(enhancer.codec, span.start)
    if any(codec.pixel_frames(n) != begin + codec.pixel_frames(n - span.start) for n in span[1:]):
        raise UserError(
            f"a chunk cannot begin at latent frame {span.start}, where the codec has packed frames together: "
            "choose chunk, overlap and video length as multiples of its packs"
        )
    size = (enhancer.height, enhancer.width)
    large = F.interpolate(frames[0].to(enhancer.device).float(), size, mode="bicubic", antialias=True).clamp(0, 1)
    left, top = _bars(enhancer)
    rows, cols = enhancer.seen
    large = F.pad(large, (left, cols - left - enhancer.width, top, rows - top - enhancer.height))
    latents = codec.encode(large[None].to(enhancer.dtype)).float().cpu()
    if not bool(torch.isfinite(latents).all()):
        raise UserError(f"latents of frames {span.start} to {span.stop - 1} became NaN: use --dtype float32")
    return latents


@torch.inference_mode()
def decode(enhancer: Enhancer, latents: Latents) -> Frames:
    """Frames on the host, of the size `enhancer.made`."""
    frames = enhancer.codec.decode(latents.to(enhancer.device, enhancer.dtype)).float().cpu()
    if enhancer.bars or enhancer.canvas is None:
        return frames
    left, top = _bars(enhancer)
    return frames[..., top : top + enhancer.height, left : left + enhancer.width]


def _bars(enhancer: Enhancer) -> tuple[int, int]:
    """Black columns on the left and black rows on top."""
    rows, cols = enhancer.seen
    return (cols - enhancer.width) // 2, (rows - enhancer.height) // 2


@torch.inference_mode()
def read(enhancer: Enhancer, prompt: str) -> EncodedText:
    """Tokens of all guidance rows; rows without text read the negative prompt."""
    negative, device, dtype = enhancer.negative_prompt, enhancer.device, enhancer.dtype
    return encode_rows(enhancer.text, enhancer.guidance, [prompt + enhancer.prompt_suffix], negative, device, dtype)


@torch.inference_mode()
def predict(enhancer: Enhancer, text: EncodedText, start: Latents, latents: Latents, step: Step, chunk: int) -> Latents:
    """The guided prediction for one chunk, from the host to the host; a pure function of its arguments.

    start: the noise that the trajectory began with. Raises UserError naming chunk and step for NaN.
    """
    there = [value.to(enhancer.device) for value in (start, latents)]
    where = f"in chunk {chunk} of the enhancement"
    denoise = guided_denoiser(enhancer.backbone, enhancer.guidance, text, there[0], enhancer.dtype, where)
    return denoise(there[1], step).cpu()


def frame_noise(enhancer: Enhancer, key: Key, chunk: int, frames: Iterable[int], like: Latents) -> Latents:
    """Standard normal noise of a chunk, each frame's from its own key: the same in all chunks if noise is shared."""
    key = key if enhancer.blender.shares_noise else key.fold("chunk", chunk)
    _, channels, _, high, wide = like.shape
    return torch.stack([key.fold("frame", n).normal(channels, high, wide) for n in frames], dim=1)[None]


def slope(enhancer: Enhancer, step: Step) -> float:
    """How a prediction changes with the noisy latents if the clean video that it stands for is to stay the same.

    x = a x0 + s eps gives eps = (x - a x0) / s, v = (a x - x0) / s and, with a + s = 1, flow = (x - x0) / s.
    """
    kind = enhancer.scheduler.config.get(  # pyright: ignore[reportAttributeAccessIssue]
        "prediction_type", "flow_prediction"
    )
    if kind == "sample":
        return 0.0
    return float((step.level.signal if kind == "v_prediction" else 1.0) / step.level.noise)
