"""The published pipeline of one chunk, put together from this library's parts for a fixture's configuration."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor

from adapters.apm import APM, APMState
from adapters.cam import CAM
from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_unet import UNet3DBackbone
from streaming.backbone import Backbone, Call, Window
from streaming.codec import EncodedText, ImageEncoder, TextEncoder
from streaming.guidance import ClassifierFree
from streaming.memory import LongTermMemory
from streaming.rows import Condition, evaluate, guided_denoiser
from streaming.sample import Denoise, Sampler, Step
from streaming.sites import Deltas, combine
from tests.parity.fixture import Fixture
from tests.parity.network import build_apm, build_backbone, build_cam, build_mixers, fill, pooled_images

MODELSCOPE_SCHEDULER = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "prediction_type": "epsilon",
}  # fmt: skip
"""Where neither a file nor one that it names tells."""
PUBLISHED = {"guidance_scale": 7.5, "eta": 1.0, "num_inference_steps": 50}
"""Where a file does not tell."""
NOISE = r"in\.(variance_)?noise"
"""Names of what DDIM adds."""


@final
class Pipeline:
    """UNet, CAM, APM, codec, guidance and sampler of a fixture, whose `in.text_embeds` count as read."""

    def __init__(self, fixture: Fixture) -> None:
        self.fixture, self.config = fixture, fixture.config
        if "unet" not in self.config:
            fixture.give_up("its config has no `unet`")
        self.text = text_rows(fixture)
        self.guidance = ClassifierFree(fixture.number("guidance_scale", PUBLISHED["guidance_scale"]))
        self.steps = int(fixture.number("num_inference_steps", PUBLISHED["num_inference_steps"]))
        self.sampler = Sampler("ddim", self.steps, fixture.number("eta", PUBLISHED["eta"]))
        self.scheduler: Any = DDIMScheduler.from_config(scheduler_config(fixture))
        self.window = Window(
            int(self.config.get("video_length", 16)), int(self.config.get("num_control_input_frames", 8))
        )

    @cached_property
    def backbone(self) -> UNet3DBackbone:
        """The video UNet."""
        unet = self.config["unet"]
        return build_backbone(self.fixture, unet, tokens=self.text.shape[1], window=self.window, home="")

    @cached_property
    def cam(self) -> CAM:
        """All of it."""
        return build_cam(self.fixture, self.backbone, self.config.get("cam", {}))

    @cached_property
    def image(self) -> ImageEncoder:
        """The toy that stands for CLIP."""
        return pooled_images(self.fixture)

    @cached_property
    def apm(self) -> APM:
        """All of it."""
        sizes = self.config.get("resampler", {})
        count = int(sizes.get("expansion_factor", 16))
        return build_apm(self.fixture, self.backbone, self.image, image_tokens=count, inner=int(sizes["inner_dim"]))

    @cached_property
    def codec(self) -> AutoencoderKLCodec:
        """The autoencoder."""
        config = self.config.get("vae") or self.fixture.json("vae_config")
        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(config)
        fill(self.fixture, vae, "vae")
        return AutoencoderKLCodec(vae.eval())

    def given_tokens(self, tokens: Tensor) -> "GivenTokens":
        """An APM for image tokens [unconditional rows, conditional rows]."""
        none, anchor = tokens.chunk(2)
        mixers = build_mixers(self.fixture, self.backbone, image_tokens=tokens.shape[1])
        return GivenTokens(mixers, APMState(anchor, none[:1]))

    def memories(self, frames: Tensor, long: LongTermMemory[Any], anchor: Any) -> Condition:
        """Both memories for conditioning frames [B, n, 3, rows, cols] in [0, 1] and an anchor's state."""
        from streaming.memory import Tail

        side = self.codec_factor
        rows, cols = frames.shape[-2] // side, frames.shape[-1] // side
        state = self.cam.remember(Tail(frames, torch.zeros(len(frames), 1, frames.shape[1], rows, cols)))

        def condition(call: Call) -> tuple[Call, Deltas]:
            return call, combine(self.cam.deltas(state, call), long.deltas(anchor, call))

        return condition

    @property
    def codec_factor(self) -> int:
        """Pixels of a latent cell along a side, by E_cond's stages."""
        return 2 ** (len(self.cam.config.widths) - 1)

    def denoiser(self, start: Tensor, condition: Condition) -> "Recorder":
        """The guided denoiser that keeps what it saw and said."""
        return Recorder(self, start, condition)


