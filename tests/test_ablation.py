"""`ablate` on a toy model, and its parts: keys, joins, means, claims, and what is kept of an earlier run."""

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
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
from backends.embedded import clip_judge
from backends.embedded.judge import Judge, JudgeConfig
from backends.embedded.train_judge import JUDGED, examination, share_right
from backends.world.dataset import ProceduralWorld
from streaming import causal
from streaming.ablation import run as ablation
from streaming.ablation import videos as making
from streaming.ablation.figures import HIGHER, NEITHER, figures
from streaming.ablation.judge import ClipJudge, ends, examined, kept, make_judge
from streaming.ablation.measure import Job, Measurer, Measures, colour_in
from streaming.ablation.plan import TABLES, Table, Variant, Wanted
from streaming.ablation.report import MEANINGS, as_json, markdown, with_interval
from streaming.ablation.run import Found
from streaming.ablation.store import Row, Stored, by_prompt, changed, read, write
from streaming.ablation.videos import Sampled, blended, enhanced, enhancer_for, joins_of, made, parts_for
from streaming.blend import ChunkBlender
from streaming.errors import UserError
from streaming.keys import initial_weights
from streaming.memory import NoShortTerm
from streaming.metrics.borders import BordersAt, EveryChunk
from streaming.metrics.clip import AnchorDistance
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


# --- what first chunks are asked for ---------------------------------------------------------------------------------


def test_first_chunks_may_be_asked_for_more():
    told = replace(SAMPLED, openings=("a red ball with a cyan band rolls", "a blue box with a white core"))
    assert SAMPLED.schedule(0, 8).entries == ((0, "a red ball rolls"),)
    assert told.schedule(1, 8).entries == ((0, "a blue box with a white core"), (8, "a blue box"))


def test_what_only_memory_can_know_is_told_once(tmp_path, monkeypatch, capfd):
    seen = []

    def record(parts, prompts, *args, **more):
        seen.extend(prompts)
        return original(parts, prompts, *args, **more)

    original = making.stream
    monkeypatch.setattr(making, "stream", record)
    asked = ("ablate", *QUICK, "--prompts", 2, "--table", "short-term", "--output", tmp_path / "out")
    assert run(*asked, "--told-once") == 2  # the memories that need training are not there
    look = re.compile(r" with (a \w+ (core|band)|\w+ (halves|quarters))")
    assert all(look.search(each.at(0)) and look.sub("", each.at(0)) == each.at(100) for each in seen)
    assert len(seen) >= 4
    assert "First chunks are asked for more, which no later prompt names." in capfd.readouterr().out
    seen.clear()
    assert run(*asked) == 2
    assert "openings changed" in capfd.readouterr().err
    assert not any(" with " in each.at(0) for each in seen) and seen


def test_a_dataset_that_does_not_know(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ProceduralWorld, "openings", lambda self, n, generator: None)
    assert run("ablate", *QUICK, "--told-once", "--output", tmp_path / "out") == 2
    assert "--told-once: the dataset procedural-world does not know what prompts leave open" in capfd.readouterr().err


def test_as_many_openings_as_prompts(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ProceduralWorld, "openings", lambda self, n, generator: ["a red ball rolls"])
    assert run("ablate", *QUICK, "--told-once", "--prompts", 3, "--output", tmp_path / "out") == 2
    line = "--told-once: the dataset procedural-world gave 1 openings for 3 prompts: mend it"
    assert line in capfd.readouterr().err


