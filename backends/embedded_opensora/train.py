"""Training of the tiny Open-Sora: a rectified flow over clips of the procedural world, some with given frames."""

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backends.embedded import packaged_weights as shared_weights
from backends.embedded.config import FRAMES, OVERLAP, SIZE, begin_with
from backends.embedded.pool import check_options, freeze, latent_slices, text_states, world_pool
from backends.embedded.report import judged_samples, report
from backends.embedded_opensora import packaged_weights
from backends.embedded_opensora.config import (
    FPS,
    build_defaults,
    build_scheduler,
    build_transformer,
    save_transformer,
)
from backends.modelscope_settings import save_defaults
from backends.opensora_backbone import OpenSora3Backbone
from backends.opensora_init import begin
from backends.opensora_parts import read_transformer
from backends.opensora_rflow import LEVELS, flow_loss, noised
from backends.opensora_stdit3 import STDiT3
from streaming.backbone import Backbone, Call, Guided
from streaming.codec import EncodedText
from streaming.datasets import device_generator, draw, half_precision
from streaming.folders import save_folder
from streaming.guidance import ClassifierFree
from streaming.keys import Key, initial_weights
from streaming.rows import guided_denoiser
from streaming.sample import Sampler
from streaming.training import Recipe, TrainOptions, fit
from streaming.types import Latents, Tokens

RECIPE = Recipe(steps=12_000, batch=256, learning_rate=1e-3, warmup=300, weight_decay=0.01, ema=0.999, log_every=50)
TOY = Recipe(steps=4, batch=2, learning_rate=1e-3, warmup=1, log_every=2)
TEXT_DROPOUT = 0.1
"""Share of clips that are trained with the empty prompt, for guidance."""
GIVEN = 0.25
"""Share of clips whose first frames are given, as in the published training's last stage."""
GIVEN_NOISE = 0.15
"""Noise on given frames: its standard deviation is uniform up to this. Teaches the transformer to bear its own
imperfect output; 0 as published."""
TIME_SPREAD = 1.3
"""Standard deviation of the logit of t / 1000: more of the middle of the trajectory than of its ends."""
PERIOD = 10
"""How often a clip is used on average; the transformer is fast, rendering and encoding take a seventh of its time."""
SHARED = ("vae", "text_encoder", "tokenizer", "image_encoder", "judge")
"""Parts that a work folder gets from the packaged models if it has none of its own."""


@final
class FlowObjective(nn.Module):
    """Squared error of the flow over the frames that are not given; all noise levels alike."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `noisy`, `clean`, `noise` [n, channels, time, high, wide], `text` [n, tokens, depth], `time` [n],
        `generated` [n, time]."""
        call = Call(
            latents=batch["noisy"],
            time=batch["time"],
            context=batch["text"],
            guided=(Guided(True, True),) * len(batch["noisy"]),
            mask=batch["generated"],
        )
        flow = self.backbone(call, {}).float()
        return {"loss": flow_loss(flow, batch["clean"], batch["noise"], batch["generated"]).mean()}


