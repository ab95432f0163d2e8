"""`streamingt2v compare`: files of results in, a table and JSON out; what cannot be compared is refused in a line."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streaming.comparison import read as read_module
from streaming.comparison.compared import compare
from streaming.comparison.read import NAME, pair, read
from streaming.comparison.report import as_json, markdown
from streaming.comparison.settings import differences
from streaming.errors import UserError
from streaming.keys import Key
from streaming.metrics.contract import Number
from streaming.metrics.paired import Procedure, compare_pairs, holm
from streaming.metrics.results import Results
from streaming.prompts import PromptSchedule
from tests.cli_toys import run
from tests.test_metrics_contract import noise

FAST = Procedure(resamples=1000)
MEANINGS = {
    "warp": Number(meaning="warp error", better="lower"),
    "score": Number(meaning="score", better="higher"),
    "flow": Number(meaning="flow", unit="pixels"),
}
SETTINGS: dict[str, Any] = {
    "size": [256, 256],
    "flow": {"kind": "DIS", "preset": "medium"},
    "clip": None,
    "metrics": [{"kind": "Drift", "share": 0.15}, {"kind": "CLIPScore", "prompt": "a ball"}],
    "versions": {"torch": "2.15", "numpy": "2.4"},
}


def results(numbers: dict[str, float | None], **changes: Any) -> Results:
    plain: dict[str, Any] = dict(series={}, events={}, frames=48, fps=8.0, shown=(64, 64), frozen=False)
    return replace(
        Results(numbers=numbers, meanings={name: MEANINGS[name] for name in numbers}, settings=SETTINGS, **plain),
        **changes,
    )


def videos(count: int, shift: float = 0.0, folder: str = "out", **changes: Any) -> list[dict[str, Any]]:
    found = []
    for i in range(count):
        draws = Key(i).normal(3).tolist()
        numbers = {name: value + shift * (i + 1) for name, value in zip(MEANINGS, draws, strict=True)}
        told = json.loads(results(numbers, **changes).to_json())
        found.append({"file": f"{folder}/{i:02d}.mp4", "prompts": None, "results": told, "verdict": None})
    return found


def write(folder: Path, videos: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / NAME).write_text(json.dumps({"version": 1, "settings": {}, "videos": videos}), encoding="utf-8")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "base", videos(8)), write(tmp_path / "other", videos(8, 0.5))


def table(text: str) -> dict[str, list[str]]:
    """Cells of the rows by the number's name; fails for a table whose columns don't stand below each other."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in rows}


# --- what it prints --------------------------------------------------------------------------------------------------


