"""Names in the published checkpoint, `streaming_t2v.ckpt`, and ours: one function a part, both ways.

They are misleading: `unet.` is CAM, `base_model.` the video UNet, and parts of CAM and APM lie inside of the latter.
All functions are pure and know no sizes, so that they serve a model with other widths or fewer levels, too, and a
state dict that holds one part only. [Facts of the published code's state dict.]
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import final

PARTS = ("unet", "cam", "apm", "vae", "text_encoder", "image_encoder")
"""Parts of a model folder, whose networks the checkpoint holds."""

_MERGERS, _TEMPORAL = "base_model.cross_attention_merger_", "temporal_transformer."
_MIXED = re.compile(r"base_model\.(.+)\.transformer_blocks\.0\.attn2\.(conv\.\w+|conv_ln\.\w+|alpha)")
_RESAMPLER = {"proj_in": "resampler.context_embedding.0", "proj_out": "resampler.context_embedding.2"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"(vae\.(?:en|de)coder\.mid_block\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_IMAGE, _TEXT = "image_encoder.model.", "text_encoder.text_model."
_UNUSED = {"positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
           "ln_final.bias", "attn_mask"}  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the names alone don't say: our CAM and APM number their modules, the checkpoint names the places."""

    skips: int
    """Skip connections, in the order of the down path; the mid block's merger comes after theirs."""
    attentions: tuple[str, ...]
    """The spatial transformers in order of evaluation (down, mid, up), by diffusers' names; APM's context sites."""

    @classmethod
    def of(cls, names: Iterable[str]) -> "Layout":
        """Of the published names, or of those of CAM or APM only."""
        names = list(names)
        found = (re.match(rf"{_MERGERS}down_blocks\.(\d+)\.", name) for name in names)
        last = max((int(match[1]) for match in found if match), default=-1)
        mixed = {match[1] for name in names if (match := _MIXED.fullmatch(name))}
        return cls(skips=last + 1, attentions=tuple(sorted(mixed, key=_evaluated)))


def ignored(name: str) -> bool:
    """Whether a published name is of nothing that computes: open_clip's text side, counted positions, a mask."""
    if name.startswith(_IMAGE):
        return name.removeprefix(_IMAGE) in _UNUSED
    return name.startswith("text_encoder.") and name.endswith("embeddings.position_ids")


def modern(name: str) -> str:
    """A published name as today's diffusers and transformers 4 write it: the VAE's attention and the text tower."""
    if match := _OLD.fullmatch(name):
        return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}"
    if name.startswith("text_encoder.") and not name.startswith(_TEXT):
        return _TEXT + name.removeprefix("text_encoder.")
    return name


def to_ours(name: str, layout: Layout) -> tuple[str, str] | None:
    """Part and our name in it for a published name, today's (`modern`); None if it belongs nowhere."""
    for part, rename in _OURS.items():
        if (found := rename(name, layout)) is not None:
            return part, found
    return None


def to_official(part: str, name: str, layout: Layout) -> str:
    """The published name for one of ours. Raises KeyError for a part or a name that has none."""
    found = _OFFICIAL[part](name, layout)
    if found is None or to_ours(found, layout) != (part, name):
        raise KeyError(f"the published checkpoint has no {part}: {name}")
    return found


def pick(part: str, names: Iterable[str]) -> dict[str, str]:
    """Our name -> published name for those of the published names that belong to one part; others are passed over.

    part: one of `PARTS`. With `pick("cam", state)` a CAM's state dict is `{ours: state[theirs] ...}`.
    """
    names = list(names)
    layout = Layout.of(names)
    found = {name: to_ours(modern(name), layout) for name in names if not ignored(name)}
    return {place[1]: name for name, place in found.items() if place is not None and place[0] == part}


def merger_to_ours(name: str) -> str:
    """A name inside one merger: `temporal_transformer.attention.to_out.0.weight` -> `to_out.weight`."""
    name = name.removeprefix(_TEMPORAL).removeprefix("attention.")
    return name.replace("to_out.0.", "to_out.")


