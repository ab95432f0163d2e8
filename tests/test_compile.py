"""Compiled chunks: one graph for all of them, and the same video."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.exc

from backends.toy_unet import ToyUNetBackend
from streaming import NoLongTerm, NoShortTerm, assemble
from streaming.errors import UserError
from streaming.rows import compiled
from tests.compiled_video import video


def test_one_graph_serves_every_chunk_and_step():
    script = Path(__file__).with_name("compiled_video.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=script.parent.parent)
    assert done.stdout.strip() == "1 graph", done.stderr


def test_the_first_chunk_is_not_compiled(monkeypatch):
    """It would be a graph of its own, which takes longer to make than the chunk."""
    calls = []

    def recorded(function, **options):
        return lambda *arguments: calls.append(1) or function(*arguments)

    monkeypatch.setattr(torch, "compile", recorded)
    compiled.cache_clear()
    fast = video(compile=True)
    compiled.cache_clear()
    assert len(calls) == 3 * 2
    torch.testing.assert_close(fast, video(compile=False))


def test_a_machine_that_cannot_compile(monkeypatch):
    def broken(function, **options):
        def run(*arguments):
            raise torch._inductor.exc.InvalidCxxCompiler()

        return run

    monkeypatch.setattr(torch, "compile", broken)
    compiled.cache_clear()
    with pytest.raises(UserError, match=r"cannot be compiled on this machine \(No .* compiler.*leave --compile"):
        video(compile=True)
    compiled.cache_clear()


def test_only_a_compiled_run_continues_a_compiled_one():
    model = ToyUNetBackend().load(None, device=torch.device("cpu"), dtype=torch.float32)
    told = [
        assemble(model, short=NoShortTerm(), long=NoLongTerm(), compile=compile).settings["compiled"]
        for compile in (False, True)
    ]
    assert told == ["no", "yes"]