@final
class Recorder:
    """A guided denoiser; keeps latents, rows of predictions and guided predictions of every step."""

    def __init__(self, pipeline: Pipeline, start: Tensor, condition: Condition) -> None:
        self.latents: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.guided: list[Tensor] = []
        text = EncodedText(pipeline.text)
        self._denoise: Denoise = guided_denoiser(
            pipeline.backbone, pipeline.guidance, text, start, torch.float32, "", condition, self._evaluate
        )

    def __call__(self, latents: Tensor, step: Step) -> Tensor:
        """As the denoiser."""
        self.latents.append(latents)
        self.guided.append(self._denoise(latents, step))
        return self.guided[-1]

    def _evaluate(self, backbone: Backbone, condition: Condition, call: Call) -> Tensor:
        self.rows.append(evaluate(backbone, condition, call))
        return self.rows[-1]


@final
class GivenTokens(LongTermMemory[APMState]):
    """An APM whose image tokens are given, whatever the anchor."""

    def __init__(self, apm: APM, state: APMState) -> None:
        super().__init__()
        self.apm, self.state = apm, state

    def remember(self, anchor: Tensor) -> APMState:
        """The given tokens."""
        return self.state

    def deltas(self, state: APMState, call: Call) -> Deltas:
        """APM's."""
        return self.apm.deltas(state, call)


@final
class GivenText(TextEncoder):
    """Embeddings for an empty prompt and for any other."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """The first row for an empty prompt, the second for another."""
        return EncodedText(torch.stack([self.embeddings[int(bool(prompt))] for prompt in prompts]))


def text_rows(fixture: Fixture) -> Tensor:
    """Embeddings [unconditional rows, conditional rows], of one tensor or of two."""
    names = fixture.names(r"in\.((negative_|uncond_)?(text|prompt)_embed\w*|encoder_hidden_states)")
    if len(names) == 2:
        names.sort(key=lambda name: not re.search("neg|uncond", name))
    return torch.cat([fixture.read(re.escape(name)) for name in names]) if names else fixture.read("in.text_embeds")


def scheduler_config(fixture: Fixture) -> Any:
    """The file's, else that of a file that it names, else ModelScope's."""
    for one in (fixture, *fixture.siblings()):
        if "scheduler" in one.meta:
            return one.json("scheduler")
    return MODELSCOPE_SCHEDULER


def to_unit(frames: Tensor) -> Tensor:
    """Frames in [0, 1] of frames in [-1, 1] or of bytes; those that are never negative are in [0, 1] already."""
    if not frames.is_floating_point() or float(frames.max()) > 1.5:
        return frames.float() / 255
    return (frames / 2 + 0.5 if float(frames.min()) < 0 else frames).clamp(0, 1)


def frame_major(latents: Tensor) -> Tensor:
    """[B, C, F, h, w] as the published scheduler has it: [(B F), C, h, w]."""
    return latents.transpose(1, 2).flatten(0, 1)


def channel_major(latents: Tensor, batch: int) -> Tensor:
    """The inverse; latents that have five axes are left alone."""
    return latents if latents.ndim == 5 else latents.unflatten(0, (batch, -1)).transpose(1, 2)


def like(value: Tensor, expected: Tensor) -> Tensor:
    """Latents [B, C, F, h, w] in the layout, of four or five axes, of what is expected."""
    return frame_major(value) if expected.ndim == 4 else value
