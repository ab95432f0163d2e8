"""Latte, a diffusion transformer for video, as a base model for StreamingT2V: this module and an entry point are all.

The network is diffusers' `LatteTransformer3DModel` as it is: hooks reach its sites from outside. Around it stand the
other parts of diffusers' `LattePipeline`. A folder in that pipeline's format can be loaded; no weights ship with the
plugin, so the model that its name alone stands for is tiny and random.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.codec import Codec, EncodedText, ImageEncoder, TextEncoder
from streaming.errors import UserError
from streaming.keys import initial_weights
from streaming.model import Backend, Defaults, Model
from streaming.sites import ContextSite, Delta, Deltas, FeatureSite, check_sites
from streaming.types import Features, Frames, Latents, SiteFeatures

Rows = Float[Tensor, "sequences length width"]
Change = Callable[[Rows], Rows]

TOKENS = 120
"""Text tokens (convention of diffusers' pipeline)."""


class _Current(threading.local):
    """What is to be changed in the evaluation under way in this thread."""

    def __init__(self) -> None:  # runs once in every thread
        self.changes: Mapping[str, Change] = {}


@final
class HookedLatte:
    """A stock network in which values can be changed on their way, each by the name of the module that it belongs to.

    These are: what `pos_embed` and the temporal blocks return, and the text that the spatial blocks are given.
    """

    def __init__(self, net: LatteTransformer3DModel) -> None:
        self.net, self._current = net, _Current()
        self.spatial = [f"transformer_blocks.{i}" for i in range(len(net.transformer_blocks))]
        self.temporal = [f"temporal_transformer_blocks.{i}" for i in range(len(net.temporal_transformer_blocks))]
        for name in self.spatial:
            net.get_submodule(name).register_forward_pre_hook(self._text_hook(name))
        for name in ("pos_embed", *self.temporal):
            net.get_submodule(name).register_forward_hook(self._output_hook(name))
        _take_fewer_frames(net)

    def __call__(self, call: Call, changes: Mapping[str, Change]) -> Latents:
        """The network's output. Raises ValueError for what Latte would silently do without."""
        if call.time.ndim != 1 or call.mask is not None:
            raise ValueError("Latte has one time for all frames and generates all of them: no times or mask of frames")
        mask = call.context_mask
        if mask is not None:  # as the spatial blocks want it: [batch * frames, 1, tokens]
            mask = mask[:, None].repeat_interleave(call.latents.shape[2], dim=0)
        before, self._current.changes = self._current.changes, changes
        try:
            return self.net(call.latents, call.time, call.context, mask, return_dict=False)[0]
        finally:
            self._current.changes = before

    def _text_hook(self, name: str) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            change = self._current.changes.get(name)
            return None if change is None else (*args[:2], change(args[2]), *args[3:])

        return hook

    def _output_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Rows) -> Rows | None:
            change = self._current.changes.get(name)
            return None if change is None else change(output)

        return hook