def test_a_model_without_words_for_openings(tmp_path, monkeypatch, capfd):
    made = ["a red ball with a chequered band rolls"] * 2
    monkeypatch.setattr(ProceduralWorld, "openings", lambda self, n, generator: made)
    asked = ("--told-once", "--prompts", 2, "--model", "tiny-modelscope", "--output", tmp_path / "out")
    assert run("ablate", *asked) == 2
    told = capfd.readouterr().err
    assert "--told-once asks tiny-modelscope for what it has no words for: " in told and "chequered" in told
    assert not list((tmp_path / "out" / "variants").glob("*.json"))


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_whole_ablation_and_what_is_kept_of_it(memories, prompts, tmp_path, monkeypatch, capfd):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--memories", memories, "--output", tmp_path / "out")
    assert run(*asked, "--keep", 1) == 0
    told = capfd.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told == (tmp_path / "out" / "report.md").read_text() and not results["skipped"]
    for table, found in zip(TABLES, results["tables"], strict=True):
        assert set(found["means"]) == {each.name for each in table.variants} and f"## {table.title}" in told
        absent = {"anchor_distance": "--clip none", "pattern_kept": "--judge none",
                  "anchor_lpips": "no --lpips, whose weights are not part of the package"}  # fmt: skip
        expected = [each for each in table.wanted if each.number not in absent]
        assert {(each["number"], each["reason"]) for each in found["not_tested"]} == {
            (each.number, absent[each.number]) for each in table.wanted if each.number in absent
        }
        assert [(each["better"], each["worse"], each["number"]) for each in found["claims"]] == [
            (each.better, each.worse, each.number) for each in expected
        ]
    files = {each.file for table in TABLES for each in table.variants}
    assert {path.stem for path in (tmp_path / "out" / "variants").iterdir()} == files and len(files) == 15
    assert all((tmp_path / "out" / "videos" / name / "00.mp4").exists() for name in files)

    def never(*args, **more):
        raise AssertionError("a finished variant is made again")

    monkeypatch.setattr(ablation, "_measured", never)
    assert run(*asked) == 0
    again = capfd.readouterr()
    assert again.out == told and again.err.count("taken from") == 15
    assert "- apm better than none in pattern_kept: not measured: --judge none" in told
    assert "- anchor_distance_end is not measured: --clip none" in told


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
        (("--told-once",), "--told-once: a file of prompts says nothing of first chunks"),
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


def test_options_of_zero_are_refused(tmp_path, prompts, capfd):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--output", tmp_path / "out")
    for option, high in (("--batch", 10_000), ("--jobs", 256)):
        assert run(*asked, option, 0) == 2
        assert f"error: {option} 0: choose a number from 1 to {high}" in capfd.readouterr().err
    assert run(*asked, "--lpips", "alex") == 2
    assert "--lpips 'alex': there is no file ''; name one with torchvision's weights" in capfd.readouterr().err


def test_a_variant_that_cannot_be_made_does_not_end_the_run(tmp_path, prompts, capfd, monkeypatch):
    def failing(parts, *more):
        if not isinstance(parts.short, NoShortTerm):
            raise UserError("latents became NaN in chunk 1")
        return made(parts, *more)

    monkeypatch.setattr(ablation, "made", failing)
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--output", tmp_path / "out")
    assert run(*asked, "--table", "short-term") == 2
    told = capfd.readouterr()
    assert "inject_none is skipped: latents became NaN in chunk 1" in told.err and "| none |" in told.out
    assert "- inject is missing: latents became NaN in chunk 1" in told.out
    assert (
        "- cam better than conc-cond in scuts_min1: not measured: cam is missing: no trained cam: this model"
        in told.out
    )


def test_a_stopped_measuring_process_is_told_and_what_is_finished_stays(tmp_path, prompts, capfd, monkeypatch):
    count, submit = [], Measurer.submit

    def stopped(self, job):
        count.append(job)
        if len(count) == 4:
            raise BrokenProcessPool("a process was terminated abruptly")
        return submit(self, job)

    monkeypatch.setattr(Measurer, "submit", stopped)
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--output", tmp_path / "out", "--table", "short-term")
    assert run(*asked) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: a measuring process was stopped (out of memory?): lower --jobs; finished variants ")
    assert [path.stem for path in (tmp_path / "out" / "variants").iterdir()] == ["none_none"]


def test_incomplete_results_other_prompts_and_lengths_are_made_again(tmp_path, prompts, capfd):
    folder = tmp_path / "out"
    asked = ("ablate", *QUICK, "--output", folder, "--table", "short-term", "--prompts-file", prompts)
    assert run(*asked) == 2
    path = folder / "variants" / "none_none.json"
    told = json.loads(path.read_text())
    whole, told["rows"] = told["rows"], told["rows"][:1]
    path.write_text(json.dumps(told))
    capfd.readouterr()
    assert run(*asked, "--keep", 1) == 2
    error = capfd.readouterr().err
    assert f"none_none is made again: {path} does not hold each video once" in error
    assert "inject_none.json; for 1 videos of it, remove that file: it is made again" in error
    assert json.loads(path.read_text())["rows"] == whole and (folder / "videos" / "none_none" / "00.mp4").exists()
    prompts.write_text("a blue cube floats\na red ball rolls over the snow\n")
    assert run(*asked, "--frames", 17) == 2
    assert "none_none is made again: prompts, frames changed" in capfd.readouterr().err


