"""What an ablation is asked for, and what its variants share: networks, their identity, videos."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, final

from torch import nn

from streaming.ablation.judge import ClipJudge
from streaming.ablation.measure import Measures, Video
from streaming.ablation.plan import Variant
from streaming.ablation.videos import Sampled, enhancer_for, made
from streaming.codec import TextEncoder
from streaming.enhancer import Enhancer
from streaming.errors import UserError
from streaming.metrics.described import Plain
from streaming.metrics.fingerprint import tensors_sha256
from streaming.model import Model
from streaming.parts import Parts

Report: TypeAlias = Callable[[str, int, int], None]
"""(variant, frames done, frames in all)."""


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """An ablation of a model."""

    model: Model
    """Loaded, on its device."""
    memories: Path | None
    """Folder with trained memories; None: the model's own."""
    sampled: Sampled
    """Which videos."""
    measures: Measures
    """What is looked at."""
    judge: ClipJudge | None
    """Who tells hidden attributes; None: nobody."""
    batch: int
    """Videos made together."""
    jobs: int
    """Processes that measure."""
    output: Path
    """Folder of the results."""
    keep: int = 0
    """Videos of each variant that are kept as mp4."""


@final
class Source:
    """What several variants share, made when the first one asks for it."""

    def __init__(self, study: Study, report: Report) -> None:
        self.study, self.report = study, report
        self._videos: list[Video] | None = None
        self._failed: UserError | None = None

    @cached_property
    def base(self) -> dict[str, Plain]:
        """The identity of the base model: of all networks that make a video or condition it."""
        model = self.study.model
        return {"base": _sha(model.backbone), "codec": _sha(model.codec), "text encoder": _sha(model.text),
                "words": _words(model.text), "image encoder": "none" if model.image is None else _sha(model.image),
                }  # fmt: skip

    @cached_property
    def enhancer(self) -> Enhancer:
        """The model's. Raises UserError if there is none."""
        model = self.study.model
        return enhancer_for(model.name, model.device, model.dtype)

    @cached_property
    def enhancers(self) -> dict[str, Plain]:
        """The identity of the enhancer, but for its blender."""
        made = self.enhancer
        config: dict[str, object] = dict(made.scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
        return {
            "weights": _sha(made.backbone), "codec": _sha(made.codec), "text encoder": _sha(made.text),
            "words": _words(made.text), "strength": made.strength, "guidance": repr(made.guidance),
            "sampler": repr(made.sampler), "size": f"{made.made[1]}x{made.made[0]}",
            "schedule": repr(sorted((name, value) for name, value in config.items() if not name.startswith("_"))),
            "negative prompt": made.negative_prompt, "prompt suffix": made.prompt_suffix,
        }  # fmt: skip

    def videos(self, parts: Parts, variant: Variant) -> list[Video]:
        """Those that every blending starts from, in memory: at 64 x 64 pixels and 240 frames 3 MB each."""
        if self._failed is not None:
            raise self._failed
        if self._videos is None:
            study = self.study
            told = partial(so_far, self.report, f"{variant.short}_{variant.long}", study.sampled)
            try:
                self._videos = list(made(parts, study.sampled, study.batch, told))
            except UserError as error:
                self._failed = error
                raise
        return self._videos


def so_far(report: Report, name: str, sampled: Sampled, done: int) -> None:
    """Tells of so many frames done."""
    report(name, done, sampled.frames * len(sampled.pairs))


def _sha(module: nn.Module) -> str:
    return tensors_sha256(module.state_dict())


def _words(text: TextEncoder) -> str:
    """A closed vocabulary is no weight, but decides which weights a word gets."""
    words = text.vocabulary
    return "any" if words is None else hashlib.sha256(" ".join(words).encode()).hexdigest()