def test_a_comparison(folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert run("compare", *folders, "--resamples", 1000) == 0
    text = capfd.readouterr().out
    assert "## other against base" in text and "8 pairs, by name." in text
    rows = table(text)
    assert list(rows) == ["warp ↓", "score ↑", "flow (pixels)"]
    first, second = ([Key(i).normal(3).tolist()[0] + s * (i + 1) for i in range(8)] for s in (0, 0.5))
    found = compare_pairs(first, second, FAST, name="warp")
    assert found.interval is not None
    assert rows["warp ↓"] == [
        *(f"{mean:.4g}" for mean in found.means),
        "+2.25",
        f"{found.interval[0]:+.4g} … {found.interval[1]:+.4g}",
        "0.0078",
        "0.0234",
        "8",
    ]
    assert "corrected for the 3 tests" in text
    assert "with 8, intervals are too narrow, and p is 0.0078 at least, 0.0234 after the correction" in text


def test_the_same_command_prints_the_same(folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    said = []
    for more in ((), (), ("--seed", 1), ("--interval", "percentile"), ("--level", 0.8)):
        assert run("compare", *folders, "--resamples", 1000, *more) == 0
        said.append(capfd.readouterr().out)
    assert said[0] == said[1] and len(set(said)) == 4


def test_it_is_written_as_json_and_markdown(
    folders: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs = ["--output", tmp_path / "c.json", "--output", tmp_path / "c.md"]
    assert run("compare", *folders, *outputs) == 0
    assert (tmp_path / "c.md").read_text(encoding="utf-8") == capfd.readouterr().out
    told = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert told["first"] == "base" and told["tests"] == 3
    assert told["statistics"] == Procedure().settings()
    (one,) = told["comparisons"]
    assert one["second"] == "other" and one["paired_by"] == "name" and len(one["pairs"]) == 8
    assert one["numbers"]["score"]["difference"] == pytest.approx(2.25)
    assert run("compare", *folders, *outputs) == 2
    assert "c.json exists already: choose another --output, or replace it with --overwrite" in capfd.readouterr().err
    assert run("compare", *folders, *outputs, "--overwrite") == 0


def test_several_are_compared_with_the_first_and_corrected_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(i), videos(7, shift)) for i, shift in enumerate((0.0, 0.1, 0.0))]
    found = compare(read(paths), FAST)
    assert [other.label for other in found.others] == ["1", "2"] and found.tests == 6
    plain = [number.p for other in found.others for number in other.numbers.values()]
    assert [p for other in found.others for p in other.corrected.values()] == holm(plain)
    assert found.others[1].numbers["warp"].p == 1 and found.others[0].corrected["warp"] == pytest.approx(6 * 2 / 2**7)
    chosen = compare(read(paths), FAST, numbers=["warp"])
    assert chosen.tests == 2 and chosen.others[0].numbers["warp"] == found.others[0].numbers["warp"]


def test_absent_and_infinite_values(tmp_path: Path) -> None:
    one, two = videos(6), videos(6, 0.5)
    one[0]["results"]["numbers"]["warp"] = None
    two[1]["results"]["numbers"]["warp"] = None
    two[2]["results"]["numbers"]["score"] = "infinite"
    for each in (*one, *two):
        each["results"]["numbers"]["flow"] = None
    found = compare(read([write(tmp_path / "a", one), write(tmp_path / "b", two)]), FAST)
    rows = table(markdown(found))
    assert rows["warp ↓"][-1] == "4 of 6 (absent: 1 and 1)"
    assert rows["score ↑"][1:4] == ["infinite", "—", "—"] and rows["score ↑"][-1] == "6 (infinite: 0 and 1)"
    assert rows["score ↑"][4].endswith(" r") and "signed ranks (Wilcoxon's)" in markdown(found)
    assert rows["flow (pixels)"] == ["—"] * 6 + ["0 of 6 (absent: 6 and 6)"]
    told = json.loads(as_json(found))["comparisons"][0]["numbers"]
    assert told["score"]["means"][1] == "infinite" and told["flow"]["p"] is None
    assert "NaN" not in as_json(found) and found.tests == 2


def test_the_verdict_is_a_number(tmp_path: Path) -> None:
    one, two = videos(5), videos(5)
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        a["verdict"], b["verdict"] = {"badness": 0.5 + i}, {"badness": "infinite" if i == 0 else i}
    found = compare(read([write(tmp_path / "a", one), write(tmp_path / "b", two)]), FAST)
    assert found.others[0].numbers["verdict_badness"].means == (2.5, math.inf)
    assert found.others[0].numbers["verdict_badness"].infinite == (0, 1)


def test_what_evaluate_writes_is_read(tmp_path: Path) -> None:
    from streaming.evaluation.document import MAWE_ALONE, VERSION, Document
    from streaming.evaluation.run import Evaluated, Failed
    from streaming.metrics import How, evaluate_stream, standard

    assert VERSION == read_module.VERSION
    how, paths = How(), []
    for name in ("a", "b"):
        found = evaluate_stream([noise(6, seed=ord(name))[None]], standard(how), how)
        found = replace(found, numbers={**found.numbers, "mawe_official": math.inf})
        found = replace(found, meanings={**found.meanings, "mawe_official": Number(meaning="MAWE", better="lower")})
        plain: dict[str, Any] = dict(borders=None, narrative=None, pictures=(), warnings=())
        prompts = PromptSchedule.of({0: "a ball", 3: "a cube"})
        made = Evaluated(file="x.mp4", prompts=prompts, results=found, **plain)
        (tmp_path / name).mkdir()
        text = Document([made, Failed(file="y.mp4", error="it is empty")]).to_json()
        (tmp_path / name / NAME).write_text(text, encoding="utf-8")
        paths.append(tmp_path / name)
    compared = compare(read(paths), FAST)
    (other,) = compared.others
    assert other.numbers["mawe_official"].means == (math.inf, math.inf) and "verdict_badness" in other.numbers
    assert other.pairing.failed == ("y.mp4",) and MAWE_ALONE in markdown(compared)


# --- which videos belong together ------------------------------------------------------------------------------------


def test_videos_are_paired_by_name(tmp_path: Path) -> None:
    two = videos(5, folder="elsewhere")[::-1]
    two[0]["file"], two[1] = "elsewhere/new.mp4", {"file": "elsewhere/03.avi", "error": "it is damaged"}
    first, second = read([write(tmp_path / "a", videos(5)), write(tmp_path / "b", two)])
    found = pair(first, second)
    assert found.by == "name" and [(a.stem, b.stem) for a, b in found.pairs] == [(f"0{i}", f"0{i}") for i in range(3)]
    assert found.alone == ("out/04.mp4", "elsewhere/new.mp4") and found.failed == ("out/03.mp4",)
    text = markdown(compare([first, second], FAST))
    assert "Without a partner: out/04.mp4, elsewhere/new.mp4." in text
    assert "Not evaluated on one side or both: out/03.mp4." in text


def test_or_by_order(tmp_path: Path) -> None:
    two = videos(4)
    for i, video in enumerate(two):
        video["file"] = f"seed-7/clip-{i}.mp4"
    first, second, same = read(
        [write(tmp_path / "a", videos(4)), write(tmp_path / "b", two), write(tmp_path / "c", videos(3, folder="x"))]
    )
    found = pair(first, second)
    assert found.by == "order" and [(a.file, b.file) for a, b in found.pairs][3] == ("out/03.mp4", "seed-7/clip-3.mp4")
    with pytest.raises(Exception, match="videos of b and c cannot be paired: no names agree, and there are 4 and 3"):
        pair(second, same)


def named(*files: str) -> list[dict[str, Any]]:
    return [each | {"file": file} for each, file in zip(videos(len(files)), files, strict=True)]


@pytest.mark.parametrize(
    ("one", "two", "pairs"),
    [
        # the same paths, in another order
        (["a/x.mp4", "b/x.mp4"], ["b/x.mp4", "a/x.mp4"], {"a/x.mp4": "a/x.mp4", "b/x.mp4": "b/x.mp4"}),
        # folders of the same name in different places
        (
            ["base/a/x.mp4", "base/b/x.mp4"],
            ["/tmp/new/b/x.mkv", "/tmp/new/a/x.mkv"],
            {"base/a/x.mp4": "/tmp/new/a/x.mkv", "base/b/x.mp4": "/tmp/new/b/x.mkv"},
        ),
        # one shared file, the others by name
        (["ref.mp4", "base/x.mp4"], ["new/x.mp4", "ref.mp4"], {"ref.mp4": "ref.mp4", "base/x.mp4": "new/x.mp4"}),
        # what cannot be told apart stays alone
        (["a/x.mp4", "b/x.mp4"], ["a/x.mp4", "c/x.mp4"], {"a/x.mp4": "a/x.mp4"}),
        # endings tell too
        (["p/x.mp4", "p/x.mkv"], ["q/x.mkv", "q/x.mp4"], {"p/x.mp4": "q/x.mp4", "p/x.mkv": "q/x.mkv"}),
        # never one video twice
        (["c/x.mp4", "a/x.mkv"], ["a/x.mp4"], {"a/x.mkv": "a/x.mp4"}),
    ],
)
def test_names_that_occur_twice_are_told_apart_by_folders(
    tmp_path: Path, one: list[str], two: list[str], pairs: dict[str, str]
) -> None:
    found = pair(*read([write(tmp_path / "1", named(*one)), write(tmp_path / "2", named(*two))]))
    assert found.by == "name" and {a.file: b.file for a, b in found.pairs} == pairs
    assert sorted(found.alone) == sorted([*set(one) - set(pairs), *set(two) - set(pairs.values())])


def test_names_that_folders_do_not_tell_apart_are_refused(tmp_path: Path) -> None:
    one, two = named("seed0/x.mp4", "seed1/x.mp4"), named("new0/x.mp4", "new1/x.mp4")
    told = (
        r"^the videos of a and b cannot be paired: 'x' and its folders don't tell which belongs to which, and there "
        "are 2 and 2; give the files of one prompt the same name in both$"
    )
    with pytest.raises(UserError, match=told):
        pair(*read([write(tmp_path / "a", one), write(tmp_path / "b", two)]))


def test_prompts_without_a_video_are_no_videos(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", videos(3)), write(tmp_path / "b", named("p.mp4", "q.mp4", "r.mp4"))]
    told = json.loads((paths[1] / NAME).read_text())
    told["unused_prompts"] = [{"prompt": "prompts.txt", "error": "line 4 belongs to no video"}]
    (paths[1] / NAME).write_text(json.dumps(told))
    assert pair(*read(paths)).by == "order"


def graded(count: int, badness: Any, *judged: str) -> list[dict[str, Any]]:
    grades = {name: 0.5 if name in judged else None for name in ("cuts", "colour", "camera")}
    told = {"badness": badness, "judged": list(judged), "grades": grades, "reasons": []}
    return [each | {"verdict": dict(told)} for each in videos(count)]


def test_verdicts_of_different_aspects_are_not_compared(tmp_path: Path) -> None:
    one = [*graded(4, 1.0, "cuts", "colour"), *graded(7, 3.0, "cuts", "colour")[4:]]
    two = [*graded(4, 2.0, "cuts", "colour"), *graded(7, 0.5, "cuts")[4:]]
    two[3]["results"]["frozen"], two[3]["verdict"]["grades"] = True, dict.fromkeys(("cuts", "colour", "camera"))
    del two[4]["verdict"]["judged"]  # then grades tell
    found = compare(read([write(tmp_path / "a", one), write(tmp_path / "b", two)]), FAST)
    (other,) = found.others
    number = other.numbers["verdict_badness"]
    assert (number.pairs, number.left_out, number.means) == (4, 3, (1.0, 2.0))  # the frozen one is compared
    assert other.unlike == tuple((f"out/0{i}.mp4", ("colour",)) for i in (4, 5, 6))
    text = markdown(found)
    assert "Verdicts left out in 3 pairs, as they judged different aspects: out/04.mp4 (colour), ...." in text
    told = json.loads(as_json(found))["comparisons"][0]["verdicts_of_different_aspects"]
    assert told[0] == {"file": "out/04.mp4", "aspects": ["colour"]}
    alike = compare(read([tmp_path / "a", write(tmp_path / "c", graded(7, 1.0, "cuts", "colour"))]), FAST)
    assert alike.others[0].unlike == () and "Verdicts left out" not in markdown(alike)


def test_an_absent_verdict_is_absent(tmp_path: Path) -> None:
    found = compare(
        read([write(tmp_path / "a", graded(6, 1.0, "cuts")), write(tmp_path / "b", graded(6, None, "colour"))]), FAST
    )
    number = found.others[0].numbers["verdict_badness"]
    assert number.pairs == 0 and number.absent == (0, 6) and not found.others[0].unlike


# --- what was measured differently -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"size": None}, ["size"]),
        ({"flow": {"kind": "DIS", "preset": "fast"}}, ["flow.preset"]),
        ({"flow": {"kind": "RAFT", "weights": "raft.pt"}}, ["flow"]),
        ({"flow": None}, ["flow"]),
        ({"clip": {"kind": "FolderCLIP", "model": "embedded"}}, []),  # numbers by a CLIP model: only one has them
        ({"versions": {"torch": "2.11", "cv2": "4.11"}}, ["versions.torch"]),
        ({"metrics": SETTINGS["metrics"][:1]}, []),
        ({"metrics": [*SETTINGS["metrics"], {"kind": "Flicker"}]}, []),
        ({"metrics": [{"kind": "Drift", "share": 0.2}, SETTINGS["metrics"][1]]}, ["metrics.Drift.share"]),
        ({"metrics": [{"kind": "CLIPScore", "prompt": "a cube"}]}, ["metrics.CLIPScore.prompt"]),
    ],
)
def test_settings_that_differ(tmp_path: Path, changes: dict[str, Any], names: list[str]) -> None:
    evaluations = read(
        [
            write(tmp_path / "a", videos(2)),
            write(tmp_path / "b", videos(2, settings={**SETTINGS, **changes})),
        ]
    )
    found = differences(pair(*evaluations))
    assert [each.name for each in found] == names and all(each.pairs == 2 for each in found)


