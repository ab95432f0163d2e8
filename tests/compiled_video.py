"""Run by test_compile.py in a process of its own: shape checkers, which a test run has, cannot be traced."""

import torch
from torch._dynamo.testing import CompileCounter

from adapters.apm import new_apm
from adapters.cam import new_cam
from backends.toy_unet import ToyUNetBackend
from streaming import Key, PromptSchedule, Sampler, TextOpening, assemble, stream
from streaming.injection import Injection
from streaming.keys import initial_weights


def video(*, compile, steps=2):
    """Four chunks of the toy UNet with memories that do something, injection of known latents among them."""
    model = ToyUNetBackend().load(None, device=torch.device("cpu"), dtype=torch.float32)
    with initial_weights(0):
        cam, apm = new_cam(model), new_apm(model)
    generator = torch.Generator().manual_seed(0)
    for value in (*cam.parameters(), *apm.parameters()):
        value.data = value.data + 0.05 * torch.randn(value.shape, generator=generator)
    parts = assemble(model, short=Injection(cam), long=apm, sampler=Sampler("ddim", steps), compile=compile)
    chunks = stream(parts, PromptSchedule.fixed("a red ball"), TextOpening(), key=Key(3), chunks=4)
    return torch.cat([chunk.frames for chunk in chunks], dim=1)


if __name__ == "__main__":
    counter, plain = CompileCounter(), torch.compile
    torch.compile = lambda function, **options: plain(function, fullgraph=True, dynamic=False, backend=counter)
    compiled = video(compile=True, steps=10)  # dynamo gives up after 8 graphs of one function
    torch.testing.assert_close(compiled, video(compile=False, steps=10), rtol=1e-4, atol=1e-4)
    print(counter.frame_count, "graph")