def train_transformer(options: TrainOptions) -> None:
    """Train and write `work/transformer`, `work/scheduler` and the settings; `SHARED` parts are put beside them."""
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    check_options(options)
    _complete(options.work)
    recipe = TOY if options.toy else RECIPE
    vae = AutoencoderKL.from_pretrained(options.work / "vae", torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.work / "tokenizer")
    text_encoder = CLIPTextModelWithProjection.from_pretrained(options.work / "text_encoder", dtype=torch.float32)
    defaults, window = build_defaults()
    with initial_weights(recipe.seed):
        sizes = text_encoder.config.hidden_size, vae.config["latent_channels"]
        net = begin(STDiT3(build_transformer(*sizes, toy=options.toy)))
    if (begun := options.begun("transformer", "transformer")) is not None:
        _go_on(net, begun)
    empty = text_states(tokenizer, text_encoder.eval(), [""])
    net.y_embedder.y_embedding = empty[0].clone()  # what stands for no text, as in the published weights
    backbone = OpenSora3Backbone(net, window=window, fps=FPS, factor=SIZE // 8)
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        key = Key(recipe.seed).fold("transformer", rank)
        make = latent_slices(freeze(vae, device), tokenizer, freeze(text_encoder, device), frames=FRAMES, size=SIZE)
        pool = world_pool(key, device, make, clips=count, slices=2 if options.toy else 24, period=PERIOD)
        while True:
            drawn = key.fold("step", step)
            generator = device_generator(drawn.fold("noise"), device)
            yield flow_batch(draw(pool.at(step), count, drawn), empty.to(device), generator)
            step += 1

    def export() -> None:
        save_transformer(net, options.work / "transformer")
        save_defaults(options.work, defaults, window)
        scheduler = build_scheduler()
        save_folder(options.work / "scheduler", lambda path: scheduler.save_pretrained(path))
        parts = [freeze(part, next(net.parameters()).device) for part in (vae, text_encoder)]
        sample = partial(first_chunks, backbone, steps=2 if options.toy else 20)
        n = 2 if options.toy else 96
        report(
            options.work, "transformer", judged_samples(options.work, net, sample, parts[0], tokenizer, parts[1], n=n)
        )

    fit("transformer", FlowObjective(backbone), batches, recipe, options, export=export, begun=begun is not None)


def _go_on(net: STDiT3, folder: Path) -> None:
    """Fill the transformer with the weights in a folder. Raises UserError if they are of other sizes."""
    otherwise = f"the transformer in {folder} has other sizes than the one to be trained"
    begin_with(net, read_transformer(folder)[0], otherwise)


def _complete(work: Path) -> None:
    """Copies of the packaged parts that the folder lacks: the tiny ModelScope's, which know today's world."""
    for part in SHARED:
        places = (folder / part for folder in (shared_weights(), packaged_weights()))
        if not (work / part).is_dir():
            shutil.copytree(next(place for place in places if place.is_dir()), work / part)


def flow_batch(
    drawn: Mapping[str, Tensor], empty: Float[Tensor, "1 tokens depth"], generator: torch.Generator
) -> dict[str, Tensor]:
    """A batch of `FlowObjective` from rows of a pool: noise, times, given frames, one of two captions or none."""
    clean, device = drawn["latents"].float(), drawn["latents"].device
    n, frames = len(clean), clean.shape[2]
    chance = torch.rand(n, generator=generator, device=device)[:, None, None]
    text = torch.where(chance < 0.5 * (1 + TEXT_DROPOUT), drawn["text"][:, 0], drawn["text"][:, 1]).float()
    noise = torch.randn(clean.shape, generator=generator, device=device)
    time = flow_times(n, generator)
    generated = generated_frames(n, frames, generator)
    spread = GIVEN_NOISE * torch.rand(n, 1, 1, 1, 1, generator=generator, device=device)
    imperfect = clean + spread * torch.randn(clean.shape, generator=generator, device=device)
    over = generated[:, None, :, None, None]
    return {
        "noisy": torch.where(over, noised(clean, noise, time), imperfect),
        "clean": clean,
        "noise": noise,
        "text": torch.where(chance < TEXT_DROPOUT, empty, text),
        "time": time,
        "generated": generated,
    }


def flow_times(n: int, generator: torch.Generator) -> Float[Tensor, " {n}"]:
    """n times in 0..1000 whose logits are normal; together they are spread evenly."""
    device = generator.device
    share = (torch.arange(n, device=device) + torch.rand((), generator=generator, device=device)) / n
    return LEVELS * torch.sigmoid(TIME_SPREAD * torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)))


def generated_frames(n: int, frames: int, generator: torch.Generator) -> Bool[Tensor, "{n} {frames}"]:
    """False for the given frames at the beginning of some clips: half of these have the overlap's number, the others
    1 or more."""
    device = generator.device
    some, usual, share = torch.rand(3, n, generator=generator, device=device)
    number = 1 + (share * (frames - 1)).floor()
    number = torch.where(usual < 0.5, float(OVERLAP), number) * (some < GIVEN)
    return torch.arange(frames, device=device) >= number[:, None]


@torch.no_grad()
def first_chunks(backbone: Any, text: Tokens, empty: Float[Tensor, "1 tokens depth"], *, steps: int) -> Latents:
    """Latents of first chunks by Euler with classifier-free guidance: a look at the model while it trains."""
    guidance = ClassifierFree(build_defaults()[0].guidance)
    rows = [text if row.text else empty.expand_as(text) for row in guidance.rows]
    shape = (len(text), backbone.net.config.channels, FRAMES, SIZE // 8, SIZE // 8)
    start = torch.randn(shape, generator=device_generator(Key(0).fold("noise"), text.device), device=text.device)
    denoise = guided_denoiser(backbone, guidance, EncodedText(torch.cat(rows)), start, torch.float32, "while training")
    with half_precision(text.device):
        return Sampler("euler", steps)(denoise, start, lambda step: start, build_scheduler())
