"""Stage 3's parts: a video-to-video model, and what both modes of enhancement do with a single chunk."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from streaming.backbone import Backbone
from streaming.blend import ChunkBlender
from streaming.codec import Codec, EncodedText, TextEncoder
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, Guidance
from streaming.keys import Key
from streaming.model import Model
from streaming.rows import encode_rows, guided_denoiser
from streaming.sample import Sampler, Step
from streaming.types import Frames, Latents

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Clip: TypeAlias = Float[Tensor, "_ _ 3 _ _"]
"""RGB frames of a video in [0, 1] before enhancement [batch, time, 3, rows, cols], of any number and size."""


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
    sampler: Sampler
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

    def __post_init__(self) -> None:
        factor = self.codec.factor
        if self.height <= 0 or self.width <= 0 or self.height % factor or self.width % factor:
            raise UserError(
                f"enhancement to {self.width}x{self.height}: width and height must be positive multiples of {factor}"
            )
        if not 0 < self.strength <= 1:
            raise UserError(f"an enhancement of strength {self.strength}: choose more than 0 and at most 1")


def assemble_enhancer(
    model: Model,
    blender: ChunkBlender,
    *,
    steps: int | None = None,
    strength: float | None = None,
    guidance: Guidance | None = None,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
) -> Enhancer:
    """An enhancer from a loaded model (`Backend.enhancer`); what is not given is the model's default."""
    defaults = model.defaults
    return Enhancer(
        backbone=model.backbone,
        codec=model.codec,
        text=model.text,
        guidance=guidance or ClassifierFree(defaults.guidance),
        sampler=Sampler(defaults.sampler, defaults.steps if steps is None else steps, defaults.eta),
        scheduler=model.scheduler,
        blender=blender,
        strength=defaults.strength if strength is None else strength,
        height=defaults.height if height is None else height,
        width=defaults.width if width is None else width,
        device=model.device,
        dtype=model.dtype,
        negative_prompt=negative_prompt,
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
    """A chunk's latents [1, channels, len(span), high, wide] on the host, from its frames scaled up to the target size.

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
    latents = codec.encode(large[None].to(enhancer.dtype)).float().cpu()
    if not bool(torch.isfinite(latents).all()):
        raise UserError(f"latents of frames {span.start} to {span.stop - 1} became NaN: use --dtype float32")
    return latents


@torch.inference_mode()
def decode(enhancer: Enhancer, latents: Latents) -> Frames:
    """Frames on the host."""
    return enhancer.codec.decode(latents.to(enhancer.device, enhancer.dtype)).float().cpu()


@torch.inference_mode()
def read(enhancer: Enhancer, prompt: str) -> EncodedText:
    """Tokens of all guidance rows; rows without text read the negative prompt."""
    negative, device, dtype = enhancer.negative_prompt, enhancer.device, enhancer.dtype
    return encode_rows(enhancer.text, enhancer.guidance, [prompt], negative, device, dtype)


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
    return (step.level.signal if kind == "v_prediction" else 1.0) / step.level.noise
