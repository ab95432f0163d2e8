"""A base model of one parameter, with everything around it, for tests of the loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from streaming.backbone import Backbone, Call, FeatureEncoder, Window
from streaming.checkpoint import Checkpoint
from streaming.codec import Codec, EncodedText, TextEncoder
from streaming.guidance import ClassifierFree
from streaming.keys import Key
from streaming.loop import Chunk, stream
from streaming.memory import LongTermMemory, NoLongTerm, NoShortTerm, ShortTermMemory, Tail
from streaming.openings import ImageOpening, Opening, TextOpening, VideoOpening
from streaming.parts import Parts
from streaming.prompts import PromptSchedule
from streaming.sample import Sampler
from streaming.sites import ContextSite, Deltas, FeatureSite, check_sites
from streaming.types import Frames, Latents

WINDOW = Window(4, 2)


@final
class OneParameter(Backbone):
    """eps = w * x, coupled along time and to the text; two sites, where deltas simply arrive."""

    def __init__(self, window: Window = WINDOW, channels: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.size, self.channels = window, channels
        self.calls: list[Call] = []
        self.seen: list[frozenset[str]] = []

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        return (FeatureSite("mid", self.channels),)

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        return (ContextSite("text", 3, 2),)

    @property
    def window(self) -> Window:
        return self.size

    def forward(self, call: Call, deltas: Deltas) -> Latents:
        check_sites(deltas, (*self.feature_sites, *self.context_sites))
        self.calls.append(call)
        self.seen.append(frozenset(deltas))
        x, text = call.latents, call.context
        features = x.flatten(3).permute(0, 2, 3, 1)
        if "mid" in deltas:
            features = features + deltas["mid"](features)
        if "text" in deltas:
            text = text + deltas["text"](text)
        x = features.permute(0, 3, 1, 2).unflatten(3, x.shape[3:])
        drift = (
            x.cumsum(2) / x.shape[2] + text.mean((1, 2)).view(-1, 1, 1, 1, 1) + call.time.view(-1, 1, 1, 1, 1) / 4000
        )
        return self.weight * x + 0.1 * drift

    def feature_encoder(self) -> FeatureEncoder:
        raise NotImplementedError


@final
class MeanCodec(Codec):
    """Latents are means of 4x4 pixel cells; `squeeze`: so many pixel frames make so many latent ones."""

    def __init__(self, squeeze: tuple[int, int] = (1, 1), channels: int = 2, causal: bool = False) -> None:
        super().__init__()
        self.squeeze, self.width, self.causal = squeeze, channels, causal

    @property
    def channels(self) -> int:
        return self.width

    @property
    def factor(self) -> int:
        return 4

    def latent_frames(self, pixel_frames: int) -> int:
        if self.causal:
            return 1 + (pixel_frames - 1) // 4
        return pixel_frames * self.squeeze[1] // self.squeeze[0]

    def pixel_frames(self, latent_frames: int) -> int:
        if self.causal:
            return 1 + 4 * (latent_frames - 1)
        return latent_frames * self.squeeze[0] // self.squeeze[1]

    def _times(self, source: int, target: int) -> Tensor:
        return torch.arange(target) * source // target

    def encode(self, frames: Frames) -> Latents:
        times = self._times(frames.shape[1], self.latent_frames(frames.shape[1]))
        grey = frames[:, times].mean(2)
        cells = grey.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).mean((3, 5))[:, None]
        return (cells * 4 - 2).expand(-1, self.width, -1, -1, -1).contiguous()

    def decode(self, latents: Latents) -> Frames:
        times = self._times(latents.shape[2], self.pixel_frames(latents.shape[2]))
        grey = latents.mean(1, keepdim=True)[:, :, times] / 4 + 0.5
        ramp = torch.tensor([0.8, 1.0, 1.2]).view(1, 3, 1, 1, 1).to(grey)
        return (grey * ramp).clamp(0, 1).repeat_interleave(4, 3).repeat_interleave(4, 4).transpose(1, 2)


@final
class LetterText(TextEncoder):
    """Two tokens that depend on a prompt's letters; counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, ...]] = []

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        self.asked.append(tuple(prompts))
        sums = torch.tensor([[len(p) / 9, sum(map(ord, p)) % 97 / 50, 0.1] for p in prompts])
        return EncodedText(sums[:, None].expand(-1, 2, -1).contiguous())


@final
class TailMean(ShortTermMemory[Tensor]):
    """Pulls features towards the tail's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.tails: list[Tail] = []

    def remember(self, tail: Tail) -> Tensor:
        self.tails.append(tail)
        return tail.latents.mean((2, 3, 4)) + tail.frames.mean((1, 2, 3, 4))[:, None]

    def deltas(self, state: Tensor, call: Call) -> Deltas:
        rows = state.repeat(len(call.guided) // len(state), 1)[:, None, None]
        return {"mid": lambda value: 0.2 * (rows - value)}


@final
class AnchorMean(LongTermMemory[Tensor]):
    """Adds the anchor's brightness to the text of rows with an anchor."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: list[Frames] = []

    def remember(self, anchor: Frames) -> Tensor:
        self.anchors.append(anchor)
        return anchor.mean((1, 2, 3, 4))

    def deltas(self, state: Tensor, call: Call) -> Deltas:
        rows = state.repeat(len(call.guided) // len(state))
        has = torch.tensor([row.anchor for row in call.guided])
        return {"text": lambda value: torch.where(has, rows, 0).view(-1, 1, 1).expand_as(value).to(value)}


@dataclass
class Toy:
    """Parts, and the members whose recordings tests look at."""

    parts: Parts
    backbone: OneParameter
    text: LetterText
    short: Any
    long: Any


def toy(memories: bool = True, window: Window = WINDOW, codec: Codec | None = None, **changes: Any) -> Toy:
    """A working set of parts, 8x12 pixels."""
    from diffusers import DDIMScheduler

    backbone, text = OneParameter(window), LetterText()
    short: Any = changes.pop("short", TailMean() if memories else NoShortTerm())
    long: Any = changes.pop("long", AnchorMean() if memories else NoLongTerm())
    settings: dict[str, Any] = {
        "guidance": ClassifierFree(2.0),
        "sampler": Sampler("ddim", 3),
        "scheduler": DDIMScheduler(clip_sample=False),
        "height": 8,
        "width": 12,
        "fps": 8.0,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        **changes,
    }
    parts = Parts(backbone=backbone, codec=codec or MeanCodec(), text=text, short=short, long=long, **settings)
    return Toy(parts, backbone, text, short, long)


BALL = PromptSchedule.fixed("a ball")
SEED = Key(0)
TEXT = TextOpening()
IMAGE, VIDEO = Key(8).normal(3, 16, 24).sigmoid(), Key(9).normal(7, 3, 8, 12).sigmoid()
OPENINGS = {"text": TEXT, "image": ImageOpening(IMAGE), "video": VideoOpening(VIDEO)}
SQUEEZED = {"codec": MeanCodec((17, 5)), "window": Window(15, 5)}


def run(
    kit: Toy,
    chunks: int = 4,
    prompts: PromptSchedule | Sequence[PromptSchedule] = BALL,
    opening: Opening = TEXT,
    key: Key | Sequence[Key] = SEED,
    resume: Checkpoint | None = None,
) -> list[Chunk]:
    """Chunks of a toy's video."""
    return list(stream(kit.parts, prompts, opening, key=key, chunks=chunks, resume=resume))


def video(chunks: list[Chunk]) -> Frames:
    """All their frames."""
    return torch.cat([chunk.frames for chunk in chunks], 1)
