"""Run by test_plugin.py in a process of its own, in which the third-party plugin is installed, with a page of docs/.

Types the page's commands, runs its Python, then puts memories onto the plugin's model. Prints what came of it as JSON.
"""

import json
import re
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from adapters.apm import new_apm
from adapters.cam import new_cam
from streaming import Key, NoLongTerm, NoShortTerm, PromptSchedule, Sampler, TextOpening, assemble, open_model, stream
from streaming.cli import main
from streaming.conformance.probe import unzeroed
from streaming.keys import initial_weights


def typed(line: str) -> str:
    """What a command prints."""
    printed = StringIO()
    with redirect_stdout(printed):
        try:
            main(shlex.split(line)[1:])
        except SystemExit as stopped:
            assert not stopped.code, line
    return printed.getvalue()


def ran(code: str) -> str:
    """What Python prints."""
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "page", "exec"), {})
    return printed.getvalue()


def video(trained: bool | None) -> torch.Tensor:
    """Three chunks of the plugin's model with CAM and APM; None: without memories."""
    model, short, long = open_model("latte"), NoShortTerm(), NoLongTerm()
    if trained is not None:
        with initial_weights(0):
            short, long = new_cam(model), new_apm(model)
    if trained:
        for memory in (short, long):
            unzeroed(memory, Key(1))
    parts = assemble(model, short=short, long=long, sampler=Sampler("ddim", 2))
    chunks = stream(parts, PromptSchedule.fixed("a red ball"), TextOpening(), key=Key(0), chunks=3)
    return torch.cat([chunk.frames for chunk in chunks], dim=1)


if __name__ == "__main__":
    page, quoted = Path(sys.argv[1]).read_text(encoding="utf-8"), json.loads(sys.argv[2])
    commands = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith("streamingt2v")
    ]
    python = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    told = {
        "commands": {line: typed(line) for line in ("streamingt2v models", *commands)},
        "python": [ran(code) for place, code in enumerate(python) if place not in quoted],
    }
    plain, untrained, trained = video(None), video(False), video(True)
    told["untrained memories change nothing"] = torch.equal(plain, untrained)
    told["trained ones do"] = bool(trained.isfinite().all()) and not torch.allclose(plain, trained, atol=1e-3)
    told["from"] = sys.modules["streamingt2v_latte"].__file__
    print(json.dumps(told))
