"""Training of memories on a frozen base model, for any backbone and any dataset of captioned clips.

Rivals are trained as what they are compared with: the same clips in the same order with the same noise, as many of them
and at the same rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adapters.add_cond import new_add_cond
from adapters.apm import APM, new_apm
from adapters.apm import KIND as APM_KIND
from adapters.append import new_append
from adapters.cam import CAM, cam, new_cam
from adapters.cam import KIND as CAM_KIND
from adapters.clips import Batch, ClipBatches
from adapters.conc_cond import new_conc_cond
from adapters.gate_scale import context_spread
from adapters.recipe import MemoryRecipe, apm_recipe, cam_recipe, memories_recipe
from adapters.store import CONFIG, check_sites, load_weights, read_about, read_config
from streaming.backbone import Backbone, Call, FeatureEncoder, Guided
from streaming.datasets import ClipDataset
from streaming.errors import UserError
from streaming.frame_mask import FrameMask, check_takes_given_frames
from streaming.keys import Key, initial_weights
from streaming.memory import ShortTermMemory
from streaming.model import Model
from streaming.registry import load, open_model, with_image_encoder
from streaming.sites import Delta, Deltas, combine
from streaming.training import Result, TrainOptions, fit, training_device

DATASETS = "streaming.datasets"
CAPTIONS = 4
"""Whose text the gates' learning rate is measured by; short ones spread less than long ones."""


@runtime_checkable
class Checkpointing(Protocol):
    """A backbone or encoder that can trade time for memory in training."""

    def checkpoint_gradients(self) -> None:
        """From now on, activations inside blocks are computed anew in the backward pass instead of kept."""


@runtime_checkable
class Reading(Protocol):
    """A short-term memory that says what it needs of a tail; one that doesn't gets latents alone."""

    @property
    def reads(self) -> Literal["pixels", "latents"]:
        """Frames as pixels, besides the latents, or latents alone."""
        ...


@runtime_checkable
class OfEmbeddings(Protocol):
    """A long-term memory that can begin from image embeddings, so that anchors need be looked at only once."""

    def known(self, embedding: Float[Tensor, "batch image_width"]) -> Any:
        """The state for rows that all have an anchor; a dropped one's embedding is that of the grey image."""
        ...

    def rewrite(self, state: Any, call: Call) -> Call:
        """As `LongTermMemory.rewrite`."""
        ...

    def deltas(self, state: Any, call: Call) -> Deltas:
        """As `LongTermMemory.deltas`."""
        ...


@runtime_checkable
class Gated(Protocol):
    """A long-term memory whose gates (parameters called `alpha`) open while it learns."""

    def open_upwards(self) -> None:
        """Called behind the first steps: gates that have opened where they cannot open far are to be turned."""


