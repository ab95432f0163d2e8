"""Reading videos, a few frames at a time, and images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.decode import decoded
from streaming.errors import UserError
from streaming.types import Frames

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

PIECE = 16
"""Frames that are handed out at once."""


@final
@dataclass(frozen=True, kw_only=True)
class Video:
    """An opened video."""

    fps: float
    """Frames a second."""
    height: int
    """Pixels, as shown (after rotation)."""
    width: int
    """Pixels, as shown (after rotation)."""
    pieces: Iterator[Frames]
    """The frames in order, [1, at most 16, 3, height, width] in [0, 1]; can be read once."""


def film(container: Any) -> Any | None:
    """An opened file's first stream of moving pictures; a cover is none."""
    streams = [stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic]
    return streams[0] if streams else None


def read_video(path: Path | str) -> Video:
    """Opens a video; only a few frames are held at a time.

    Raises UserError (while reading, too; after the frames before it) if there is no such file, or no video in it, or
    it is damaged and the decoder or the container can tell.
    """
    path = Path(path)
    container = _open(path)
    stream = film(container)
    if stream is None:
        container.close()
        raise UserError(f"{path} holds no video (only sound or pictures) or it is truncated: give an intact video")
    images = _images(container, path, stream.index)
    first = next(images, None)
    if first is None:
        raise UserError(f"{path} holds no frame that can be read: is it complete? Give an intact copy")
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return Video(
        fps=float(rate) if rate else 8.0,
        height=first.shape[-2],
        width=first.shape[-1],
        pieces=_pieces(path, first, images),
    )


def _open(path: Path) -> "InputContainer":
    import av
    from av.error import FFmpegError

    try:
        if not path.is_file():
            raise UserError(f"{path} is not a file: give the path of a video")
        container = av.open(path)
    except (FFmpegError, OSError) as error:
        raise UserError(f"{path} cannot be read as a video ({_reason(error)}): give an mp4, mov or webm") from error
    if container.format.name == "tty":  # FFmpeg takes a text for a film of letters
        container.close()
        raise UserError(f"{path} cannot be read as a video (it is a text): give an mp4, mov or webm")
    return container


def _images(container: "InputContainer", path: Path, index: int) -> Iterator[Float[Tensor, "3 rows cols"]]:
    from av.error import FFmpegError

    count = 0
    with container:
        try:
            for frame in decoded(container, index):
                yield _image(frame)
                count += 1
        except (FFmpegError, OSError) as error:
            raise UserError(_damaged(path, count, _reason(error))) from error


def _damaged(path: Path, count: int, reason: str) -> str:
    if not count:
        return f"{path} is damaged from its first frames on, or no video ({reason}): give an intact mp4, mov or webm"
    return f"{path} is damaged after frame {count} ({reason}): cut it there or give an intact copy"


def _image(frame: "VideoFrame") -> Float[Tensor, "3 rows cols"]:
    """RGB, the right way up. `rotation` counts degrees counterclockwise, as `rot90` does."""
    image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(image, round(frame.rotation / 90), dims=(1, 2)).float() / 255


def _pieces(path: Path, first: Tensor, images: Iterator[Tensor]) -> Iterator[Frames]:
    piece = [first]
    try:
        for count, image in enumerate(images, start=1):
            if image.shape != first.shape:
                sizes = " to ".join(f"{shown.shape[-1]}x{shown.shape[-2]}" for shown in (first, image))
                raise UserError(f"{path} changes its size from {sizes} after frame {count}: cut it there")
            if len(piece) == PIECE:
                yield torch.stack(piece)[None]
                piece = []
            piece.append(image)
    except UserError:  # who needs no more than the frames before the damage gets them
        yield torch.stack(piece)[None]
        raise
    yield torch.stack(piece)[None]


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0].lower() if text else type(error).__name__


def read_image(path: Path | str) -> Float[Tensor, "3 rows cols"]:
    """An image as RGB in [0, 1], the right way up (EXIF). Raises UserError if it cannot be read."""
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of an image")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({_reason(error)}): give a PNG or JPEG") from error
    import numpy

    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255
