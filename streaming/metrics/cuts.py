"""Scene cuts: the paper's SCuts by PySceneDetect, and the contract for second opinions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import UInt8
from torch import Tensor

from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.described import Described
from streaming.metrics.missing import need

LISTED = 1000
"""Cuts whose places are kept."""
_WHAT = "counting scene cuts"


class CutDetector(Described):
    """Finds cuts in a video that it is shown frame by frame."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What its count is called in the results."""

    @abstractmethod
    def start(self) -> "CutFinder":
        """For a new video. Raises UserError if a package or weights are missing."""


class CutFinder(ABC):
    """What a detector has found so far."""

    @abstractmethod
    def add(self, frame: UInt8[Tensor, "3 rows cols"]) -> list[int]:
        """Show it the next frame, RGB as in the video. Gives the cuts found now: the frames that begin a scene."""

    @abstractmethod
    def rest(self) -> list[int]:
        """The cuts that would be found if the video ended here; changes nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class Adaptive(CutDetector):
    """PySceneDetect's AdaptiveDetector with its defaults, as in the paper [StreamingT2V §5.1].

    By default it misses cuts that are less than 15 frames apart, and chunks add 8; `min_scene_len=1` finds all. Cuts in
    the first and last two frames are invisible to both.
    """

    min_scene_len: int = 15
    """Frames that a scene has at least."""
    adaptive_threshold: float = 3.0
    """How much the change must exceed its neighbours'."""
    min_content_val: float = 15.0
    """Smallest change that counts, weighted HSV levels."""
    window_width: int = 2
    """Neighbours on either side."""
    downscale: bool = True
    """Whether frames are first made smaller as PySceneDetect's own programs do (to 256 pixels or a little more)."""

    @property
    def name(self) -> str:
        """scuts, or with its min_scene_len where that is not the paper's."""
        return "scuts" if self.min_scene_len == 15 else f"scuts_min{self.min_scene_len}"

    @property
    def modules(self) -> tuple[str, ...]:
        """PySceneDetect and the OpenCV that it works with."""
        return ("scenedetect", "cv2")

    def start(self) -> CutFinder:
        """Raises UserError without PySceneDetect or OpenCV."""
        need("cv2", _WHAT, "opencv-python-headless")
        return _AdaptiveFinder(self, need("scenedetect", _WHAT))


@final
class _AdaptiveFinder(CutFinder):
    def __init__(self, settings: Adaptive, library: Any) -> None:
        self._library, self._count, self._downscale = library, 0, settings.downscale
        self._detector = library.AdaptiveDetector(
            min_scene_len=settings.min_scene_len,
            adaptive_threshold=settings.adaptive_threshold,
            min_content_val=settings.min_content_val,
            window_width=settings.window_width,
        )

    def add(self, frame: UInt8[Tensor, "3 rows cols"]) -> list[int]:
        time = self._library.FrameTimecode(self._count, 8.0)  # lengths are in frames, so any rate does
        self._count += 1
        return [cut.frame_num for cut in self._detector.process_frame(time, self._image(frame))]

    def _image(self, frame: UInt8[Tensor, "3 rows cols"]) -> Any:
        """BGR, made smaller by linear interpolation without a filter, which is what the library does with files."""
        import cv2

        image = frame.flip(0).permute(1, 2, 0).contiguous().numpy()
        factor = self._library.scene_manager.compute_downscale_factor(max(image.shape[:2])) if self._downscale else 1
        if factor <= 1:
            return image
        size = tuple(max(1, round(side / factor)) for side in (image.shape[1], image.shape[0]))
        return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)

    def rest(self) -> list[int]:
        return []


@final
@dataclass(frozen=True, kw_only=True)
class SceneCuts(Metric):
    """SCuts: how many cuts there are in what should be one shot."""

    detector: CutDetector = Adaptive()
    """Who looks for them."""

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One, named as the detector."""
        return {self.detector.name: Number(meaning="scene cuts found", unit="cuts", better="lower")}

    @property
    def modules(self) -> tuple[str, ...]:
        """The detector's."""
        return self.detector.modules

    def start(self, tools: Tools) -> Meter:
        """Raises UserError as the detector does."""
        return _CutsMeter(self.detector)


@final
class _CutsMeter(Meter):
    """A video of one frame has no count: nothing could be cut."""

    def __init__(self, detector: CutDetector) -> None:
        self._name, self._finder = detector.name, detector.start()
        self._frames, self._count = 0, 0
        self._first: list[int] = []
        self._looked: tuple[int, list[int]] = (0, [])

    def add(self, seen: Observation) -> None:
        self._frames += 1
        cuts = self._finder.add(seen.shown)
        self._count += len(cuts)
        self._first = (self._first + cuts)[:LISTED]

    def result(self) -> Values:
        return {self._name: float(self._count + len(self._rest())) if self._frames > 1 else None}

    def events(self) -> Mapping[str, list[int]]:
        return {self._name: (self._first + self._rest())[:LISTED]}

    def _rest(self) -> list[int]:
        """Looked for once, as it may take a network."""
        if self._looked[0] != self._frames:
            self._looked = self._frames, self._finder.rest()
        return self._looked[1]