def merger_to_official(name: str) -> str:
    """The inverse of `merger_to_ours`."""
    where = "attention." if name.startswith("to_") else ""
    return _TEMPORAL + where + name.replace("to_out.", "to_out.0.")


def mixer_to_ours(name: str) -> str:
    """A name inside one of APM's mixers: `conv_ln.weight` -> `norm.weight`."""
    return name.replace("conv_ln.", "norm.")


def mixer_to_official(name: str) -> str:
    """The inverse of `mixer_to_ours`."""
    return name.replace("norm.", "conv_ln.")


def _unet(name: str, layout: Layout) -> str | None:
    if not name.startswith("base_model.") or name.startswith(_MERGERS) or _MIXED.fullmatch(name):
        return None
    return name.removeprefix("base_model.")


def _cam(name: str, layout: Layout) -> str | None:
    for theirs, ours in (("unet.controlnet_cond_embedding.", "condition."), ("unet.", "encoder.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    match = re.fullmatch(rf"{_MERGERS}(?:down_blocks\.(\d+)|mid_block)\.({_TEMPORAL}.+)", name)
    if match is None or (match[1] and int(match[1]) >= layout.skips):
        return None
    return f"mergers.{match[1] or layout.skips}.{merger_to_ours(match[2])}"


def _apm(name: str, layout: Layout) -> str | None:
    for ours, theirs in _RESAMPLER.items():
        if name.startswith(theirs + "."):
            return ours + name.removeprefix(theirs)
    match = _MIXED.fullmatch(name)
    if match is None or match[1] not in layout.attentions:
        return None
    return f"mixers.{layout.attentions.index(match[1])}.{mixer_to_ours(match[2])}"


def _cut(prefix: str) -> Callable[[str, Layout], str | None]:
    return lambda name, layout: name.removeprefix(prefix) if name.startswith(prefix) else None


def _put(prefix: str) -> Callable[[str, Layout], str | None]:
    return lambda name, layout: prefix + name


def _official_cam(name: str, layout: Layout) -> str | None:
    kind, _, rest = name.partition(".")
    if kind != "mergers":
        where = {"condition": "unet.controlnet_cond_embedding.", "encoder": "unet."}.get(kind)
        return None if where is None else where + rest
    number, _, rest = rest.partition(".")
    where = "mid_block" if number == str(layout.skips) else f"down_blocks.{number}"
    return f"{_MERGERS}{where}.{merger_to_official(rest)}"


def _official_apm(name: str, layout: Layout) -> str | None:
    kind, _, rest = name.partition(".")
    if kind in _RESAMPLER:
        return f"{_RESAMPLER[kind]}.{rest}"
    number, _, rest = rest.partition(".")
    if kind != "mixers" or not number.isdecimal() or int(number) >= len(layout.attentions):
        return None
    return f"base_model.{layout.attentions[int(number)]}.transformer_blocks.0.attn2.{mixer_to_official(rest)}"


def _evaluated(site: str) -> tuple[int, ...]:
    """Sorts the spatial transformers as a UNet evaluates them."""
    place = ("down_blocks", "mid_block", "up_blocks").index(site.split(".")[0])
    return (place, *(int(number) for number in re.findall(r"\d+", site)))


Rename = Callable[[str, Layout], str | None]

_OURS: Mapping[str, Rename] = {
    "unet": _unet, "cam": _cam, "apm": _apm, "vae": _cut("vae."), "text_encoder": _cut(_TEXT),
    "image_encoder": _cut(_IMAGE + "visual."),
}  # fmt: skip
_OFFICIAL: Mapping[str, Rename] = {
    "unet": _put("base_model."), "cam": _official_cam, "apm": _official_apm, "vae": _put("vae."),
    "text_encoder": _put(_TEXT), "image_encoder": _put(_IMAGE + "visual."),
}  # fmt: skip
