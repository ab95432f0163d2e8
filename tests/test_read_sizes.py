"""A video that changes its size midway."""

from pathlib import Path

import av
import numpy as np
import pytest

from streaming.errors import UserError
from streaming.read import read_video


def stream_of(path: Path, side: int) -> bytes:
    """A transport stream of 20 frames; such files can be joined end to end."""
    with av.open(str(path), "w", format="mpegts") as file:
        track = file.add_stream("libx264", rate=8)
        track.width = track.height = side
        track.pix_fmt = "yuv420p"
        for _ in range(20):
            file.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8))))
        file.mux(track.encode())
    return path.read_bytes()


def test_the_change_is_told(tmp_path: Path) -> None:
    both = tmp_path / "both.ts"
    both.write_bytes(stream_of(tmp_path / "a.ts", 64) + stream_of(tmp_path / "b.ts", 96))
    with pytest.raises(UserError, match=r"both\.ts changes its size from 64x64 to 96x96 after frame 20: cut it there"):
        list(read_video(both).pieces)
