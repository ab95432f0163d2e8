"""An ablation as Markdown and as JSON, with the paper's own figures beside it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import floor, inf, log10
from typing import Any

from streaming.ablation.figures import HIGHER, NEITHER, Claim, Figures, Mean
from streaming.ablation.run import Found
from streaming.ablation.videos import Sampled
from streaming.metrics.paired import Procedure, Value
from streaming.metrics.results import INFINITE

MEANINGS = {
    "scuts_min1": "scene cuts a video (PySceneDetect, min_scene_len 1)",
    "seam_ratio": "difference of neighbouring frames at chunk borders by that inside chunks; 1: no seam",
    "seam_departure": "distance of the seam ratio from 1, |ln|",
    "object_jump_ratio": "the object's way from frame to frame at chunk borders by that inside; 1: no jump",
    "object_jump_departure": "distance of that ratio from 1, |ln|",
    "object_jump_border": "the object's way at chunk borders, pixels",
    "object_found": "share of frames in which the object is found",
    "anchor_distance": "1 - cosine of the embeddings of a frame and the first one; apm and append are conditioned on "
    "the same encoder's embedding if --clip and the model share one, so it flatters them: see object_colour_drift",
    "anchor_distance_end": "the same over the last 15 % of the frames",
    "pattern_kept": "share of videos whose end shows the pattern of their beginning, which no prompt "
    "after the first chunk's names",
    "anchor_lpips": "LPIPS of a frame and the first one",
    "pattern_kept_chance": "share of the other videos whose end shows that pattern: what chance would keep",
    "object_colour_drift": "distance in RGB of the object's colours at start and end, levels",
    "flow_std_joins": "standard deviation of the mean optical flow around a join of chunks, pixels",
    "flow_std": "standard deviation over time of each pair's mean flow, pixels",
}
"""Of the numbers that are shown."""


def markdown(every: Sequence[Figures], found: Found, sampled: Sampled, model: str, how: Procedure) -> str:
    """The tables, the claims, and what has to be known to read them."""
    count = len(sampled.pairs)
    head = (
        f"# Ablations of {model}\n\n{len(sampled.prompts)} prompts × {sampled.seeds} seeds, {count} videos of "
        f"{sampled.frames} frames for each variant; all variants share prompts, seeds and noise."
        + ("" if sampled.openings is None else " First chunks are asked for more, which no later prompt names.")
    )
    return "\n\n".join([head, *(_section(each, found) for each in every), _explained(every, how)]) + "\n"


def as_json(every: Sequence[Figures], found: Found, sampled: Sampled, model: str, how: Procedure) -> str:
    """The same as strict JSON; infinity is the word "infinite"."""
    told = {
        "version": 1,
        "model": model,
        "sampled": asdict(sampled),
        "statistics": how.settings(),
        "skipped": found.skipped,
        "tables": [_plain(each) for each in every],
    }
    return json.dumps(_finite(told), allow_nan=False, indent=1) + "\n"


def _plain(figures: Figures) -> dict[str, Any]:
    table = figures.table
    return {
        "table": table.name,
        "paper_measures": table.paper,
        "paper": {each.name: each.paper for each in table.variants},
        "means": {name: {k: asdict(v) for k, v in means.items()} for name, means in figures.means.items()},
        "claims": [
            {**asdict(each.wanted), **asdict(each.paired), "p_holm": each.corrected, "holds": each.holds}
            for each in figures.claims
        ],
        "not_measured": dict(figures.unmeasured),
        "not_tested": [{**asdict(wanted), "reason": reason} for wanted, reason in figures.untested],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return INFINITE if value == inf else value


def _section(figures: Figures, found: Found) -> str:
    table = figures.table
    numbers = [name for name in table.numbers if any(name in means for means in figures.means.values())]
    head = ["variant", *(name + _arrow(name) for name in numbers), f"paper: {table.paper}"]
    rows = [
        [each.name, *(_mean(figures.means[each.name][name]) for name in numbers), each.paper]
        for each in table.variants
        if each.name in figures.means
    ]
    lines = [f"## {table.title}", ""]
    lines += _table(head, rows) if rows else ["Nothing could be made."]
    skipped = [f"- {each.name} is missing: {found.skipped[each.file]}" for each in table.variants
               if each.file in found.skipped]  # fmt: skip
    missing = [f"- {name} is not measured: {reason}" for name, reason in figures.unmeasured.items()]
    claims = [_claim(each) for each in figures.claims]
    claims += [
        f"- {wanted.better} better than {wanted.worse} in {wanted.number}: not measured: {reason}"
        for wanted, reason in figures.untested
    ]
    notes = [*skipped, *missing, *claims]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _arrow(name: str) -> str:
    return "" if name in NEITHER else " ↑" if name in HIGHER else " ↓"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _mean(mean: Mean) -> str:
    if mean.value is None or mean.value == inf:
        return "–" if mean.value is None else "infinite"
    told = with_interval(mean.value, mean.interval)
    return told if not mean.infinite else f"{told}, {mean.infinite} of {mean.prompts} infinite"


def with_interval(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    """All with as many decimals: three digits of the interval's width, of the value if it has none."""
    low, high = interval or (value, value)
    size = high - low or abs(value)
    places = min(max(2 - floor(log10(size)), 0), 9) if size > 0 else 0
    ends = "" if interval is None else f" [{low:{sign}.{places}f}, {high:{sign}.{places}f}]"
    return f"{value:{sign}.{places}f}{ends}"


def _claim(claim: Claim) -> str:
    wanted, paired = claim.wanted, claim.paired
    verdict = {1: "yes" if claim.holds else "not at p < 0.01", 0: "no difference", -1: "NO, the other way round"}[
        claim.sign
    ]
    verdict = "not defined" if not paired.pairs else verdict
    difference = "" if paired.difference is None else with_interval(paired.difference, paired.interval, "+")
    difference = f", difference {difference}" if difference else ", by ranks, as values are infinite"
    difference = difference if paired.pairs else ""
    return (
        f"- {wanted.better} better than {wanted.worse} in {wanted.number}: {verdict}{difference}, p = {_p(paired.p)} "
        f"(Holm {_p(claim.corrected)}), {paired.pairs} prompts"
    )


def _p(value: Value) -> str:
    return "–" if value is None else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _explained(every: Sequence[Figures], how: Procedure) -> str:
    names = dict.fromkeys(name for each in every for means in each.means.values() for name in means)
    lines = [f"`{name}`: {MEANINGS.get(name, name)}." for name in names]
    if any(each.table.name == "blending" for each in every):
        lines.append(
            "Blending: all variants are measured at the same frames, the joins of a video in any of them; `enlarged` "
            "is the video before enhancement, scaled up, whose own chunks have seams there, too."
        )
    lines += [
        f"Brackets: {100 * how.level:g} % bootstrap intervals ({how.resamples} resamples) of the mean over prompts, "
        "the seeds of a prompt averaged first. p: two-sided sign-flip permutation test over prompts, of signed ranks "
        "where a value is infinite; yes: p < 0.01, uncorrected; Holm: corrected for the claims of the table that could "
        "be tested. A number that is not defined for a video, as a ratio where nothing moves, is left out; infinite "
        "ones are counted beside the mean of the others.",
        "The claims are ours: what the paper's order says of these numbers.",
        "The paper's figures are of its own models and prompts: only their order can be compared.",
    ]
    return "\n".join(f"- {line}" for line in lines)