def test_weights_are_told_apart_by_what_they_are_not_by_name(tmp_path: Path) -> None:
    def told(flow: str, lpips: str, name: str) -> dict[str, Any]:
        perceptual = {"kind": "LPIPS", "trunk": name, "sha256": lpips}
        metrics = [*SETTINGS["metrics"], {"kind": "AnchorPerceptual", "perceptual": perceptual}]
        return {**SETTINGS, "flow": {"kind": "RAFT", "weights": name, "sha256": flow}, "metrics": metrics}

    settings = {
        "a": told("1" * 64, "2" * 64, "x"),
        "b": told("1" * 64, "2" * 64, "y"),
        "c": told("3" * 64, "4" * 64, "x"),
    }
    a, b, c = read([write(tmp_path / name, videos(2, settings=each)) for name, each in settings.items()])
    assert differences(pair(a, b)) == ()
    found = {each.name: each.values for each in differences(pair(a, c))}
    assert found == {
        "metrics.AnchorPerceptual.perceptual.sha256": ('"222222222222..."', '"444444444444..."'),
        "flow.sha256": ('"111111111111..."', '"333333333333..."'),
    }
    with pytest.raises(UserError, match=r'not measured alike.*flow.sha256 \("111111111111\.\.\." and "3333'):
        compare([a, c], FAST)


