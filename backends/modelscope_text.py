"""CLIP's text tower: the last hidden state, after the final layer norm, of prompts padded to its full length."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from streaming.codec import EncodedText, TextEncoder
from streaming.errors import UserError


@final
class CLIPTextEncoder(TextEncoder):
    """`transformers.CLIPTextModel` (with or without projection) and its tokenizer.

    Padding is read like any token, as the base models were trained: there is no mask. Nothing of a prompt is dropped
    silently: what does not fit is an error, and so are words outside a closed vocabulary.
    """

    def __init__(self, model: CLIPTextModel | CLIPTextModelWithProjection, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError if the tokenizer has no padding token or more words than the model has embeddings."""
        super().__init__()
        check_tokenizer(tokenizer, model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer

    @property
    def tokens(self) -> int:
        """Tokens of every encoded prompt, marks and padding included (full size: 77)."""
        return int(self.model.config.max_position_embeddings)

    @property
    def depth(self) -> int:
        """Channels of a token (full size: 1024)."""
        return int(self.model.config.hidden_size)

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The words of a closed vocabulary, sorted; None if the tokenizer can spell any word."""
        if self._unknown_id is None:
            return None
        return tuple(sorted(set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens)))

    def forward(self, prompts: Sequence[str]) -> EncodedText:
        """[batch, tokens, depth], in the weights' type, no mask.

        Raises UserError for unknown words and for prompts that are too long.
        """
        ids = torch.tensor([self.token_ids(prompt) for prompt in prompts], device=self.model.device)
        return EncodedText(self._encode(ids))

    def _encode(self, ids: Int[Tensor, "batch tokens"]) -> Tensor:
        return self.model(input_ids=ids).last_hidden_state

    def token_ids(self, prompt: str) -> list[int]:
        """A prompt's tokens, marks and padding included. Raises UserError as `forward` does."""
        found = self.tokenizer(prompt, return_offsets_mapping=True, verbose=False)
        self._check_words(prompt, found)
        check_length(prompt, found, self.tokens)
        padded = self.tokenizer(prompt, padding="max_length", max_length=self.tokens, verbose=False)
        return padded["input_ids"]

    @property
    def _unknown_id(self) -> int | None:
        """Of a token that stands for unknown words only; CLIP's own tokenizers name their end mark so."""
        ids: Any = self.tokenizer
        return None if ids.unk_token_id in (ids.eos_token_id, ids.bos_token_id, ids.pad_token_id) else ids.unk_token_id

    def _check_words(self, prompt: str, found: Any) -> None:
        unknown = self._unknown_id
        spans = zip(found["input_ids"], found["offset_mapping"], strict=True)
        words = list(dict.fromkeys(prompt[start:end] for id_, (start, end) in spans if id_ == unknown))
        if unknown is not None and words:
            raise UserError(_unknown_words(words, self.vocabulary or ()))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Raises UserError if it cannot pad, or knows more tokens than the text encoder has embeddings."""
    if tokenizer.pad_token_id is None:
        raise UserError('the tokenizer has no padding token: name one as "pad_token" in tokenizer_config.json')
    if len(tokenizer) > embeddings:
        raise UserError(
            f"the tokenizer knows {len(tokenizer)} tokens, the text encoder {embeddings}: "
            "they belong to different models"
        )


def check_length(prompt: str, found: Any, tokens: int) -> None:
    """Raises UserError, saying how many words fit, for a prompt of more tokens than an encoder takes.

    found: the tokenizer's ids and offsets of the prompt, or of a longer text that begins with it.
    """
    excess = len(found["input_ids"]) - tokens
    if excess <= 0:
        return
    ends = [end for start, end in found["offset_mapping"] if start < end <= len(prompt)]
    fitting, words = len(prompt[: ends[-excess - 1]].split()) if len(ends) > excess else 0, len(prompt.split())
    raise UserError(f"the prompt is too long by {excess} tokens: about {fitting} of its {words} words fit, shorten it")


def _unknown_words(words: Sequence[str], vocabulary: Sequence[str]) -> str:
    """One line that names the unknown words, each with what is spelt like it."""
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    named = ", ".join(_with_near(word, vocabulary) for word in words[:8]) + more
    return (
        f"unknown word{'s' if len(words) > 1 else ''} {named}: this model knows {len(vocabulary)} words; "
        "see `streamingt2v models --words`"
    )


def _with_near(word: str, vocabulary: Sequence[str]) -> str:
    near = get_close_matches(word.lower(), vocabulary, 3, 0.6)
    return f"'{word}' (did you mean {' or '.join(near)}?)" if near else f"'{word}'"
