"""This library's networks with the weights of a fixture, by the names of the published checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from diffusers import UNet3DConditionModel
from torch import Tensor, nn

from adapters.apm import APM, APMConfig
from adapters.cam import CAM, CAMConfig
from adapters.official_names import Layout, to_official, to_ours
from backends.diffusers_sites import to_features
from backends.image_preprocess import CLIP_MEAN, CLIP_STD, prepare
from backends.modelscope_unet import UNet3DBackbone
from streaming.backbone import Backbone, Call, FeatureEncoder, Guided, Window
from streaming.codec import ImageEncoder
from tests.parity.fixture import Fixture

TEXT = 77
"""Text tokens; hard coded in the published code, image tokens come after them."""
MERGER_HEAD = 64
"""Channels of a head in CAM's mergers, whatever the UNet's are (published code)."""

POOLED = {"proj.weight": (1024, 48), "proj.bias": (1024,)}
"""The toy in place of CLIP where a file gives its weights by the formula alone: AdaptiveAvgPool(4), Linear."""

EMBEDDING_WIDTHS = (32, 96, 256, 512)
"""E_cond's, where a config does not tell (published model)."""


def build_backbone(fixture: Fixture, config: Mapping[str, Any], *, tokens: int, window: Window, home: str) -> Any:
    """The UNet of a fixture's `config` with all its weights."""
    with torch.device("meta"):
        unet: Any = UNet3DConditionModel(**_unet_config(config))
    fill(fixture, unet, "unet", home=home)
    return UNet3DBackbone(unet.eval(), tokens=tokens, window=window).eval()


def bare_backbone(config: Mapping[str, Any], *, window: Window) -> UNet3DBackbone:
    """A UNet without weights, for its sites and its encoder half."""
    with torch.device("meta"):
        return UNet3DBackbone(UNet3DConditionModel(**_unet_config(config)), tokens=TEXT, window=window)


def _unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' class reads of a config; the up path mirrors the down path where it is not told (CAM)."""
    import inspect

    known = inspect.signature(UNet3DConditionModel.__init__).parameters
    down = config["down_block_types"]
    mirrored = {"up_block_types": [name.replace("Down", "Up") for name in reversed(down)]}
    return {name: value for name, value in {**mirrored, **config}.items() if name in known}


def build_cam(
    fixture: Fixture,
    backbone: Backbone,
    config: Mapping[str, Any],
    *,
    home: str = "",
    encoder: FeatureEncoder | None = None,
    only: tuple[str, ...] = ("",),
) -> CAM:
    """A CAM for a backbone, its weights (those with the prefixes `only`) the fixture's.

    encoder: in place of the backbone's encoder half.
    """
    for name, known in (("merging_mode", "addition"), ("zero_conv_mode", "Identity"), ("frame_expansion", "none")):
        if config.get(name, known) != known:
            fixture.give_up(f"a CAM with {name} {config[name]}: only {known} is known")
    sizes = CAMConfig(
        sites=backbone.feature_sites,
        condition="pixels",
        channels=int(config.get("conditioning_channels", 3)),
        widths=tuple(config.get("conditioning_embedding_out_channels", EMBEDDING_WIDTHS)),
        head_dim=MERGER_HEAD,
    )
    with torch.device("meta"):
        cam = CAM(sizes, encoder or backbone.feature_encoder()).eval()
    fill(fixture, cam, "cam", backbone, home=home, only=only)
    return cam


def build_mixers(fixture: Fixture, backbone: Backbone, *, image_tokens: int, home: str = "") -> APM:
    """An APM whose mixers have the fixture's weights; image tokens must be given to it."""
    config = APMConfig(sites=backbone.context_sites, image_width=1, inner=1, image_tokens=image_tokens)
    with torch.device("meta"):
        apm = APM(config, NoImages()).eval()
    fill(fixture, apm, "apm", backbone, home=home, only=("mixers.",))
    for unused in (apm.proj_in, apm.proj_out):  # the loop takes the fingerprint of a memory's weights, of these too
        for value in unused.to_empty(device="cpu").parameters():
            nn.init.zeros_(value)
    return apm


def build_apm(fixture: Fixture, backbone: Backbone, image: ImageEncoder, *, image_tokens: int, inner: int) -> APM:
    """A whole APM with the fixture's weights."""
    config = APMConfig(sites=backbone.context_sites, image_width=image.width, inner=inner, image_tokens=image_tokens)
    with torch.device("meta"):
        apm = APM(config, image).eval()
    fill(fixture, apm, "apm", backbone)
    return apm


