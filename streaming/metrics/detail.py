"""Fine detail: whether pictures are as sharp as their coarser structure lets one expect, whatever they show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from streaming.metrics.contract import Meter, Metric, Number, Observation, Tools, Values
from streaming.metrics.running import Moments, ratio


@final
@dataclass(frozen=True, kw_only=True)
class FineDetail(Metric):
    """Variance of the Laplacian by that of the frames at half their size (2x2 means), each averaged over the video.

    Pictures look alike at all scales (spectra of natural images fall as a power of the frequency [Field 1987]), so the
    ratio hardly depends on what is shown or on its contrast; a blur takes from the finest scale first. Measured at the
    evaluation's resolution, or at the video's own if that has fewer pixels, as making frames larger is a blur itself;
    a blur of less than these pixels is not seen.
    """

    @property
    def numbers(self) -> Mapping[str, Number]:
        """One. About 0.3 to 0.8 for sharp frames, 0.1 for blurred ones."""
        told = "variance of the Laplacian by that at half the size"
        return {"fine_detail": Number(meaning=told, better="higher", frozen="absent")}

    def start(self, tools: Tools) -> Meter:
        """No frames so far."""
        return _Meter()


@final
class _Meter(Meter):
    def __init__(self) -> None:
        self._fine, self._coarse = Moments(), Moments()

    def add(self, seen: Observation) -> None:
        if seen.detail is not None:
            self._fine.add(seen.detail[0])
            self._coarse.add(seen.detail[1])

    def result(self) -> Values:
        return {"fine_detail": ratio(self._fine.mean, self._coarse.mean)}
