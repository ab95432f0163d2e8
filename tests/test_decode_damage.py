"""Damage inside a stream: told by the decoder or the container, and never of files that are whole."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streaming.decode import hidden
from streaming.errors import UserError
from streaming.evaluation.intact import check_whole
from streaming.evaluation.structure import check_structure
from streaming.evaluation.timing import timing
from streaming.read import read_video
from tests.cli_toys import run
from tests.test_evaluation_intact import WAYS, write

KINDS = {**WAYS, "plain.ts": {}, "hevc.mp4": {"codec": "libx265"}, "plain.flv": {}, "mpeg2.ts": {"codec": "mpeg2video"}}
KINDS["mjpeg.avi"] = {"codec": "mjpeg", "pixels": "yuvj420p"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {name: write(folder / name, **how) for name, how in KINDS.items()}


def frames(path: Path) -> int:
    check_whole(path, timing(path))
    check_structure(path)
    return sum(piece.shape[1] for piece in read_video(path).pieces)


def spoiled(path: Path, seed: int, length: int) -> Path:
    """A copy with so many bytes replaced, somewhere inside."""
    random, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    place = int(random.integers(len(data) // 20, len(data) * 17 // 20))
    data[place : place + length] = random.integers(0, 256, length, dtype=np.uint8).tobytes()
    copy = path.with_name(f"spoiled-{path.name}")
    copy.write_bytes(data)
    return copy


def told(path: Path) -> str:
    """What is said of a file; nothing, if it is read to its end."""
    try:
        frames(path)
    except UserError as error:
        return str(error)
    return ""


def packets(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("name", KINDS)
def test_good_files_are_read_to_the_end(files: dict[str, Path], name: str) -> None:
    assert frames(files[name]) == KINDS[name].get("frames", 20)


# H.264's entropy code, and all the more those of VP8, VP9 and HEVC, make pictures of nearly any bytes. The numbers are
# well below what was counted, as encoders and decoders differ between versions; mkv has checksums.
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("plain.mp4", 5),
        ("plain.mkv", 18),
        ("live.mkv", 18),
        ("plain.ts", 5),
        ("plain.avi", 5),
        ("mjpeg.avi", 4),  # 3 without err_detect
    ],
)
def test_how_much_damage_is_told(files: dict[str, Path], name: str, least: int) -> None:
    lines = [told(spoiled(files[name], seed, (8, 64, 400)[seed % 3])) for seed in range(20)]
    assert sum(map(bool, lines)) >= least
    assert all("give an intact" in line and "\n" not in line for line in lines if line)


def test_a_picture_that_is_overwritten_is_told_and_the_frames_before_it_are_given(files: dict[str, Path]) -> None:
    data, path = bytearray(files["plain.mp4"].read_bytes()), files["plain.mp4"].with_name("overwritten.mp4")
    packet = packets(files["plain.mp4"])[12]
    assert packet.is_keyframe
    data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    path.write_bytes(data)
    video, seen = read_video(path), 0
    with pytest.raises(UserError, match=r"overwritten.mp4 is damaged after frame \d+ \(.+\): cut it there or give an "):
        for piece in video.pieces:
            seen += piece.shape[1]
    assert 6 <= seen <= 12


def test_frames_that_a_player_would_leave_out_are_told(files: dict[str, Path]) -> None:
    data, path = bytearray(files["vp9.webm"].read_bytes()), files["vp9.webm"].with_name("lost.webm")
    packet = packets(files["vp9.webm"])[7]
    place = data.index(bytes(packet))
    at = data.rindex(b"\xa3", place - 8, place - 4)  # the element that it is in
    data[at] ^= 0x10
    path.write_bytes(data)
    assert sum(piece.shape[1] for piece in read_video(path).pieces) < 20  # nobody else would tell
    with pytest.raises(UserError, match=rf"is damaged at byte {at} or behind: give an intact copy"):
        frames(path)


@pytest.mark.parametrize("what", ["sync", "start code", "transport error"])
def test_packets_of_a_transport_stream_that_are_none(files: dict[str, Path], what: str) -> None:
    data, path = bytearray(files["plain.ts"].read_bytes()), files["plain.ts"].with_name("wrong.ts")
    starts = [at for at in range(0, len(data), 188) if data[at + 1] == 0x41 and data[at + 2] == 0]
    at = starts[9]
    if what == "start code":
        data[bytes(data).index(b"\0\0\1\xe0", at) + 2] = 7
    else:
        data[at + (what != "sync")] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"wrong.ts is damaged at byte {at} or behind: give an intact copy"):
        check_structure(path)


def test_a_packet_of_a_transport_stream_that_is_missing(files: dict[str, Path]) -> None:
    data, path = files["plain.ts"].read_bytes(), files["plain.ts"].with_name("missing.ts")
    starts = [at for at in range(0, len(data), 188) if data[at + 1] == 0x41 and data[at + 2] == 0]
    at = starts[9] + 188  # the second one of a frame
    path.write_bytes(data[:at] + data[at + 188 :])
    check_structure(path)
    with pytest.raises(UserError, match=r"missing.ts is damaged (after frame \d+|from its first frames on)"):
        frames(path)


def copied(source: Path, target: Path, first: int, change: Any = bytes) -> Path:
    """A file of its packets, those before `first` left out."""
    with av.open(str(source)) as one, av.open(str(target), "w") as other:
        stream = other.add_stream_from_template(one.streams.video[0])
        for index, packet in enumerate(one.demux(video=0)):
            if packet.size and index >= first:
                new = av.Packet(change(packet) if index == 7 else bytes(packet))
                new.pts, new.dts, new.time_base, new.is_keyframe = (
                    packet.pts, packet.dts, packet.time_base, packet.is_keyframe,
                )  # fmt: skip
                new.duration, new.stream = packet.duration, stream
                other.mux(new)
    return target


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("first", ["key", "other"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_excerpts_may_begin_anywhere(tmp_path: Path, codec: str, first: str, suffix: str) -> None:
    kind = codec[3:]
    whole = write(
        tmp_path / "whole.mp4", codec=codec, frames=30,
        more={f"{kind}-params": "open-gop=1:bframes=3:keyint=8:min-keyint=8:scenecut=0"},
    )  # fmt: skip
    keys = [index for index, packet in enumerate(packets(whole)) if packet.is_keyframe]
    part = copied(whole, tmp_path / f"part{suffix}", keys[1] + (2 if first == "other" else 0))
    assert 10 <= frames(part) <= 30 - keys[1]


def test_frames_that_are_not_shown_are_not_missed(files: dict[str, Path], tmp_path: Path) -> None:
    def unshown(packet: Any) -> bytes:
        return bytes([packet_bytes[0] & ~0x10]) + packet_bytes[1:] if (packet_bytes := bytes(packet)) else b""

    part = copied(files["hidden-frames.webm"], tmp_path / "part.webm", 0, unshown)
    assert [hidden(packet) for packet in packets(part)].count(True) == 1
    assert frames(part) == 19


def test_damaged_videos_are_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("streaming.evaluation.report_html.over_time", lambda *_: "")  # slow
    write(Path("good.mp4"))
    data, packet = bytearray(Path("good.mp4").read_bytes()), packets(Path("good.mp4"))[12]
    data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    Path("bad.mp4").write_bytes(data)
    assert run("evaluate", "bad.mp4", "good.mp4", "--size", "32x24", "--flow", "dis:ultrafast", "--jobs", 1) == 2
    bad, good = json.loads(Path("evaluation/results.json").read_text())["videos"]
    assert bad["error"].startswith("is damaged after frame ") and "results" in good
    assert capfd.readouterr().err.count("error: bad.mp4: is damaged after frame ") == 1
