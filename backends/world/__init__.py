"""A procedural world of endless captioned videos: `sample_scenes`, `captions`, `render`."""

from backends.world.captions import VOCABULARY, canonical_captions, captions, complete_captions
from backends.world.flow import object_flow
from backends.world.render import object_mask, object_track, render
from backends.world.scene import (
    ACTIONS,
    ATTRIBUTES,
    CAMERAS,
    COLOURS,
    HELD_OUT,
    HIDDEN_ATTRIBUTES,
    PLACES,
    PLAIN,
    SHAPES,
    SIZES,
    Scenes,
    sample_scenes,
    specified_scenes,
)

__all__ = [
    "ACTIONS",
    "ATTRIBUTES",
    "CAMERAS",
    "COLOURS",
    "HELD_OUT",
    "HIDDEN_ATTRIBUTES",
    "PLACES",
    "PLAIN",
    "SHAPES",
    "SIZES",
    "VOCABULARY",
    "Scenes",
    "canonical_captions",
    "captions",
    "complete_captions",
    "object_flow",
    "object_mask",
    "object_track",
    "render",
    "sample_scenes",
    "specified_scenes",
]
