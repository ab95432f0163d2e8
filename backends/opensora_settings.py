"""Settings of Open-Sora's versions, what a model folder may say otherwise, and the noise schedules.

A folder's streamingt2v.json holds the fields of `Defaults`, and `frames` and `overlap` of the window in PIXEL frames.
What it leaves out is the version's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from backends.modelscope_settings import FILE, load_settings, load_variant
from backends.opensora_codec import OpenSoraCodec, latent_window
from backends.opensora_config import Version
from backends.opensora_iddpm import GUIDANCE, STEPS, iddpm_scheduler
from backends.opensora_rflow import GUIDANCE as FLOW_GUIDANCE
from backends.opensora_rflow import LEVELS, flow_scheduler, flow_shift
from backends.opensora_rflow import STEPS as FLOW_STEPS
from streaming.backbone import Window
from streaming.codec import Codec
from streaming.errors import UserError
from streaming.model import Defaults

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

HEIGHT, WIDTH = 240, 424
"""Pixels of 1.1 and 1.2: the published 240x426, whose 53 latent columns decode to no more."""
_FPS: dict[Version, float] = {"1.0": 8.0, "1.1": 8.0, "1.2": 24.0}

Schedule = Callable[[int, int], "SchedulerMixin"]
"""Rows and columns in pixels to the scheduler for such frames."""


def family(version: Version, size: tuple[int, int] | None = None) -> Defaults:
    """What a version was published with. size: rows and columns in pixels of 1.0, which its weights tell.

    1.0 and 1.1: 8 frames a second, 100 steps, but of DDIM with eta 1 (published: ancestral, with the predicted
    variance, which a `Backbone` does not give); 1.2: 24 frames a second, 30 Euler steps. Guidance 7.
    """
    height, width = size or (HEIGHT, WIDTH)
    place = {"height": height, "width": width, "fps": _FPS[version]}
    if version == "1.2":
        return Defaults(**place, steps=FLOW_STEPS, guidance=FLOW_GUIDANCE, sampler="euler")
    return Defaults(**place, steps=STEPS, guidance=GUIDANCE, sampler="ddim", eta=1.0)


def read_settings(
    folder: Path, version: Version, codec: Codec, *, size: tuple[int, int] | None = None, frames: int | None = None
) -> tuple[Defaults, Window]:
    """The folder's settings, and its window in latent frames.

    size: as in `family`. frames: that the model was made for, in pixel frames: its longest window, and the one if the
    file names none; None: any, and what `latent_window` says. Raises UserError as `load_settings` and `latent_window`
    do, for a size that the codec does not divide, and for ModelScope's `variant`.
    """
    path = folder / FILE
    defaults, said = load_settings(folder, family(version, size))
    if load_variant(folder):
        raise UserError(f"{path}: variant is a setting of ModelScope's models: leave it out")
    if defaults.height % codec.factor or defaults.width % codec.factor:
        raise UserError(
            f"{path}: frames of {defaults.height}x{defaults.width} pixels: "
            f"height and width must be multiples of {codec.factor}"
        )
    try:
        return defaults, latent_window(codec, said.get("frames", frames), said.get("overlap"), longest=frames)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def schedule_of(version: Version, codec: Codec, window: Window) -> Schedule:
    """The published noise schedule of a version, for frames of any size; only 1.2's depends on it.

    Where a latent is a frame, 1.2's counts the latents of the window, as it does those of whole pieces.
    """
    if version != "1.2":
        return lambda height, width: iddpm_scheduler()
    if isinstance(codec, OpenSoraCodec):
        frames = codec.pixel_frames(window.frames)
        return lambda height, width: flow_scheduler(height, width, frames)
    return lambda height, width: _of_frames(height, width, window.frames)


def _of_frames(height: int, width: int, latents: int) -> "SchedulerMixin":
    from diffusers import FlowMatchEulerDiscreteScheduler

    shift = flow_shift(height, width, 1) * latents**0.5
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS, shift=shift)
