"""A complete toy backend with a UNet in it: copy this file to write your own.

Five parts surround one denoiser: codec, text encoder, image encoder, scheduler and the `Backend` that loads them. The
weights are random, drawn from a key, so its videos are coloured noise; everything else is as in a real model.
A line in pyproject.toml makes it known: `toy-unet = "backends.toy_unet:ToyUNetBackend"`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.codec import Codec, EncodedText, ImageEncoder, TextEncoder
from streaming.errors import UserError
from streaming.keys import Key
from streaming.model import Backend, Defaults, Model
from streaming.sites import ContextSite, Deltas, FeatureSite, InputSite, check_sites
from streaming.types import Features, Frames, Latents, SiteFeatures

Module = TypeVar("Module", bound=nn.Module)
Below = Float[Tensor, "batch wider frames lower narrower"]

CHANNELS, WIDTH, DEPTH, TOKENS = 3, 16, 16, 8
"""Latent channels; channels of the first features (twice that below); text channels; text tokens."""


@final
class PoolingCodec(Codec):
    """Averages 4x4 pixels into a latent cell and paints the cell in its colour again."""

    channels = CHANNELS
    factor = 4

    def latent_frames(self, pixel_frames: int) -> int:
        """As many."""
        return pixel_frames

    def pixel_frames(self, latent_frames: int) -> int:
        """As many."""
        return latent_frames

    def encode(self, frames: Frames) -> Latents:
        """Mean colours, brought to [-2, 2]."""
        return 4 * F.avg_pool3d(frames.transpose(1, 2), (1, self.factor, self.factor)) - 2

    def decode(self, latents: Latents) -> Frames:
        """One colour a cell."""
        pixels = latents.repeat_interleave(self.factor, 3).repeat_interleave(self.factor, 4)
        return ((pixels + 2) / 4).clamp(0, 1).transpose(1, 2)


@final
class WordHashes(TextEncoder):
    """A random vector for every word; words beyond the last token are added from the first one on, none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)  # knows the device and the type

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """Tokens [prompts, 8, 16]; all of them are to be read."""
        tokens = torch.zeros(len(prompts), TOKENS, DEPTH)
        for row, prompt in enumerate(prompts):
            for place, word in enumerate(prompt.lower().split()):
                tokens[row, place % TOKENS] += Key(0).fold("word", word).normal(DEPTH)
        return EncodedText(tokens.to(self.scale) * self.scale)


@final
class MeanColours(ImageEncoder):
    """The colours of a 4x4 grid: an embedding that tells where what colour is."""

    width = 48

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Mean colours, row-major, colour planes outermost."""
        return F.adaptive_avg_pool2d(images, 4).flatten(1)


@final
class Encoder(nn.Module):
    """The half of the UNet that hands features on: `skip` at the latents' resolution, `mid` at half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.time = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
        self.over_time = nn.Conv3d(2 * WIDTH, 2 * WIDTH, (3, 1, 1), padding=(1, 0, 0))
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.read_text = nn.MultiheadAttention(2 * WIDTH, 2, kdim=DEPTH, vdim=DEPTH, batch_first=True)

    def forward(self, call: Call, condition: Features | None, deltas: Deltas) -> tuple[Latents, Below]:
        """Both features as videos [batch, width, frames, high, wide]; `condition` is added after the first layer."""
        _check(call)
        batch, _, frames, high, wide = call.latents.shape
        hidden = _images(_changed(deltas, "input", _video(self.conv_in(_images(call.latents)), batch)))
        if condition is not None:
            hidden = hidden + condition.flatten(0, 1).transpose(1, 2).unflatten(2, (high, wide))
        times = self.time(_waves(call.time, hidden.dtype)).view(batch, -1, WIDTH)
        hidden = hidden + times.expand(-1, frames, -1).flatten(0, 1)[:, :, None, None]
        skip = F.silu(hidden)
        below = _video(F.silu(self.down(skip)), batch)
        below = below + F.silu(self.over_time(below))
        text = add(deltas, "mid.text", call.context)
        queries = self.norm(below.flatten(2).transpose(1, 2))
        answers = self.read_text(queries, text, text, need_weights=False)[0]
        return _video(skip, batch), below + answers.transpose(1, 2).unflatten(2, below.shape[2:])


