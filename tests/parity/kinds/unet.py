"""The whole UNet: plain, with APM's image tokens in the context, with CAM's features on its skips."""

import re

import torch
from torch import Tensor

from adapters.apm import APMState
from adapters.cam import CAMState
from streaming.backbone import Backbone, Call, Window
from streaming.sites import Deltas, combine
from tests.parity.fixture import Fixture
from tests.parity.kinds.cam import cam_features
from tests.parity.network import (
    TEXT,
    GivenFeatures,
    bare_backbone,
    build_backbone,
    build_cam,
    build_mixers,
    call_of,
    features_of,
    recognise,
)
from tests.parity.registry import handles

HOME = "base_model."
"""The checkpoint's name for the video UNet."""
_DOWN, _MID = r".*(?:down|skip|res)\w*[._](\d+)", r".*mid\w*"
_WITHOUT = {"cam": ("residual", "cam", "skips"), "apm": ("apm", "image", "alpha0", "anchor")}
"""Words in the name of an output that was made without one of the two."""


@handles("st2v_unet_*")
def unet(fixture: Fixture) -> None:
    """out.sample with all there is; out.sample_without_residuals without CAM, and the like."""
    config, sample, context = fixture.config, fixture.read(r"in\.sample"), fixture.read(r"in\.context")
    features = given_features(fixture, sample)
    text = text_tokens(fixture, context)
    span = features[0].shape[1] if features else 0
    backbone = build_backbone(
        fixture, config, tokens=text, window=Window(sample.shape[2], min(span, sample.shape[2] - 1)), home=HOME
    )
    call = call_of(fixture, sample, context[:, :text])
    parts = {"cam": cam_deltas(fixture, backbone, features, call) if features else {}}
    parts["apm"] = apm_deltas(fixture, backbone, context[:, text:], call) if context.shape[1] > text else {}
    recognise(fixture, HOME)
    for name in fixture.names(r"out\.sample\w*"):
        without = without_what(fixture, name)
        deltas = combine(*(delta for part, delta in parts.items() if part not in without))
        fixture.check(name, backbone(call, deltas))


def without_what(fixture: Fixture, name: str) -> set[str]:
    """The parts that an output is made without, by its name: `out.sample_without_residuals`."""
    ending = name.removeprefix("out.sample")
    found = {part for part, words in _WITHOUT.items() if any(word in ending for word in words)}
    if ending and not (found and re.search(r"without|no|alpha0|zero", ending)):
        fixture.give_up(f"what {name} was made without is not understood")
    return found


def text_tokens(fixture: Fixture, context: Tensor) -> int:
    """How many of the tokens are text: what a stored mixer writes, else as hard coded; all of them without APM."""
    if not fixture.config.get("use_image_embedding", False):
        return context.shape[1]
    stored = [value for name, value in fixture.tensors.items() if name.endswith("attn2.conv.weight")]
    return stored[0].shape[0] if stored else min(TEXT, context.shape[1])


def given_features(fixture: Fixture, sample: Tensor) -> list[Tensor]:
    """CAM's features [B, F, positions, C] in the order of the sites: here, in the CAM's file, or made from its inputs.

    An empty list if the file is about a UNet alone.
    """
    skips, middle = fixture.names(f"in{_DOWN}"), fixture.find(f"in{_MID}")
    if skips:
        names = [*skips, *([middle] if middle else [])]
        return [features_of(fixture.read(re.escape(name)), len(sample)) for name in names]
    mode = fixture.config.get("merging_mode")
    named = re.findall(r"st2v_cam_[A-Za-z0-9]+", " ".join(fixture.meta.values()))
    if not named and any("cam" in without_what(fixture, name) for name in fixture.names(r"out\.sample\w+")):
        named = [f"st2v_cam_{fixture.name.rpartition('_')[2]}"]  # some outputs were made without: others were not
    if not named:
        return []
    if mode != "attention_cross_attention":
        fixture.give_up(f"CAM's features are merged by {mode}: only attention_cross_attention is known")
    owner = fixture.sibling(named[0])
    stored = [name for name in [*owner.names(f"out{_DOWN}"), "out.mid"] if name in owner.tensors]
    sites = bare_backbone(fixture.config, window=Window(1, 0)).feature_sites
    if len(stored) < len(sites):  # a file that was cut
        return list(cam_features(owner).values())
    return [features_of(owner.tensors[name].float(), len(sample)) for name in stored]


def cam_deltas(fixture: Fixture, backbone: Backbone, features: list[Tensor], call: Call) -> Deltas:
    """The mergers' deltas for given features."""
    if len(features) != len(backbone.feature_sites):
        fixture.give_up(f"{len(features)} features of CAM for {len(backbone.feature_sites)} sites")
    names = [site.name for site in backbone.feature_sites]
    encoder = GivenFeatures(dict(zip(names, features, strict=True)))
    cam = build_cam(fixture, backbone, {}, home=HOME, encoder=encoder, only=("mergers.",))
    return cam.deltas(CAMState(torch.zeros(len(call.latents), features[0].shape[1], features[0].shape[2], 1)), call)


def apm_deltas(fixture: Fixture, backbone: Backbone, image: Tensor, call: Call) -> Deltas:
    """The mixers' deltas for given image tokens, one row of them a sample."""
    apm = build_mixers(fixture, backbone, image_tokens=image.shape[1], home=HOME)
    return apm.deltas(APMState(image, image[:1]), call)
