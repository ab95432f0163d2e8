"""Measures of videos, in one pass: `evaluate_stream(read_video(path).pieces, standard(how), how)`.

A metric is a frozen value with settings (`contract.Metric`); results are plain data with all that changes a number.
Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaming.metrics.borders import Borders as Borders
    from streaming.metrics.borders import BordersAt as BordersAt
    from streaming.metrics.borders import EveryChunk as EveryChunk
    from streaming.metrics.clip import AnchorDistance as AnchorDistance
    from streaming.metrics.clip import ClipEncoder as ClipEncoder
    from streaming.metrics.clip import CLIPScore as CLIPScore
    from streaming.metrics.contract import Meter as Meter
    from streaming.metrics.contract import Metric as Metric
    from streaming.metrics.contract import Number as Number
    from streaming.metrics.contract import Observation as Observation
    from streaming.metrics.cuts import Adaptive as Adaptive
    from streaming.metrics.cuts import CutDetector as CutDetector
    from streaming.metrics.cuts import SceneCuts as SceneCuts
    from streaming.metrics.detail import FineDetail as FineDetail
    from streaming.metrics.drift import Drift as Drift
    from streaming.metrics.evaluate import How as How
    from streaming.metrics.evaluate import evaluate_stream as evaluate_stream
    from streaming.metrics.flicker import Flicker as Flicker
    from streaming.metrics.flicker import SeamRatio as SeamRatio
    from streaming.metrics.flow import DIS as DIS
    from streaming.metrics.flow import OpticalFlow as OpticalFlow
    from streaming.metrics.grain import Grain as Grain
    from streaming.metrics.jumps import Jumps as Jumps
    from streaming.metrics.motion import FlowSpread as FlowSpread
    from streaming.metrics.motion import Motion as Motion
    from streaming.metrics.motion_aware import MotionAwareWarpError as MotionAwareWarpError
    from streaming.metrics.narrative import Narrative as Narrative
    from streaming.metrics.narrative import NarrativeScore as NarrativeScore
    from streaming.metrics.narrative import narrative_score as narrative_score
    from streaming.metrics.order import Disorder as Disorder
    from streaming.metrics.paired import Paired as Paired
    from streaming.metrics.paired import Procedure as Procedure
    from streaming.metrics.paired import compare_pairs as compare_pairs
    from streaming.metrics.perceptual import LPIPS as LPIPS
    from streaming.metrics.perceptual import AnchorPerceptual as AnchorPerceptual
    from streaming.metrics.perceptual import PerceptualDistance as PerceptualDistance
    from streaming.metrics.raft import RAFT as RAFT
    from streaming.metrics.results import Results as Results
    from streaming.metrics.results import badness as badness
    from streaming.metrics.shake import CameraShake as CameraShake
    from streaming.metrics.still import Stillness as Stillness
    from streaming.metrics.suite import standard as standard
    from streaming.metrics.tint import TintDrift as TintDrift
    from streaming.metrics.track import ObjectTrack as ObjectTrack
    from streaming.metrics.transnet import TransNetV2 as TransNetV2
    from streaming.metrics.verdict import Verdict as Verdict
    from streaming.metrics.warp import WarpError as WarpError

_HOMES = {
    "borders": "Borders BordersAt EveryChunk",
    "clip": "AnchorDistance CLIPScore ClipEncoder",
    "contract": "Meter Metric Number Observation",
    "cuts": "Adaptive CutDetector SceneCuts",
    "detail": "FineDetail",
    "drift": "Drift",
    "evaluate": "How evaluate_stream",
    "flicker": "Flicker SeamRatio",
    "flow": "DIS OpticalFlow",
    "grain": "Grain",
    "jumps": "Jumps",
    "motion": "FlowSpread Motion",
    "motion_aware": "MotionAwareWarpError",
    "narrative": "Narrative NarrativeScore narrative_score",
    "order": "Disorder",
    "paired": "Paired Procedure compare_pairs",
    "perceptual": "AnchorPerceptual LPIPS PerceptualDistance",
    "raft": "RAFT",
    "results": "Results badness",
    "shake": "CameraShake",
    "still": "Stillness",
    "suite": "standard",
    "tint": "TintDrift",
    "track": "ObjectTrack",
    "transnet": "TransNetV2",
    "verdict": "Verdict",
    "warp": "WarpError",
}

_WHERE = {name: f"streaming.metrics.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'streaming.metrics' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
