"""Open-Sora's codecs: time in pieces of 17 frames and 5 latents (1.2), and which windows that leaves possible.

The codec of 1.0 and 1.1 is Stable Diffusion's autoencoder frame by frame: `modelscope_codec.AutoencoderKLCodec`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from backends.modelscope_codec import AutoencoderKLCodec
from backends.opensora_vae import TemporalSizes, TemporalVAE
from streaming.backbone import Window
from streaming.codec import Codec
from streaming.errors import UserError
from streaming.types import Frames, Latents
from streaming.weights import Checkpoint

Maps = Float[Tensor, "batch channels frames high wide"]
Packed = Float[Tensor, "batch few latents high wide"]

PIECE = 17
"""Pixel frames that are coded together, apart from all others [released configurations: micro_frame_size]."""
SHIFT, SCALE = (-0.10, 0.34, 0.27, 0.98), (3.85, 2.32, 2.33, 3.06)
"""Of the latents' channels in the published model."""
SPATIAL_SCALING = 0.18215
"""Of the spatial latents; although the spatial autoencoder is SDXL's, not SDXL's factor [published code]."""
SPATIAL = "spatial_vae.module."
"""What the published checkpoint puts before the names of the spatial autoencoder."""
TEMPORAL = "temporal_vae."
DEFAULT_PIECES = 3
"""Of a window of 1.2: 51 frames, of which one piece is the overlap."""
DEFAULT_FRAMES = 16
"""Of a window where a latent is a frame (1.0), half of it overlap."""


@final
class PieceVAE(nn.Module):
    """The temporal autoencoder over pieces of a clip, each alone, and the latents' shift and scale.

    State names as in the published checkpoint: `temporal_vae.*`, `shift`, `scale`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, temporal: TemporalVAE, piece: int = PIECE) -> None:
        super().__init__()
        if piece < 1:
            raise UserError(f"pieces of {piece} frames: choose at least 1")
        self.temporal_vae, self.piece = temporal, piece
        channels = temporal.sizes.latents
        for name, published, none in (("shift", SHIFT, 0.0), ("scale", SCALE, 1.0)):
            values = published if channels == len(published) else (none,) * channels
            self.register_buffer(name, torch.tensor(values).view(1, channels, 1, 1, 1))

    @classmethod
    def of(cls, state: Mapping[str, Tensor], *, groups: int = 32, piece: int = PIECE) -> "PieceVAE":
        """With the weights of a state dict, from whose shapes come all sizes but the groups of the norms.

        Raises UserError if a tensor is missing, unknown, or of another shape than the others let expect.
        """
        shapes = {k.removeprefix(TEMPORAL): tuple(v.shape) for k, v in state.items() if k.startswith(TEMPORAL)}
        with torch.device("meta"):
            made = cls(TemporalVAE(TemporalSizes.of(shapes, groups)), piece)
        _load(made, state)
        return made

    def latent_frames(self, frames: int) -> int:
        """ceil(piece / factor) for every whole piece, ceil(rest / factor) for the rest: 17 -> 5, 51 -> 15, 24 -> 7."""
        whole, rest = divmod(frames, self.piece)
        return whole * self._packed + -(-rest // self.temporal_vae.factor)

    def frames(self, latent_frames: int) -> int:
        """The fewest frames with so many latents, but a whole piece for those of one: 5 -> 17, 1 -> 1, 7 -> 22."""
        whole, rest = divmod(latent_frames, self._packed)
        return whole * self.piece + (self.temporal_vae.factor * (rest - 1) + 1 if rest else 0)

    def encode(self, maps: Maps) -> Packed:
        """Means of spatial latents' pieces, shifted and scaled."""
        means = [self.temporal_vae.moments(piece).chunk(2, dim=1)[0] for piece in maps.split(self.piece, dim=2)]
        return (torch.cat(means, dim=2) - self.shift) / self.scale

    def decode(self, latents: Packed, frames: int | None = None) -> Maps:
        """Spatial latents of so many frames; where a piece's latents could hold more, of the last ones.

        frames: None: the fewest that make so many latents. Raises UserError for a number that makes others.
        """
        frames = self.frames(latents.shape[2]) if frames is None else frames
        if self.latent_frames(frames) != latents.shape[2]:
            needed = self.latent_frames(frames)
            raise UserError(f"{latents.shape[2]} latents do not hold {frames} frames: give {needed}")
        pieces = (latents * self.scale + self.shift).split(self._packed, dim=2)
        lengths = [min(self.piece, frames - start) for start in range(0, frames, self.piece)]
        return torch.cat([self.temporal_vae.decode(z, n) for z, n in zip(pieces, lengths, strict=True)], dim=2)

    @property
    def _packed(self) -> int:
        """Latents of a whole piece."""
        return -(-self.piece // self.temporal_vae.factor)


@final
class OpenSoraCodec(Codec):
    """A codec of single frames, then `PieceVAE` over its latents: one piece of the video is in memory at a time."""

    def __init__(self, spatial: Codec, pieces: PieceVAE) -> None:
        """Raises UserError if the two don't fit each other."""
        super().__init__()
        taken = pieces.temporal_vae.sizes.channels
        if spatial.channels != taken:
            raise UserError(
                f"the spatial autoencoder gives {spatial.channels} channels, the temporal one takes {taken}: "
                "they belong to different models"
            )
        self.spatial, self.pieces = spatial, pieces

    @property
    def channels(self) -> int:
        """Latent channels (published: 4)."""
        return self.pieces.temporal_vae.sizes.latents

    @property
    def factor(self) -> int:
        """The spatial codec's (published: 8)."""
        return self.spatial.factor

    @property
    def piece(self) -> int:
        """Pixel frames that are coded together (published: 17)."""
        return self.pieces.piece

    def latent_frames(self, pixel_frames: int) -> int:
        """See `PieceVAE.latent_frames`."""
        return self.pieces.latent_frames(pixel_frames)

    def pixel_frames(self, latent_frames: int) -> int:
        """See `PieceVAE.frames`; inverse of `latent_frames` on whole pieces and for a single frame."""
        return self.pieces.frames(latent_frames)

    def encode(self, frames: Frames) -> Latents:
        """Means of the posteriors, piece by piece from the first frame on.

        Raises UserError if rows or columns are not a multiple of `factor`.
        """
        pieces = frames.split(self.piece, dim=1)
        return torch.cat([self.pieces.encode(self.spatial.encode(piece)) for piece in pieces], dim=2)

    def decode(self, latents: Latents) -> Frames:
        """Float32 frames, `pixel_frames` of them, clamped."""
        pieces = latents.to(self.pieces.scale.dtype).split(self.latent_frames(self.piece), dim=2)
        return torch.cat([self.spatial.decode(self.pieces.decode(piece)) for piece in pieces], dim=1)


def load_codec(
    file: Path, *, dtype: torch.dtype = torch.float32, groups: int = 32, piece: int = PIECE
) -> OpenSoraCodec:
    """The codec of Open-Sora 1.2 from its published safetensors file (OpenSora-VAE-v1.2), sizes from the shapes.

    groups: of all norms, which no shape tells. Raises UserError if the file is unreadable, or is not that.
    """
    checkpoint = Checkpoint(file)
    names = list(checkpoint.meta)
    state = {name: value.to(dtype) for name, value in zip(names, checkpoint.read(names), strict=True)}
    spatial = {name.removeprefix(SPATIAL): value for name, value in state.items() if name.startswith(SPATIAL)}
    if not spatial or not any(name.startswith(TEMPORAL) for name in state):
        raise UserError(f"{file} is no autoencoder of Open-Sora 1.2: it has not both {SPATIAL}* and {TEMPORAL}*")
    pieces = PieceVAE.of({k: v for k, v in state.items() if not k.startswith(SPATIAL)}, groups=groups, piece=piece)
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**autoencoder_config(spatial, groups))
    _load(vae, spatial)
    return OpenSoraCodec(AutoencoderKLCodec(vae.eval()), pieces).eval()


