"""An ablation as Markdown and as JSON, with the paper's own figures beside it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from typing import Any

from streaming.ablation.figures import HIGHER, Claim, Figures, Mean
from streaming.ablation.run import Found
from streaming.ablation.videos import Sampled
from streaming.metrics.paired import Procedure, Value
from streaming.metrics.results import INFINITE

MEANINGS = {
    "scuts_min1": "scene cuts a video (PySceneDetect, min_scene_len 1)",
    "seam_ratio": "difference of neighbouring frames at chunk borders by that inside chunks",
    "object_jump_ratio": "the object's way from frame to frame at chunk borders by that inside",
    "object_jump_border": "the object's way at chunk borders, pixels",
    "object_found": "share of frames in which the object is found",
    "anchor_distance": "1 - cosine of the embeddings of a frame and the first one",
    "anchor_distance_end": "the same over the last 15 % of the frames",
    "pattern_kept": "share of videos whose end shows the pattern of their beginning, which no prompt names",
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
    head = ["variant", *(f"{name} {'↑' if name in HIGHER else '↓'}" for name in numbers), f"paper: {table.paper}"]
    rows = [
        [each.name, *(_mean(figures.means[each.name][name]) for name in numbers), each.paper]
        for each in table.variants
        if each.name in figures.means
    ]
    lines = [f"## {table.title}", ""]
    lines += _table(head, rows) if rows else ["Nothing could be made."]
    skipped = [f"- {each.name} is missing: {found.skipped[each.file]}" for each in table.variants
               if each.file in found.skipped]  # fmt: skip
    claims = [_claim(each) for each in figures.claims]
    return "\n".join([*lines, *([""] if skipped or claims else []), *skipped, *claims])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _mean(mean: Mean) -> str:
    if mean.interval is None:
        return _value(mean.value)
    return f"{_value(mean.value)} [{mean.interval[0]:.3g}, {mean.interval[1]:.3g}]"


def _claim(claim: Claim) -> str:
    wanted, paired = claim.wanted, claim.paired
    verdict = {1: "yes" if claim.holds else "not at p < 0.01", 0: "no difference", -1: "NO, the other way round"}[
        claim.sign
    ]
    verdict = "not defined" if not paired.pairs else verdict
    interval = "" if paired.interval is None else f" [{paired.interval[0]:+.3g}, {paired.interval[1]:+.3g}]"
    difference = "" if paired.difference is None else f", difference {paired.difference:+.3g}{interval}"
    return (
        f"- {wanted.better} better than {wanted.worse} in {wanted.number}: {verdict}{difference}, p = {_p(paired.p)} "
        f"(Holm {_p(claim.corrected)}), {paired.pairs} prompts"
    )


def _value(value: Value) -> str:
    return "–" if value is None else "infinite" if value == inf else f"{value:.4g}"


def _p(value: Value) -> str:
    return "–" if value is None else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _explained(every: Sequence[Figures], how: Procedure) -> str:
    names = dict.fromkeys(name for each in every for means in each.means.values() for name in means)
    lines = [f"`{name}`: {MEANINGS.get(name, name)}." for name in names]
    lines += [
        f"Brackets: {100 * how.level:g} % bootstrap intervals ({how.resamples} resamples) of the mean over prompts, "
        "the seeds of a prompt averaged first. p: two-sided sign-flip permutation test over prompts; Holm: corrected "
        "for the claims of the table. A number that is not defined for a video, as a ratio where nothing moves, is "
        "left out.",
        "The paper's figures are of its own models and prompts: only their order can be compared.",
    ]
    return "\n".join(f"- {line}" for line in lines)
