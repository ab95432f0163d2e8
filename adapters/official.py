"""The published checkpoint of StreamingT2V (`streaming_t2v.ckpt`), made into a model folder, and back.

It is a Lightning checkpoint: 3407 float32 tensors under "state_dict", beside an optimizer's state that is dropped.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import final

from torch import Tensor

from adapters.official_modelscope import check_folder, first_chunk
from adapters.official_names import PARTS, Layout, ignored, modern, to_official, to_ours
from adapters.official_place import PUBLISHED, fitting_configs, flat, place_tensors
from adapters.official_sizes import Config, axes, known, unnumbered
from adapters.official_tokenizer import WORDS, read_tokenizer, write_tokenizer
from streaming.convert import Converter, ConvertOptions
from streaming.weights import Checkpoint
from streaming.weights_write import DIFFUSERS, TRANSFORMERS, Part, Take, same, write_json, write_parts

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
"""As published with ModelScope's text-to-video model."""
SETTINGS = {"height": 256, "width": 256, "fps": 8, "steps": 50, "guidance": 7.5, "eta": 1.0, "frames": 16, "overlap": 8,
            "short_term": "cam", "long_term": "apm"}  # fmt: skip
"""Content of streamingt2v.json."""
_INDEX = {
    "_class_name": "TextToVideoSDPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_MARKS = ("base_model.cross_attention_merger_", "unet.controlnet_cond_embedding.", "resampler.context_embedding.")
"""How names begin that only this checkpoint has."""


@final
class StreamingT2V(Converter):
    """`streaming_t2v.ckpt`, its bare state dict, or that as safetensors."""

    def describe(self) -> str:
        """For lists."""
        return "StreamingT2V's streaming_t2v.ckpt"

    def matches(self, source: Path) -> bool:
        """Whether there are tensors of CAM's or APM's by their published names."""
        return source.is_file() and any(name.startswith(_MARKS) for name in Checkpoint(source).meta)

    def place(self, directory: Path) -> Path:
        """The directory itself."""
        return directory

    def convert(self, source: Path, target: Path, options: ConvertOptions) -> None:
        """A model folder; with `options.modelscope` also that model's own UNet, for the first chunk."""
        if options.modelscope is not None:
            check_folder(options.modelscope)
        checkpoint = Checkpoint(source)
        placed = place_tensors(checkpoint)
        configs = fitting_configs(checkpoint, placed)
        parts = [_part(name, configs[name], checkpoint, placed[name]) for name in PARTS]
        tokenizer = None
        if options.modelscope is not None:
            parts.append(first_chunk(options.modelscope, configs["unet"]))
            tokenizer = read_tokenizer(options.modelscope / "tokenizer", configs["text_encoder"]["vocab_size"])
        write_parts(target, parts, options)
        write_json(target / "scheduler" / "scheduler_config.json", SCHEDULER)
        _tokenizer(target / "tokenizer", configs["text_encoder"], tokenizer)
        write_json(target / "model_index.json", _INDEX)
        write_json(target / "streamingt2v.json", SETTINGS)


def to_official_state(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The published state dict of networks' state dicts, by part: the inverse of what `StreamingT2V` does.

    All but what nothing computes with (`official_names.ignored`). The text tower may have transformers 4's names.
    Raises KeyError for a part or a name that has no published one.
    """
    made: dict[str, Tensor] = {}
    for part, state in parts.items():
        for name, value in state.items():
            ours = name.removeprefix("text_model.") if part == "text_encoder" else name
            if part not in PARTS or ours not in axes()[part]:
                raise KeyError(f"the published checkpoint has no {part}: {name}")
            made[to_official(part, ours, PUBLISHED)] = value
    return made


def to_our_state(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One network's state dict, of the published one or of a piece of it, of any size and depth.

    part: one of `official_names.PARTS`. Tensors of other parts are passed over. Raises KeyError for another part, and
    for a name that no tensor of StreamingT2V has at any depth.
    """
    if part not in PARTS:
        raise KeyError(f"StreamingT2V has no part {part}: there are {', '.join(PARTS)}")
    layout = Layout.of(state)
    change = flat if part == "vae" else same
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        if ignored(name):
            continue
        place = to_ours(modern(name), layout)
        if place is None or unnumbered(place[1]) not in known(place[0]):
            raise KeyError(f"StreamingT2V has no tensor {name}")
        if place[0] == part:
            made[place[1]] = change(value) if ".attentions." in place[1] else value
    return made


def _part(name: str, config: Config, source: Checkpoint, takes: Mapping[str, Take]) -> Part:
    ours = name in ("cam", "apm")
    if name == "text_encoder":  # transformers 4 knows no other names, transformers 5 takes them
        takes = {f"text_model.{each}": take for each, take in takes.items()}
    return Part(
        folder=name,
        config=config,
        source=source,
        tensors=takes,
        stem=DIFFUSERS if name in ("unet", "vae") else TRANSFORMERS,
        index="config" if ours else "file",
    )


def _tokenizer(folder: Path, text: Config, given: Mapping[str, bytes] | None) -> None:
    if given is not None:
        folder.mkdir()
        for name, content in given.items():
            (folder / name).write_bytes(content)
    elif text["vocab_size"] >= WORDS:
        write_tokenizer(folder, text["max_position_embeddings"])
    else:
        warnings.warn(
            f"no tokenizer was written: the text encoder knows {text['vocab_size']} tokens, CLIP's tokenizer {WORDS}; "
            "copy one that fits to the folder's tokenizer, or convert with --modelscope",
            stacklevel=2,
        )
