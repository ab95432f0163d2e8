"""A complete toy backend with a diffusion transformer in it: copy this file to write your own.

Unlike the toy UNet it predicts a flow, takes a time for every frame and a mask of given frames (as Open-Sora does),
reads text through a mask and cuts latents into patches. The weights are random, drawn from a key.
A line in pyproject.toml makes it known: `toy-dit = "backends.toy_dit:ToyDiTBackend"`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backends.toy_unet import add, seeded, unfilled
from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.codec import Codec, EncodedText, ImageEncoder, TextEncoder
from streaming.errors import UserError
from streaming.keys import Key
from streaming.model import Backend, Defaults, Model
from streaming.sites import ContextSite, Deltas, FeatureSite, InputSite, check_sites
from streaming.types import Features, Frames, Latents, SiteFeatures, Tokens

Rows = Float[Tensor, "rows sequence width"]

CHANNELS, PATCH, WIDTH, HEADS, BLOCKS, DEPTH, TOKENS = 12, 2, 32, 2, 4, 16, 10
"""Latent channels; latent cells along a patch; channels; attention heads; blocks; text channels; text tokens."""


@final
class ShufflingCodec(Codec):
    """Moves 2x2 pixels into the channels of a latent cell: nothing is lost."""

    channels = CHANNELS
    factor = 2

    def latent_frames(self, pixel_frames: int) -> int:
        """As many."""
        return pixel_frames

    def pixel_frames(self, latent_frames: int) -> int:
        """As many."""
        return latent_frames

    def encode(self, frames: Frames) -> Latents:
        """Pixels, brought to [-1, 1]."""
        return F.pixel_unshuffle(2 * frames - 1, self.factor).transpose(1, 2)

    def decode(self, latents: Latents) -> Frames:
        """The exact inverse, clamped."""
        return ((F.pixel_shuffle(latents.transpose(1, 2), self.factor) + 1) / 2).clamp(0, 1)


@final
class MaskedWords(TextEncoder):
    """A beginning token, then a random vector for every word; the mask hides what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)  # knows the device and the type

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """Tokens [prompts, 10, 16] and their mask; words beyond the ninth share the last token."""
        tokens = torch.zeros(len(prompts), TOKENS, DEPTH)
        mask = torch.zeros(len(prompts), TOKENS, dtype=torch.bool, device=self.scale.device)
        for row, prompt in enumerate(prompts):
            for place, word in enumerate(["<begin>", *prompt.lower().split()]):
                tokens[row, min(place, TOKENS - 1)] += Key(0).fold("word", word).normal(DEPTH)
                mask[row, min(place, TOKENS - 1)] = True
        return EncodedText(tokens.to(self.scale) * self.scale, mask)


@final
class ProjectedColours(ImageEncoder):
    """Mean colour of the whole image and of its quarters, through a fixed projection."""

    width = 24

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", Key(0).fold("colours").normal(self.width, 15) / 15**0.5)

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Embeddings [batch, 24]."""
        colours = [F.adaptive_avg_pool2d(images, cells).flatten(1) for cells in (1, 2)]
        return F.linear(torch.cat(colours, dim=1), self.projection.to(images.dtype))


@final
class Attention(nn.Module):
    """Multi-head attention from one sequence to another."""

    def __init__(self, source: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(source, WIDTH), nn.Linear(source, WIDTH)

    def forward(
        self, rows: Rows, source: Tokens | None = None, mask: Bool[Tensor, "rows tokens"] | None = None
    ) -> Rows:
        """What to add to the rows; they attend to the source, by default to themselves."""
        hidden = self.norm(rows)
        source = hidden if source is None else source
        split = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.key(source), self.value(source))]
        queries = self.query(hidden).unflatten(2, (HEADS, -1)).transpose(1, 2)
        seen = None if mask is None else mask[:, None, None, :]
        return self.out(F.scaled_dot_product_attention(queries, *split, attn_mask=seen).transpose(1, 2).flatten(2))


@final
class Block(nn.Module):
    """Attention over space, to the text, over time; then an MLP. Time shifts and scales the tokens before all that."""

    def __init__(self) -> None:
        super().__init__()
        self.modulate = nn.Linear(WIDTH, 2 * WIDTH)
        self.over_space, self.over_time, self.to_text = Attention(WIDTH), Attention(WIDTH), Attention(DEPTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Features, times: Float[Tensor, "batch span width"], call: Call, text: Tokens) -> Features:
        """The tokens [batch, span, positions, 32] after the block."""
        batch, span, positions, _ = x.shape
        shift, scale = self.modulate(times)[:, :, None].chunk(2, dim=-1)
        x = x + x * scale + shift
        x = x + self.over_space(x.flatten(0, 1)).view_as(x)
        x = x + self.to_text(x.flatten(1, 2), text, call.context_mask).view_as(x)
        columns = self.over_time(x.transpose(1, 2).flatten(0, 1)).view(batch, positions, span, WIDTH)
        x = x + columns.transpose(1, 2)
        return x + self.mlp(self.norm(x))


@final
class Entry(nn.Module):
    """Patches and times to tokens, with fixed waves for their places."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(CHANNELS * PATCH**2, WIDTH)
        self.time = nn.Linear(WIDTH, WIDTH)

    def forward(self, call: Call) -> tuple[Features, Float[Tensor, "batch span width"]]:
        """Tokens [batch, frames, positions, 32], and the times of the frames; a given frame is at time 0."""
        batch, _, frames = call.latents.shape[:3]
        tokens = self.patch(_patches(call.latents))
        places = [_waves(torch.arange(n, device=tokens.device), tokens.dtype) for n in tokens.shape[1:3]]
        time = call.time.view(batch, -1).expand(-1, frames)
        time = time if call.mask is None else torch.where(call.mask, time, 0.0)
        return tokens + places[0][:, None] + places[1], F.silu(self.time(_waves(time, tokens.dtype)))