def test_different_clip_models_lengths_sizes_and_prompts(tmp_path: Path) -> None:
    one, two = (videos(2, settings={**SETTINGS, "size": None, "clip": {"kind": "X", "model": model}}) for model in "ab")
    two[1]["results"] |= {"frames": 40, "shown": [32, 32]}
    one[1]["prompts"], two[1]["prompts"] = [[0, "a"]], [[0, "b"]]
    found = differences(pair(*read([write(tmp_path / "a", one), write(tmp_path / "b", two)])))
    assert {each.name: each.pairs for each in found} == {
        "clip.model": 2,
        "resolution": 1,
        "frames": 1,
        "prompts": 1,
    }
    assert found[2].values == ("48", "40") and found[2].file == "out/01.mp4"


def test_they_are_refused_by_name_or_compared_all_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changed = {**SETTINGS, "size": [64, 64], "versions": {"torch": "2.11", "numpy": "2.0"}}
    paths = [write(tmp_path / "a", videos(6)), write(tmp_path / "b", videos(6, settings=changed))]
    assert run("compare", *paths) == 2
    assert capfd.readouterr().err == (
        'error: a and b were not measured alike, which changes numbers: versions.torch ("2.15" and "2.11"); '
        'versions.numpy ("2.4" and "2.0"); size ([256, 256] and [64, 64]); evaluate both alike, or compare them all '
        "the same with --despite versions --despite size\n"
    )
    assert run("compare", *paths, "--despite", "versions.torch", "--despite", "size") == 2
    assert "versions.numpy" in capfd.readouterr().err
    assert run("compare", *paths, "--despite", "versions", "--despite", "size") == 0
    assert 'MEASURED DIFFERENTLY in 6 pairs: versions.torch ("2.15" and "2.11").' in capfd.readouterr().out


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wording"),
    [
        ("[1]", "holds no results of 'streamingt2v evaluate': name the results.json that it wrote"),
        ("{", "is no JSON (Expecting property name"),
        ('{"version": 1, "videos": NaN}', "is no JSON (NaN is no number of JSON)"),
        ("[" * 100_000, "is no JSON (maximum recursion depth exceeded"),
        ('{"version": 9, "clips": {}}', "has version 9 of the results, this program reads 1: evaluate again"),
        ('{"version": {"a": 1}, "videos": []}', 'has version {"a": 1} of the results, this program reads 1: evaluate'),
        ('{"version": 1, "videos": {}}', "holds no results of 'streamingt2v evaluate'"),
        ('{"version": 9, "videos": []}', "has version 9 of the results, this program reads 1: evaluate again"),
        ('{"version": 1, "videos": []}', "has no video that could be evaluated: there is nothing to compare"),
        ('{"version": 1, "videos": [{"file": "a.mp4", "error": "no"}]}', "has no video that could be evaluated"),
        ('{"version": 1, "videos": [{"results": {}}]}', "is damaged or was not written by 'evaluate' (no 'file'): e"),
        ('{"version": 1, "videos": [{"file": "a", "results": {}}]}', "(its numbers are null): evaluate again"),
        ('{"version": 1, "videos": [3]}', "is damaged or was not written by 'evaluate'"),
    ],
)
def test_files_that_are_no_results(
    folders: tuple[Path, Path], content: str, wording: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    assert run("compare", folders[0], tmp_path / "x.json") == 2
    told = capfd.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'x.json'} ") and wording in told and told.count("\n") == 1


