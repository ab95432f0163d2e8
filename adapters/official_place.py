"""Every tensor of the published checkpoint gets its place, or the checkpoint is refused."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from adapters.official_names import PARTS, Layout, ignored, modern, to_official, to_ours
from adapters.official_sizes import ATTENTIONS, CONFIGS, SKIPS, Config, axes, expected
from streaming.errors import UserError
from streaming.weights import Checkpoint, check_floats
from streaming.weights_write import Take, same

PUBLISHED = Layout(skips=SKIPS, attentions=ATTENTIONS)
"""Of the published model."""

Placed = dict[str, dict[str, Take]]
"""Part -> our name -> where its tensor is."""

_NUMBERS = ("a single number", "a vector", "a matrix", "of 3 axes", "of 4 axes", "of 5 axes")
"""What a tensor is, by the count of its axes."""


def place_tensors(checkpoint: Checkpoint) -> Placed:
    """Where each tensor belongs. Raises UserError, listing them, if some are missing, double, or belong nowhere.

    Also if one is not of floating-point numbers, is empty, or has more or fewer axes than it should.
    """
    wanted = axes()
    placed: Placed = {part: {} for part in PARTS}
    foreign = []
    for name in checkpoint.meta:
        place = None if ignored(name) else to_ours(modern(name), PUBLISHED)
        if place is not None and place[1] in wanted[place[0]] and place[1] not in placed[place[0]]:
            placed[place[0]][place[1]] = Take(name, flat if place[0] == "vae" and ".attentions." in name else same)
        elif not ignored(name):
            foreign.append(name)
    missing = [(part, name) for part in PARTS for name in sorted(set(wanted[part]) - set(placed[part]))]
    lost = _told([to_official(*place, PUBLISHED) for place in missing], "missing")
    _refuse(checkpoint.path, [lost, _told(foreign, "foreign or double")], "is it of another version of StreamingT2V?"
            if foreign else "download it again")  # fmt: skip
    check_floats(checkpoint, [take.name for takes in placed.values() for take in takes.values()])
    _check_axes(checkpoint, placed, wanted)
    return placed


def fitting_configs(checkpoint: Checkpoint, placed: Placed) -> dict[str, Config]:
    """Configurations by part. Raises UserError, listing them, for tensors whose shapes don't fit the others'."""
    shapes = {part: {name: tuple(take.change(checkpoint.meta[take.name]).shape) for name, take in takes.items()}
              for part, takes in placed.items()}  # fmt: skip
    try:
        configs = {part: CONFIGS[part](shapes[part]) for part in PARTS}
        wanted = {part: expected(part, configs[part], configs["unet"]) for part in PARTS}
    except Exception as error:  # the libraries raise many kinds for sizes that make no sense
        reason = " ".join(f"{error}".split())[:160] or type(error).__name__
        raise UserError(f"{checkpoint.path}: the tensors' sizes make no sense ({reason}): download it again") from error
    wrong = [
        f"{take.name} is {_size(shapes[part][name])}, not {_size(wanted[part].get(name))}"
        for part, takes in placed.items()
        for name, take in takes.items()
        if shapes[part][name] != wanted[part].get(name)
    ]
    _refuse(checkpoint.path, [_told(wrong, "of shapes that do not fit the others")], "download it again")
    _check_widths(checkpoint.path, configs)
    return configs


def _check_axes(checkpoint: Checkpoint, placed: Placed, wanted: Mapping[str, Mapping[str, int]]) -> None:
    wrong = []
    for part, takes in placed.items():
        for name, take in takes.items():
            shape, count = tuple(take.change(checkpoint.meta[take.name]).shape), wanted[part][name]
            if len(shape) != count or 0 in shape:
                wrong.append(f"{take.name} is {_size(shape)}, not {_NUMBERS[count]}")
    _refuse(checkpoint.path, [_told(wrong, "of no possible shape")], "download it again")


def flat(value: Tensor) -> Tensor:
    """Old autoencoders keep the attention's matrices as 1x1 convolutions [out, in, 1, 1]."""
    return value.flatten(1) if value.ndim == 4 and value.shape[2:] == (1, 1) else value


def _check_widths(path: Path, configs: Mapping[str, Config]) -> None:
    """What one network hands to another; within each, all shapes were checked."""
    unet, apm, text, image, vae = (configs[part] for part in ("unet", "apm", "text_encoder", "image_encoder", "vae"))
    mixed = apm["sites"][0]
    pairs = {
        "the text encoder's width and the UNet's": (text["hidden_size"], unet["cross_attention_dim"]),
        "APM's text width and the UNet's": (mixed["depth"], unet["cross_attention_dim"]),
        "APM's tokens and the text encoder's": (mixed["tokens"], text["max_position_embeddings"]),
        "the image encoder's width and APM's": (image["embed_dim"], apm["image_width"]),
        "the autoencoder's channels and the UNet's": (vae["latent_channels"], unet["in_channels"]),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise UserError(f"{path}: {what} do not fit together ({one}, {other}): download it again")


def _told(found: list[str], how: str) -> str:
    """How many there are, and the first few; "" if there are none."""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    count = f"{len(found)} tensor{'s are' if len(found) > 1 else ' is'}"
    return f"{count} {how}, {'; '.join(found[:3])}{more}" if found else ""


def _refuse(path: Path, told: list[str], remedy: str) -> None:
    if found := [each for each in told if each]:
        raise UserError(f"{path}: {'; and '.join(found)}: {remedy}")


def _size(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "needed"
    return "x".join(map(str, shape)) or "a single number"
