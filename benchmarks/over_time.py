"""How very long videos change: their looks and what the judge sees in each stretch of 100 frames, drawn and judged.

A video has collapsed if any later stretch, against its own first one, has less than half or more than twice the
contrast, saturation or sharpness, less than a quarter or more than four times the motion, brightness that is off by
more than 30 %, or if the judge sees another place in it than the prompt's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.judged import Referee
from benchmarks.measures import look
from benchmarks.sheet import contact_sheet
from streaming.metrics.clip import ClipEncoder, unit

EVERY = 100
"""Frames of a stretch."""
BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "brightness": (0.7, 1.3),
        "contrast": (0.5, 2.0),
        "saturation": (0.5, 2.0),
        "sharpness": (0.5, 2.0),
        "motion": (0.25, 4.0),
    }
)
"""What a stretch may have of the first stretch's value; beyond is collapse."""
Stretch = dict[str, Any]
"""Of one stretch: first frame, looks, distance from the first frame, and the judge's words."""
Video = UInt8[Tensor, "time 3 rows cols"]


def stretches(video: Video, referee: Referee, clip: ClipEncoder) -> list[Stretch]:
    """All whole stretches; the judge sees the last frames of each."""
    length = referee.judge.config.frames
    parts = [part for part in video.split(EVERY) if len(part) == EVERY]
    told = referee.ask(torch.stack([part[-length:] for part in parts]))
    start = unit(clip.images(video[:1]), "the first frame")
    rows = []
    for i, part in enumerate(parts):
        away = 1 - unit(clip.images(part), f"frames {i * EVERY}..{(i + 1) * EVERY - 1}") @ start[0]
        words = {name: referee.words(name)[int(answers[i])] for name, answers in told.items() if referee.may(name)}
        rows.append({"frame": i * EVERY, **asdict(look(part)), "anchor distance": float(away.mean()), "judge": words})
    return rows


def collapse(rows: Sequence[Stretch], place: str) -> str | None:
    """The first thing by which a video has collapsed, in words; None if it has not. place: what the prompt asks for."""
    for row in rows:
        for name, (low, high) in BOUNDS.items():
            if not low * rows[0][name] <= row[name] <= high * rows[0][name]:
                return f"{name} {row[name]:.3g} from frame {row['frame']} on, {rows[0][name]:.3g} at the start"
        if row["judge"].get("place", place) != place:
            return f"{row['judge']['place']} in place of {place} from frame {row['frame']} on"
    return None


def draw(path: Path, videos: Sequence[Sequence[Stretch]], asked: Sequence[Mapping[str, str]], title: str) -> None:
    """A panel a measure, a thin line a video and their mean; the last panel is the judge's.

    Raises UserError without matplotlib.
    """
    from streaming.metrics.missing import need

    figures: Any = need("matplotlib.figure", "plotting")
    figure = figures.Figure(figsize=(12, 9), layout="constrained")
    panels = figure.subplots(3, 3).flat
    frames = [row["frame"] + EVERY / 2 for row in videos[0]]
    for name, panel in zip((*BOUNDS, "anchor distance"), panels, strict=False):
        lines = torch.tensor([[row[name] for row in rows] for rows in videos])
        for line in lines.tolist():
            panel.plot(frames, line, linewidth=0.7, color="tab:blue", alpha=0.5)
        panel.plot(frames, lines.mean(dim=0).tolist(), color="black")
        panel.set(title=name, ylim=(0, None))
        panel.grid(alpha=0.3)
    # Named attributes against the prompt; hidden ones against the video's own beginning.
    named, hidden, rest = panels[6], panels[7], panels[8]
    for name in videos[0][0]["judge"]:
        told = [[row["judge"][name] for row in rows] for rows in videos]
        wanted = [each.get(name, words[0]) for each, words in zip(asked, told, strict=True)]
        right = torch.tensor([[word == w for word in words] for words, w in zip(told, wanted, strict=True)]).float()
        panel = named if name in asked[0] else hidden
        panel.plot(frames, right.mean(dim=0).tolist(), marker=".", label=name)
    for panel, about in ((named, "right for the judge"), (hidden, "hidden, as at the start")):
        panel.set(title=f"{about} (share of videos)", ylim=(-0.05, 1.05), xlabel="frame")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=7)
    rest.set_axis_off()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def draw_sheet(path: Path, videos: Sequence[Video], prompts: Sequence[str]) -> None:
    """The first frame of every stretch and the very last frame, one row a video."""
    picked = [torch.cat((video[::EVERY], video[-1:])) for video in videos]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(list(zip(prompts, picked, strict=True))).save(path, optimize=True)