def test_results_that_the_report_leaves_out_are_told(memories, prompts, tmp_path, capfd):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--memories", memories, "--output", tmp_path)
    assert run(*asked, "--table", "short-term") == 0
    assert "not in the report" not in capfd.readouterr().err
    assert run(*asked, "--table", "long-term") == 0
    told = capfd.readouterr().err
    assert "no table asked for has them: add-cond_none, cam_none, conc-cond_none, inject_none, none_none" in told


def test_groups_of_videos_are_judged_one_after_the_other(memories, prompts, tmp_path, monkeypatch, capfd):
    judge = Painter()
    monkeypatch.setattr("streaming.ablation.judge.make_judge", lambda spec: judge)
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--memories", memories, "--output", tmp_path, "--batch", 1)
    asked = (*asked, "--judge", "painter", "--table", "long-term")
    assert run(*asked) == 0 and judge.asked == [1] * 12  # 3 variants, 2 videos, 2 ends
    rows = json.loads((tmp_path / "variants" / "cam+inject_apm.json").read_text())["rows"]
    assert all("pattern_kept" in row["numbers"] for row in rows)
    judge.share = 0.5
    assert run(*asked) == 0
    told = capfd.readouterr()
    reason = "the judge reads pattern rightly in 0.500 of known clips only, 0.95 are required"
    assert f"pattern_kept is not measured: {reason}" in told.err
    assert f"- apm better than none in pattern_kept: not measured: {reason}" in told.out


def test_more_processes_measure_the_same(prompts, tmp_path):
    asked = ("ablate", *QUICK, "--prompts-file", prompts, "--table", "short-term")
    assert run(*asked, "--output", tmp_path / "one") == run(*asked, "--jobs", 2, "--output", tmp_path / "two") == 2
    one, two = ((tmp_path / name / "results.json").read_text() for name in ("one", "two"))
    assert one == two


# --- the plan --------------------------------------------------------------------------------------------------------


def test_every_variant_is_registered_and_every_number_is_told():
    for table in TABLES:
        names = [each.name for each in table.variants]
        assert len(names) == len(set(names))
        for each in table.variants:
            assert each.short in discover(SHORT_TERM_MEMORIES) and each.long in discover(LONG_TERM_MEMORIES)
            assert each.blender is None or each.blender in discover(BLENDERS)
        assert set(table.numbers) <= set(MEANINGS)
        for wanted in table.wanted:
            assert wanted.number in table.numbers and {wanted.better, wanted.worse} <= set(names)
            assert wanted.number not in NEITHER  # a variant that stands still at joins must not win


def test_directions_are_those_of_the_metrics():
    metrics = Measures(track=True, flow=True).metrics(EveryChunk(16, 8), None)
    told = {name: number.better for metric in [*metrics, AnchorDistance()] for name, number in metric.numbers.items()}
    for name in {name for table in TABLES for name in table.numbers} & set(told):
        wanted = None if name in NEITHER else "higher" if name in HIGHER else "lower"
        assert told[name] == wanted, name


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
    model, apm = open_model("toy-unet"), Variant(name="apm", long="apm")
    parts = parts_for(apm, model, replace(SAMPLED, anchor_guidance=4.0), memories)
    assert (parts.guidance.text, parts.guidance.anchor, len(parts.guidance.rows)) == (model.defaults.guidance, 4.0, 3)
    assert parts_for(apm, model, replace(SAMPLED, guidance=1.0), memories).guidance.rows == parts.guidance.rows[2:]


def test_guidance_on_the_anchor_is_refused_where_guidance_is_rescaled(memories):
    model = open_model("toy-unet")
    model = replace(model, defaults=replace(model.defaults, rescale=0.2))
    with pytest.raises(UserError, match=r"this model's guidance is rescaled \(0.2\), which guidance by three"):
        parts_for(Variant(name="apm", long="apm"), model, replace(SAMPLED, anchor_guidance=4.0), memories)


def test_appended_tokens_act_in_generation(memories):
    none, append = Variant(name="none"), Variant(name="append", long="append")
    window = open_model("toy-unet").backbone.window.frames
    for one, other in zip(videos(none, memories), videos(append, memories), strict=True):
        assert torch.equal(one[:window], other[:window]) and not torch.equal(one[window:], other[window:])


def study(memories, output, model=None):
    return ablation.Study(
        model=model or open_model("toy-unet"), memories=memories, sampled=SAMPLED, measures=Measures(), judge=None,
        batch=4, jobs=1, output=output,
    )  # fmt: skip


