"""`ablate` on a toy model, and its parts: keys, joins, means, claims, and what is kept of an earlier run."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from math import inf
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.add_cond import new_add_cond
from adapters.apm import new_apm
from adapters.append import new_append
from adapters.cam import new_cam
from adapters.conc_cond import new_conc_cond
from streaming.ablation import run as ablation
from streaming.ablation.figures import HIGHER, figures
from streaming.ablation.judge import ClipJudge, kept, make_judge
from streaming.ablation.measure import Job, Measurer, Measures, colour_in
from streaming.ablation.plan import TABLES, Table, Variant, Wanted
from streaming.ablation.report import MEANINGS, as_json, markdown
from streaming.ablation.run import Found
from streaming.ablation.store import Row, Stored, by_prompt, changed, read, write
from streaming.ablation.videos import Sampled, blended, enhancer_for, joins_of, made, parts_for
from streaming.errors import UserError
from streaming.keys import initial_weights
from streaming.metrics.borders import EveryChunk
from streaming.metrics.paired import Procedure
from streaming.registry import BLENDERS, LONG_TERM_MEMORIES, SHORT_TERM_MEMORIES, discover, open_model
from tests.adapter_toys import unzero
from tests.cli_toys import run

CPU = torch.device("cpu")
HOW = Procedure(resamples=1000)
SAMPLED = Sampled(prompts=("a red ball rolls", "a blue box"), seeds=2, frames=18, steps=3)
QUICK = ("--model", "toy-unet", "--seeds", 1, "--frames", 18, "--steps", 1, "--device", "cpu", "--jobs", 1,
         "--clip", "none", "--judge", "none")  # fmt: skip


@pytest.fixture(scope="module")
def memories(tmp_path_factory):
    """All memories, as after some training."""
    folder, model = tmp_path_factory.mktemp("memories"), open_model("toy-unet")
    makers = {
        "cam": new_cam,
        "conc-cond": new_conc_cond,
        "add-cond": new_add_cond,
        "apm": new_apm,
        "append": new_append,
    }
    for name, make in makers.items():
        with initial_weights(0):
            unzero(make(model)).save(folder / name)
    return folder


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ball rolls over the snow\n\na blue cube floats\n")
    return tmp_path / "prompts.txt"


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_whole_ablation_and_what_is_kept_of_it(memories, prompts, tmp_path, monkeypatch, capfd):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--memories", memories, "--output", tmp_path / "out")
    assert run(*asked, "--keep", 1) == 0
    told = capfd.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told == (tmp_path / "out" / "report.md").read_text() and not results["skipped"]
    for table, found in zip(TABLES, results["tables"], strict=True):
        assert set(found["means"]) == {each.name for each in table.variants} and f"## {table.title}" in told
        expected = [each for each in table.wanted if each.number not in ("anchor_distance", "pattern_kept")]
        assert [(each["better"], each["worse"], each["number"]) for each in found["claims"]] == [
            (each.better, each.worse, each.number) for each in expected
        ]
    files = {each.file for table in TABLES for each in table.variants}
    assert {path.stem for path in (tmp_path / "out" / "variants").iterdir()} == files and len(files) == 14
    assert all((tmp_path / "out" / "videos" / name / "00.mp4").exists() for name in files)

    def never(*args, **more):
        raise AssertionError("a finished variant is made again")

    monkeypatch.setattr(ablation, "_measured", never)
    assert run(*asked) == 0
    again = capfd.readouterr()
    assert again.out == told and again.err.count("taken from") == 14


def test_what_changed_is_made_again(memories, prompts, tmp_path, capfd):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--memories", memories, "--output", tmp_path / "out")
    assert run(*asked, "--table", "long-term") == 0
    capfd.readouterr()
    assert run(*asked, "--table", "long-term", "--guidance", 2) == 0
    assert "cam+inject_apm is made again: guidance changed" in capfd.readouterr().err
    assert {path.stem for path in (tmp_path / "out" / "variants").iterdir()} == {
        "cam+inject_none", "cam+inject_append", "cam+inject_apm",
    }  # fmt: skip


def test_memories_without_weights_are_skipped_with_the_command_that_trains_them(tmp_path, prompts, capfd):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--output", tmp_path / "out", "--table", "short-term")
    assert run(*asked) == 2
    told = capfd.readouterr()
    assert (
        "conc-cond_none is skipped: no trained conc-cond: this model comes without one; train it with `streamin"
        in told.err
    )
    assert "- add-cond is missing: no trained add-cond" in told.out and "| inject |" in told.out
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["tables"][0]["means"]) == {"none", "inject"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--table", "long-term"), "nothing could be made: no trained cam: this model comes without one; train it"),
        (("--table", "longterm"), "--table 'longterm': did you mean long-term? choose one of short-term, long-term, "),
        (("--judge", "nobody"), "no judge 'nobody': name one as NAME or NAME:WHICH, the name one of embedded; or none"),
        (("--seeds", 0), "--seeds 0: choose a number from 1 to 1000"),
        (("--memories", "nowhere"), "--memories nowhere is no folder: name one with trained memories, or leave it out"),
        (("--prompts-file", "nowhere"), "--prompts-file nowhere cannot be read"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(arguments, told, tmp_path, prompts, capfd):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--output", tmp_path / "out", *arguments)
    assert run(*asked) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {told}")


def test_damaged_results_are_told(memories, prompts, tmp_path, capfd):
    (tmp_path / "out" / "variants").mkdir(parents=True)
    (tmp_path / "out" / "variants" / "none_none.json").write_text("{}")
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--memories", memories, "--output", tmp_path / "out")
    assert run(*asked, "--table", "short-term") == 2
    assert (
        "none_none.json holds no results of a variant ('rows'): remove it, it is made again" in capfd.readouterr().err
    )


# --- the plan --------------------------------------------------------------------------------------------------------


def test_every_variant_is_registered_and_every_number_is_told():
    for table in TABLES:
        names = [each.name for each in table.variants]
        assert len(names) == len(set(names)) and table.variant(names[0]) is table.variants[0]
        for each in table.variants:
            assert each.short in discover(SHORT_TERM_MEMORIES) and each.long in discover(LONG_TERM_MEMORIES)
            assert each.blender is None or each.blender in discover(BLENDERS)
        assert set(table.numbers) <= set(MEANINGS)
        for wanted in table.wanted:
            assert wanted.number in table.numbers and {wanted.better, wanted.worse} <= set(names)


# --- videos ----------------------------------------------------------------------------------------------------------


def videos(variant, memories, batch=4, sampled=SAMPLED):
    parts = parts_for(variant, open_model("toy-unet"), sampled, memories)
    return list(made(parts, sampled, batch, lambda done: None))


def test_variants_share_noise_and_their_first_chunk_whatever_the_batch(memories):
    cam, none = Variant(name="cam", short="cam"), Variant(name="none", short="none")
    for one, other, alone in zip(
        videos(cam, memories), videos(none, memories), videos(cam, memories, batch=1), strict=True
    ):
        window = open_model("toy-unet").backbone.window.frames
        assert one.shape == (18, 3, 32, 32) and one.dtype == torch.uint8
        assert torch.equal(one[:window], other[:window]) and not torch.equal(one[window:], other[window:])
        assert (one.int() - alone.int()).abs().max() <= 1
    assert SAMPLED.pairs == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_guidance_on_the_anchor_takes_three_evaluations(memories):
    from dataclasses import replace

    model, apm = open_model("toy-unet"), Variant(name="apm", long="apm")
    parts = parts_for(apm, model, replace(SAMPLED, anchor_guidance=4.0), memories)
    assert (parts.guidance.text, parts.guidance.anchor, len(parts.guidance.rows)) == (model.defaults.guidance, 4.0, 3)
    assert parts_for(apm, model, replace(SAMPLED, guidance=1.0), memories).guidance.rows == parts.guidance.rows[2:]


@pytest.mark.parametrize("name", [each.name for each in TABLES[2].variants])
def test_joins_are_where_the_frames_of_another_chunk_begin(name, memories):
    variant, sampled = TABLES[2].variant(name), Sampled(prompts=("a ball",), seeds=1, frames=40)
    enhancer = blended(enhancer_for("toy-unet", CPU, torch.float32), variant)
    joins = joins_of(enhancer, variant.causal, sampled, 0, 0).frames
    spans = enhancer.blender.spans(40)
    if name in ("naive", "shared-noise"):
        assert joins == tuple(span.stop for span in spans[:-1])
    if name == "causal":
        assert joins == tuple(span.start for span in spans[1:])
    pairs = list(zip(spans, spans[1:], strict=False))
    assert 0 < len(joins) <= len(pairs)  # in a shifted last overlap a random cut may leave a chunk nothing
    assert all(any(right.start <= join <= left.stop for left, right in pairs) for join in joins)


# --- measures --------------------------------------------------------------------------------------------------------


class Painter(ClipJudge):
    """Calls a clip by the red of its first pixel: 0 is plain."""

    frames = 4
    hidden = {"pattern": ("plain",)}

    def settings(self):
        return {"kind": "Painter"}

    def ask(self, clips, device):
        return {"pattern": [["plain", "dots", "stripes"][int(clip[0, 0, 0, 0])] for clip in clips]}


def painted(*reds):
    return torch.cat([torch.full((4, 3, 2, 2), red, dtype=torch.uint8) for red in reds])


def test_a_hidden_attribute_is_kept_if_the_end_shows_it_again():
    told = kept(Painter(), [painted(1, 0, 1), painted(1, 2), painted(0, 0), painted(2)], CPU)
    assert [each["pattern_kept"] for each in told] == [1.0, 0.0, None, None]


def test_the_packaged_judge_answers_as_a_plugin():
    judge = make_judge("embedded")
    clips = torch.zeros(2, judge.frames, 3, 64, 64, dtype=torch.uint8)
    told = judge.ask(clips, CPU)
    assert {"place", "shape", "colour"} <= set(told) and all(len(words) == 2 for words in told.values())
    assert set(judge.hidden) <= set(told)


def test_what_is_measured_elsewhere_is_what_is_measured_here():
    """As it travels to another process."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (12, 3, 16, 16), generator=generator, dtype=torch.uint8)
    job, measures = Job(video=video, borders=EveryChunk(8, 4), colour="red"), Measures(track=True, flow=True)

    class Elsewhere(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            return super().submit(function, *pickle.loads(ForkingPickler.dumps(arguments)))

    here = Measurer(measures, None).submit(job).result()
    with Elsewhere(1) as pool:
        assert Measurer(measures, pool).submit(job).result() == here
    assert not video.is_shared()  # its memory has not been moved while an array still pointed to it
    assert here["seam_ratio"] > 0 and here["flow_std_joins"] is not None


@pytest.mark.parametrize(
    ("prompt", "colour"),
    [("a small RED ball", "red"), ("a ball, blue or green", "blue"), ("the bluebird sings", None), ("", None)],
)
def test_the_object_s_colour_is_a_word_of_the_prompt(prompt, colour):
    assert colour_in(prompt) == colour


# --- results on disk -------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.none(), st.just(inf), st.floats(-1e6, 1e6))


@given(values=st.lists(NUMBERS, min_size=1, max_size=4))
def test_results_come_back_as_they_were(values, tmp_path_factory):
    rows = tuple(Row(prompt=i, seed=0, numbers={"x": value}) for i, value in enumerate(values))
    stored = Stored(made_with={"a": [1, 2], "b": "c"}, rows=rows)
    path = tmp_path_factory.mktemp("stored") / "variant.json"
    assert read(path) is None
    write(path, stored)
    assert read(path) == stored and changed(stored, stored.made_with) == []
    assert changed(stored, {"a": [1], "d": 0}) == ["a", "d", "b"]


def test_seeds_of_a_prompt_are_averaged_first():
    told = [(0, 1.0), (1, 2.0), (0, 3.0), (1, None), (2, None), (2, None), (3, inf), (3, 1.0)]
    rows = [Row(prompt=prompt, seed=i, numbers={"x": value}) for i, (prompt, value) in enumerate(told)]
    assert by_prompt(rows, "x") == [2.0, 2.0, None, inf]


# --- figures ---------------------------------------------------------------------------------------------------------


def table(number, *names):
    return Table(
        name="short-term", title="T", variants=tuple(Variant(name=name, short=name) for name in names),
        numbers=(number,), paper="P", wanted=(Wanted(number, names[0], names[1]),),
    )  # fmt: skip


def found(number, **values):
    rows = {f"{name}_none": tuple(Row(prompt=i, seed=0, numbers={number: v}) for i, v in enumerate(each))
            for name, each in values.items()}  # fmt: skip
    return Found(rows=rows)


@pytest.mark.parametrize("number", ["seam_ratio", "pattern_kept"])
def test_claims_hold_in_their_direction_only(number):
    low, high = [1.0 + i / 100 for i in range(12)], [2.0 + i / 50 for i in range(12)]
    good, bad = (high, low) if number in HIGHER else (low, high)
    (claim,) = figures(table(number, "a", "b"), found(number, a=good, b=bad), HOW).claims
    assert claim.holds and claim.sign == 1 and claim.paired.p < 0.01
    (claim,) = figures(table(number, "a", "b"), found(number, a=bad, b=good), HOW).claims
    assert not claim.holds and claim.sign == -1 and claim.paired.p < 0.01
    (claim,) = figures(table(number, "a", "b"), found(number, a=good, b=good), HOW).claims
    assert not claim.holds and claim.sign == 0


def test_infinite_and_absent_values_are_told():
    told = figures(table("seam_ratio", "a", "b"), found("seam_ratio", a=[1.0, None, 2.0], b=[inf, 1.0, 3.0]), HOW)
    assert told.means["a"]["seam_ratio"].value == 1.5 and told.means["a"]["seam_ratio"].prompts == 2
    assert told.means["b"]["seam_ratio"].value == inf and told.means["b"]["seam_ratio"].interval is None
    assert told.claims[0].paired.pairs == 2 and told.claims[0].sign == 1
    text = markdown([told], found("x"), SAMPLED, "m", HOW)
    assert "| b | infinite | – |" in text and "a better than b in seam_ratio: not at p < 0.01" in text
    assert json.loads(as_json([told], found("x"), SAMPLED, "m", HOW))["tables"][0]["means"]["b"]["seam_ratio"]["value"]


def test_intervals_are_those_of_resampled_prompts():
    values = [float(i % 5) for i in range(40)]
    mean = figures(table("seam_ratio", "a", "b"), found("seam_ratio", a=values, b=values), HOW).means["a"]["seam_ratio"]
    spread = torch.tensor(values).std().item() / 40**0.5
    assert mean.value == 2.0 and mean.prompts == 40
    assert abs(mean.interval[0] - (2 - 1.96 * spread)) < 0.08 and abs(mean.interval[1] - (2 + 1.96 * spread)) < 0.08


def test_an_unknown_plugin_s_fault_is_told(monkeypatch):
    def broken(rest):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr("streaming.ablation.judge.load", lambda group, name: broken)
    with pytest.raises(UserError, match="the plugin 'embedded' .* does not work: RuntimeError: no luck"):
        make_judge("embedded")
