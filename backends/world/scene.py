"""What a video of the world shows: named attributes, hidden attributes, and how scenes are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

PLACES = ("meadow", "desert", "city at night", "ocean", "snow", "moon")
SHAPES = ("ball", "cube", "star", "heart", "triangle", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "medium", "big")
ACTIONS = ("rolls", "bounces", "floats", "spins", "zigzags", "flies in circles")
CAMERAS = ("static", "pans left", "pans right")

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"place": PLACES, "shape": SHAPES, "colour": COLOURS, "size": SIZES, "action": ACTIONS, "camera": CAMERAS}
)
"""The attributes that captions name, with their canonical words."""

HIDDEN_ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pattern": ("core", "halves", "band", "quarters"),
        "second_colour": ("white", "black", "cyan", "brown"),
        "outline": ("dark", "light"),
    }
)
"""Attributes that no prompt needs to name and that stay the same through a whole video."""

PLAIN = -1
"""Pattern of an object that has none; no scene is drawn with it, but `render` knows it."""

HELD_OUT = (
    ("ball", "purple"),
    ("cube", "pink"),
    ("star", "green"),
    ("heart", "orange"),
    ("triangle", "white"),
    ("ring", "yellow"),
)
"""Shape and colour pairs that the split "train" never shows."""

HIDDEN = (
    "phase",
    "phase2",
    "speed",
    "heading",
    "rest_x",
    "rest_y",
    "turn",
    "light",
    "sun_x",
    "sun_y",
    "horizon",
    "pan",
)
"""Columns of `Scenes.hidden`, each uniform in [0, 1)."""


@final
@dataclass(frozen=True, kw_only=True)
class Scenes:
    """A batch of n scenes; every field has n rows, and all are on one device."""

    place: Int64[Tensor, " n"]
    """Index into `PLACES`."""
    shape: Int64[Tensor, " n"]
    """Index into `SHAPES`."""
    colour: Int64[Tensor, " n"]
    """Index into `COLOURS`."""
    size: Int64[Tensor, " n"]
    """Index into `SIZES`."""
    action: Int64[Tensor, " n"]
    """Index into `ACTIONS`."""
    camera: Int64[Tensor, " n"]
    """Index into `CAMERAS`."""
    pattern: Int64[Tensor, " n"]
    """Index into `HIDDEN_ATTRIBUTES["pattern"]`, or `PLAIN`."""
    second_colour: Int64[Tensor, " n"]
    """Index into `HIDDEN_ATTRIBUTES["second_colour"]`."""
    outline: Int64[Tensor, " n"]
    """Index into `HIDDEN_ATTRIBUTES["outline"]`."""
    layout: Int64[Tensor, " n"]
    """Seed in [0, 2^31) of where hills, clouds, trees, stars and windows stand."""
    hidden: Float64[Tensor, "n columns"]
    """Continuous hidden values in [0, 1), named by `HIDDEN`."""

    def __len__(self) -> int:
        return self.place.shape[0]

    def __getitem__(self, index: slice | Int[Tensor, " m"]) -> "Scenes":
        """The scenes at a slice or at integer positions (tensor [m], on the scenes' device)."""
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def device(self) -> torch.device:
        """Where the tensors are, and where `render` works."""
        return self.place.device

    def to(self, device: torch.device | str) -> "Scenes":
        """The same scenes on another device."""
        return Scenes(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def attribute(self, name: str) -> Int[Tensor, " n"]:
        """Indices of one attribute, named or hidden (a key of `ATTRIBUTES` or `HIDDEN_ATTRIBUTES`).

        Raises `UserError` for another name.
        """
        if name not in ATTRIBUTES and name not in HIDDEN_ATTRIBUTES:
            raise _user_error("attribute", name, (*ATTRIBUTES, *HIDDEN_ATTRIBUTES))
        return getattr(self, name)

    def hidden_value(self, name: str) -> Float64[Tensor, " n"]:
        """One column of `hidden`, by its name in `HIDDEN`."""
        return self.hidden[:, HIDDEN.index(name)]


Split: TypeAlias = Literal["train", "heldout", "all"]
"""Which pairs of shape and colour: all but those of `HELD_OUT`, only those, or all."""


def sample_scenes(n: int, generator: torch.Generator, *, split: Split = "train") -> Scenes:
    """Draw n scenes on the CPU.

    "train" draws uniformly from every shape-colour pair but those in `HELD_OUT`, "heldout" from those only,
    "all" from all of them (for those who judge).
    """
    held = {(SHAPES.index(shape), COLOURS.index(colour)) for shape, colour in HELD_OUT}
    every = [(shape, colour) for shape in range(len(SHAPES)) for colour in range(len(COLOURS))]
    pairs = torch.tensor([pair for pair in every if split == "all" or (pair in held) == (split == "heldout")])
    chosen = pairs[torch.randint(len(pairs), (n,), generator=generator)]
    return _complete(n, generator, {"shape": chosen[:, 0], "colour": chosen[:, 1]})


def specified_scenes(generator: torch.Generator, *, n: int, **attributes: str) -> Scenes:
    """Draw n scenes on the CPU with some attributes fixed by word, e.g. `place="moon", pattern="band"`.

    Raises `UserError` for an unknown attribute or word.
    """
    fixed = {}
    for name, word in attributes.items():
        words = {**ATTRIBUTES, **HIDDEN_ATTRIBUTES}.get(name)
        if words is None:
            raise _user_error("attribute", name, (*ATTRIBUTES, *HIDDEN_ATTRIBUTES))
        if word not in words:
            raise _user_error(name, word, words)
        fixed[name] = torch.full((n,), words.index(word), dtype=torch.int64)
    return _complete(n, generator, fixed)


def _complete(n: int, generator: torch.Generator, fixed: Mapping[str, Int64[Tensor, " n"]]) -> Scenes:
    """Scenes with every attribute that is not fixed drawn uniformly."""
    drawn = {
        name: torch.randint(len(words), (n,), generator=generator)
        for name, words in {**ATTRIBUTES, **HIDDEN_ATTRIBUTES}.items()
    } | dict(fixed)
    white = drawn["colour"] == COLOURS.index("white")
    # A white object gets a dark outline, for snow and clouds, and no white or black pattern; elsewhere a white or
    # black pattern gets the other outline, so that neither the pattern nor the silhouette is lost in the outline.
    second, outline = drawn["second_colour"], drawn["outline"]
    if "second_colour" not in fixed:
        other = torch.randint(2, len(HIDDEN_ATTRIBUTES["second_colour"]), (n,), generator=generator)
        second = torch.where(white & (second < 2), other, second)
    if "outline" not in fixed:
        outline = torch.where(second < 2, second, outline)
        outline = torch.where(white, 0, outline)
    drawn |= {"second_colour": second, "outline": outline}
    return Scenes(
        **drawn,
        layout=torch.randint(2**31 - 1, (n,), generator=generator),
        hidden=torch.rand(n, len(HIDDEN), generator=generator, dtype=torch.float64),
    )


def _user_error(what: str, got: str, choices: tuple[str, ...]) -> Exception:
    # Imported here so that the world itself needs nothing but torch and jaxtyping.
    from streaming.errors import UserError

    return UserError(f"unknown {what} {got!r}; choose one of: {', '.join(choices)}")