def fill(
    fixture: Fixture,
    module: nn.Module,
    part: str,
    backbone: Backbone | None = None,
    *,
    home: str = "",
    only: tuple[str, ...] = ("",),
) -> None:
    """Gives a module on the meta device the weights that the published names say, those of `only` if it is given."""
    sites = () if backbone is None else backbone.feature_sites
    places = () if backbone is None else backbone.context_sites
    layout = Layout(skips=len(sites) - 1, attentions=tuple(site.name for site in places))
    ours = {name: value for name, value in module.state_dict().items() if name.startswith(only)}
    names = {name: to_official(part, name, layout) for name in ours}
    found = fixture.weights({names[name]: value.shape for name, value in ours.items()}, home)
    weights = {name: found[names[name]] for name in ours}
    for name, value in weights.items():
        if value.shape != ours[name].shape:
            fixture.give_up(f"{names[name]}: shape {tuple(value.shape)}, expected {tuple(ours[name].shape)}")
    missing = module.load_state_dict(weights, strict=only == ("",), assign=True)
    assert not missing.unexpected_keys


def recognise(fixture: Fixture, home: str) -> None:
    """Stored weights of networks that the file's outputs did without count as known."""
    names = {
        name: home + name.removeprefix("state.").removeprefix(home)
        for name in fixture.tensors
        if name.startswith("state.")
    }
    layout = Layout.of(names.values())
    fixture.used.update(name for name, whole in names.items() if to_ours(whole, layout) is not None)


def call_of(fixture: Fixture, sample: Tensor, context: Tensor) -> Call:
    """One evaluation, everything conditioned: inputs `sample` [B, C, F, h, w] and `timestep`, one or one a sample."""
    batch = sample.shape[0]
    time = fixture.read(r"in\.timesteps?", r"in\.t").float().reshape(-1).expand(batch)
    return Call(latents=sample, time=time, context=context, guided=(Guided(text=True, anchor=True),) * batch)


def features_of(maps: Tensor, batch: int) -> Tensor:
    """[(B F), C, h, w] or [B, C, F, h, w] as features [B, F, positions, C]."""
    if maps.ndim == 5:
        maps = maps.transpose(1, 2).flatten(0, 1)
    return to_features(maps, batch)


def maps_like(features: Tensor, shape: torch.Size) -> Tensor:
    """Features [B, F, positions, C] as maps of the shape [(B F)] C, h, w; else [(B F), C, positions]."""
    maps = features.flatten(0, 1).transpose(1, 2)
    return maps.unflatten(2, shape[-2:]) if maps.shape[2] == shape[-2:].numel() else maps


@final
class GivenFeatures(FeatureEncoder):
    """Stands for CAM's encoder half where its features are given."""

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = dict(features)

    @property
    def condition_width(self) -> int:
        """Any."""
        return 1

    def forward(self, call: Call, condition: Tensor) -> Mapping[str, Tensor]:
        """The given features."""
        return self.features


@final
class NoImages(ImageEncoder):
    """Where image tokens are given."""

    @property
    def width(self) -> int:
        """Any."""
        return 1

    def forward(self, images: Tensor) -> Tensor:
        """Never."""
        raise AssertionError("no image is to be encoded")


@final
class PooledImages(ImageEncoder):
    """The fixtures' own toy in place of CLIP: CLIP's preprocessing, AdaptiveAvgPool(k), Linear."""

    def __init__(self, project: Callable[[Tensor], Tensor], pool: int, width: int, size: int = 224) -> None:
        super().__init__()
        self.project, self.pool, self._width, self.size = project, pool, width, size

    @property
    def width(self) -> int:
        """The projection's."""
        return self._width

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings of images in [0, 1]."""
        small = prepare(images, (self.size, self.size), CLIP_MEAN, CLIP_STD)
        return self.project(nn.functional.adaptive_avg_pool2d(small, self.pool).flatten(1))


def pooled_images(fixture: Fixture) -> PooledImages:
    """The toy encoder with the fixture's weights: the pool's size is told by the projection's inputs."""
    state = fixture.state("image_encoder.") or fixture.drawn("image_encoder.", POOLED)
    weight, bias = state.get("proj.weight"), state.get("proj.bias")
    if weight is None or set(state) - {"proj.weight", "proj.bias"}:
        return fixture.give_up(f"an image encoder with weights {', '.join(state) or 'nowhere'}: expected proj.*")
    pool = round((weight.shape[1] / 3) ** 0.5)
    return PooledImages(lambda x: nn.functional.linear(x, weight, bias), pool, weight.shape[0])
