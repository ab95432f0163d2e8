"""Video files: what is written plays and stays, whatever happens; what is read is told in one line if it cannot be."""

import errno
import io
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from av.error import InvalidDataError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streaming import mp4
from streaming.errors import UserError
from streaming.read import PIECE, read_image, read_video
from streaming.types import Frames
from streaming.video import VideoWriter, piece_ends, repeatable, to_bytes
from tests.cli_toys import frames_of

Pieces = list[Frames]
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def pieces_of(lengths: list[int], rows: int = 16, cols: int = 24) -> Pieces:
    """Smooth frames that all differ."""
    total = sum(lengths)
    time = torch.linspace(0, 1, total).view(1, total, 1, 1, 1)
    ramp = torch.linspace(0, 1, rows).view(1, 1, 1, rows, 1) * torch.linspace(0.2, 1, cols)
    tint = torch.tensor([0.9, 0.5, 0.2]).view(1, 1, 3, 1, 1)
    return list((0.4 * time + 0.6 * ramp * tint).clamp(0, 1).split(lengths, dim=1))


def write(path: Path, pieces: Pieces, **options: object) -> None:
    rows, cols = pieces[0].shape[-2:]
    with VideoWriter(path, fps=8.0, height=rows, width=cols, **options) as video:  # pyright: ignore[reportArgumentType]
        for piece in pieces:
            video.write(piece)


class Stop(Exception):
    pass


def write_and_stop(path: Path, pieces: Pieces, **options: object) -> None:
    def then_stop() -> Iterator[Frames]:
        yield from pieces
        raise Stop

    rows, cols = pieces[0].shape[-2:]
    with pytest.raises(Stop), VideoWriter(path, fps=8.0, height=rows, width=cols, **options) as video:  # pyright: ignore
        for piece in then_stop():
            video.write(piece)


@settings(max_examples=8)
@given(lengths=LENGTHS)
def test_lossless_is_exact_at_any_cut(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    path, pieces = tmp_path_factory.mktemp("v") / "v.mp4", pieces_of(lengths)
    write(path, pieces, lossless=True)
    assert torch.equal(frames_of(path), to_bytes(torch.cat(pieces, 1)).float() / 255)


@settings(max_examples=8)
@given(lengths=LENGTHS, data=st.data())
def test_continued_at_any_piece_equals_unbroken(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    folder, pieces = tmp_path_factory.mktemp("v"), pieces_of(lengths)
    kept = data.draw(st.integers(0, len(lengths)))
    more = data.draw(st.booleans())
    write(folder / "whole.mp4", pieces)
    (write if more else write_and_stop)(folder / "broken.mp4", pieces)  # what lies behind the kept frames is replaced
    write(folder / "broken.mp4", pieces[kept:] or pieces[:0] or [pieces[0][:, :0]], keep=sum(lengths[:kept]))
    assert (folder / "broken.mp4").read_bytes() == (folder / "whole.mp4").read_bytes()


def test_ordinary_quality_is_close(tmp_path: Path) -> None:
    pieces = pieces_of([6, 3], 64, 64)
    write(tmp_path / "v.mp4", pieces)
    assert (frames_of(tmp_path / "v.mp4") - torch.cat(pieces, 1)).abs().mean() < 0.01


def test_quality_is_an_option(tmp_path: Path) -> None:
    for crf in (10, 40):
        write(tmp_path / f"{crf}.mp4", pieces_of([9], 64, 64), crf=crf)
    assert (tmp_path / "40.mp4").stat().st_size < (tmp_path / "10.mp4").stat().st_size


@pytest.mark.parametrize(("cols", "vectors"), [(24, False), (63, False), (64, True), (96, False), (256, True)])
def test_widths_without_whole_vectors_are_encoded_without_vector_code(cols: int, vectors: bool) -> None:
    assert repeatable(cols) == ("" if vectors else ":asm=0")


def test_the_same_pictures_have_the_same_bytes(tmp_path: Path) -> None:
    files = set()
    for _ in range(20):
        write(tmp_path / "x.mp4", pieces_of([8, 8], 32, 96))
        files.add((tmp_path / "x.mp4").read_bytes())
        (tmp_path / "x.mp4").unlink()
    assert len(files) == 1


@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.9, 0.2, 0.1), (1.0, 1.0, 1.0)])
def test_colours_come_back(tmp_path: Path, colour: tuple[float, ...]) -> None:
    frames = torch.tensor(colour).view(1, 1, 3, 1, 1).expand(1, 2, 3, 32, 32)
    write(tmp_path / "v.mp4", [frames])
    assert (frames_of(tmp_path / "v.mp4") - frames).abs().max() < 0.012


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (1, 3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "v.mp4", [frames], lossless=True)
    assert torch.equal(frames_of(tmp_path / "v.mp4") * 255, frames.float())


