"""Captions of scenes: what a caption names, in many wordings, and one fixed wording.

What prompts leave hidden, the pattern on an object, its second colour and its outline, captions of training tell now
and then: a model that has no words for a thing can hardly be told by a memory to draw it.
"""

import torch

from backends.world.scene import ACTIONS, ATTRIBUTES, COLOURS, HIDDEN_ATTRIBUTES, PLACES, PLAIN, Scenes

_SIZES = {"small": ("small", "little", "tiny"), "medium": ("medium",), "big": ("big", "large", "huge")}
_SHAPES = {"ball": ("ball", "ball", "sphere"), "cube": ("cube", "cube", "box"), "star": ("star",),
           "heart": ("heart",), "triangle": ("triangle",), "ring": ("ring",)}  # fmt: skip
_COLOURS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "purple", "violet")}
_ACTIONS = {
    "rolls": ("rolls", "rolls", "is rolling"),
    "bounces": ("bounces", "bounces", "is bouncing", "jumps"),
    "floats": ("floats", "floats", "is floating", "hovers"),
    "spins": ("spins", "spins", "is spinning", "rotates"),
    "zigzags": ("zigzags", "zigzags", "is zigzagging"),
    "flies in circles": ("flies in circles", "flies in circles", "is circling", "circles"),
}
_PREPOSITIONS = {
    "rolls": ("over", "across", "on"),
    "bounces": ("on", "over", "across"),
    "floats": ("over", "above", "in"),
    "spins": ("over", "above", "on", "in"),
    "zigzags": ("over", "across", "above"),
    "flies in circles": ("over", "above", "in"),
}
_PLACES = {
    "meadow": ("a meadow", "a green meadow", "the meadow", "the green meadow", "the grass", "a green field"),
    "desert": ("the desert", "a desert", "a sandy desert", "the sandy desert", "the sand"),
    "city at night": ("a city at night", "the city at night", "a night city", "the night city", "a dark city"),
    "ocean": ("the ocean", "the sea", "the blue ocean", "the blue sea", "an ocean"),
    "snow": ("the snow", "the white snow", "a snowy field", "the snowy field", "snow"),
    "moon": ("the moon", "the grey moon", "the gray moon", "a grey moon"),
}
_NOT_IN = ("ocean", "moon")  # things are over, not in, these
_CAMERAS = {
    "static": ("static camera", "the camera is static", "the camera stands still", "the camera does not move"),
    "pans left": ("the camera pans left", "the camera pans to the left", "camera pans left", "the camera moves left"),
    "pans right": (
        "the camera pans right",
        "the camera pans to the right",
        "camera pans right",
        "the camera moves right",
    ),
}
_PATTERNS = {"core": "a {} core", "halves": "{} halves", "band": "a {} band", "quarters": "{} quarters"}
_DETAILS = ("with", "and", "edge")
_LOOKS_TOLD, _EDGES_TOLD = 0.5, 0.25
_LONGEST = 22
"""Words of a caption, at most."""
_THINGS = ("thing", "object", "shape")
_CANONICAL_PLACES = ("a green meadow", "a sandy desert", "a city at night", "the ocean", "the snow", "the grey moon")
_CANONICAL_PREPOSITIONS = ("over", "on", "over", "over", "over", "over")  # by action

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "the", *_THINGS, *_DETAILS}
        | {word for words in HIDDEN_ATTRIBUTES.values() for word in words}
        | {
            word
            for group in (_SIZES, _SHAPES, _COLOURS, _ACTIONS, _PREPOSITIONS, _PLACES, _CAMERAS)
            for phrases in group.values()
            for phrase in phrases
            for word in phrase.split()
        }
    )
)
"""Every word that a caption can have; the only other sign is the comma."""


def captions(scenes: Scenes, generator: torch.Generator, *, looks: bool = True) -> list[str]:
    """One caption a scene, worded at random, with some attributes left out; at most 22 words.

    Half of the captions leave out the size, half (of the moving ones .05) the camera; each other attribute is left
    out in 4 %, never two of them. Half of them say how the object looks, a quarter what its edge is like: "with a cyan
    core and a dark edge". looks: False leaves this out; the rest of the wording stays.
    """
    draws = torch.rand(len(scenes), _DRAWS, generator=generator).tolist()
    told = torch.rand(len(scenes), 2, generator=generator).tolist()
    details = [
        _look(words, pattern=draw[0] < _LOOKS_TOLD, edge=draw[1] < _EDGES_TOLD) if looks else ""
        for words, draw in zip(_looks(scenes), told, strict=True)
    ]
    rows = zip(_words(scenes), draws, details, strict=True)
    return [_fitting(words, draw, detail) for words, draw, detail in rows]


