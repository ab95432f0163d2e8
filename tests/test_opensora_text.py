"""T5 as Open-Sora reads it: padding, masks, what stands for no text, and what guidance makes of that."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backends.opensora_text import AESTHETICS, T5TextEncoder
from streaming.codec import EncodedText, TextEncoder
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, TextThenAnchor, Unguided
from streaming.keys import Key
from streaming.rows import encode_rows
from tests.opensora_folders import DEPTH, TOKENS, WORDS, t5, t5_tokenizer
from tests.toys import LetterText

CPU = torch.device("cpu")
NONE = Key(1).normal(TOKENS, DEPTH)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def encoder(suffix=""):
    return T5TextEncoder(t5(), t5_tokenizer(), NONE, suffix=suffix).eval()


def naive(*words, length=TOKENS) -> tuple[Tensor, Tensor]:
    """Hidden states of the words and the end mark; the padded ones too, which no one reads."""
    ids = [WORDS.index(word) for word in words] + [1]
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
    states = t5()(input_ids=torch.tensor([ids + [0] * (length - len(ids))]), attention_mask=mask).last_hidden_state
    return states[0], mask[0].bool()


def test_prompts_are_padded_and_masked():
    made = encoder()(["a  Red\nball ", "a"])
    for row, words in enumerate((("a", "red", "ball"), ("a",))):
        states, mask = naive(*words)
        torch.testing.assert_close(made.tokens[row], states)
        assert torch.equal(made.mask[row], mask) and int(mask.sum()) == len(words) + 1
    short = t5()(input_ids=torch.tensor([[3, 1]])).last_hidden_state  # padding is not seen by what is read
    torch.testing.assert_close(made.tokens[1, :2], short[0])
    assert (encoder().tokens, encoder().depth, encoder().vocabulary) == (TOKENS, DEPTH, None)


@pytest.mark.parametrize("prompt", ["a red ball", f"A red ball {AESTHETICS}"])
def test_what_1_2_puts_behind_every_prompt(prompt):
    made = encoder(AESTHETICS)([prompt])
    states, mask = naive("a", "red", "ball", "aesthetic", "score:", "6.5.")
    torch.testing.assert_close(made.tokens[0], states)
    assert torch.equal(made.mask[0], mask)


def test_the_empty_prompt_is_no_text():
    made = encoder(AESTHETICS)(["", "a", "  "])
    assert torch.equal(made.tokens[0], NONE) and torch.equal(made.tokens[2], NONE)
    assert bool(made.mask[[0, 2]].all()) and not bool(made.mask[1].all())
    alone = encoder()([""])
    assert torch.equal(alone.tokens[0], NONE) and bool(alone.mask.all())


def test_too_long_prompts_name_how_much_fits():
    encoder()([" ".join(["a"] * 9)])
    with pytest.raises(UserError, match="^the prompt is too long by 1 tokens: about 9 of its 10 words fit, shorten it"):
        encoder()([" ".join(["a"] * 10)])
    with pytest.raises(UserError, match="too long by 2 tokens: about 6 of its 8 words fit"):  # the suffix stays
        encoder(AESTHETICS)(["a " * 8])


def test_what_cannot_be_spelt_is_named():
    told = "^the text encoder cannot read 'dragon', '⚽': say it in other words$"
    with pytest.raises(UserError, match=told):
        encoder()(["a red dragon ⚽ dragon"])


def test_a_tokenizer_that_does_not_fit():
    with pytest.raises(UserError, match="the tokenizer knows 12 tokens, the text encoder 11: they belong to different"):
        T5TextEncoder(t5(words=WORDS[:-1]), t5_tokenizer(), NONE)
    with pytest.raises(UserError, match="the tokenizer has no padding token"):
        T5TextEncoder(t5(), t5_tokenizer(pad_token=None), NONE)


@pytest.mark.parametrize("guidance", [ClassifierFree(7.0), TextThenAnchor()])
def test_no_text_is_read_with_the_masks_of_the_prompts(guidance):
    prompts = ["a red ball rolls", "a"]
    rows = encode_rows(encoder(), guidance, prompts, "", CPU, torch.float32)
    count = len(guidance.rows)
    tokens, mask = rows.tokens.unflatten(0, (count, 2)), rows.mask.unflatten(0, (count, 2))
    lengths = [[5, 2]] * count
    assert mask.sum(-1).tolist() == lengths
    assert torch.equal(tokens[0], NONE.expand(2, -1, -1))
    for row in range(1, count):
        torch.testing.assert_close(tokens[row], encoder()(prompts).tokens)


def test_a_negative_prompt_is_read_with_its_own_mask():
    rows = encode_rows(encoder(), ClassifierFree(7.0), ["a red ball"], "blue", CPU, torch.bfloat16)
    torch.testing.assert_close(rows.tokens, encoder()(["blue", "a red ball"]).tokens.bfloat16())
    assert rows.mask.sum(-1).tolist() == [2, 4]


def test_without_guidance_there_is_only_the_prompt():
    rows = encode_rows(encoder(), Unguided(), ["a"], "", CPU, torch.float32)
    assert torch.equal(rows.tokens, encoder()(["a"]).tokens)


def test_encoders_without_a_notion_of_no_text_are_asked_as_ever():
    """One call, all rows in it, and nothing of its result is touched."""
    text = LetterText()
    rows = encode_rows(text, ClassifierFree(7.0), ["a ball", "b"], "", CPU, torch.float32)
    assert text.asked == [("", "", "a ball", "b")]
    assert torch.equal(rows.tokens, LetterText()(["", "", "a ball", "b"]).tokens) and rows.mask is None


class Unmasked(TextEncoder):
    """No masks, and a notion of no text."""

    def forward(self, prompts) -> EncodedText:
        return replace(LetterText()(prompts), mask=None)

    def nothing(self, beside: EncodedText) -> EncodedText:
        return EncodedText(-beside.tokens)


def test_no_text_without_masks():
    rows = encode_rows(Unmasked(), ClassifierFree(7.0), ["a ball", "b"], "", CPU, torch.float32)
    prompts = LetterText()(["a ball", "b"]).tokens
    assert torch.equal(rows.tokens, torch.cat([-prompts, prompts])) and rows.mask is None