def test_floats_are_rounded_and_clamped() -> None:
    given = torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]).view(1, 1, 1, 1, 6).expand(1, 1, 3, 1, 6)
    assert to_bytes(given)[0, 0, 0, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_or_cut_off(tmp_path: Path) -> None:
    """Floor of 255 times the value; bytes that were read come back as the same bytes."""
    given = torch.tensor([-1.0, 0.0, 0.9999 / 255, 1.0001 / 255, 254.9 / 255, 7.0]).view(1, 1, 1, 1, 6)
    assert to_bytes(given.expand(1, 1, 3, 1, 6), truncate=True)[0, 0, 0, 0].tolist() == [0, 0, 0, 1, 254, 255]
    frames = torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "v.mp4", [frames], lossless=True, truncate=True)
    assert torch.equal((frames_of(tmp_path / "v.mp4") * 255).round(), (frames * 255).floor())
    every = torch.arange(256).to(torch.uint8).view(1, 1, 1, 16, 16).expand(1, 1, 3, 16, 16)
    assert torch.equal(to_bytes(every.float() / 255, truncate=True), every)


@pytest.mark.parametrize(("rows", "cols"), [(15, 24), (16, 23), (15, 23)])
def test_odd_sizes_get_their_last_row_or_column_twice(tmp_path: Path, rows: int, cols: int) -> None:
    pieces = pieces_of([3], rows, cols)
    write(tmp_path / "v.mp4", pieces)
    found = frames_of(tmp_path / "v.mp4")
    assert found.shape[-2:] == (rows + rows % 2, cols + cols % 2)
    assert (found[..., :rows, :cols] - pieces[0]).abs().mean() < 0.01
    write(tmp_path / "exact.mp4", pieces, lossless=True)
    assert frames_of(tmp_path / "exact.mp4").shape[-2:] == (rows, cols)


@pytest.mark.parametrize("fps", [1.0, 8.0, 23.976, 29.97, 60.0, 0.5])
def test_frame_rate_and_times(tmp_path: Path, fps: float) -> None:
    with VideoWriter(tmp_path / "v.mp4", fps=fps, height=16, width=24) as video:
        for piece in pieces_of([4, 3, 2]):
            video.write(piece)
    assert read_video(tmp_path / "v.mp4").fps == pytest.approx(fps, rel=1e-4)
    with av.open(tmp_path / "v.mp4") as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([index / fps for index in range(9)], abs=1e-3)


def test_plays_after_every_piece_and_ends_as_an_ordinary_file(tmp_path: Path) -> None:
    path, pieces = tmp_path / "v.mp4", pieces_of([4, 3, 2])
    with VideoWriter(path, fps=8.0, height=16, width=24) as video:
        for count, piece in zip((4, 7, 9), pieces, strict=True):
            video.write(piece)
            assert frames_of(path).shape[1] == count == video.frames
            assert mp4.is_fragmented(path)
    assert not mp4.is_fragmented(path)
    with path.open("rb") as file:
        kinds = [box.kind for box in mp4.boxes(file, 0, path.stat().st_size)]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_stays_as_it_is_if_there_is_no_room_to_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    write(tmp_path / "v.mp4", pieces_of([4, 3]))
    assert frames_of(tmp_path / "v.mp4").shape[1] == 7
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_nothing_is_touched_before_the_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write(path, pieces_of([4]))
    before = path.read_bytes()
    with VideoWriter(path, fps=8.0, height=16, width=24):
        pass
    with pytest.raises(UserError), VideoWriter(path, fps=8.0, height=16, width=24) as video:
        video.write(torch.full((1, 2, 3, 16, 24), torch.nan))
    assert path.read_bytes() == before
    with VideoWriter(tmp_path / "none.mp4", fps=8.0, height=16, width=24):
        pass
    assert not (tmp_path / "none.mp4").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import streaming.video
from tests.test_video import pieces_of