PLACES = [
    "settings", "numbers", "numbers.warp", "meanings", "meanings.warp", "meanings.warp.better", "series", "events",
    "frames", "shown", "frozen", "fps", "settings.metrics", "settings.versions", "settings.flow", "settings.size",
]  # fmt: skip
"""Of one video's results, where anything may stand in a file that somebody has edited."""


def repr_of(value: Any) -> str:
    return repr(value)[:12]


@pytest.mark.parametrize("place", ["", *PLACES])
@pytest.mark.parametrize("put", [None, 3, "x", [], [1], {}, {"a": 1}, True, 1e400, 10**400], ids=repr_of)
def test_whatever_stands_in_a_file_gets_a_line_or_a_comparison(tmp_path: Path, place: str, put: Any) -> None:
    good, bad = videos(3), videos(3)
    target: Any = bad[1]
    *way, last = ["results", *filter(None, place.split("."))]
    for step in way:
        target = target[step]
    target[last] = put
    text = json.dumps({"version": 1, "videos": bad}).replace("Infinity", "1e400")
    (tmp_path / "bad.json").write_text(text)
    try:
        compare(read([write(tmp_path / "good", good), tmp_path / "bad.json"]), FAST)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600  # a line of ours, not what a type checker says


@pytest.mark.parametrize(
    "verdict", [3, [], {}, {"badness": "x"}, {"badness": True}, {"badness": 1, "grades": []}], ids=repr_of
)
def test_a_verdict_that_is_none_gets_a_line(tmp_path: Path, verdict: Any) -> None:
    bad = [each | {"verdict": verdict} for each in videos(2)]
    with pytest.raises(UserError, match="is damaged or was not written by 'evaluate' "):
        read([write(tmp_path / "bad", bad)])


