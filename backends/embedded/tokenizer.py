"""Words to numbers: a closed vocabulary, in a folder that transformers' AutoTokenizer loads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from backends.embedded.config import TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, UNKNOWN, EOS = 0, 1, 2, 3
"""Numbers of the special tokens. (transformers' CLIP pools at the largest number if the end has number 2.)"""
_SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")


def build_tokenizer(vocabulary: Sequence[str]) -> "PreTrainedTokenizerFast":
    """A tokenizer of whole words in lower case; all but letters and digits parts words; `TOKENS` tokens at most."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate((*_SPECIAL, *sorted(set(vocabulary))))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=_SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[BOS]} $A {_SPECIAL[EOS]}",
        special_tokens=[(_SPECIAL[BOS], BOS), (_SPECIAL[EOS], EOS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TOKENS,
        padding_side="right",
        truncation_side="right",
        pad_token=_SPECIAL[PAD],
        bos_token=_SPECIAL[BOS],
        unk_token=_SPECIAL[UNKNOWN],
        eos_token=_SPECIAL[EOS],
    )


def token_numbers(tokenizer: "PreTrainedTokenizerFast", captions: Sequence[str]) -> Int[Tensor, "captions tokens"]:
    """Padded token numbers, on the CPU."""
    return tokenizer(
        list(captions), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
