"""The state of a rollout between two chunks, as a value and as a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from streaming.anchor import Anchor
from streaming.errors import UserError
from streaming.files import replacing
from streaming.keys import Key
from streaming.memory import Tail
from streaming.prompts import PromptSchedule

VERSION = 1
"""Of the file's layout; another one is refused."""

_SLOT = "streamingt2v.checkpoint"


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that the next chunk is made from; a few MB however long the video is. Tensors are float32, on the CPU."""

    index: int
    """The chunk that was finished last."""
    frames_done: int
    """Pixel frames finished so far, this chunk's included."""
    tail: Tail
    """The overlap that the next chunk continues."""
    anchor: Anchor
    """The anchor frame of each video [batch, 1, 3, rows, cols]."""
    key: Key | tuple[Key, ...]
    """As given to `stream`."""
    prompts: tuple[PromptSchedule, ...]
    """One for each video."""
    settings: Mapping[str, str]
    """`Parts.settings` of the run."""

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, atomically: a reader sees the old file or the new one, also after a power cut.

        Raises UserError if the folder cannot be written to or the disk is full.
        """
        from safetensors.torch import save

        tensors = {"frames": self.tail.frames, "latents": self.tail.latents, "anchor": self.anchor}
        plain = {name: value.to("cpu", torch.float32).contiguous() for name, value in tensors.items()}
        with replacing(Path(path), "the checkpoint") as waiting:
            waiting.write_bytes(save(plain, metadata={_SLOT: json.dumps(self._metadata())}))

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """The checkpoint in a file.

        Raises UserError if it is missing, truncated, something else, of another version, or holds NaN.
        """
        metadata, tensors = _read(Path(path))
        if metadata.get("version") != VERSION:
            raise UserError(
                f"{path} is a checkpoint of version {metadata.get('version')}, this program reads version {VERSION}: "
                "resume with the program that wrote it"
            )
        try:
            return cls._of(metadata, tensors)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{path} is a damaged checkpoint ({error}): start again without --resume") from error

    def _metadata(self) -> dict[str, Any]:
        keys = [self.key] if isinstance(self.key, Key) else list(self.key)
        return {
            "version": VERSION,
            "index": self.index,
            "frames_done": self.frames_done,
            "keys": [[key.seed, *key.path] for key in keys],
            "one_key": isinstance(self.key, Key),
            "prompts": [schedule.entries for schedule in self.prompts],
            "settings": dict(self.settings),
        }

    @classmethod
    def _of(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Checkpoint":
        for name, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"NaN or infinite values in its {name}")
        if not (int(metadata["index"]) >= 0 and int(metadata["frames_done"]) >= 1):
            raise ValueError(f"{metadata['frames_done']} frames at chunk {metadata['index']}")
        keys = tuple(Key(seed, tuple(path)) for seed, *path in metadata["keys"])
        return cls(
            index=int(metadata["index"]),
            frames_done=int(metadata["frames_done"]),
            tail=Tail(tensors["frames"], tensors["latents"]),
            anchor=tensors["anchor"],
            key=keys[0] if metadata["one_key"] else keys,
            prompts=tuple(PromptSchedule(tuple((f, t) for f, t in entries)) for entries in metadata["prompts"]),
            settings={str(name): str(value) for name, value in metadata["settings"].items()},
        )


def check_resume(
    checkpoint: Checkpoint, settings: Mapping[str, str], key: Key | tuple[Key, ...], prompts: tuple[PromptSchedule, ...]
) -> None:
    """Raises UserError, naming what differs and both values, unless the run would continue the checkpoint's.

    Prompts may change from the first frame that is still to be made, not before it.
    """
    saved = checkpoint.settings
    for name in sorted({*saved, *settings}):
        old, new = saved.get(name, "nothing"), settings.get(name, "nothing")
        if old != new:
            raise UserError(f"cannot resume with another {name}: it was '{old}', now it is '{new}'")
    if checkpoint.key != key:
        raise UserError(f"cannot resume with another seed: it was {_seeds(checkpoint.key)}, now it is {_seeds(key)}")
    if len(checkpoint.prompts) != len(prompts):
        raise UserError(f"cannot resume {len(checkpoint.prompts)} videos with prompts for {len(prompts)}")
    for old, new in zip(checkpoint.prompts, prompts, strict=True):
        _check_past(old, new, checkpoint.frames_done)


def _check_past(old: PromptSchedule, new: PromptSchedule, done: int) -> None:
    before, now = dict(old.before(done)), dict(new.before(done))
    changed = [frame for frame in sorted({*before, *now}) if before.get(frame) != now.get(frame)]
    if changed:
        frame = changed[0]
        raise UserError(
            f"cannot resume with another prompt at frame {frame}: it was '{old.at(frame)}', now it is "
            f"'{new.at(frame)}'; only from frame {done} on can prompts be changed"
        )


def _seeds(key: Key | tuple[Key, ...]) -> str:
    keys = (key,) if isinstance(key, Key) else key
    return ", ".join("/".join(map(str, (k.seed, *k.path))) for k in keys)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_SLOT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}: give a file that an earlier run wrote") from error
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a checkpoint: start again without --resume") from error
    if not isinstance(metadata, dict):
        raise UserError(f"{path} is not a checkpoint of this program: give a file that an earlier run wrote")
    return metadata, tensors