def test_results_are_those_of_all_networks(memories, tmp_path):
    model = open_model("toy-unet")

    def identity(part=None):
        source = ablation.Source(study(memories, tmp_path, model), lambda *told: None)
        part = part(source) if part else None
        if part is not None:
            part.register_buffer("changed", torch.ones(1))
        told = source.base | {f"enhancer {name}": value for name, value in source.enhancers.items()}
        if part is not None:
            del part.changed
        return told

    before = identity()
    for name, part in {
        "base": lambda source: model.backbone,
        "codec": lambda source: model.codec,
        "text encoder": lambda source: model.text,
        "image encoder": lambda source: model.image,
        "enhancer weights": lambda source: source.enhancer.backbone,
        "enhancer codec": lambda source: source.enhancer.codec,
        "enhancer text encoder": lambda source: source.enhancer.text,
    }.items():
        after = identity(part)
        assert [key for key in before if before[key] != after[key]] == [name]


def test_all_blendings_are_measured_at_the_same_frames(memories, tmp_path):
    source = ablation.Source(study(memories, tmp_path), lambda *told: None)
    video = torch.zeros(18, 3, 2, 2, dtype=torch.uint8)
    for prompt, seed in SAMPLED.pairs:
        asked = [ablation._enhancement(source, each).job(video, prompt, seed).borders for each in TABLES[2].variants]
        every = set()
        for each in BLENDINGS.values():
            every |= set(joins_of(blended(source.enhancer, each), each.causal, SAMPLED, prompt, seed).frames)
        assert asked == [BordersAt(tuple(sorted(every)))] * len(TABLES[2].variants)
    (bare,) = (each for each in TABLES[2].variants if each.name not in BLENDINGS)
    source._videos = [torch.full((18, 3, 32, 32), 7 * i, dtype=torch.uint8) for i in range(4)]
    large = list(ablation._enhancement(source, bare).make())
    size = (source.enhancer.height, source.enhancer.width)
    assert [each.unique().tolist() for each in large] == [[0], [7], [14], [21]]
    assert all(each.shape == (18, 3, *size) for each in large)


def test_joins_of_causal_enhancement_are_where_its_pieces_begin(monkeypatch):
    """Also before a last chunk that is shifted left."""
    sampled, given, pieces = Sampled(prompts=("a ball",), seeds=1, frames=30, steps=1), causal._given, []
    enhancer = blended(enhancer_for("toy-unet", CPU, torch.float32), BLENDINGS["causal"])

    def watched(enhancer, trace, begin, end, came):
        pieces.extend([begin] if begin < end else [])
        return given(enhancer, trace, begin, end, came)

    monkeypatch.setattr(causal, "_given", watched)
    video = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    list(enhanced(enhancer, True, [video], sampled, 4, lambda done: None))
    assert joins_of(enhancer, True, sampled, 0, 0).frames == tuple(pieces[1:]) == (4, 8, 12, 16, 20, 24)


def test_joins_are_those_of_the_enhancement_s_own_randomness(monkeypatch):
    sampled, owned, owners = Sampled(prompts=("a ball", "a box"), seeds=1, frames=30), [], ChunkBlender.owners
    enhancer = blended(enhancer_for("toy-unet", CPU, torch.float32), BLENDINGS["randomized"])
    monkeypatch.setattr(ChunkBlender, "owners", lambda *asked: owned.append(owners(*asked)) or owned[-1])
    videos = [torch.zeros(30, 3, 32, 32, dtype=torch.uint8)] * 2
    list(enhanced(enhancer, False, videos, sampled, 4, lambda done: None))
    expected = [tuple((each.diff().nonzero()[:, 0] + 1).tolist()) for each in owned]
    assert [joins_of(enhancer, False, sampled, prompt, 0).frames for prompt in (0, 1)] == expected
    assert len(expected) == 2 and expected[0] != expected[1]


BLENDINGS = {each.name: each for each in ablation.BLENDINGS}


