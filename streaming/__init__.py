"""Contracts, the autoregressive loop, blending, enhancement and files: StreamingT2V without any model.

What most programs need can be imported from here. Each name is loaded when it is first used, so that importing the
package (which the command line does for `--help`) does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaming.anchor import AnchorPolicy as AnchorPolicy
    from streaming.anchor import AtChunks as AtChunks
    from streaming.anchor import Never as Never
    from streaming.anchor import OnPromptChange as OnPromptChange
    from streaming.anchor import OnSceneChange as OnSceneChange
    from streaming.backbone import Backbone as Backbone
    from streaming.backbone import Call as Call
    from streaming.backbone import FeatureEncoder as FeatureEncoder
    from streaming.backbone import Guided as Guided
    from streaming.backbone import NoiseLevel as NoiseLevel
    from streaming.backbone import Window as Window
    from streaming.blend import ChunkBlender as ChunkBlender
    from streaming.blend import CrossFade as CrossFade
    from streaming.blend import Naive as Naive
    from streaming.blend import RandomizedBlending as RandomizedBlending
    from streaming.blend import SharedNoise as SharedNoise
    from streaming.checkpoint import Checkpoint as Checkpoint
    from streaming.codec import Codec as Codec
    from streaming.codec import EncodedText as EncodedText
    from streaming.codec import ImageEncoder as ImageEncoder
    from streaming.codec import TextEncoder as TextEncoder
    from streaming.enhance import Enhancer as Enhancer
    from streaming.enhance import assemble_enhancer as assemble_enhancer
    from streaming.enhance import enhance_causal as enhance_causal
    from streaming.enhance import enhance_joint as enhance_joint
    from streaming.errors import UserError as UserError
    from streaming.frame_mask import FrameMask as FrameMask
    from streaming.guidance import ClassifierFree as ClassifierFree
    from streaming.guidance import Guidance as Guidance
    from streaming.guidance import TextThenAnchor as TextThenAnchor
    from streaming.guidance import Unguided as Unguided
    from streaming.keys import Key as Key
    from streaming.loop import Chunk as Chunk
    from streaming.loop import chunks_needed as chunks_needed
    from streaming.loop import stream as stream
    from streaming.memory import LongTermMemory as LongTermMemory
    from streaming.memory import NoLongTerm as NoLongTerm
    from streaming.memory import NoShortTerm as NoShortTerm
    from streaming.memory import ShortTermMemory as ShortTermMemory
    from streaming.memory import Tail as Tail
    from streaming.model import Backend as Backend
    from streaming.model import Defaults as Defaults
    from streaming.model import Model as Model
    from streaming.noise import Keyed as Keyed
    from streaming.noise import Noise as Noise
    from streaming.noise import OneGenerator as OneGenerator
    from streaming.openings import ImageOpening as ImageOpening
    from streaming.openings import Opening as Opening
    from streaming.openings import TextOpening as TextOpening
    from streaming.openings import VideoOpening as VideoOpening
    from streaming.parts import Parts as Parts
    from streaming.parts import assemble as assemble
    from streaming.presets import FirstChunk as FirstChunk
    from streaming.presets import Preset as Preset
    from streaming.presets import make_preset as make_preset
    from streaming.prompts import PromptSchedule as PromptSchedule
    from streaming.read import Video as Video
    from streaming.read import read_image as read_image
    from streaming.read import read_video as read_video
    from streaming.registry import make_blender as make_blender
    from streaming.registry import make_long_term as make_long_term
    from streaming.registry import make_short_term as make_short_term
    from streaming.registry import open_enhancer as open_enhancer
    from streaming.registry import open_model as open_model
    from streaming.registry import with_image_encoder as with_image_encoder
    from streaming.sample import Sampler as Sampler
    from streaming.sites import ContextSite as ContextSite
    from streaming.sites import Delta as Delta
    from streaming.sites import Deltas as Deltas
    from streaming.sites import FeatureSite as FeatureSite
    from streaming.video import VideoWriter as VideoWriter

_HOMES = {
    "anchor": "AnchorPolicy AtChunks Never OnPromptChange OnSceneChange",
    "backbone": "Backbone Call FeatureEncoder Guided NoiseLevel Window",
    "blend": "ChunkBlender CrossFade Naive RandomizedBlending SharedNoise",
    "checkpoint": "Checkpoint",
    "codec": "Codec EncodedText ImageEncoder TextEncoder",
    "enhance": "Enhancer assemble_enhancer enhance_causal enhance_joint",
    "errors": "UserError",
    "frame_mask": "FrameMask",
    "guidance": "ClassifierFree Guidance TextThenAnchor Unguided",
    "keys": "Key",
    "loop": "Chunk chunks_needed stream",
    "memory": "LongTermMemory NoLongTerm NoShortTerm ShortTermMemory Tail",
    "model": "Backend Defaults Model",
    "noise": "Keyed Noise OneGenerator",
    "openings": "ImageOpening Opening TextOpening VideoOpening",
    "parts": "Parts assemble",
    "presets": "FirstChunk Preset make_preset",
    "prompts": "PromptSchedule",
    "read": "Video read_image read_video",
    "registry": "make_blender make_long_term make_short_term open_enhancer open_model with_image_encoder",
    "sample": "Sampler",
    "sites": "ContextSite Delta Deltas FeatureSite",
    "video": "VideoWriter",
}

_WHERE = {name: f"streaming.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'streaming' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
