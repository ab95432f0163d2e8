"""Training of CAM and APM on a frozen base model, for any backbone and any dataset of captioned clips."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, final, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from adapters.apm import APM, APMState, new_apm
from adapters.cam import CAM, cam, new_cam
from adapters.clips import Batch, ClipBatches
from adapters.recipe import MemoryRecipe, apm_recipe, cam_recipe, memories_recipe
from streaming.backbone import Backbone, Call, Guided
from streaming.datasets import ClipDataset
from streaming.errors import UserError
from streaming.keys import initial_weights
from streaming.model import Model
from streaming.registry import load, open_model, with_image_encoder
from streaming.sites import combine
from streaming.training import Result, TrainOptions, fit

DATASETS = "streaming.datasets"


@runtime_checkable
class Checkpointing(Protocol):
    """A backbone or encoder that can trade time for memory in training."""

    def checkpoint_gradients(self) -> None:
        """From now on, activations inside blocks are computed anew in the backward pass instead of kept."""


@final
class MemoryObjective(nn.Module):
    """The frozen base's own loss on a clip whose first frames (and anchor) the memories know.

    Everything runs in eval mode: the base's dropout would be noise in the target, and the loss is to be a function of
    the batch alone.
    """

    def __init__(self, backbone: Backbone, short: CAM, long: APM | None) -> None:
        """Freezes the backbone; of the memories only those parameters train that require gradients already."""
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.short = short
        self.long = long
        self.eval()

    def forward(self, batch: Batch) -> Mapping[str, Float[Tensor, ""]]:
        """`loss`: mean squared error over the frames that count; `new_frames`: over those behind the overlap."""
        error = (self.predict(batch).float() - batch.target).square().mean(dim=(1, 3, 4))
        overlap = self.backbone.window.overlap
        loss = (error * batch.weight).sum() / batch.weight.sum()
        return {"loss": loss, "new_frames": error[:, overlap:].detach().mean()}

    def predict(self, batch: Batch) -> Float[Tensor, "batch channels frames high wide"]:
        """The base's prediction with the memories' deltas."""
        call = Call(
            latents=batch.noisy,
            time=batch.time,
            context=batch.context,
            guided=(Guided(text=True, anchor=True),) * batch.noisy.shape[0],
            context_mask=batch.context_mask,
        )
        deltas = [self.short.deltas(self.short.remember(batch.tail), call)]
        if self.long is not None and batch.anchor is not None:
            tokens = self.long.tokens(batch.anchor)  # dropped anchors are the grey image's embedding already
            deltas.append(self.long.deltas(APMState(tokens, tokens[:1]), call))
        return self.backbone(call, combine(*deltas))

    def groups(self, recipe: MemoryRecipe) -> list[tuple[list[nn.Parameter], float]]:
        """Trainable parameters with the factors on their learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in self.named_parameters():
            if value.requires_grad:
                copied, gate = name.startswith("short.encoder."), name.endswith(".alpha")
                factor = recipe.encoder_rate if copied else recipe.gate_rate if gate else 1.0
                groups.setdefault(factor, []).append(value)
        return [(values, factor) for factor, values in groups.items()]


def train_cam(options: TrainOptions) -> Result:
    """Train CAM into `work/cam`, on the frozen base [StreamingT2V §4.1]."""
    recipe, model = cam_recipe(toy=options.toy), _open(options)
    with initial_weights(recipe.loop.seed):
        short = new_cam(model, condition=recipe.condition)
    return train("cam", model, short, None, recipe, options, lambda: short.save(options.work / "cam"))


def train_apm(options: TrainOptions) -> Result:
    """Train APM into `work/apm`, on the frozen base and the trained CAM in `work/cam` [StreamingT2V §4.2].

    Raises UserError if there is no CAM yet.
    """
    recipe, model = apm_recipe(toy=options.toy), _open(options)
    short = cam(model, options.work / "cam")
    with initial_weights(recipe.loop.seed):
        long = new_apm(model)
    return train("apm", model, short, long, recipe, options, lambda: long.save(options.work / "apm"))


def train_memories(options: TrainOptions) -> Result:
    """Train CAM and APM together into `work/cam` and `work/apm`."""
    recipe, model = memories_recipe(toy=options.toy), _open(options)
    with initial_weights(recipe.loop.seed):
        short, long = new_cam(model, condition=recipe.condition), new_apm(model)

    def export() -> None:
        short.save(options.work / "cam")
        long.save(options.work / "apm")

    return train("memories", model, short, long, recipe, options, export)


def train(
    name: str,
    model: Model,
    short: CAM,
    long: APM | None,
    recipe: MemoryRecipe,
    options: TrainOptions,
    export: Callable[[], None],
    *,
    dataset: ClipDataset | None = None,
) -> Result:
    """Train those of the memories' parameters that require gradients; see `streaming.training.fit`.

    dataset: None takes the one that the options name. Raises UserError for gradient checkpointing if the backbone has
    none.
    """
    recipe = replace(recipe, condition=short.config.condition)
    if options.checkpoint_gradients:
        checkpoint_gradients(model, short)
    objective = MemoryObjective(model.backbone, short, long)
    clips = load(DATASETS, options.dataset)() if dataset is None else dataset
    batches = ClipBatches(model, clips, recipe, batch=options.batch or recipe.loop.batch, name=name)
    return fit(name, objective, batches, recipe.loop, options, groups=objective.groups(recipe), export=export)


def checkpoint_gradients(model: Model, short: CAM) -> None:
    """Switch gradient checkpointing on in the backbone and in CAM's copy. Raises UserError if one of them has none."""
    for part in (model.backbone, short.encoder):
        if not isinstance(part, Checkpointing):
            raise UserError(
                f"{type(part).__name__} of {model.name} has no gradient checkpointing: "
                "leave --checkpoint-gradients out, or lower --batch"
            )
        part.checkpoint_gradients()


def _open(options: TrainOptions) -> Model:
    """The base model in float32, on the CPU until the loop knows its device; with the image encoder asked for."""
    model = open_model(str(options.work))
    return model if options.image_encoder is None else with_image_encoder(model, options.image_encoder)