@pytest.mark.parametrize("name", list(BLENDINGS))
def test_joins_are_where_the_frames_of_another_chunk_begin(name, memories):
    variant, sampled = BLENDINGS[name], Sampled(prompts=("a ball",), seeds=1, frames=40)
    enhancer = blended(enhancer_for("toy-unet", CPU, torch.float32), variant)
    joins = joins_of(enhancer, variant.causal, sampled, 0, 0).frames
    spans = enhancer.blender.spans(40)
    if name in ("naive", "shared-noise"):
        assert joins == tuple(span.stop for span in spans[:-1])
    if name == "causal":
        assert joins == tuple(span.stop - enhancer.blender.overlap for span in spans[:-1])
    pairs = list(zip(spans, spans[1:], strict=False))
    assert 0 < len(joins) <= len(pairs)  # in a shifted last overlap a random cut may leave a chunk nothing
    assert all(any(right.start <= join <= left.stop for left, right in pairs) for join in joins)


# --- measures --------------------------------------------------------------------------------------------------------


class Painter(ClipJudge):
    """Calls a clip by the red of its first pixel: 0 is plain."""

    frames = 4
    hidden = ("pattern",)

    def __init__(self, share=1.0):
        self.share, self.asked = share, []

    def settings(self):
        return {"kind": "Painter"}

    def accuracy(self, device):
        return {"pattern": self.share}

    def shows(self, told):
        return told["pattern"] != "plain"

    def ask(self, clips, device):
        self.asked.append(len(clips))
        return {"pattern": [["plain", "core", "band"][int(clip[0, 0, 0, 0]) % 3] for clip in clips]}


def painted(*reds):
    return torch.cat([torch.full((4, 3, 2, 2), red, dtype=torch.uint8) for red in reds])


def test_a_hidden_attribute_is_kept_if_the_end_shows_it_again():
    videos = [painted(1, 0, 1), painted(1, 2), painted(0, 0), painted(2), painted(2, 1)]
    seen = ends(Painter(), "pattern", videos, CPU)
    assert seen == [("core", "core"), ("core", "band"), None, None, ("band", "core")]
    told = kept("pattern", seen)
    assert [each["pattern_kept"] for each in told] == [1.0, 0.0, None, None, 0.0]
    assert [each["pattern_kept_chance"] for each in told] == [0.5, 1.0, None, None, 0.5]
    assert kept("pattern", seen[:1]) == [{"pattern_kept": 1.0, "pattern_kept_chance": None}]


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        (Painter(0.95), None),
        (Painter(0.94), "the judge reads pattern rightly in 0.940 of known clips only, 0.95 are required"),
    ],
)
def test_a_judge_that_reads_wrongly_is_not_asked(judge, told):
    assert examined(judge, "pattern", CPU) == told
    assert examined(judge, "hat", CPU) == "the judge does not know the hidden attribute hat"


def test_the_embedded_judge_is_examined_once(tmp_path, monkeypatch):
    with initial_weights(0):
        Judge(JudgeConfig(attributes=dict(JUDGED), widths=(8, 8, 16), hidden=16)).save(tmp_path / "judge")
    monkeypatch.setattr(clip_judge, "EXAMINED", 8)
    judge = clip_judge.embedded(str(tmp_path))
    shares = judge.accuracy(CPU)
    halves = [examination(4, CPU, split=split) for split in ("train", "heldout")]
    right = [share_right(Judge.load(tmp_path / "judge"), *half)["pattern"] for half in halves]
    assert shares["pattern"] == pytest.approx(sum(right) / 2) and set(shares) == set(judge.hidden)
    monkeypatch.setattr(clip_judge, "examination", None)
    assert judge.accuracy(CPU) is shares
    assert judge.shows({"pattern": "core", "second_colour": "white"}) and not judge.shows({"pattern": "plain"})
    assert (judge.hidden[0], "plain") == ("pattern", JUDGED["pattern"][-1])


def test_the_packaged_judge_answers_as_a_plugin():
    judge = make_judge("embedded")
    clips = torch.zeros(2, judge.frames, 3, 64, 64, dtype=torch.uint8)
    told = judge.ask(clips, CPU)
    assert {"place", "shape", "colour"} <= set(told) and all(len(words) == 2 for words in told.values())
    assert set(judge.hidden) <= set(told) and set(judge.accuracy(CPU)) == set(judge.hidden)


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


def test_lpips_is_measured_where_its_weights_are_named(tmp_path):
    (tmp_path / "alex.pth").write_bytes(b"weights")
    metrics = Measures(lpips=f"alex:{tmp_path / 'alex.pth'}").metrics(EveryChunk(8, 4), None)
    assert "anchor_lpips" in {name for metric in metrics for name in metric.numbers}
    assert "anchor_lpips" not in {name for each in Measures().metrics(EveryChunk(8, 4), None) for name in each.numbers}


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


