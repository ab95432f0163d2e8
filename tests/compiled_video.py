"""Run by test_compile.py in a process of its own: shape checkers, which a test run has, cannot be traced."""

import torch
from torch._dynamo.testing import CompileCounter

from adapters.apm import new_apm
from adapters.cam import new_cam
from backends.toy_unet import ToyUNetBackend
from streaming import Key, PromptSchedule, Sampler, TextOpening, assemble, stream
from streaming.keys import initial_weights


def video(*, compile):
    """Four chunks of the toy UNet with memories that do something."""
    model = ToyUNetBackend().load(None, device=torch.device("cpu"), dtype=torch.float32)
    with initial_weights(0):
        cam, apm = new_cam(model), new_apm(model)
    generator = torch.Generator().manual_seed(0)
    for value in (*cam.parameters(), *apm.parameters()):
        value.data = value.data + 0.05 * torch.randn(value.shape, generator=generator)
    parts = assemble(model, short=cam, long=apm, sampler=Sampler("ddim", 2), compile=compile)
    chunks = stream(parts, PromptSchedule.fixed("a red ball"), TextOpening(), key=Key(3), chunks=4)
    return torch.cat([chunk.frames for chunk in chunks], dim=1)


if __name__ == "__main__":
    counter, plain = CompileCounter(), torch.compile
    torch.compile = lambda function, **options: plain(function, fullgraph=True, dynamic=False, backend=counter)
    torch.testing.assert_close(video(compile=True), video(compile=False), rtol=1e-5, atol=1e-5)
    print(counter.frame_count, "graph")
