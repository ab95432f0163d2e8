"""Files that are cut off: told whatever the container, and never of files that are whole."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from streaming.errors import UserError
from streaming.evaluation.intact import check_whole, missing_bytes
from streaming.evaluation.timing import timing
from streaming.video import VideoWriter

IMAGES = np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8)
WAYS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "index-in-front.mp4": {"options": {"movflags": "faststart"}},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "plain.mov": {},
    "plain.mkv": {},
    "lossless.mkv": {"codec": "ffv1"},
    "live.mkv": {"options": {"live": "1"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hidden-frames.webm": {"codec": "libvpx"},
    "plain.avi": {"codec": "mpeg4"},
    "plain.gif": {"codec": "gif", "pixels": "rgb8"},
    "sound-longer.mp4": {"sound": "aac"},
    "sound-longer.mkv": {"sound": "aac"},
    "sound-longer.webm": {"codec": "libvpx-vp9", "sound": "libopus"},
    "sound-longer.avi": {"codec": "mpeg4", "sound": "libmp3lame"},
    "uneven.mp4": {"steps": (40, 40, 1500)},
    "uneven.mkv": {"steps": (40, 40, 1500)},
    "uneven.webm": {"codec": "libvpx-vp9", "steps": (40, 40, 1500)},
    "late-start.mkv": {"start": 80},
    "late-start.mp4": {"start": 80},
    "one.mp4": {"frames": 1},
    "one.mkv": {"frames": 1},
    "one.webm": {"codec": "libvpx-vp9", "frames": 1},
}


def write(
    path: Path, *, codec: str = "libx264", pixels: str = "yuv420p", frames: int = 20, start: int = 0,
    steps: tuple[int, ...] = (), sound: str = "", options: dict[str, str] | None = None,
    more: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """A moving picture at 8 frames/s (or with those steps, ms); sound lasts 1.5 s longer. more: for the encoder."""
    base = Fraction(1, 1000) if steps else Fraction(1, 8)
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=8, options=more or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.time_base, stream.codec_context.gop_size = base, 6
        heard = container.add_stream(sound, rate=48000) if sound else None
        packets: list[Any] = []
        time = start
        for index in range(frames):
            image = np.ascontiguousarray(IMAGES[:, index % 32 : index % 32 + 64])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, base
            time += steps[index % len(steps)] if steps else 1
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if heard is not None:
            packets += silence(heard, int(48000 * (float(time * base) + 1.5)))
            packets.sort(key=lambda each: float((each.dts or 0) * each.time_base))
        for packet in packets:
            container.mux(packet)
    return path


def silence(stream: Any, samples: int) -> list[Any]:
    size, found = stream.codec_context.frame_size or 1024, []
    for start in range(0, samples, size):
        frame = av.AudioFrame(format=stream.codec_context.format.name, layout=stream.layout.name, samples=size)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        found += stream.encode(frame)
    return found + stream.encode(None)


def decoded(path: Path) -> int | None:
    """Frames, or None if the decoder says that something is wrong."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0)) or None
    except (av.FFmpegError, IndexError):
        return None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {name: write(folder / name, **how) for name, how in WAYS.items()}


@pytest.mark.parametrize("name", WAYS)
def test_whole_files_pass(files: dict[str, Path], name: str) -> None:
    times = timing(files[name])
    assert times.frames >= WAYS[name].get("frames", 20)
    check_whole(files[name], times)
    longer = files[name].with_name(f"longer-{name}")
    longer.write_bytes(files[name].read_bytes() + bytes(100))
    assert not missing_bytes(longer)


@pytest.mark.parametrize("name", WAYS)
def test_no_cut_is_measured_without_a_word(files: dict[str, Path], name: str) -> None:
    whole, frames = files[name].read_bytes(), decoded(files[name])
    cut, told, silent = files[name].with_name(f"cut-{name}"), 0, []
    places = [len(whole) * share // 100 for share in (3, 11, 23, 31, 47, 59, 71, 83, 91, 97)]
    for place in [*places, len(whole) - 1]:
        cut.write_bytes(whole[:place])
        try:
            check_whole(cut, timing(cut))
        except UserError as error:
            assert str(error).startswith(f"{cut} is cut off: ") and str(error).endswith("; give an intact copy")
            told += 1
            continue
        if decoded(cut) not in (None, frames):
            silent.append(place)
    # A file that was never finished ends anywhere: between two clusters nothing tells that there should be more.
    assert told >= 9 and len(silent) <= (name == "live.mkv")


@pytest.mark.parametrize("name", ["plain.mkv", "sound-longer.mkv", "vp9.webm", "uneven.webm"])
def test_what_is_missing_inside_is_told_by_the_duration(files: dict[str, Path], name: str) -> None:
    whole, zeros = files[name].read_bytes(), files[name].with_name(f"zeros-{name}")
    zeros.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert not missing_bytes(zeros)
    with pytest.raises(UserError, match=r"is cut off: it ends after \d\.\d\d of \d\.\d\d s; give an intact copy"):
        check_whole(zeros, timing(zeros))


def test_the_tag_tells_when_the_video_ends_not_the_sound(files: dict[str, Path]) -> None:
    times = timing(files["sound-longer.mkv"])
    assert times.declared == times.end == 2.5
    assert timing(files["live.mkv"]).declared is None and timing(files["plain.gif"]).declared is None
    late = timing(files["late-start.mp4"])
    assert late.end == late.declared == 2.5


def test_a_video_whose_making_was_interrupted_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "growing.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, fps=8.0, height=48, width=64) as writer:
        for start in (0, 4, 8):
            writer.write(
                torch.from_numpy(IMAGES[None, None, :, start : start + 64])
                .permute(0, 1, 4, 2, 3)
                .expand(1, 6, 3, 48, 64)
            )
        raise KeyboardInterrupt
    assert timing(path).frames == decoded(path) == 18
    check_whole(path, timing(path))


def test_without_a_tag_the_longest_stream_counts(files: dict[str, Path], tmp_path: Path) -> None:
    untagged = tmp_path / "untagged.mkv"
    untagged.write_bytes(files["sound-longer.mkv"].read_bytes().replace(b"DURATION", b"DURATIOM"))
    times = timing(untagged)
    assert times.declared is not None and times.declared > 3.9 and times.end > 3.9
    check_whole(untagged, times)


@pytest.mark.parametrize(
    "start", [b"", b"\x1aE\xdf\xa3", b"\x1aE\xdf\xa3\x00", b"GIF89a", b"RIFF\0\0\0\0AVI ", b"text " * 9]
)
def test_what_is_no_video_is_left_to_others(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(start)
    assert missing_bytes(tmp_path / "x") == (1 if start == b"GIF89a" else 0)
    assert missing_bytes(tmp_path / "absent") == 0
