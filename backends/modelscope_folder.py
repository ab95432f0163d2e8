"""Reading parts of a model folder in diffusers format: safetensors only, and one clear line for whatever is wrong."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import SchedulerMixin
from torch import nn
from transformers import PreTrainedTokenizerBase

from backends.modelscope_settings import first_line, read_json
from streaming.errors import UserError

M = TypeVar("M", bound=nn.Module)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FAILURES = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ZeroDivisionError)
"""What diffusers and transformers raise for configurations and weights that make no sense."""


def load_part(kinds: dict[str, type[M]], folder: Path, dtype: torch.dtype) -> M:
    """One network of the folder, on the CPU, in eval mode and frozen.

    kinds: classes that it may be of, by the name in its config.json. Raises UserError for another class, for weights
    that are missing, pickled, truncated, don't fit the configuration or hold numbers that are not finite.
    """
    kind = _kind(kinds, folder)
    variant = check_weights(folder)
    named = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    try:
        with quiet():
            part, report = kind.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
                str(folder),
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{named: dtype},
            )
    except _FAILURES as error:
        raise UserError(
            f"cannot load {folder}: config.json and the weights don't fit together ({first_line(error)}): "
            "copy the folder again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of its weights, {missing[0]} for one: copy the folder again")
    check_finite(part, folder)
    return part.eval().requires_grad_(False)


def load_scheduler(folder: Path) -> SchedulerMixin:
    """The diffusers scheduler named in the folder. Raises UserError if there is no such class or it can't be built."""
    import diffusers

    config = read_json(folder / "scheduler_config.json")
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise UserError(
            f"{folder}/scheduler_config.json names no scheduler of diffusers: {config.get('_class_name')}; correct it"
        )
    try:
        with quiet():
            return kind.from_config(config)  # pyright: ignore[reportAttributeAccessIssue]
    except (*_FAILURES, NotImplementedError) as error:
        raise UserError(f"cannot build the scheduler of {folder} ({first_line(error)}): correct it") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder, of a class of transformers. Raises UserError if it is missing, broken, or code."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"{folder} is missing: the model folder is incomplete, copy it again")
    for path in (folder / "tokenizer_config.json", folder / "config.json"):
        if path.exists() and "auto_map" in read_json(path):
            raise UserError(
                f"{path} wants code of its own to run (auto_map), which is never done: replace the tokenizer by CLIP's"
            )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception for broken files
        raise UserError(
            f"cannot load the tokenizer of {folder} ({first_line(error)}): replace it by an intact copy"
        ) from error


def check_finite(part: nn.Module, folder: Path) -> None:
    """Raises UserError, naming it, if a tensor holds NaN or infinity."""
    for name, tensor in part.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{folder}: {name} holds NaN or infinite numbers as {str(tensor.dtype).removeprefix('torch.')}: "
                "the file is damaged, or needs another --dtype"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what diffusers and transformers say while loading: notes for developers, bars, deprecations."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    before = [(logs, logs.get_verbosity(), logs.is_progress_bar_enabled()) for logs in (ours, theirs)]
    for logs in (ours, theirs):
        logs.set_verbosity(logs.CRITICAL)
        logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logs, verbosity, bars in before:
            logs.set_verbosity(verbosity)
            if bars:
                logs.enable_progress_bar()


def _kind(kinds: dict[str, type[M]], folder: Path) -> type[M]:
    config = read_json(folder / "config.json")
    named = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if named not in kinds:
        raise UserError(f"{folder}/config.json describes {named}; a ModelScope model has {' or '.join(kinds)} there")
    return kinds[str(named)]


def check_weights(folder: Path) -> str | None:
    """The variant of the weights that is there ("fp16" in names), None for the plain ones. Opens every file once."""
    files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if not files and pickles:
        raise UserError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which is never opened: convert it to safetensors "
            "(load it in a place that you trust, then save_pretrained)"
        )
    if not files:
        raise UserError(f"{folder} has no weights (*.safetensors): the model folder is incomplete, copy it again")
    for path in (*files, *_shards(folder)):
        _check_intact(path)
    plain = [path for path in files if ".fp16" not in path.name]
    return None if plain else "fp16"


def _shards(folder: Path) -> list[Path]:
    """The files that an index speaks of."""
    listed = [read_json(path).get("weight_map", {}) for path in folder.glob("*.safetensors.index*.json")]
    return sorted({folder / Path(name).name for shards in listed for name in shards.values()})


def _check_intact(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the model folder is incomplete, copy it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({first_line(error)}): copy it again") from None
