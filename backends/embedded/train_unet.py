"""What the trainings of the embedded video U-Nets, the base model and the enhancer, have in common."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backends.diffusers_attention import shorten_attention
from backends.embedded.config import begin_with, build_defaults, build_scheduler, save_half, trained, without_dropout
from backends.embedded.pool import check_options, freeze, text_states, world_pool
from backends.modelscope_folder import load_part
from backends.modelscope_settings import save_defaults
from backends.world.scene import Scenes
from streaming.datasets import Samples, device_generator, draw
from streaming.folders import save_folder
from streaming.keys import Key, initial_weights
from streaming.noising import Diffusion
from streaming.training import Recipe, TrainOptions, fit

TEXT_DROPOUT = 0.1
"""Share of clips that are trained with the empty prompt, for guidance."""

Empty = Float[Tensor, "1 tokens depth"]
"""What the text encoder says of the empty prompt."""
Batch = dict[str, Tensor]
"""One step's clips as `DiffusionObjective` wants them."""


@final
@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The trained parts that a U-Net is trained with."""

    vae: Any
    """Autoencoder."""
    tokenizer: Any
    """Words to numbers."""
    text_encoder: Any
    """Numbers to what the U-Net reads."""


@final
@dataclass(frozen=True, kw_only=True)
class UNetTraining:
    """How one U-Net is trained, besides the recipe."""

    name: str
    """Of state and log."""
    folder: str
    """Where it is written, within the work folder."""
    build: Callable[..., Any]
    """Width of the text, toy or not -> the U-Net."""
    frames: int
    """Of a clip."""
    size: int
    """Rows and columns, pixels."""
    slices: Callable[[Frozen], Callable[[Scenes, torch.Generator], Samples]]
    """Makes a pool's slices."""
    period: int
    """How often a clip is used on average."""
    noised: Callable[[Samples, Empty, Diffusion, torch.Generator], Batch]
    """Rows of a pool to a batch."""
    finished: Callable[[TrainOptions, Any, Frozen], None]
    """Called with the averaged U-Net after it was written: reports and pictures."""


@final
class DiffusionObjective(nn.Module):
    """Squared error of what the U-Net predicts, the velocity of Salimans & Ho, by the weight of each latent cell."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        shorten_attention(unet)
        self.unet = unet

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: `noisy`, `target` [n, channels, time, high, wide], `text` [n, tokens, depth], `time` [n], `weight`
        [n, 1, time, high, wide]."""
        output = self.unet(batch["noisy"], batch["time"], encoder_hidden_states=batch["text"]).sample
        error = (output.float() - batch["target"]).square().mean(dim=1, keepdim=True)
        return {"loss": (error * batch["weight"]).mean()}


def train_unet(training: UNetTraining, options: TrainOptions, recipe: Recipe) -> None:
    """Train and write the U-Net with its scheduler and settings; needs the autoencoder and the text encoder."""
    check_options(options)
    frozen, scheduler = _frozen(options), build_scheduler()
    diffusion = Diffusion(scheduler)
    with initial_weights(recipe.seed):
        unet = without_dropout(training.build(frozen.text_encoder.config.hidden_size, toy=options.toy))
    begun = options.begun(training.folder, training.name)
    begin(unet, begun)
    count = options.batch or recipe.batch

    def batches(step: int, rank: int, world: int, device: torch.device) -> Iterator[Batch]:
        key = Key(recipe.seed).fold(training.name, rank)
        for part in (frozen.vae, frozen.text_encoder):
            freeze(part, device)
        empty = text_states(frozen.tokenizer, frozen.text_encoder, [""])
        make, slices = training.slices(frozen), 2 if options.toy else 24
        pool = world_pool(key, device, make, clips=count, slices=slices, period=training.period)
        while True:
            drawn = key.fold("step", step)
            generator = device_generator(drawn.fold("noise"), device)
            yield training.noised(draw(pool.at(step), count, drawn), empty, diffusion, generator)
            step += 1

    def export() -> None:
        target = options.work / training.folder
        save_half(unet, target)
        save_defaults(target.parent, *build_defaults(training.size, training.frames))
        save_folder(target.with_name("scheduler"), lambda path: scheduler.save_pretrained(path))
        for part in (frozen.vae, frozen.text_encoder):
            freeze(part, next(unet.parameters()).device)
        training.finished(options, unet, frozen)

    fit(training.name, DiffusionObjective(unet), batches, recipe, options, export=export, begun=begun is not None)


def _frozen(options: TrainOptions) -> Frozen:
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    vae = trained(options.work, "vae", "vae")
    text = trained(options.work, "text_encoder", "clip")
    return Frozen(
        vae=AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(trained(options.work, "tokenizer", "clip")),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(text, dtype=torch.float32),
    )


def begin(unet: Any, folder: Path | None) -> None:
    """Fill a U-Net with the weights in a folder, if there is one.

    Raises UserError if they are damaged or of other sizes.
    """
    if folder is None:
        return
    from diffusers import UNet3DConditionModel

    kinds = {"UNet3DConditionModel": UNet3DConditionModel}
    otherwise = f"the U-Net in {folder} has other sizes than the one to be trained"
    begin_with(unet, load_part(kinds, folder, torch.float32).state_dict(), otherwise)


def some_text(
    text: Float[Tensor, "n 2 tokens depth"], empty: Empty, generator: torch.Generator
) -> Float[Tensor, "n tokens depth"]:
    """One of two captions, or none (`TEXT_DROPOUT`), for each clip."""
    chance = torch.rand(len(text), generator=generator, device=text.device)[:, None, None]
    said = torch.where(chance < 0.5 * (1 + TEXT_DROPOUT), text[:, 0], text[:, 1]).float()
    return torch.where(chance < TEXT_DROPOUT, empty, said)
