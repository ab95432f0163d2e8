"""Writing videos: a file that plays whatever happens to the program that writes it."""

import io
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from streaming import mp4
from streaming.errors import UserError
from streaming.read import Video, read_image, read_video

if TYPE_CHECKING:
    from av.container import OutputContainer

__all__ = ["Video", "VideoWriter", "read_image", "read_video", "to_bytes"]

GROWING = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"
"""Muxer flags of a file to which fragments can be appended."""

TICKS = 512
"""Ticks of the track's time scale in one frame, times the denominator of the frame rate."""


@final
class VideoWriter:
    """An H.264 mp4 that grows by whole pieces: after each `write` the file on disk is a video that plays.

    Nothing that was written is lost when the program is killed or the disk fills up. Leaving the `with` block without
    an exception turns the file into an ordinary mp4 (no fragments, index in front); with one it stays as it is.
    Every piece is encoded on its own and on one thread, so interruptions leave no trace in the file.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: float,
        height: int,
        width: int,
        crf: int = 18,
        lossless: bool = False,
        truncate: bool = False,
        keep: int = 0,
    ) -> None:
        """Opens nothing: an existing file is only touched by the first write.

        fps: frames a second. height, width: pixels. H.264 in 4:2:0 wants even sizes, so an odd size gets its last row
        or column twice. crf: x264's quality, 0 best to 51 worst. lossless: 8-bit RGB without loss instead.
        truncate: floats are cut off to 8 bits, not rounded. keep: so many frames of the existing file stay; the first
        write replaces what lies behind them.
        Raises UserError if `keep` frames are not there.
        """
        self.path = Path(path)
        self.frames = keep
        self._size = (height, width)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._crf = None if lossless else crf
        self._truncate = truncate
        self._opened = False
        if keep and keep not in piece_ends(self.path):
            raise UserError(
                f"{self.path} does not begin with the {keep} frames that were written to it and cannot be continued: "
                "put the file back or start again with another output"
            )

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.frames:
            self._finish()

    def write(self, frames: Float[Tensor, "1 time 3 rows cols"] | UInt8[Tensor, "1 time 3 rows cols"]) -> None:
        """Appends frames, floats in [0, 1] or bytes; they are on disk when it returns.

        Raises UserError if frames hold NaN or the file cannot be written; what was written before stays.
        """
        if tuple(frames.shape[-2:]) != self._size:
            raise ValueError(f"frames of {tuple(frames.shape[-2:])} pixels do not fit a video of {self._size}")
        if not frames.shape[1]:
            return
        header, fragments = self._encode(to_bytes(frames, truncate=self._truncate)[0])
        try:
            self._open(header)
            _append(self.path, fragments)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"{self.path} cannot be written: {reason}; its first {self.frames} frames are kept, "
                "make room or write elsewhere"
            ) from error
        self.frames += frames.shape[1]

    def _encode(self, frames: UInt8[Tensor, "time 3 rows cols"]) -> tuple[bytes, bytes]:
        """Header and fragments of a piece, in its place in time."""
        import av

        segment = io.BytesIO()
        options = {
            "movflags": GROWING,
            "fragment_index": str(self.frames + 1),
            "video_track_timescale": str(self._rate.numerator * TICKS),
        }
        with av.open(segment, "w", format="mp4", options=options) as container:
            _encode_into(container, frames, self._rate, self._crf)
        mp4.delay(segment, self.frames * self._rate.denominator * TICKS)
        return mp4.split(segment)

    def _open(self, header: bytes) -> None:
        if self._opened:
            return
        if self.frames:
            self._keep()
        else:
            self.path.write_bytes(header)
        self._opened = True

    def _keep(self) -> None:
        """Makes the file end after the frames that count, ready to grow."""
        if not mp4.is_fragmented(self.path):
            _remux(self.path, GROWING)
        os.truncate(self.path, dict(mp4.fragments(self.path))[self.frames])

    def _finish(self) -> None:
        """An ordinary mp4; the growing one, which plays as well, stays if there is no room for it."""
        if not mp4.is_fragmented(self.path):
            return
        try:
            if not self._opened:
                self._keep()
            _remux(self.path, "faststart")
        except OSError:
            return


def piece_ends(path: Path) -> list[int]:
    """Numbers of frames after which a file written by `VideoWriter` can be continued; none if there is no such file."""
    import av
    from av.error import FFmpegError

    try:
        if mp4.is_fragmented(path):
            return [frames for frames, _ in mp4.fragments(path)]
        with av.open(path) as container:
            keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    except (OSError, IndexError, FFmpegError):
        return []
    return [index for index, key in enumerate(keys) if key] + [len(keys)]


def to_bytes(
    frames: Float[Tensor, "batch time 3 rows cols"] | UInt8[Tensor, "batch time 3 rows cols"],
    *,
    truncate: bool = False,
) -> UInt8[Tensor, "batch time 3 rows cols"]:
    """Frames in [0, 1] rounded to 8 bits, or cut off (convention of the published code); bytes are left alone.

    Raises UserError for NaN and infinity.
    """
    if frames.dtype == torch.uint8:
        return frames
    if not torch.isfinite(frames).all():
        raise UserError("the generated frames hold NaN or infinity: try --dtype float32 or a smaller --guidance")
    levels = frames.float().clamp(0, 1) * 255
    return (levels if truncate else levels.round()).to(torch.uint8).cpu()


def _encode_into(
    container: "OutputContainer", frames: UInt8[Tensor, "time 3 rows cols"], rate: Fraction, crf: int | None
) -> None:
    """Encodes a piece that decodes on its own. crf None: lossless."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    # `stitchable` keeps the parameter sets independent of content and quality, as all pieces share the first one's.
    quality = {"qp": "0"} if crf is None else {"crf": str(crf)}
    options = {"x264-params": f"stitchable=1{repeatable(frames.shape[-1])}", "bf": "0", **quality}
    stream = container.add_stream("libx264rgb" if crf is None else "libx264", rate=rate, options=options)
    images = frames if crf is None else _even(frames)
    stream.height, stream.width = images.shape[-2:]
    stream.pix_fmt = "rgb24" if crf is None else "yuv420p"
    stream.codec_context.thread_count = 1
    if crf is not None:
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
    for index, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        if crf is not None:
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts, frame.time_base = index, 1 / rate
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _even(frames: UInt8[Tensor, "time 3 rows cols"]) -> UInt8[Tensor, "time 3 even_rows even_cols"]:
    """Even sizes: an odd one gets its last row or column twice."""
    rows, cols = frames.shape[-2:]
    frames = torch.cat([frames, frames[..., -1:, :]], dim=-2) if rows % 2 else frames
    return torch.cat([frames, frames[..., -1:]], dim=-1) if cols % 2 else frames


def _append(path: Path, data: bytes) -> None:
    """Appends all of it or, whatever goes wrong, nothing."""
    with path.open("r+b", buffering=0) as file:
        end = file.seek(0, 2)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def _remux(path: Path, movflags: str) -> None:
    """Replaces an mp4 by one with other flags and the same packets; on failure it stays as it was. Raises OSError."""
    import av
    from av.error import FFmpegError

    new = path.with_name(path.name + ".new")
    try:
        with av.open(path) as source:
            stream = source.streams.video[0]
            assert stream.time_base is not None
            options = {"movflags": movflags, "video_track_timescale": str(stream.time_base.denominator)}
            with av.open(new, "w", format="mp4", options=options) as target:
                copy = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.stream = copy
                        target.mux(packet)
        os.replace(new, path)
    except FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error
    finally:
        new.unlink(missing_ok=True)


def repeatable(cols: int) -> str:
    """Setting with which x264 gives the same pictures of this width the same bits every time.

    Its vector code for the macroblock tree gives them others once in some hundred times, measured at many widths, at
    none that is a multiple of 64.
    """
    return "" if cols % 64 == 0 else ":asm=0"