def autoencoder_config(state: Mapping[str, Tensor], groups: int = 32) -> dict[str, Any]:
    """Of `diffusers.AutoencoderKL`, from the shapes of its tensors. Raises UserError for a missing one."""
    levels = len({name.split(".")[2] for name in state if name.startswith("encoder.down_blocks.")})
    resnets = {name.split(".")[4] for name in state if name.startswith("encoder.down_blocks.0.resnets.")}
    try:
        widths = [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)]
        return {
            "in_channels": state["encoder.conv_in.weight"].shape[1],
            "out_channels": state["decoder.conv_out.weight"].shape[0],
            "latent_channels": state["decoder.conv_in.weight"].shape[1],
            "block_out_channels": widths,
            "layers_per_block": len(resnets),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "norm_num_groups": math.gcd(groups, *widths),
            "scaling_factor": SPATIAL_SCALING,
        }
    except KeyError as error:
        raise UserError(f"no spatial autoencoder of Open-Sora 1.2: {error.args[0]} is missing") from error


def latent_window(
    codec: Codec, frames: int | None = None, overlap: int | None = None, *, longest: int | None = None
) -> Window:
    """The window, in latents, for one of so many pixel frames, of which `overlap` belong to the previous chunk.

    None: 51 frames and 17 of overlap (15 and 5 latents) for 1.2; 16 and 8 where a latent is a frame (1.0). A window
    of 1.2 is a whole number of pieces, its overlap too, or a single frame. longest: frames that the model was made for,
    if it takes no more. Raises UserError that names the nearest window that is possible.
    """
    grid = codec.piece if isinstance(codec, OpenSoraCodec) else 1
    if frames is None:
        frames = DEFAULT_FRAMES if grid == 1 else DEFAULT_PIECES * grid
        frames = frames if overlap is None or overlap < frames else (overlap // grid + 1) * grid
    if overlap is None:
        overlap = frames // 2 if grid == 1 else grid if frames > 1 else 0
    if frames < 1 or overlap < 0:
        raise UserError(f"a window of {frames} frames with an overlap of {overlap}: neither can be negative or nothing")
    if longest is not None and frames > longest:
        raise UserError(f"a window of {frames} frames: this model was made for {longest}, choose no more")
    near = _nearest(frames, overlap, grid)
    if longest is not None and near[0] > longest:
        near = longest, longest - 1
    if (frames, overlap) not in (near, (1, 0)):
        pieces = "" if grid == 1 else f", because this model codes video in pieces of {grid} frames"
        raise UserError(
            f"a window of {frames} frames with an overlap of {overlap} is impossible{pieces}: "
            f"the nearest is {near[0]} with {near[1]}"
        )
    return Window(codec.latent_frames(frames), codec.latent_frames(overlap) if overlap else 0)


def _nearest(frames: int, overlap: int, grid: int) -> tuple[int, int]:
    """A possible window and overlap; some overlap if there was to be one."""
    whole = max(1, (2 * frames + grid) // (2 * grid))
    shared = (2 * overlap + grid) // (2 * grid)
    shared = max(1, shared) if overlap else 0
    return max(whole, shared + 1) * grid, shared * grid


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Strictly, into a module on the meta device."""
    try:
        module.load_state_dict(dict(state), strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise UserError(f"the autoencoder's weights do not fit together: {lines[0]}") from error
