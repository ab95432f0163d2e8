"""`streamingt2v models`: what is installed, and where a model's memories meet it."""

import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from streaming.cli import checks
from streaming.errors import UserError

if TYPE_CHECKING:
    from streaming.model import Model

PLUGINS = {
    "short-term memories": "streaming.short_term_memories",
    "long-term memories": "streaming.long_term_memories",
    "blenders": "streaming.blenders",
    "image encoders": "streaming.image_encoders",
}


def models(
    model: Annotated[str | None, typer.Argument(metavar="NAME|DIR", help="One model: its sites and sizes.")] = None,
    words: Annotated[bool, typer.Option("--words", help="The words that the model knows.")] = False,
) -> int:
    """List models, memories, blenders and image encoders; with a name, a model's sites."""
    if model is None and not words:
        return _overview()
    from streaming.cli.options import DEFAULT_MODEL
    from streaming.registry import open_model

    name = model or DEFAULT_MODEL
    checks.model(name)
    opened = open_model(name)
    _words(opened) if words else _details(opened)
    return 0


def _overview() -> int:
    from streaming.registry import BACKBONES, discover

    print("models")
    problems = [_backbone(name) for name in discover(BACKBONES)]
    for title, group in PLUGINS.items():
        print(f"\n{title}")
        problems += [_plugin(group, name) for name in discover(group)]
    print("\n`streamingt2v models NAME` lists a model's sites.")
    return 1 if any(problems) else 0


def _backbone(name: str) -> bool:
    """A line about a family of models, one about the model that ships with it. Returns whether it is broken."""
    from streaming.registry import make_backend, open_model

    try:
        print(f"  {name}: {make_backend(name).describe()}")
    except UserError as error:
        print(f"  {name}: broken, {error}")
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(f"      {_sizes(open_model(name))}")
    except UserError as error:
        print(f"      {error}")
    return False


def _plugin(group: str, name: str) -> bool:
    """One line about a plugin. Returns whether it is broken."""
    from streaming.registry import load

    try:
        words = (load(group, name).__doc__ or "").split("\n")[0].split(": ", 1)
    except UserError as error:
        print(f"  {name}: broken, {error}")
        return True
    print(f"  {name}" + (f": {words[1]}" if len(words) > 1 else ""))
    return False


def _sizes(model: "Model") -> str:
    defaults, backbone = model.defaults, model.backbone
    return (
        f"{defaults.width}x{defaults.height} at {defaults.fps:g} frames/s, "
        f"window {backbone.window.frames} latent frames, overlap {backbone.window.overlap}; "
        f"{len(backbone.feature_sites)} feature sites, {len(backbone.context_sites)} context sites; "
        f"{_millions(backbone)} M parameters"
    )


def _millions(module: object) -> str:
    from torch import nn

    assert isinstance(module, nn.Module)
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f}"


def _details(model: "Model") -> None:
    defaults = model.defaults
    print(f"{model.name}: {_sizes(model)}")
    print(
        f"defaults: {defaults.steps} steps of {defaults.sampler}, guidance {defaults.guidance:g}, "
        f"short-term memory {defaults.short_term}, long-term memory {defaults.long_term}"
    )
    if first := model.backbone.input_site:
        print(f"input site (conc-cond): {first.name}: {first.width} channels")
    print("feature sites (short-term memory):")
    for site in model.backbone.feature_sites:
        print(f"  {site.name}: {site.width} channels")
    print("context sites (long-term memory):")
    for site in model.backbone.context_sites:
        print(f"  {site.name}: {site.tokens} tokens of {site.depth} channels")


def _words(model: "Model") -> None:
    known = model.text.vocabulary
    if known is None:
        raise UserError(f"{model.name} reads any words: it has no list of them")
    print("\n".join(known))