def canonical_captions(scenes: Scenes) -> list[str]:
    """One caption a scene in a fixed wording that names everything but looks ("medium" and a static camera by silence).

    For example "a big red ball rolls over a green meadow, the camera pans left".
    """
    return [_canonical(words) for words in _words(scenes)]


def complete_captions(scenes: Scenes, *, looks: bool = False) -> list[str]:
    """One caption a scene in a fixed wording that names "medium" and a static camera, too.

    What a caption does not say, training clips show at random: only these ask for all that is judged. For example
    "a medium red ball rolls over a green meadow, the camera is static". looks: the pattern is named besides, as in "a
    medium red ball with a cyan band rolls over a green meadow, the camera is static".
    """
    told = [_look(words, pattern=True, edge=False) if looks else "" for words in _looks(scenes)]
    return [_complete(words, look) for words, look in zip(_words(scenes), told, strict=True)]


_Words = dict[str, str]
_DRAWS = 12


def _words(scenes: Scenes) -> list[_Words]:
    """The canonical word of every attribute, scene by scene."""
    columns = [[words[i] for i in scenes.attribute(name).tolist()] for name, words in ATTRIBUTES.items()]
    return [dict(zip(ATTRIBUTES, row, strict=True)) for row in zip(*columns, strict=True)]


def _looks(scenes: Scenes) -> list[_Words]:
    """The words of what captions may tell besides; no pattern if the object is plain."""
    columns = [
        ["" if i == PLAIN else words[i] for i in scenes.attribute(name).tolist()]
        for name, words in HIDDEN_ATTRIBUTES.items()
    ]
    return [dict(zip(HIDDEN_ATTRIBUTES, row, strict=True)) for row in zip(*columns, strict=True)]


def _look(words: _Words, *, pattern: bool, edge: bool) -> str:
    told = []
    if words["pattern"] and pattern:
        told.append(_PATTERNS[words["pattern"]].format(words["second_colour"]))
    if edge:
        told.append(f"a {words['outline']} edge")
    return f" with {' and '.join(told)}" if told else ""


def _fitting(words: _Words, draw: list[float], detail: str) -> str:
    """The caption with its detail, or without if it would be too long."""
    caption = _caption(words, draw, detail)
    return caption if len(caption.split()) <= _LONGEST else _caption(words, draw, "")


def _pick(options: tuple[str, ...], draw: float) -> str:
    return options[int(draw * len(options))]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _canonical(words: _Words) -> str:
    size = "" if words["size"] == "medium" else words["size"]
    return _sentence(words, size) + ("" if words["camera"] == "static" else f", the camera {words['camera']}")


def _complete(words: _Words, look: str) -> str:
    camera = "is static" if words["camera"] == "static" else words["camera"]
    return f"{_sentence(words, words['size'], look)}, the camera {camera}"


def _sentence(words: _Words, size: str, look: str = "") -> str:
    subject = _with_article(f"{size} {words['colour']} {words['shape']}".strip()) + look
    preposition = _CANONICAL_PREPOSITIONS[ACTIONS.index(words["action"])]
    place = _CANONICAL_PLACES[PLACES.index(words["place"])]
    return f"{subject} {words['action']} {preposition} {place}"


def _caption(words: _Words, draw: list[float], detail: str) -> str:
    omitted = ("shape", "colour", "action", "place")[int(draw[0] / 0.04)] if draw[0] < 0.16 else None
    parts = []
    if draw[1] < 0.5:
        parts.append(_pick(_SIZES[words["size"]], draw[2]))
    if omitted != "colour":
        parts.append(_pick(_COLOURS[words["colour"]], draw[3]))
    parts.append(_pick(_THINGS if omitted == "shape" else _SHAPES[words["shape"]], draw[4]))
    noun = " ".join(parts) + detail
    subject = _with_article(noun) if draw[5] < 0.6 else f"the {noun}"
    action = "" if omitted == "action" else " " + _pick(_ACTIONS[words["action"]], draw[6])
    options = tuple(p for p in _PREPOSITIONS[words["action"]] if p != "in" or words["place"] not in _NOT_IN)
    place = f"{_pick(options, draw[7])} {_pick(_PLACES[words['place']], draw[8])}"
    place_first = draw[9] < 0.12 and omitted not in ("place", "action")
    sentence = subject + action if omitted == "place" else f"{subject}{action} {place}"
    if place_first:
        sentence = f"{place}, {subject}{action}"
    if draw[10] < (0.5 if words["camera"] == "static" else 0.95):
        sentence += ", " + _pick(_CAMERAS[words["camera"]], draw[11])
    return sentence