real = streaming.video._append
def torn(path, data):
    if streaming.video.VideoWriter.written == 2:
        real(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    streaming.video.VideoWriter.written += 1
    real(path, data)

streaming.video.VideoWriter.written = 0
streaming.video._append = torn
with streaming.video.VideoWriter(Path(sys.argv[1]), fps=8.0, height=16, width=24) as video:
    for piece in pieces_of([4, 3, 2, 5]):
        video.write(piece)
"""


def playable(path: Path) -> int:
    """Frames that a player shows: it goes as far as it can."""
    shown = 0
    with av.open(path) as container, suppress(InvalidDataError):
        for _ in container.decode(video=0):
            shown += 1
    return shown


def test_killed_while_it_writes(tmp_path: Path) -> None:
    path, pieces = tmp_path / "v.mp4", pieces_of([4, 3, 2, 5])
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=Path(__file__).parents[1], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert playable(path) == 7, "the two pieces that were written before the torn one"
    write(path, pieces[2:], keep=7)
    write(tmp_path / "whole.mp4", pieces)
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    path, pieces = tmp_path / "v.mp4", pieces_of([4, 3, 2])
    write_and_stop(path, pieces[:2])
    room = path.stat().st_size + 100
    path.unlink()
    wording = r"v.mp4 cannot be written: file too large; its first 7 frames are kept, make room or write elsewhere"
    with small_disk(room), pytest.raises(UserError, match=wording):
        write(path, pieces)
    assert frames_of(path).shape[1] == 7
    write(path, pieces[2:], keep=7)
    write(tmp_path / "whole.mp4", pieces)
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_file_that_vanishes(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="cannot be written: no such file or directory; its first 4 frames"),
        VideoWriter(tmp_path / "v.mp4", fps=8.0, height=16, width=24) as video,
    ):
        video.write(pieces_of([4])[0])
        (tmp_path / "v.mp4").unlink()
        video.write(pieces_of([4])[0])


def test_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="v.mp4 cannot be written: no such file or directory"):
        write(tmp_path / "nowhere" / "v.mp4", pieces_of([2]))


def test_not_finite() -> None:
    for bad in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="frames hold NaN or infinity: try --dtype float32 or a smaller --guidance"):
            to_bytes(torch.full((1, 1, 3, 2, 2), bad))


def test_wrong_size(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"frames of \(16, 24\) pixels do not fit a video of \(24, 16\)"),
        VideoWriter(tmp_path / "v.mp4", fps=8.0, height=24, width=16) as video,
    ):
        video.write(pieces_of([2])[0])


@pytest.mark.parametrize("keep", [3, 8])
def test_continuing_what_is_not_there(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "v.mp4"
    wording = f"does not begin with the {keep} frames that were written to it and cannot be continued: put the file"
    with pytest.raises(UserError, match=wording):
        VideoWriter(path, fps=8.0, height=16, width=24, keep=keep)
    write(path, pieces_of([4, 3]))
    with pytest.raises(UserError, match=wording):
        VideoWriter(path, fps=8.0, height=16, width=24, keep=keep)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=wording):
        VideoWriter(path, fps=8.0, height=16, width=24, keep=keep)
    assert path.read_bytes() == b"something else"


def test_where_a_file_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    assert piece_ends(path) == []
    write_and_stop(path, pieces_of([4, 3, 2]))
    assert piece_ends(path) == [0, 4, 7, 9]
    write(path, pieces_of([4, 3, 2]))
    assert piece_ends(path) == [0, 4, 7, 9]


def test_only_a_few_frames_are_held(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", pieces_of([9] * 5))
    assert [piece.shape[1] for piece in read_video(tmp_path / "v.mp4").pieces] == [PIECE, PIECE, 45 - 2 * PIECE]


def rotate(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Sets the matrix of a file's track header: what phones do that are held upright."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    path = tmp_path / "v.mp4"
    write(path, pieces_of([2]), lossless=True)
    upright = frames_of(path)
    rotate(path, *matrix)
    video = read_video(path)
    turned = torch.rot90(upright, turns, dims=(3, 4))
    assert (video.height, video.width) == turned.shape[-2:]
    assert torch.equal(next(video.pieces), turned)


def test_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    for make, wording in (
        (lambda: None, "v.mp4 is not a file: give the path of a video"),
        (lambda: path.mkdir(), "v.mp4 is not a file: give the path of a video"),
        (lambda: path.rmdir() or path.write_bytes(b""), r"v.mp4 cannot be read as a video \(invalid data found"),
        (lambda: path.write_text("hello " * 99), r"v.mp4 cannot be read as a video \(invalid data found"),
    ):
        make()
        with pytest.raises(UserError, match=wording):
            read_video(path)


def test_only_sound(tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    with av.open(sound, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=160)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"sound.wav holds no video \(only sound or pictures\) or it is truncated"):
        read_video(sound)


def test_truncated_video(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", pieces_of([9, 9]))
    whole = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match="v.mp4"):
        frames_of(tmp_path / "v.mp4")


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("png", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 24, 16, "rgb24"
        for image in to_bytes(pieces_of([6])[0])[0].permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.copy(), format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    third = [at for at in range(len(data)) if data[at : at + 4] == b"\x89PNG"][3]
    data[third : third + 60] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"v.mp4 is damaged after frame 3 \(.*\): cut it there or give an intact copy"):
        frames_of(path)


def test_image_the_right_way_up(tmp_path: Path) -> None:
    pixels = to_bytes(pieces_of([1])[0])[0, 0]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "plain.png"), pixels.float() / 255)
    assert torch.equal(read_image(tmp_path / "turned.png"), torch.rot90(pixels, -1, dims=(1, 2)).float() / 255)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_all_kinds(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.new(mode, (5, 3)).save(path)
    assert read_image(path).shape == (3, 3, 5)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(UserError, match="image.png is not a file: give the path of an image"):
        read_image(path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="image.png cannot be read as an image \\(cannot identify"):
        read_image(path)
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    path.write_bytes(whole.getvalue()[:600])
    with pytest.raises(UserError, match=r"image.png cannot be read as an image \(.*\): give a PNG or JPEG"):
        read_image(path)


def test_no_file_handle_is_left(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", pieces_of([3, 3]))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        frames_of(tmp_path / "v.mp4")
        write(tmp_path / "v.mp4", pieces_of([3, 3]))
    assert len(os.listdir("/proc/self/fd")) == before
