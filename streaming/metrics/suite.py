"""The metrics that say most together, for what is known of a video."""

from streaming.metrics.borders import Borders
from streaming.metrics.clip import AnchorDistance, CLIPScore
from streaming.metrics.contract import Metric
from streaming.metrics.cuts import Adaptive, SceneCuts
from streaming.metrics.detail import FineDetail
from streaming.metrics.drift import Drift
from streaming.metrics.evaluate import How
from streaming.metrics.flicker import Flicker, SeamRatio
from streaming.metrics.grain import Grain
from streaming.metrics.jumps import Jumps
from streaming.metrics.motion import FlowSpread, Motion
from streaming.metrics.motion_aware import MotionAwareWarpError
from streaming.metrics.order import Disorder
from streaming.metrics.shake import CameraShake
from streaming.metrics.tint import TintDrift
from streaming.metrics.warp import WarpError


def standard(how: How, *, borders: Borders | None = None, prompt: str | None = None) -> list[Metric]:
    """Cuts (the paper's, and with chunks of 8 in mind) and all that the verdict reads; with flow also the warp errors.

    With borders also seams and joins; with a CLIP model the distance from the first frame and, with a prompt, the CLIP
    score. TransNetV2, LPIPS and the object's track are added by those who have them or the procedural world's videos.
    """
    metrics: list[Metric] = [SceneCuts(), SceneCuts(detector=Adaptive(min_scene_len=1)), Flicker(), Drift()]
    metrics += [Disorder(), FineDetail(), TintDrift()]
    if how.flow is not None:
        metrics += [MotionAwareWarpError(), WarpError(), Motion(), FlowSpread(borders=borders)]
        metrics += [Jumps(), CameraShake(), Grain()]
    if borders is not None:
        metrics += [SeamRatio(borders=borders)]
    if how.clip is not None:
        metrics += [AnchorDistance()]
        metrics += [CLIPScore(prompt=prompt)] if prompt is not None else []
    return metrics
