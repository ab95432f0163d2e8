"""T5's encoder as Open-Sora reads it: padded prompts with their mask, and the transformer's own tokens for no text."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from backends.modelscope_text import check_length, check_tokenizer
from streaming.codec import EncodedText, TextEncoder
from streaming.errors import UserError
from streaming.types import TokenMask, Tokens

AESTHETICS = "aesthetic score: 6.5."
"""What the published inference of 1.2 puts behind every prompt that does not say it."""
_MARK = AESTHETICS.split(":")[0]


@final
class T5TextEncoder(TextEncoder):
    """`transformers.T5EncoderModel` and its tokenizer.

    Prompts become lower case, their blanks single ones, as in the published code (whose removal of markup and links
    is left out). Nothing of a prompt is dropped silently: what is too long or cannot be spelt is an error.
    """

    none: Tensor

    def __init__(
        self,
        model: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        none: Float[Tensor, "tokens depth"],
        *,
        suffix: str = "",
    ) -> None:
        """none: the transformer's y_embedding, what stands for no text; prompts are padded to as many tokens.

        suffix: put behind every prompt. Raises UserError for a tokenizer that does not belong to the model.
        """
        super().__init__()
        check_tokenizer(tokenizer, model.config.vocab_size)
        self.model, self.tokenizer, self.suffix = model, tokenizer, suffix
        self.register_buffer("none", none)

    @property
    def tokens(self) -> int:
        """Tokens of every encoded prompt, padding included (published: 120, 200, 300)."""
        return self.none.shape[0]

    @property
    def depth(self) -> int:
        """Channels of a token (published: 4096)."""
        return int(self.model.config.d_model)

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """[batch, tokens, depth] in the weights' type, and which tokens are no padding.

        An empty prompt is no text: y_embedding, all of its tokens read. Raises UserError for prompts that are too long
        and for what the tokenizer cannot spell.
        """
        cleaned = [clean(prompt) for prompt in prompts]
        tokens = self.none.repeat(len(cleaned), 1, 1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if written := [row for row, prompt in enumerate(cleaned) if prompt]:
            states, read = self._encode([self._ids(cleaned[row]) for row in written])
            tokens[written], mask[written] = states.to(tokens.dtype), read
        return EncodedText(tokens, mask)

    def nothing(self, beside: EncodedText) -> EncodedText:
        """y_embedding, of which as many tokens are read as the prompt beside it has [published code]."""
        return EncodedText(self.none.to(beside.tokens).expand_as(beside.tokens), beside.mask)

    def _encode(self, found: list[Any]) -> tuple[Tokens, TokenMask]:
        ids, mask = (
            torch.tensor([each[name] for each in found], device=self.none.device)
            for name in ("input_ids", "attention_mask")
        )
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool()

    def _ids(self, prompt: str) -> Any:
        text = prompt if not self.suffix or _MARK in prompt else f"{prompt} {self.suffix}"
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        self._check_spelling(prompt, found)
        check_length(prompt, found, self.tokens)
        return self.tokenizer(text, padding="max_length", max_length=self.tokens, verbose=False)

    def _check_spelling(self, prompt: str, found: Any) -> None:
        spans = zip(found["input_ids"], found["offset_mapping"], strict=True)
        odd = [
            prompt[start:end].strip()
            for id_, (start, end) in spans
            if id_ == self.tokenizer.unk_token_id and start < end <= len(prompt)
        ]
        if odd:
            named = ", ".join(f"'{word}'" for word in list(dict.fromkeys(odd))[:8])
            raise UserError(f"the text encoder cannot read {named}: say it in other words")


def clean(prompt: str) -> str:
    """Lower case, single blanks."""
    return " ".join(prompt.lower().split())