def _take_fewer_frames(net: Any) -> None:
    """Latte numbers frames by a table that fits clips of one length only; now shorter ones get its beginning."""
    net.register_buffer("frame_numbers", net.temp_pos_embed, persistent=False)
    net.temp_pos_embed = torch.zeros_like(net.temp_pos_embed[:, :1])

    def number(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        rows = args[0]
        return rows + net.frame_numbers[:, : rows.shape[1]].to(rows.dtype), *args[1:]

    net.temporal_transformer_blocks[0].register_forward_pre_hook(number)


@final
class LatteBackbone(Backbone):
    """Latte of any size. Feature sites are the outputs of the last half of its temporal blocks, context sites the
    text (projected once for all) that its spatial blocks read. A site has the name of its block."""

    def __init__(self, net: LatteTransformer3DModel) -> None:
        super().__init__()
        self.net, self.hooked = net, HookedLatte(net)

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        """One for each spatial-temporal pair in the last half."""
        names = self.hooked.temporal
        return tuple(FeatureSite(name, _width(self.net.config)) for name in names[len(names) // 2 :])

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        """All cross-attentions."""
        return tuple(ContextSite(name, _width(self.net.config), TOKENS) for name in self.hooked.spatial)

    @property
    def window(self) -> Window:
        """As long as the clips that it was trained on (published: 16 frames); half of it overlaps."""
        frames = self.net.config["video_length"]
        return Window(frames=frames, overlap=frames // 2)

    def fitting_size(self, high: int, wide: int) -> tuple[int, int]:
        """Whole patches."""
        patch = self.net.config["patch_size"]
        return max(1, round(high / patch)) * patch, max(1, round(wide / patch)) * patch

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        """The noise. Raises KeyError for an unknown site, ValueError for times or a mask of frames."""
        check_sites(deltas, (*self.feature_sites, *self.context_sites))
        batch, channels, frames = call.latents.shape[:3]
        features = {name: _to_features(deltas[name], batch) for name in self.hooked.temporal if name in deltas}
        texts = {name: _to_text(deltas[name], frames) for name in self.hooked.spatial if name in deltas}
        return self.hooked(call, {**features, **texts})[:, :channels]  # what follows are variances

    def feature_encoder(self) -> "LatteFeatures":
        """A trainable copy of the first half, built anew and filled from the state dict: nothing is shared."""
        copy = LatteFeatures(self.net.config, self.feature_sites)
        copy.net.load_state_dict({name: self.net.state_dict()[name] for name in copy.net.state_dict()})
        return copy.to(self.net.proj_out.weight)


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _to_features(delta: Delta, batch: int) -> Change:
    """A delta where Latte has [batch * positions, frames, width]."""

    def change(rows: Rows) -> Rows:
        features = rows.unflatten(0, (batch, -1)).transpose(1, 2)
        return rows + delta(features).transpose(1, 2).flatten(0, 1)

    return change


def _to_text(delta: Delta, frames: int) -> Change:
    """A delta where Latte has the text once for every frame."""

    def change(rows: Rows) -> Rows:
        return rows + delta(rows[::frames]).repeat_interleave(frames, dim=0)

    return change


@final
class LatteFeatures(FeatureEncoder):
    """The first half of the blocks; its n-th pair feeds the n-th feature site."""

    def __init__(self, config: Mapping[str, Any], sites: tuple[FeatureSite, ...]) -> None:
        """config: the whole network's."""
        super().__init__()
        self.sites, self.patch, self.width = [site.name for site in sites], config["patch_size"], _width(config)
        half = {"num_layers": len(sites), "out_channels": self.condition_width}
        with initial_weights(0):
            self.net: Any = LatteTransformer3DModel.from_config({**config, **half})
        _without_last_layers(self.net)
        self.hooked = HookedLatte(self.net)

    @property
    def condition_width(self) -> int:
        """Channels of a token, shared out among the cells of its patch."""
        return self.width // self.patch**2

    def forward(self, call: Call, condition: Features) -> Mapping[str, SiteFeatures]:
        """Features at every site; condition [batch, frames, high * wide, width / patch²] is added to the tokens."""
        batch, high = call.latents.shape[0], call.latents.shape[3]
        cells = condition.flatten(0, 1).transpose(1, 2).unflatten(2, (high, -1))
        patches = F.pixel_unshuffle(cells, self.patch).flatten(2).transpose(1, 2)
        features: dict[str, Features] = {}

        def kept_for(site: str) -> Change:
            def keep(rows: Rows) -> Rows:
                features[site] = rows.unflatten(0, (batch, -1)).transpose(1, 2)
                return rows

            return keep

        changes = {name: kept_for(site) for name, site in zip(self.hooked.temporal, self.sites, strict=True)}
        self.hooked(call, {"pos_embed": lambda rows: rows + patches, **changes})
        return features


def _without_last_layers(net: Any) -> None:
    """What comes after the blocks still runs, but is not trained: a weight without gradient stops several GPUs."""
    net.proj_out, table = nn.Identity(), net.scale_shift_table.detach()
    del net.scale_shift_table
    net.register_buffer("scale_shift_table", table, persistent=False)


@final
class LatteCodec(Codec):
    """An image autoencoder, frame by frame: a latent frame is a pixel frame."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        vae.enable_slicing()  # one frame at a time

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.vae.config["latent_channels"]

    @property
    def factor(self) -> int:
        """Each level but the last halves the resolution."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def latent_frames(self, pixel_frames: int) -> int:
        """As many."""
        return pixel_frames

    def pixel_frames(self, latent_frames: int) -> int:
        """As many."""
        return latent_frames

    def encode(self, frames: Frames) -> Latents:
        """Scaled modes."""
        images = (2 * frames.flatten(0, 1) - 1).to(self.vae.dtype)
        modes = self.vae.encode(images, return_dict=False)[0].mode()
        return (modes * self.vae.config["scaling_factor"]).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def decode(self, latents: Latents) -> Frames:
        """In float32."""
        modes = latents.transpose(1, 2).flatten(0, 1) / self.vae.config["scaling_factor"]
        images = self.vae.decode(modes.to(self.vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1).unflatten(0, (latents.shape[0], latents.shape[2]))


@final
class LatteText(TextEncoder):
    """T5. Padding is masked, as if each text were cut to its own length."""

    def __init__(self, encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """Tokens and their mask. Raises UserError for a prompt that is too long."""
        ids = self.tokenizer(list(prompts), padding="max_length", max_length=TOKENS, return_tensors="pt")
        if ids.input_ids.shape[1] > TOKENS:
            raise UserError(f"a prompt of {ids.input_ids.shape[1]} tokens: Latte reads {TOKENS}, shorten it")
        ids = ids.to(self.encoder.device)
        return EncodedText(self.encoder(ids.input_ids, ids.attention_mask)[0], ids.attention_mask.bool())


@final
class Colours(ImageEncoder):
    """Mean colours of a 4x4 grid. Latte has no image encoder; `--image-encoder` names a better one for APM."""

    @property
    def width(self) -> int:
        """Three colours of sixteen cells."""
        return 48

    def forward(self, images: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch width"]:
        """Row-major, colour planes outermost."""
        return F.adaptive_avg_pool2d(images, 4).flatten(1)


@final
class LatteBackend(Backend):
    """What the entry point names."""

    def describe(self) -> str:
        """For `streamingt2v models`."""
        return "Latte (LatteTransformer3DModel): any folder in diffusers format; by name, a tiny one of random weights"

    def matches(self, directory: Path) -> bool:
        """Whether it is a folder of diffusers' `LattePipeline`."""
        index = directory / "model_index.json"
        return index.is_file() and '"LattePipeline"' in index.read_text(encoding="utf-8")

    def load(self, directory: Path | None, *, device: torch.device, dtype: torch.dtype) -> Model:
        """The pipeline's parts, frozen. Raises UserError for a folder that is no whole pipeline, and for NaN."""
        pipeline = _random() if directory is None else _read(directory)
        backbone, codec = LatteBackbone(pipeline.transformer), LatteCodec(pipeline.vae)
        text = LatteText(pipeline.text_encoder, pipeline.tokenizer)
        for part in (backbone, codec, text):
            if not all(bool(weight.isfinite().all()) for weight in part.parameters()):
                raise UserError(f"{directory} has weights that are NaN or infinite: get it again")
            part.to(device, dtype).eval().requires_grad_(False)
        side = codec.factor * pipeline.transformer.config["sample_size"]
        return Model(
            name="latte",
            backbone=backbone,
            codec=codec,
            text=text,
            image=Colours(),
            scheduler=pipeline.scheduler,
            defaults=Defaults(height=side, width=side, fps=8.0, eta=0.0, short_term="inject", long_term="none"),
            directory=directory,
            device=device,
            dtype=dtype,
        )


def _read(directory: Path) -> Any:
    try:  # of safetensors only: pickles can run code
        return LattePipeline.from_pretrained(directory, local_files_only=True, use_safetensors=True)
    except Exception as error:  # many libraries, many kinds of errors
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{directory} is no whole Latte pipeline ({reason}): get it again") from error


def _random() -> Any:
    network = {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32}
    network |= {"caption_channels": 24, "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 8}
    layout: dict[str, Any] = {"video_length": 8, "norm_type": "ada_norm_single", "norm_elementwise_affine": False}
    levels: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
    }
    with initial_weights(0):
        parts: dict[str, Any] = {
            "transformer": LatteTransformer3DModel(**network, **layout),
            "vae": AutoencoderKL(**levels, norm_num_groups=4),
            "text_encoder": T5EncoderModel(T5Config(vocab_size=384, d_model=24, d_kv=12, d_ff=48, num_layers=1)),
            "tokenizer": ByT5Tokenizer(),  # its tokens are bytes
            "scheduler": DDIMScheduler(beta_schedule="linear", clip_sample=False),
        }
    return LattePipeline(**parts)