@pytest.mark.parametrize("number", ["seam_departure", "pattern_kept"])
def test_claims_hold_in_their_direction_only(number):
    low, high = [1.0 + i / 100 for i in range(12)], [2.0 + i / 50 for i in range(12)]
    good, bad = (high, low) if number in HIGHER else (low, high)
    (claim,) = figures(table(number, "a", "b"), found(number, a=good, b=bad), HOW).claims
    assert claim.holds and claim.sign == 1 and claim.paired.p < 0.01
    (claim,) = figures(table(number, "a", "b"), found(number, a=bad, b=good), HOW).claims
    assert not claim.holds and claim.sign == -1 and claim.paired.p < 0.01
    (claim,) = figures(table(number, "a", "b"), found(number, a=good, b=good), HOW).claims
    assert not claim.holds and claim.sign == 0


def test_signs_are_of_ranks_where_p_is():
    low, high = [1 + i / 100 for i in range(40)], [3 + i / 50 for i in range(40)]
    for bad in ([inf, *high], [2.0, *high]):  # one infinite prompt in both, or in the better variant only
        told = figures(table("seam_ratio", "a", "b"), found("seam_ratio", a=[inf, *low], b=bad), HOW)
        assert told.claims[0].paired.ranks and told.claims[0].sign == 1 and told.claims[0].holds
        told = figures(table("seam_ratio", "b", "a"), found("seam_ratio", a=[inf, *low], b=bad), HOW)
        assert told.claims[0].sign == -1 and not told.claims[0].holds


def test_a_claim_does_not_hold_at_p_of_3_percent_and_holm_counts_the_claims():
    wanted = (Wanted("x", "a", "b"), Wanted("x", "a", "c"), Wanted("x", "a", "d"))
    three = replace(table("x", "a", "b", "c", "d"), wanted=wanted)
    some = found("x", a=[1.0] * 6, b=[2.0] * 6, c=[2.0] * 6)
    some.skipped["d_none"] = "no weights"
    told = figures(three, some, HOW)
    assert [(each.paired.p, each.corrected, each.sign, each.holds) for each in told.claims] == [
        (2 / 64, 4 / 64, 1, False)
    ] * 2
    assert told.untested == ((wanted[2], "d is missing: no weights"),)
    text = markdown([told], some, SAMPLED, "m", HOW)
    assert "a better than b in x: not at p < 0.01, difference -1.00 [-1.00, -1.00], p = 0.0312 (Holm 0.0625)" in text
    assert "- a better than d in x: not measured: d is missing: no weights" in text
    nothing = figures(table("seam_ratio", "a", "b"), Found(skipped={"a_none": "A", "b_none": "B"}), HOW)
    assert nothing.untested[0][1] == "a is missing: A; b is missing: B"


@given(mean=st.floats(-1e4, 1e4), below=st.floats(0, 100), above=st.floats(0, 100), scale=st.sampled_from([1e-4, 1, 9]))
def test_an_interval_contains_its_mean_as_printed(mean, below, above, scale):
    told = with_interval(mean, (mean - scale * below, mean + scale * above))
    value, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", told).groups())
    assert low <= value <= high
    assert len({len(each.strip("],").partition(".")[2]) for each in told.split()}) == 1


def test_infinite_and_absent_values_are_told():
    told = figures(table("seam_ratio", "a", "b"), found("seam_ratio", a=[1.0, None, 2.0], b=[inf, 1.0, 3.0]), HOW)
    assert told.means["a"]["seam_ratio"].value == 1.5 and told.means["a"]["seam_ratio"].prompts == 2
    mean = told.means["b"]["seam_ratio"]
    assert (mean.value, mean.infinite, mean.prompts) == (2.0, 1, 3) and mean.interval == (1.0, 3.0)
    assert told.claims[0].paired.pairs == 2 and told.claims[0].sign == 1
    text = markdown([told], found("x"), SAMPLED, "m", HOW)
    assert "| b | 2.00 [1.00, 3.00], 1 of 3 infinite | – |" in text
    assert "a better than b in seam_ratio: not at p < 0.01, by ranks, as values are infinite, p = 0.5" in text
    none = figures(table("seam_ratio", "a", "b"), found("seam_ratio", a=[None], b=[inf]), HOW)
    assert (none.means["a"]["seam_ratio"].value, none.means["b"]["seam_ratio"].value) == (None, inf)
    assert "| b | infinite | – |" in markdown([none], found("x"), SAMPLED, "m", HOW)
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
