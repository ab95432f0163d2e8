"""One guided evaluation of a denoiser: guidance rows go into the batch, one prediction comes out."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.backbone import Backbone, Call, NoiseLevel
from streaming.codec import EncodedText, TextEncoder
from streaming.errors import UserError
from streaming.guidance import Guidance
from streaming.products import fast_products
from streaming.sample import Denoise, Step
from streaming.sites import Deltas
from streaming.types import Latents

Condition: TypeAlias = Callable[[Call], tuple[Call, Deltas]]
"""What memories make of a call: the call as the denoiser is to see it, and what is to be added at its sites."""


Evaluate: TypeAlias = Callable[[Backbone, Condition, Call], Latents]
"""How a denoiser and its memories are evaluated: `evaluate`, or what `compiled` makes of it."""


def unconditioned(call: Call) -> tuple[Call, Deltas]:
    """The base model alone."""
    return call, {}


def evaluate(backbone: Backbone, condition: Condition, call: Call) -> Latents:
    """The network's prediction for one call, with what the memories add."""
    with fast_products(call.latents.device):
        return backbone(*condition(call))


@cache
def compiled() -> Evaluate:
    """`evaluate` as one graph, denoiser and memories together: made by `torch.compile` when it is first called.

    On a GPU the graph is launched as a whole (a CUDA graph): at full size three thousand kernels are queued more slowly
    than they run. A graph is made anew for every other shape and set of memories, which takes minutes at full size.
    """
    graph = torch.compile(evaluate, dynamic=False, mode="reduce-overhead")

    def run(backbone: Backbone, condition: Condition, call: Call) -> Latents:
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return graph(backbone, condition, _without_numbers(call)).clone()  # the next launch overwrites its output
        except Exception as error:
            if type(error).__module__.split(".")[:2] not in (["torch", "_inductor"], ["torch", "_dynamo"]):
                raise
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the model cannot be compiled on this machine ({reason}): leave --compile out") from error

    return run


def _without_numbers(call: Call) -> Call:
    """The call with its noise level as tensors: every number would be a graph of its own."""
    if call.level is None:
        return call
    signal, noise = (torch.tensor(n, device=call.latents.device) for n in (call.level.signal, call.level.noise))
    return call.with_(level=NoiseLevel(signal, noise))


def encode_rows(
    encoder: TextEncoder,
    guidance: Guidance,
    prompts: Sequence[str],
    negative_prompt: str,
    device: torch.device,
    dtype: torch.dtype,
) -> EncodedText:
    """Text of all guidance rows, row-major: all prompts of the first row, then of the second.

    Rows without text read the negative prompt or, if it is empty, what the encoder has for no text
    (`TextEncoder.nothing`). Raises UserError for words that the encoder cannot know.
    """
    encoded = encoder([prompt if row.text else negative_prompt for row in guidance.rows for prompt in prompts])
    if not negative_prompt.strip():
        encoded = _without_text(encoder, encoded, [row.text for row in guidance.rows])
    mask = None if encoded.mask is None else encoded.mask.to(device)
    return EncodedText(encoded.tokens.to(device, dtype), mask)


def _without_text(encoder: TextEncoder, encoded: EncodedText, has_text: list[bool]) -> EncodedText:
    """The encoder's own "no text" in the guidance rows that have none; just as encoded if the encoder has no such."""
    if True not in has_text:
        return encoded
    count = len(has_text)
    masks = [None] * count if encoded.mask is None else encoded.mask.chunk(count)
    rows = [EncodedText(*row) for row in zip(encoded.tokens.chunk(count), masks, strict=True)]
    nothing = encoder.nothing(rows[has_text.index(True)])
    if nothing is None:
        return encoded
    rows = [row if text else nothing for row, text in zip(rows, has_text, strict=True)]
    read = [row.mask for row in rows if row.mask is not None]
    return EncodedText(torch.cat([row.tokens for row in rows]), torch.cat(read) if read else None)


def guided_denoiser(
    backbone: Backbone,
    guidance: Guidance,
    text: EncodedText,
    start: Latents,
    dtype: torch.dtype,
    where: str,
    condition: Condition = unconditioned,
    evaluate: Evaluate = evaluate,
) -> Denoise:
    """A denoiser over latents of the shape of `start` (the trajectory's starting noise), in float32 outside.

    `text` comes from `encode_rows`; `where` ("in chunk 3") is for the message of the UserError for NaN.
    """
    rows, batch = guidance.rows, start.shape[0]
    guided = tuple(row for row in rows for _ in range(batch))

    def spread(latents: Latents) -> Float[Tensor, "rows channels frames high wide"]:
        return latents.to(dtype).repeat(len(rows), 1, 1, 1, 1)

    def denoise(latents: Latents, step: Step) -> Latents:
        call = Call(
            latents=spread(latents),
            time=torch.full((len(guided),), step.time, dtype=torch.float32, device=latents.device),
            context=text.tokens,
            context_mask=text.mask,
            guided=guided,
            level=step.level,
            start=spread(start),
        )
        prediction = evaluate(backbone, condition, call).float()
        combined = guidance.combine(prediction.unflatten(0, (len(rows), batch)))
        check_finite(combined, where, step.index)
        return combined

    return denoise


def check_finite(latents: Latents, where: str, step: int) -> None:
    """Raises UserError, saying where, if latents are NaN or infinite."""
    if not bool(torch.isfinite(latents).all()):
        raise UserError(f"latents became NaN {where} at step {step}: lower --guidance or use --dtype float32")