@final
class ToyDiT(Backbone):
    """Four spatial-temporal blocks; outputs of the last two are feature sites, all cross-attentions context sites."""

    input_site = InputSite("patches", WIDTH, kernel=(PATCH, PATCH), stride=(PATCH, PATCH))
    feature_sites = tuple(FeatureSite(f"block{i}", WIDTH) for i in range(BLOCKS // 2, BLOCKS))
    context_sites = tuple(ContextSite(f"block{i}.text", DEPTH, TOKENS) for i in range(BLOCKS))
    window = Window(frames=6, overlap=2)
    takes_given_frames = True

    def __init__(self) -> None:
        super().__init__()
        self.entry = Entry()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The flow, noise minus clean. Raises UserError for latents that do not divide into patches."""
        check_sites(deltas, (self.input_site, *self.feature_sites, *self.context_sites))
        x, times = self.entry(call)
        x = add(deltas, "patches", x)
        for i, block in enumerate(self.blocks):
            x = add(deltas, f"block{i}", block(x, times, call, add(deltas, f"block{i}.text", call.context)))
        return _unpatched(self.out(self.norm(x)), call.latents.shape)

    def feature_encoder(self) -> "ToyDiTFeatures":
        """A copy of the first half of the blocks, one a feature site, built anew and filled from the state dict."""
        copy = unfilled(ToyDiTFeatures)
        copy.entry.load_state_dict(self.entry.state_dict())
        copy.blocks.load_state_dict(self.blocks[: BLOCKS // 2].state_dict())
        return copy.to(self.out.weight)


@final
class ToyDiTFeatures(FeatureEncoder):
    """A trainable copy of the first half: its n-th block feeds the n-th feature site."""

    condition_width = WIDTH // PATCH**2

    def __init__(self) -> None:
        super().__init__()
        self.entry = Entry()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS // 2))

    def forward(self, call: Call, condition: Features) -> Mapping[str, SiteFeatures]:
        """Features at every site; condition [batch, frames, high * wide, 8] is cut into patches like the latents."""
        x, times = self.entry(call)
        x = x + _patches(condition.transpose(2, 3).unflatten(3, call.latents.shape[3:]).transpose(1, 2))
        features = {}
        for site, block in zip(ToyDiT.feature_sites, self.blocks, strict=True):
            features[site.name] = x = block(x, times, call, call.context)
        return features


@final
class ToyDiTBackend(Backend):
    """Loads the one model there is."""

    def describe(self) -> str:
        """One line."""
        return "toy diffusion transformer with random weights: a template for backends, not a video model"

    def matches(self, directory: Path) -> bool:
        """Never: it has no files."""
        return False

    def load(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """The same random weights each time. Raises UserError for a folder."""
        return _model("toy-dit", directory, 16, device, dtype)

    def enhancer(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """Another such model, for twice the size."""
        return _model("toy-dit-enhancer", directory, 32, device, dtype)


def _model(name: str, directory: Path | None, side: int, device: torch.device, dtype: torch.dtype) -> Model:
    from diffusers import FlowMatchEulerDiscreteScheduler

    if directory is not None:
        raise UserError(f"the toy DiT has no files, so {directory} cannot be one: name it toy-dit")
    return Model(
        name=name,
        backbone=seeded(ToyDiT, Key(0).fold(name)).to(device, dtype),
        codec=ShufflingCodec(),
        text=MaskedWords().to(device, dtype),
        image=ProjectedColours().to(device, dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        defaults=Defaults(
            height=side, width=side, fps=8.0, steps=4, sampler="euler", short_term="none", long_term="none"
        ),
        device=device,
        dtype=dtype,
    )


def _patches(video: Latents) -> Features:
    _, _, _, high, wide = video.shape
    if high % PATCH or wide % PATCH:
        raise UserError(f"latents of {wide}x{high} cells: the toy DiT needs multiples of {PATCH} (of 4 in pixels)")
    folded = F.pixel_unshuffle(video.transpose(1, 2), PATCH)
    return folded.flatten(3).transpose(2, 3)


def _unpatched(tokens: Features, shape: torch.Size) -> Latents:
    folded = tokens.transpose(2, 3).unflatten(3, (shape[3] // PATCH, shape[4] // PATCH))
    return F.pixel_shuffle(folded, PATCH).transpose(1, 2)


def _waves(places: Tensor, dtype: torch.dtype) -> Float[Tensor, "*places width"]:
    """Sines and cosines of places or times, at slower and slower rates."""
    rates = torch.exp(torch.arange(WIDTH // 2, device=places.device) * (-9.2 * 2 / WIDTH))
    angles = places.float()[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)
