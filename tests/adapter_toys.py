"""A toy base model for the tests of the adapters: every part a few lines, every site reached in the open."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from streaming.backbone import Backbone, Call, FeatureEncoder, Guided, Window
from streaming.codec import Codec, EncodedText, ImageEncoder, TextEncoder
from streaming.datasets import CaptionedClips, ClipDataset
from streaming.memory import Tail
from streaming.model import Defaults, Model
from streaming.sites import ContextSite, Deltas, FeatureSite, InputSite, check_sites

DEPTH, TOKENS, WIDTH, CHANNELS, SIZE, FACTOR = 12, 5, 16, 4, 16, 4
WINDOW = Window(frames=6, overlap=2)


At = Callable[[str, Tensor], Tensor]


class Half(nn.Module):
    """Two layers per position with time and text mixed in: the encoder half."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(CHANNELS, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.text = nn.Linear(DEPTH, WIDTH)
        self.second = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(
        self, call: Call, condition: Tensor | None, texts: Sequence[Tensor], at: At = lambda name, value: value
    ) -> list[Tensor]:
        hidden = at("first", self.first(call.latents.permute(0, 2, 3, 4, 1).flatten(2, 3)))
        if condition is not None:
            hidden = hidden + condition
        skip = hidden + self.time(call.time[:, None] / 1000)[:, None, None]
        skip = skip + self.text(texts[0]).mean(dim=1)[:, None, None] + hidden.mean(dim=1, keepdim=True)
        return [skip, F.gelu(self.second(F.gelu(skip)))]


class ToyEncoder(FeatureEncoder):
    def __init__(self, half: Half) -> None:
        super().__init__()
        self.lower = Half()
        self.lower.load_state_dict(half.state_dict())

    @property
    def condition_width(self) -> int:
        return WIDTH

    def forward(self, call: Call, condition: Tensor) -> Mapping[str, Tensor]:
        skip, middle = self.lower(call, condition, [call.context])
        return {"skip.0": skip, "middle": middle}


class ToyBackbone(Backbone):
    input_site = InputSite("first", WIDTH, kernel=(1, 1), stride=(1, 1))

    def __init__(self) -> None:
        super().__init__()
        self.lower = Half()
        self.text = nn.Linear(DEPTH, 2 * WIDTH)
        self.up = nn.Linear(2 * WIDTH, WIDTH)
        self.out = nn.Linear(2 * WIDTH, CHANNELS)
        self.reached: list[str] = []

    @property
    def feature_sites(self) -> tuple[FeatureSite, ...]:
        return (FeatureSite("skip.0", WIDTH), FeatureSite("middle", 2 * WIDTH))

    @property
    def context_sites(self) -> tuple[ContextSite, ...]:
        return (ContextSite("down.text", DEPTH, TOKENS), ContextSite("up.text", DEPTH, TOKENS))

    @property
    def window(self) -> Window:
        return WINDOW

    def forward(self, call: Call, deltas: Deltas) -> Tensor:
        check_sites(deltas, (self.input_site, *self.feature_sites, *self.context_sites))

        def at(name: str, value: Tensor) -> Tensor:
            if name not in deltas:
                return value
            self.reached.append(name)
            return value + deltas[name](value)

        skip, middle = self.lower(call, None, [at("down.text", call.context)], at)
        middle = at("middle", middle) + self.text(at("up.text", call.context)).mean(dim=1)[:, None, None]
        joined = torch.cat((F.gelu(self.up(middle)), at("skip.0", skip)), dim=-1)
        return self.out(joined).unflatten(2, call.latents.shape[3:]).permute(0, 4, 1, 2, 3)

    def feature_encoder(self) -> ToyEncoder:
        return ToyEncoder(self.lower)


class ToyCodec(Codec):
    """Mean colour and mean brightness of a cell; of several frames packed into one, only the first is kept."""

    def __init__(self, packs: int = 1) -> None:
        super().__init__()
        self.packs = packs

    channels = CHANNELS
    factor = FACTOR

    def latent_frames(self, pixel_frames: int) -> int:
        return pixel_frames // self.packs

    def pixel_frames(self, latent_frames: int) -> int:
        return latent_frames * self.packs

    def encode(self, frames: Tensor) -> Tensor:
        frames = frames[:, :: self.packs]
        small = F.avg_pool2d(frames.flatten(0, 1), FACTOR)
        cells = torch.cat((small, small.mean(dim=1, keepdim=True)), dim=1) * 4 - 2
        return cells.unflatten(0, frames.shape[:2]).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        cells = ((latents[:, :3].transpose(1, 2) + 2) / 4).repeat_interleave(self.packs, 1)
        return cells.repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2).clamp(0, 1)


class ToyText(TextEncoder):
    def forward(self, prompts: Sequence[str]) -> EncodedText:
        numbers = torch.tensor([[float(len(prompt)), float(prompt.count("e"))] for prompt in prompts])
        ramp = torch.linspace(0, 1, TOKENS * DEPTH).view(1, TOKENS, DEPTH)
        return EncodedText(torch.sin(numbers[:, :1, None] + ramp) + numbers[:, 1:, None] * ramp)


class ToyImage(ImageEncoder):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.project = nn.Linear(3, width)

    @property
    def width(self) -> int:
        return self.project.out_features

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images.mean(dim=(2, 3)))


class ToyClips(ClipDataset):
    """Colours that run on: what comes next follows from the first frames, the anchor's hue is that of the clip."""

    def clips(self, n, generator, *, frames, size, device, context_seconds=30.0) -> CaptionedClips:
        colour = torch.rand(n, 1, 3, 1, 1, generator=generator)
        pace = torch.arange(frames).view(1, -1, 1, 1, 1) / (4 * frames)
        video = ((colour + pace) * 200).expand(n, frames, 3, size, size).to(torch.uint8).contiguous()
        return CaptionedClips(frames=video, anchors=video[:, 0], captions=["a colour"] * n)


def toy_model(directory: Path | None = None, *, image: ImageEncoder | None = None, packs: int = 1) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone, default_image = ToyBackbone().eval(), ToyImage()
    return Model(
        name="toy",
        backbone=backbone,
        codec=ToyCodec(packs),
        text=ToyText(),
        image=image or default_image,
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        defaults=Defaults(height=SIZE, width=SIZE, fps=8.0),
        directory=directory,
    )


def toy_call(rows: int = 2, seed: int = 1, guided: tuple[Guided, ...] | None = None) -> Call:
    generator = torch.Generator().manual_seed(seed)
    return Call(
        latents=torch.randn(rows, CHANNELS, WINDOW.frames, 4, 4, generator=generator),
        time=torch.randint(0, 1000, (rows,), generator=generator).float(),
        context=torch.randn(rows, TOKENS, DEPTH, generator=generator),
        guided=guided or (Guided(text=True, anchor=True),) * rows,
    )


def toy_tail(batch: int = 2, seed: int = 2) -> Tail:
    generator = torch.Generator().manual_seed(seed)
    return Tail(
        frames=torch.rand(batch, WINDOW.overlap, 3, SIZE, SIZE, generator=generator),
        latents=torch.randn(batch, CHANNELS, WINDOW.overlap, 4, 4, generator=generator),
    )


def unzero(module: nn.Module, seed: int = 3) -> nn.Module:
    """Random numbers in place of parameters that are all zero."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.parameters():
        if not value.any():
            value.data.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return module


def seeded(make):
    """What `make` makes, with the same initial weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()