@final
class MemoryObjective(nn.Module):
    """The frozen base's own loss on a clip whose first frames (and anchor) the memories know.

    Frames that a memory gives to the base model (`Call.mask`) don't count. Everything runs in eval mode: the base's
    dropout would be noise in the target, and the loss is to be a function of the batch alone.
    """

    def __init__(self, backbone: Backbone, short: ShortTermMemory[Any], long: OfEmbeddings | None) -> None:
        """Freezes the backbone; of the memories only those parameters train that require gradients already."""
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.short = short
        self.long = long
        self.eval()

    def forward(self, batch: Batch) -> Mapping[str, Float[Tensor, ""]]:
        """`loss`: mean squared error over the frames that count, by the weight of their cells; `new_frames`: without
        these weights, over the frames behind the overlap."""
        call, deltas = self.conditioned(batch)
        error = (self.backbone(call, deltas).float() - batch.target).square().mean(dim=1)
        overlap = self.backbone.window.overlap
        weight = batch.weight if call.mask is None else batch.weight * call.mask
        loss = ((error * batch.focus).mean(dim=(2, 3)) * weight).sum() / weight.sum()
        return {"loss": loss, "new_frames": error[:, overlap:].detach().mean()}

    def conditioned(self, batch: Batch) -> tuple[Call, Deltas]:
        """The call as the base is to see it, and the memories' deltas."""
        call = Call(
            latents=batch.noisy,
            time=batch.time,
            context=batch.context,
            guided=(Guided(text=True, anchor=True),) * batch.noisy.shape[0],
            context_mask=batch.context_mask,
        )
        tail = self.short.remember(batch.tail)
        bare, call = call, self.short.rewrite(tail, call)
        deltas = self.short.deltas(tail, call)
        if batch.forgotten is not None:
            call, deltas = _without(batch.forgotten, bare, call, deltas)
        if self.long is None or batch.anchor is None:
            return call, deltas
        anchor = self.long.known(batch.anchor)
        seen = self.long.rewrite(anchor, call)
        return seen, combine(deltas, self.long.deltas(anchor, seen))

    def groups(self, recipe: MemoryRecipe) -> list[tuple[list[nn.Parameter], float]]:
        """Trainable parameters with the factors on their learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in self.named_parameters():
            if value.requires_grad:
                groups.setdefault(_rate(name, recipe), []).append(value)
        return [(values, factor) for factor, values in groups.items()]


def _without(forgotten: Bool[Tensor, " batch"], bare: Call, call: Call, deltas: Deltas) -> tuple[Call, Deltas]:
    """These rows as they were before the short-term memory, which may rewrite latents and mask, without its deltas."""
    told = call.with_(latents=torch.where(forgotten.view(-1, 1, 1, 1, 1), bare.latents, call.latents))
    if call.mask is not None:
        told = told.with_(mask=call.mask | forgotten[:, None])

    def masked(delta: Delta) -> Delta:
        return lambda value: delta(value) * (~forgotten).to(value.dtype).view(-1, *(1,) * (value.ndim - 1))

    return told, {name: masked(delta) for name, delta in deltas.items()}


def _rate(name: str, recipe: MemoryRecipe) -> float:
    """Factor on the learning rate of a parameter of `MemoryObjective`."""
    if name.startswith("short.") and ".encoder." in name:
        return recipe.encoder_rate
    if ".distance." in name:
        return recipe.slope_rate
    return recipe.gate_rate if name.endswith(".alpha") else 1.0


def train_cam(options: TrainOptions) -> Result:
    """Train CAM into `work/cam`, on the frozen base [StreamingT2V §4.1]."""
    recipe, model = _asked(cam_recipe(toy=options.toy), options, "cam"), _open(options)
    with initial_weights(recipe.loop.seed):
        short = new_cam(model, condition=recipe.condition, distances=recipe.distances)
    begun = _begin(short, options.begun("cam", "cam"))
    return train("cam", model, short, None, recipe, options, lambda: short.save(options.work / "cam"), begun=begun)


def train_cam_with_frame_mask(options: TrainOptions) -> Result:
    """Train CAM into `work/cam+frame-mask`, the overlap being given to the base model besides.

    Raises UserError for a base model that takes no given frames.
    """
    recipe, model = _asked(cam_recipe(toy=options.toy), options, "cam+frame-mask"), _open(options)
    check_takes_given_frames(model, instead="cam+inject, trained as cam")
    with initial_weights(recipe.loop.seed):
        short = new_cam(model, condition=recipe.condition, distances=recipe.distances)
    return train(
        "cam+frame-mask",
        model,
        FrameMask(short),
        None,
        recipe,
        options,
        lambda: short.save(options.work / "cam+frame-mask"),
        like="cam",
    )


def train_conc_cond(options: TrainOptions) -> Result:
    """Train Conc-Cond into `work/conc-cond`, as CAM is trained. Raises UserError for a base without an input site."""
    recipe, model = cam_recipe(toy=options.toy), _open(options)
    short = new_conc_cond(model)
    return train(
        "conc-cond", model, short, None, recipe, options, lambda: short.save(options.work / "conc-cond"), like="cam"
    )


def train_add_cond(options: TrainOptions) -> Result:
    """Train Add-Cond into `work/add-cond`, as CAM is trained."""
    recipe, model = _asked(cam_recipe(toy=options.toy), options, "add-cond"), _open(options)
    with initial_weights(recipe.loop.seed):
        short = new_add_cond(model, condition=recipe.condition)
    return train(
        "add-cond", model, short, None, recipe, options, lambda: short.save(options.work / "add-cond"), like="cam"
    )


def train_append(options: TrainOptions) -> Result:
    """Train appended image tokens into `work/append`, as APM is trained: on the frozen base and CAM in `work/cam`."""
    recipe, model = apm_recipe(toy=options.toy), _open(options)
    short = cam(model, options.work / "cam")
    with initial_weights(recipe.loop.seed):
        long = new_append(model)
    return train("append", model, short, long, recipe, options, lambda: long.save(options.work / "append"), like="apm")


def train_apm(options: TrainOptions) -> Result:
    """Train APM into `work/apm`, on the frozen base and the trained CAM in `work/cam` [StreamingT2V §4.2].

    Raises UserError if there is no CAM yet.
    """
    recipe, model = apm_recipe(toy=options.toy), _open(options)
    short = cam(model, options.work / "cam")
    with initial_weights(recipe.loop.seed):
        long = new_apm(model)
    begun = _begin(long, options.begun("apm", "apm"))
    return train("apm", model, short, long, recipe, options, lambda: long.save(options.work / "apm"), begun=begun)


def train_memories(options: TrainOptions) -> Result:
    """Train CAM and APM together into `work/cam` and `work/apm`; they begin from those that `--begin` names, APM only
    if there is one."""
    recipe, model = _asked(memories_recipe(toy=options.toy), options, "memories", "cam"), _open(options)
    with initial_weights(recipe.loop.seed):
        short = new_cam(model, condition=recipe.condition, distances=recipe.distances)
        long = new_apm(model)
    begun = _begin(short, options.begun("cam", "memories"))
    if begun and options.begin is not None and (options.begin / "apm").is_dir():
        _begin(long, options.begun("apm", "memories"))

    def export() -> None:
        short.save(options.work / "cam")
        long.save(options.work / "apm")

    return train("memories", model, short, long, recipe, options, export, begun=begun)


def train(
    name: str,
    model: Model,
    short: ShortTermMemory[Any],
    long: OfEmbeddings | None,
    recipe: MemoryRecipe,
    options: TrainOptions,
    export: Callable[[], None],
    *,
    dataset: ClipDataset | None = None,
    like: str | None = None,
    begun: bool = False,
) -> Result:
    """Train those of the memories' parameters that require gradients; see `streaming.training.fit`.

    dataset: None takes the one that the options name. like: the training whose clips and noise these are to be, for a
    fair comparison; None: `name`'s own. begun: as for `fit`. Raises UserError for gradient checkpointing if the
    backbone has none.
    """
    recipe = replace(recipe, condition=reads(short))
    if options.checkpoint_gradients:
        checkpoint_gradients(model, short)
    clips = load(DATASETS, options.dataset)() if dataset is None else dataset
    batches = ClipBatches(model, clips, recipe, batch=options.batch or recipe.loop.batch, name=like or name)
    gated = isinstance(long, Gated)
    if gated:
        captions = clips.prompts(CAPTIONS, Key(recipe.loop.seed).fold("spread").generator())
        spread = context_spread(model, captions, training_device(options))
        recipe = replace(recipe, gate_rate=recipe.gate_rate * spread)
    objective = MemoryObjective(model.backbone, short, long)
    return fit(
        name,
        objective,
        batches,
        recipe.loop,
        options,
        groups=objective.groups(recipe),
        export=export,
        begun=begun,
        in_warmup=long.open_upwards if gated else None,
    )


def reads(short: ShortTermMemory[Any]) -> Literal["pixels", "latents"]:
    """What a short-term memory, or one that it is put around, needs of a tail."""
    told = [part.reads for part in short.modules() if isinstance(part, Reading)]
    return "pixels" if "pixels" in told else "latents"


def checkpoint_gradients(model: Model, short: ShortTermMemory[Any]) -> None:
    """Switch gradient checkpointing on in the backbone and in the memory's copy of its encoder, if it has one.

    Raises UserError if one of them has no checkpointing.
    """
    for part in (model.backbone, *(module for module in short.modules() if isinstance(module, FeatureEncoder))):
        if not isinstance(part, Checkpointing):
            raise UserError(
                f"{type(part).__name__} of {model.name} has no gradient checkpointing: "
                "leave --checkpoint-gradients out, or lower --batch"
            )
        part.checkpoint_gradients()


def _asked(recipe: MemoryRecipe, options: TrainOptions, name: str, folder: str | None = None) -> MemoryRecipe:
    """The recipe with what the options ask for, or else what a training that is gone on with, or begun from,
    was given.

    name: of its state. folder: where its short-term memory lies; None: `name`. Raises UserError if what is told there
    is damaged.
    """
    place = options.work / (folder or name)
    goes_on = options.state(name).exists() and (place / CONFIG).exists()
    source = options.begun("cam", name) if name in ("cam", "memories") else None  # None where a state says how to go on
    source = place if goes_on else source
    begun = {} if source is None else read_about(source)
    if source is not None and not goes_on:
        _check_alike(source, begun, options)
    distances = options.distances or begun.get("distances", False)
    return replace(recipe, condition=options.condition or begun.get("condition"), distances=distances)


def _check_alike(folder: Path, begun: Mapping[str, Any], options: TrainOptions) -> None:
    """Raises UserError for options that another CAM would need than the one to begin from."""
    sees = begun.get("condition")
    if options.condition is not None and sees not in (None, options.condition):  # None: damaged, as is said later
        raise UserError(f"the CAM in {folder} is shown {sees}: leave --condition {options.condition} out, or --begin")
    if options.distances and not begun.get("distances", False):
        raise UserError(f"the CAM in {folder} knows no distances: leave --distances out, or --begin")


def _begin(memory: CAM | APM, folder: Path | None) -> bool:
    """Fill a memory with the weights in a folder; whether there is one.

    Raises UserError if they are of another base model or another kind of memory.
    """
    if folder is not None:
        saved = read_config(folder, APM_KIND if isinstance(memory, APM) else CAM_KIND, type(memory.config))
        check_sites(folder, saved.sites, memory.config.sites)
        load_weights(folder, memory)
    return folder is not None


def _open(options: TrainOptions) -> Model:
    """The base model in float32, on the CPU until the loop knows its device; with the image encoder asked for."""
    model = open_model(str(options.work))
    return model if options.image_encoder is None else with_image_encoder(model, options.image_encoder)