def test_every_way_to_be_cut_off_gets_a_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    whole = (folders[0] / NAME).read_bytes()
    for place in range(0, len(whole), 997):
        (tmp_path / "cut.json").write_bytes(whole[:place])
        with pytest.raises(UserError, match=r"cut.json is no JSON \(.*\): name a results.json that"):
            read([tmp_path / "cut.json"])


def test_wrong_usage(folders: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, other = folders
    for arguments, wording in [
        ([one], "one result cannot be compared: name two or more, the one to compare with first"),
        ([one, one], f"{one / NAME} is named twice: name each result once"),
        ([one, tmp_path / "gone.json"], "gone.json cannot be read (no such file or directory): name a results.json"),
        ([one, other, "--number", "wrap"], "no result has a number 'wrap': choose among warp, score, flow"),
        ([one, other, "--level", "95"], "--level 95: choose a number from 0.5 to 0.999"),
        ([one, other, "--resamples", "5"], "--resamples 5: choose a number from 1000 to 1000000"),
        ([one, other, "--interval", "bac"], "--interval 'bac': did you mean bca? choose one of bca, percentile"),
        ([one, other, "--output", "c.txt"], "--output c.txt: JSON and Markdown are written, so let the name end in"),
        ([one, other, "--output", tmp_path / "no" / "c.md"], "make it first or choose another place"),
    ]:
        assert run("compare", *arguments) == 2
        told = capfd.readouterr()
        assert told.err.startswith("error: ") and wording in told.err and told.out == ""


def test_numbers_that_only_one_has(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two = videos(6)
    for video in two:
        for part in ("numbers", "meanings"):
            del video["results"][part]["score"]
    paths = [write(tmp_path / "a", videos(6)), write(tmp_path / "b", two)]
    assert run("compare", *paths) == 0
    assert "Numbers that not both have: score." in capfd.readouterr().out
    assert run("compare", *paths, "--number", "score") == 2
    assert capfd.readouterr().err == "error: a and b have no number of score in common: evaluate both alike\n"


def test_labels_are_all_different(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    paths = [write(tmp_path / "x" / "out", videos(2)), write(tmp_path / "y" / "out", videos(2))]
    assert [each.label for each in read(paths)] == [str(path / NAME) for path in paths]
