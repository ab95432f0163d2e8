"""Plugins by entry points. Policy: one that is broken is reported and skipped, two that claim one name are an error.

Finding them reads metadata only, not even torch is imported; a plugin is imported when it is asked for.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from streaming.errors import UserError

if TYPE_CHECKING:
    import torch

    from streaming.blend import ChunkBlender
    from streaming.codec import ImageEncoder
    from streaming.memory import LongTermMemory, ShortTermMemory
    from streaming.model import Backend, Model

BACKBONES = "streaming.backbones"
SHORT_TERM_MEMORIES = "streaming.short_term_memories"
LONG_TERM_MEMORIES = "streaming.long_term_memories"
BLENDERS = "streaming.blenders"
IMAGE_ENCODERS = "streaming.image_encoders"
FOLDER = "folder"
"""The image encoder that is called with a folder as its model's name."""


@final
@dataclass(frozen=True)
class Loaded:
    """What became of a group's plugins."""

    working: Mapping[str, Any]
    """What each entry point refers to, by name (or what was made of it)."""
    problems: tuple[str, ...]
    """One line for each plugin that is broken."""


def discover(group: str) -> Mapping[str, EntryPoint]:
    """Entry points of a group by name, sorted; nothing is imported.

    Raises UserError, naming both, if two distributions or two values claim one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value, _owner(entry))):
        first = found.setdefault(entry.name, entry)
        if (first.value, _owner(first)) != (entry.value, _owner(entry)):
            raise UserError(
                f"two plugins of {group} are named '{entry.name}': {first.value} of {_owner(first)} and "
                f"{entry.value} of {_owner(entry)}; uninstall one of the two"
            )
    return found


def load(group: str, name: str) -> Any:
    """What the entry point of that name refers to. Only this plugin is imported.

    Raises UserError if there is none of that name, listing what there is, or if it cannot be imported.
    """
    known = discover(group)
    if name not in known:
        raise UserError(_unknown(group, name, known))
    try:
        return known[name].load()
    except Exception as error:
        raise UserError(_broken(known[name], error)) from error


def load_all(group: str) -> Loaded:
    """Every plugin of a group. Those that cannot be imported are skipped, listed, and warned of."""
    working, problems = {}, []
    for name, entry in discover(group).items():
        try:
            working[name] = entry.load()
        except Exception as error:  # a stranger's module may raise anything
            problems.append(_broken(entry, error))
            warnings.warn(problems[-1], stacklevel=2)
    return Loaded(working, tuple(problems))


def make_backend(name: str) -> "Backend":
    """The backend of that name; no model is loaded. Raises UserError for an unknown or broken one."""
    return _make(BACKBONES, name)


def open_model(
    name_or_dir: str, *, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "Model":
    """The base model that a registered name stands for, or the one in a folder. dtype None: float32.

    Raises UserError if it is neither, or if no or more than one backend knows the folder.
    """
    backend, folder = _backend(name_or_dir)
    model = backend.load(folder, **_placement(device, dtype))
    return replace(model, name=name_or_dir)


def open_enhancer(
    name_or_dir: str, *, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "Model":
    """The video-to-video model that belongs to a registered name or a folder. Raises UserError if there is none."""
    backend, folder = _backend(name_or_dir)
    model = backend.enhancer(folder, **_placement(device, dtype))
    if model is None:
        raise UserError(
            f"the model '{name_or_dir}' has no enhancer: leave --enhance out, and give the video to `streamingt2v "
            "enhance` with another model"
        )
    return replace(model, name=name_or_dir)


def make_short_term(name: str, model: "Model", weights: Path | None = None) -> "ShortTermMemory[Any]":
    """The short-term memory of that name, for a model. Raises UserError for an unknown or broken one."""
    return _make(SHORT_TERM_MEMORIES, name, model, weights)


def make_long_term(name: str, model: "Model", weights: Path | None = None) -> "LongTermMemory[Any]":
    """The long-term memory of that name, for a model. Raises UserError for an unknown or broken one."""
    return _make(LONG_TERM_MEMORIES, name, model, weights)


def make_blender(name: str, chunk: int, overlap: int) -> "ChunkBlender":
    """The blender of that name for chunks of so many latent frames. Raises UserError for an unknown or broken one."""
    return _make(BLENDERS, name, chunk, overlap)


def image_encoder_spec(spec: str) -> tuple[str, str, Path | None]:
    """Library, model and file of weights that a SPEC names: a folder, or LIBRARY[:MODEL[:FILE]]; nothing is loaded.

    Raises UserError for a library that is not registered or does not work, and for a file that is not there.
    """
    library, _, rest = spec.partition(":")
    known = discover(IMAGE_ENCODERS)
    if library not in known or library == FOLDER:
        if spec and Path(spec).is_dir():
            return FOLDER, spec, None
        names = ", ".join(name for name in known if name != FOLDER) or "none that is installed"
        raise UserError(
            f"no image encoder '{spec}': there is no such folder, and '{library}' is no library; "
            f"name a folder with its config.json, or LIBRARY:MODEL:FILE, the library one of {names}"
        )
    load(IMAGE_ENCODERS, library)
    model, _, file = rest.partition(":")
    if file and not Path(file).is_file():
        raise UserError(f"no image encoder '{spec}': there is no file {file} with its weights")
    return library, model, Path(file) if file else None


def with_image_encoder(model: "Model", spec: str) -> "Model":
    """The model with another image encoder in place of its own (or of none), on its device and in its type.

    Raises UserError as `image_encoder_spec` and the plugin do.
    """
    library, name, weights = image_encoder_spec(spec)
    encoder: ImageEncoder = _make(IMAGE_ENCODERS, library, name, weights)
    return replace(model, image=encoder.to(model.device, model.dtype).eval().requires_grad_(False))


def _placement(device: "torch.device | str", dtype: "torch.dtype | None") -> dict[str, Any]:
    import torch

    return {"device": torch.device(device), "dtype": dtype or torch.float32}


def _backend(name_or_dir: str) -> "tuple[Backend, Path | None]":
    if name_or_dir in discover(BACKBONES):
        return make_backend(name_or_dir), None
    folder = Path(name_or_dir)
    if not folder.is_dir():
        raise UserError(_unknown(BACKBONES, name_or_dir, discover(BACKBONES)))
    asked = _ask(folder)
    matching = [backend for backend, knows in asked.working.values() if knows]
    if len(matching) > 1:
        names = ", ".join(name for name, (_, knows) in asked.working.items() if knows)
        raise UserError(f"more than one backend knows {folder}: {names}; uninstall all but one")
    if not matching:
        skipped = f" (skipped: {'; '.join(asked.problems)})" if asked.problems else ""
        raise UserError(
            f"no backend knows the model in {folder}: installed are {', '.join(asked.working)}{skipped}; "
            "is it a whole model folder in diffusers' format? If not, choose another one"
        )
    return matching[0], folder


def _ask(folder: Path) -> Loaded:
    """Each backend and whether it knows the folder; one that cannot say is broken."""
    loaded, known = load_all(BACKBONES), discover(BACKBONES)
    working, problems = {}, list(loaded.problems)
    for name, plugin in loaded.working.items():
        try:
            backend = plugin()
            working[name] = backend, backend.matches(folder)
        except Exception as error:  # a stranger's class may raise anything
            problems.append(_broken(known[name], error, "does not work"))
            warnings.warn(problems[-1], stacklevel=2)
    return Loaded(working, tuple(problems))


def _make(group: str, name: str, *arguments: Any) -> Any:
    """What the plugin of that name makes. Its own UserErrors pass; anything else that it raises becomes one."""
    factory = load(group, name)
    try:
        return factory(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_broken(discover(group)[name], error, "does not work")) from error


def _unknown(group: str, name: str, known: Mapping[str, EntryPoint]) -> str:
    what = group.removeprefix("streaming.").replace("_", " ").replace("memories", "memory").removesuffix("s")
    if group == BACKBONES:
        what = "model, and no folder,"
    if not known:
        return f"no {what} '{name}': none is installed, run 'pip install .' in the project's folder"
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"no {what} '{name}': {hint}there are {', '.join(known)}"


def _broken(entry: EntryPoint, error: Exception, what: str = "cannot be imported") -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"the plugin '{entry.name}' ({entry.value} of {_owner(entry)}) {what}: {reason}"


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"
