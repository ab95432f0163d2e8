"""One guided evaluation of a denoiser: guidance rows go into the batch, one prediction comes out."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from streaming.backbone import Backbone, Call
from streaming.codec import EncodedText, TextEncoder
from streaming.errors import UserError
from streaming.guidance import Guidance
from streaming.sample import Denoise, Step
from streaming.sites import Deltas
from streaming.types import Latents

Condition: TypeAlias = Callable[[Call], tuple[Call, Deltas]]
"""What memories make of a call: the call as the denoiser is to see it, and what is to be added at its sites."""


def unconditioned(call: Call) -> tuple[Call, Deltas]:
    """The base model alone."""
    return call, {}


def encode_rows(
    encoder: TextEncoder,
    guidance: Guidance,
    prompts: Sequence[str],
    negative_prompt: str,
    device: torch.device,
    dtype: torch.dtype,
) -> EncodedText:
    """Text of all guidance rows, row-major: all prompts of the first row, then of the second.

    Rows without text read the negative prompt. Raises UserError for words that the encoder cannot know.
    """
    encoded = encoder([prompt if row.text else negative_prompt for row in guidance.rows for prompt in prompts])
    mask = None if encoded.mask is None else encoded.mask.to(device)
    return EncodedText(encoded.tokens.to(device, dtype), mask)


def guided_denoiser(
    backbone: Backbone,
    guidance: Guidance,
    text: EncodedText,
    start: Latents,
    dtype: torch.dtype,
    where: str,
    condition: Condition = unconditioned,
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
        prediction = backbone(*condition(call)).float()
        combined = guidance.combine(prediction.unflatten(0, (len(rows), batch)))
        check_finite(combined, where, step.index)
        return combined

    return denoise


def check_finite(latents: Latents, where: str, step: int) -> None:
    """Raises UserError, saying where, if latents are NaN or infinite."""
    if not bool(torch.isfinite(latents).all()):
        raise UserError(f"latents became NaN {where} at step {step}: lower --guidance or use --dtype float32")
