"""CLIP's tokenizer in transformers' format, made of the vocabulary that open_clip ships: the checkpoint has none."""

from pathlib import Path

from streaming.weights import write_json

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"
"""Marks. Prompts are padded with "!", id 0, as ModelScope's special_tokens_map has it; in a prompt, transformers then
reads it as padding, too."""
WORDS = 49408
"""Size of the vocabulary, marks included."""


def write_tokenizer(folder: Path, tokens: int) -> None:
    """vocab.json, merges.txt and settings, as `transformers.CLIPTokenizer` reads them; `tokens`: of a padded prompt."""
    from open_clip.tokenizer import SimpleTokenizer

    theirs = SimpleTokenizer()
    merges = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.__getitem__)
    words = {_spelt(word): number for word, number in theirs.encoder.items()}
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": PAD}
    write_json(folder / "vocab.json", words)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", marks)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokens, "do_lower_case": True, **marks}
    write_json(folder / "tokenizer_config.json", settings)


def _spelt(word: str) -> str:
    """open_clip calls the marks <start_of_text> and <end_of_text>."""
    return {"<start_of_text>": START, "<end_of_text>": END}.get(word, word)