@final
class ToyUNet(Backbone):
    """Encoder, one long skip and a mid block, decoder. Convolutions over space, one over time."""

    input_site = InputSite("input", WIDTH, kernel=(3, 3), stride=(1, 1))
    feature_sites = (FeatureSite("skip", WIDTH), FeatureSite("mid", 2 * WIDTH))
    context_sites = (ContextSite("mid.text", DEPTH, TOKENS),)
    window = Window(frames=8, overlap=4)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.up = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Conv2d(2 * WIDTH, CHANNELS, 3, padding=1)

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The v-prediction. Raises ValueError for masks, which it has no use for, KeyError for an unknown site."""
        check_sites(deltas, (self.input_site, *self.feature_sites, *self.context_sites))
        skip, mid = self.encoder(call, None, deltas)
        skip, mid = _changed(deltas, "skip", skip), _changed(deltas, "mid", mid)
        above = F.interpolate(_images(mid), size=skip.shape[3:])
        above = torch.cat([F.silu(self.up(above)), _images(skip)], dim=1)
        return _video(self.out(above), len(call.latents))

    def feature_encoder(self) -> "ToyUNetFeatures":
        """A copy of the encoder half, built anew and filled from the state dict: nothing is shared."""
        copy = unfilled(ToyUNetFeatures)
        copy.encoder.load_state_dict(self.encoder.state_dict())
        return copy.to(self.out.weight)


@final
class ToyUNetFeatures(FeatureEncoder):
    """A trainable copy of the encoder half."""

    condition_width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, call: Call, condition: Features) -> Mapping[str, SiteFeatures]:
        """Features at `skip` and `mid`; condition [batch, frames, high * wide, 16]. Raises ValueError for masks."""
        skip, mid = self.encoder(call, condition, {})
        return {"skip": _features(skip), "mid": _features(mid)}


@final
class ToyUNetBackend(Backend):
    """Loads the one model there is."""

    def describe(self) -> str:
        """One line."""
        return "toy UNet with random weights: a template for backends, not a video model"

    def matches(self, directory: Path) -> bool:
        """Never: it has no files."""
        return False

    def load(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """The same random weights each time. Raises UserError for a folder."""
        return _model("toy-unet", directory, 32, device, dtype)

    def enhancer(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """Another such model, for twice the size."""
        return _model("toy-unet-enhancer", directory, 64, device, dtype)


def add(deltas: Deltas, site: str, value: Tensor) -> Tensor:
    """The value at a site with what is to be added there; left alone, bit for bit, if nothing is."""
    return value + deltas[site](value) if site in deltas else value


def unfilled(kind: Callable[[], Module]) -> Module:
    """A module whose weights are still to be filled; no number is drawn from torch's global generator."""
    with torch.device("meta"):
        module = kind()
    return module.to_empty(device="cpu")


def seeded(kind: Callable[[], Module], key: Key) -> Module:
    """A module with weights of unit gain, each parameter's from its own key; frozen, in eval mode."""
    module = unfilled(kind).requires_grad_(False)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.copy_(key.fold(name).normal(*weight.shape) / weight[0].numel() ** 0.5)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)  # a norm's weight, a bias
    return module.eval()


def _model(name: str, directory: Path | None, side: int, device: torch.device, dtype: torch.dtype) -> Model:
    from diffusers import DDIMScheduler

    if directory is not None:
        raise UserError(f"the toy UNet has no files, so {directory} cannot be one: name it toy-unet")
    return Model(
        name=name,
        backbone=seeded(ToyUNet, Key(0).fold(name)).to(device, dtype),
        codec=PoolingCodec(),
        text=WordHashes().to(device, dtype),
        image=MeanColours(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
        defaults=Defaults(height=side, width=side, fps=8.0, steps=4, short_term="none", long_term="none"),
        device=device,
        dtype=dtype,
    )


def _check(call: Call) -> None:
    """Raises ValueError for what this UNet would silently do without."""
    if torch.compiler.is_compiling():  # values are unknown
        return
    if call.mask is not None and not bool(call.mask.all()):
        raise ValueError("the toy UNet generates all frames; it has no mask for given ones")
    if call.context_mask is not None and not bool(call.context_mask.all()):
        raise ValueError("the toy UNet reads all text tokens; it has no mask for them")


def _changed(deltas: Deltas, site: str, video: Latents) -> Latents:
    if site not in deltas:
        return video
    return add(deltas, site, _features(video)).transpose(2, 3).unflatten(3, video.shape[3:]).transpose(1, 2)


def _features(video: Latents) -> Features:
    return video.flatten(3).permute(0, 2, 3, 1)


def _images(video: Latents) -> Float[Tensor, "images channels high wide"]:
    return video.transpose(1, 2).flatten(0, 1)


def _video(images: Float[Tensor, "images channels high wide"], batch: int) -> Latents:
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


def _waves(time: Tensor, dtype: torch.dtype) -> Float[Tensor, "*rows width"]:
    """Sines and cosines of times in 0..999, at slower and slower rates."""
    rates = torch.exp(torch.arange(WIDTH // 2, device=time.device) * (-9.2 * 2 / WIDTH))
    angles = time.float()[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)
