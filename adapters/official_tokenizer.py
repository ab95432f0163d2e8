"""CLIP's tokenizer in transformers' format: the checkpoint has none.

It is made of the vocabulary that open_clip ships, or taken from a folder of ModelScope's, its plain files only.
"""

import json
from pathlib import Path
from typing import Any

from streaming.errors import UserError
from streaming.weights_write import write_json

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"
"""Marks. Prompts are padded with "!", id 0, as ModelScope's special_tokens_map has it; in a prompt, transformers then
reads it as padding, too."""
WORDS = 49408
"""Size of the vocabulary, marks included."""
_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json")  # fmt: skip
"""What is taken of a tokenizer's folder: nothing that is code."""


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


def read_tokenizer(folder: Path, words: int) -> dict[str, bytes]:
    """Contents of a tokenizer's files by name. words: how many tokens the text encoder knows.

    Raises UserError if they can't be read, name code to run, make no tokenizer, or one with more tokens than that.
    """
    try:
        files = {name: (folder / name).read_bytes() for name in _FILES if (folder / name).exists()}
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {error.filename or folder} ({reason}): give another folder") from error
    for name in ("tokenizer_config.json", "config.json"):
        _check_plain(folder / name)
    from transformers import AutoTokenizer

    try:
        known = len(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
    except Exception as error:  # the tokenizers library raises plain Exception for broken files
        raise UserError(
            f"cannot load the tokenizer of {folder} ({_first_line(error)}): replace it by an intact copy"
        ) from error
    if known > words:
        raise UserError(
            f"the tokenizer of {folder} has {known} tokens, the checkpoint's text encoder knows {words}: "
            "give the folder of the model that the checkpoint was made from"
        )
    return files


def _check_plain(path: Path) -> None:
    """Raises UserError for a configuration that names classes of its own, for which code would have to run."""
    if not path.exists():
        return
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({_first_line(error)}): replace it by an intact copy") from error
    if isinstance(content, dict) and "auto_map" in content:
        raise UserError(
            f"{path} wants code of its own to run (auto_map), which is never done: replace the tokenizer by CLIP's"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _spelt(word: str) -> str:
    """open_clip calls the marks <start_of_text> and <end_of_text>."""
    return {"<start_of_text>": START, "<end_of_text>": END}.get(word, word)
