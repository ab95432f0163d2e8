"""The ModelScope UNet: sites by hooks against a naive reference, its encoder half, codec, text and image encoders."""

import copy
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from diffusers import AutoencoderKL, I2VGenXLUNet, UNet3DConditionModel, UNetMotionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from backends.diffusers_sites import DiffusersSites, Evaluation, to_features, to_maps
from backends.modelscope_codec import AutoencoderKLCodec
from backends.modelscope_image import CLIPImageEncoder
from backends.modelscope_text import CLIPTextEncoder
from backends.modelscope_unet import UNet3DBackbone
from streaming.backbone import Call, Guided, Window
from streaming.conformance.one_graph import unchecked
from streaming.errors import UserError
from streaming.sites import Delta

M = TypeVar("M", bound=nn.Module)
TOKENS, DEPTH, FRAMES = 5, 16, 4
BLOCKS = {
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": DEPTH,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}


def randomised(module: M) -> M:
    """Weights that no initialisation leaves at zero, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval()


def make_unet(**changes: Any) -> UNet3DConditionModel:
    return randomised(UNet3DConditionModel(in_channels=4, out_channels=4, attention_head_dim=8, **(BLOCKS | changes)))


def make_call(frames: int = FRAMES, batch: int = 2) -> Call:
    generator = torch.Generator().manual_seed(1)
    return Call(
        latents=torch.randn(batch, 4, frames, 6, 4, generator=generator),
        time=torch.tensor([7.0, 801.5])[:batch],
        context=torch.randn(batch, TOKENS, DEPTH, generator=generator),
        guided=(Guided(False, False), Guided(True, True))[:batch],
    )


def make_backbone(unet: UNet3DConditionModel | None = None) -> UNet3DBackbone:
    return UNet3DBackbone(unet or make_unet(), tokens=TOKENS, window=Window(FRAMES, 2))


def plain(unet: UNet3DConditionModel, call: Call) -> Tensor:
    return unet(call.latents, call.time, call.context).sample


def every_site(backbone: UNet3DBackbone, delta: Callable[[str], Delta]) -> dict[str, Delta]:
    return {site.name: delta(site.name) for site in (*backbone.feature_sites, *backbone.context_sites)}


@pytest.fixture
def unet() -> UNet3DConditionModel:
    return make_unet()


class TestSites:
    def test_names_widths_and_order(self) -> None:
        unet = make_unet(block_out_channels=(32, 64))
        backbone = make_backbone(unet)
        features = [(site.name, site.width) for site in backbone.feature_sites]
        assert features == [("skips.0", 32), ("skips.1", 32), ("skips.2", 32), ("skips.3", 64), ("mid_block", 64)]
        assert [site.name for site in backbone.context_sites] == [
            "down_blocks.0.attentions.0",
            "mid_block.attentions.0",
            "up_blocks.1.attentions.0",
            "up_blocks.1.attentions.1",
        ]
        assert {(site.depth, site.tokens) for site in backbone.context_sites} == {(DEPTH, TOKENS)}

    def test_full_size_has_the_published_sites(self) -> None:
        with torch.device("meta"):
            unet = UNet3DConditionModel()
        sites = DiffusersSites(unet, depth=1024, tokens=77)
        assert [site.width for site in sites.features] == [320] * 4 + [640] * 3 + [1280] * 5 + [1280]
        names = [site.name.split("_")[0] for site in sites.contexts]
        assert names == ["down"] * 6 + ["mid"] + ["up"] * 9

    @torch.no_grad()
    def test_without_deltas_it_is_the_plain_model_bit_for_bit(self, unet: UNet3DConditionModel) -> None:
        call = make_call()
        before = plain(unet, call)
        assert torch.equal(make_backbone(unet)(call, {}), before)

    @torch.no_grad()
    def test_zero_deltas_change_nothing_and_each_site_is_reached_once(self, unet: UNet3DConditionModel) -> None:
        call, reached = make_call(), {}
        backbone = make_backbone(unet)

        def zero(name: str) -> Delta:
            def delta(value: Tensor) -> Tensor:
                reached.setdefault(name, []).append(tuple(value.shape))
                return torch.zeros_like(value)

            return delta

        assert torch.equal(backbone(call, every_site(backbone, zero)), plain(unet, call))
        expected = {site.name: [(2, TOKENS, DEPTH)] for site in backbone.context_sites}
        cells = {"skips.0": 24, "skips.1": 24, "skips.2": 6, "skips.3": 6, "mid_block": 6}
        expected |= {name: [(2, FRAMES, positions, 32)] for name, positions in cells.items()}
        assert reached == expected

    @torch.no_grad()
    def test_agrees_with_the_naive_way(self, unet: UNet3DConditionModel) -> None:
        """Every row, frame and cell gets its own delta, at the right place."""
        call, backbone = make_call(), make_backbone(unet)
        mine = backbone(call, every_site(backbone, lambda name: _delta_of(name)))
        assert torch.allclose(
            mine, _naive(make_unet(), call, every_site(backbone, lambda name: _delta_of(name))), atol=1e-6
        )
        assert (mine - plain(unet, call)).abs().max() > 0.01

    @torch.no_grad()
    @pytest.mark.parametrize("site", ["skips.0", "skips.3", "mid_block", "mid_block.attentions.0"])
    def test_each_site_alone_changes_the_output(self, unet: UNet3DConditionModel, site: str) -> None:
        call, backbone = make_call(), make_backbone(unet)
        one = {site: _delta_of(site)}
        mine = backbone(call, one)
        assert (mine - plain(unet, call)).abs().max() > 1e-4
        assert torch.allclose(mine, _naive(make_unet(), call, one), atol=1e-6)

    @torch.no_grad()
    def test_the_encoder_half_never_sees_feature_deltas(self, unet: UNet3DConditionModel) -> None:
        call, backbone = make_call(), make_backbone(unet)
        seen: list[Tensor] = []
        unet.mid_block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        backbone(call, {})
        backbone(call, {site.name: _delta_of(site.name) for site in backbone.feature_sites})
        assert torch.equal(*seen)

    def test_unknown_site_lists_the_sites(self) -> None:
        with pytest.raises(KeyError, match="no such site: skips.99; this backbone has conv_in, skips.0, skips.1"):
            make_backbone()(make_call(), {"skips.99": torch.zeros_like})

    def test_a_delta_of_another_shape_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"the delta at skips.1 has shape \(1,\), the site \(2, 4, 24, 32\)"):
            make_backbone()(make_call(), {"skips.1": lambda value: torch.zeros(1)})

    @torch.no_grad()
    def test_stateless_after_an_exception(self, unet: UNet3DConditionModel) -> None:
        call, backbone = make_call(), make_backbone(unet)
        before = backbone(call, {})

        def fail(value: Tensor) -> Tensor:
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            backbone(call, {"mid_block": fail, "down_blocks.0.attentions.0": torch.ones_like})
        assert torch.equal(backbone(call, {}), before)
        assert torch.equal(plain(unet, call), before)

    @torch.no_grad()
    def test_threads_keep_their_own_deltas(self, unet: UNet3DConditionModel) -> None:
        call, backbone = make_call(), make_backbone(unet)
        inside, go_on = threading.Event(), threading.Event()

        def wait(value: Tensor) -> Tensor:
            inside.set()
            assert go_on.wait(30)
            return torch.ones_like(value)

        first, results = backbone.context_sites[0].name, []
        thread = threading.Thread(
            target=torch.no_grad()(lambda: results.append(backbone(call, {first: wait, "skips.0": torch.ones_like})))
        )
        alone = backbone(call, {first: torch.ones_like, "skips.0": torch.ones_like})
        before = backbone(call, {})
        thread.start()
        assert inside.wait(30)
        assert torch.equal(plain(unet, call), before)
        go_on.set()
        thread.join()
        assert torch.equal(results[0], alone)

    def test_a_copy_would_lose_its_deltas_and_is_refused(self) -> None:
        with pytest.raises(TypeError, match="can't be copied: build another from its configuration and state dict"):
            copy.deepcopy(make_backbone())

    def test_gradients_reach_the_deltas_with_and_without_checkpointing(self) -> None:
        call = make_call()
        grads = []
        for checkpointed in (False, True):
            backbone = make_backbone()
            backbone.requires_grad_(False)
            if checkpointed:
                backbone.checkpoint_gradients()
            scale = {site: torch.tensor(0.1, requires_grad=True) for site in every_site(backbone, lambda _: torch.sin)}
            out = backbone(call, {site: lambda value, s=s: s * torch.sin(value) for site, s in scale.items()})
            out.square().mean().backward()
            grads.append(torch.stack([each.grad for each in scale.values()]))
        assert (grads[0].abs() > 0).all()
        assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-8)

    @torch.no_grad()
    def test_one_graph_under_compile_and_no_recompilation_for_new_deltas(self) -> None:
        down, up = ("DownBlock3D",), ("UpBlock3D",)  # few operations, all kinds of sites
        unet = make_unet(block_out_channels=(32,), down_block_types=down, up_block_types=up)
        with unchecked():
            from backends.modelscope_unet import UNet3DBackbone as Plain
            from streaming.backbone import Call as PlainCall
            from streaming.backbone import Window as PlainWindow

            backbone, graphs = Plain(unet, tokens=TOKENS, window=PlainWindow(FRAMES, 2)), []
            compiled = torch.compile(
                backbone, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward
            )
            call = PlainCall(**vars(make_call()))
            for scale in (torch.tensor(0.5), torch.tensor(2.0)):
                deltas = every_site(backbone, lambda _, scale=scale: lambda value: scale * torch.sin(value))
                assert torch.allclose(compiled(call, deltas), backbone(call, deltas), atol=1e-6)
        assert len(graphs) == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"time": torch.zeros(2, FRAMES)}, "one time for each sample, not one for each frame"),
            ({"context_mask": torch.tensor([[True] * TOKENS, [False] * TOKENS])}, "it has no mask for them"),
            ({"mask": torch.tensor([[True] * FRAMES, [False] * FRAMES])}, "it has no mask for given ones"),
        ],
    )
    def test_refuses_what_it_cannot_take(self, change: dict[str, Any], message: str) -> None:
        backbone = make_backbone()
        with pytest.raises(ValueError, match=message):
            backbone(make_call().with_(**change), {})
        encoder, (_, _, span, high, wide) = backbone.feature_encoder(), make_call().latents.shape
        with pytest.raises(ValueError, match=message):
            encoder(make_call().with_(**change), torch.zeros(2, span, high * wide, encoder.condition_width))

    @torch.no_grad()
    def test_a_mask_that_reads_everything_is_no_mask(self) -> None:
        backbone, call = make_backbone(), make_call()
        everything = {
            name: torch.ones(2, n, dtype=torch.bool) for name, n in (("context_mask", TOKENS), ("mask", FRAMES))
        }
        masked = call.with_(**everything)
        assert torch.equal(backbone(masked, {}), backbone(call, {}))

    @torch.no_grad()
    def test_computes_in_the_weights_type_and_answers_in_the_latents(self, unet: UNet3DConditionModel) -> None:
        call = make_call()
        exact = plain(unet, call)
        half = make_backbone(unet.bfloat16())(
            call, {"skips.0": lambda value: torch.zeros_like(value, dtype=torch.float32)}
        )
        assert half.dtype == torch.float32
        assert (half - exact).abs().max() < 0.05 * exact.abs().max()


class TestOtherUNets:
    """The same hooks serve diffusers' other video UNets."""

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["motion", "i2vgen"])
    def test_sites_are_reached_once(self, kind: str) -> None:
        torch.manual_seed(0)
        latents, text = torch.randn(2, 4, FRAMES, 8, 8), torch.randn(2, TOKENS, DEPTH)
        unet, evaluate = _motion_unet(latents, text) if kind == "motion" else _i2vgen_unet(latents, text)
        before, reached = evaluate(), []
        sites = DiffusersSites(unet, depth=DEPTH, tokens=TOKENS)

        def zero(value: Tensor, name: str) -> Tensor:
            reached.append((name, value.shape[:2] if value.ndim == 4 else value.shape[:1]))
            return torch.zeros_like(value)

        names = [site.name for site in (*sites.features, *sites.contexts)]
        deltas = {name: lambda value, name=name: zero(value, name) for name in names}
        assert torch.equal(sites.evaluate(Evaluation(deltas, batch=2), evaluate), before)
        assert sorted(reached) == sorted((n, (2,) if "attentions" in n else (2, FRAMES)) for n in names)
        one = Evaluation({names[0]: torch.ones_like}, batch=2)
        assert not torch.equal(sites.evaluate(one, evaluate), before)


class TestFeatureEncoder:
    @torch.no_grad()
    def test_without_condition_it_gives_what_the_unet_hands_on(self, unet: UNet3DConditionModel) -> None:
        call, backbone = make_call(), make_backbone(unet)
        seen: dict[str, Tensor] = {}
        backbone(
            call,
            {s.name: lambda v, n=s.name: seen.update({n: v}) or torch.zeros_like(v) for s in backbone.feature_sites},
        )
        features = backbone.feature_encoder().eval()(call, torch.zeros(2, FRAMES, 24, 32))
        assert list(features) == [site.name for site in backbone.feature_sites]
        assert all(torch.equal(features[name], seen[name]) for name in features)

    @torch.no_grad()
    def test_the_condition_is_added_where_the_down_path_begins(self, unet: UNet3DConditionModel) -> None:
        call = make_call(frames=2)
        encoder = make_backbone(unet).feature_encoder().eval()
        condition = torch.randn(2, 2, 24, 32, generator=torch.Generator().manual_seed(2))
        bare, conditioned = encoder(call, torch.zeros_like(condition)), encoder(call, condition)
        assert torch.allclose(conditioned["skips.0"], bare["skips.0"] + condition, atol=1e-6)
        assert all((conditioned[name] - bare[name]).abs().max() > 1e-3 for name in bare)

    def test_is_a_trainable_copy_under_diffusers_names(self, unet: UNet3DConditionModel) -> None:
        backbone = make_backbone(unet.requires_grad_(False))
        encoder = backbone.feature_encoder()
        assert encoder.condition_width == 32
        assert encoder.training
        whole, own = unet.state_dict(), encoder.state_dict()
        prefixes = {"time_embedding", "conv_in", "transformer_in", "down_blocks", "mid_block"}
        assert set(own) == {name for name in whole if name.split(".")[0] in prefixes}
        assert all(torch.equal(own[name], whole[name]) for name in own)
        assert all(parameter.requires_grad for parameter in encoder.parameters())
        shared = {p.data_ptr() for p in unet.parameters()} & {p.data_ptr() for p in encoder.parameters()}
        assert not shared

    def test_every_weight_gets_a_gradient_also_with_checkpointing(self, unet: UNet3DConditionModel) -> None:
        call, encoder = make_call(frames=2), make_backbone(unet).feature_encoder()
        encoder.eval()
        grads = []
        for _ in range(2):
            encoder.zero_grad()
            sum(each.square().mean() for each in encoder(call, torch.ones(2, 2, 24, 32)).values()).backward()
            grads.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
            encoder.checkpoint_gradients()
        assert all(grad is not None for grad in grads[0].values())
        assert all(torch.allclose(grads[0][name], grads[1][name], rtol=1e-3, atol=1e-6) for name in grads[0])


class TestCodec:
    @staticmethod
    def make(scale: float = 0.5, shift: float | None = None, tile: bool | None = None) -> AutoencoderKLCodec:
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            scaling_factor=scale,
            shift_factor=shift,
        )
        return AutoencoderKLCodec(randomised(vae), tile=tile, tile_size=32)

    @torch.no_grad()
    @pytest.mark.parametrize("shift", [None, 0.3])
    def test_agrees_with_the_autoencoder_frame_by_frame(self, shift: float | None) -> None:
        codec = self.make(shift=shift)
        frames = torch.rand(2, 9, 3, 8, 12, generator=torch.Generator().manual_seed(0))
        latents = codec.encode(frames)
        assert latents.shape == (2, 4, 9, 4, 6)
        assert (codec.channels, codec.factor, codec.latent_frames(9), codec.pixel_frames(9)) == (4, 2, 9, 9)
        mode = codec.vae.encode(2 * frames[1, 7:8] - 1).latent_dist.mode()
        assert torch.allclose(latents[1:2, :, 7], 0.5 * (mode - (shift or 0.0)), atol=1e-5)
        pixels = codec.vae.decode(latents[1:2, :, 7] / 0.5 + (shift or 0.0)).sample
        assert torch.allclose(codec.decode(latents)[1:2, 7], (pixels / 2 + 0.5).clamp(0, 1), atol=1e-5)

    @torch.no_grad()
    def test_frames_stay_in_range_and_are_coded_in_small_slices(self) -> None:
        codec, sizes = self.make(), []
        codec.vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0]))
        frames = codec.decode(100 * torch.randn(1, 4, 40, 2, 2, generator=torch.Generator().manual_seed(0)))
        assert sizes == [16, 16, 8]
        assert frames.min() == 0 and frames.max() == 1

    @torch.no_grad()
    def test_tiles(self) -> None:
        whole, tiled = self.make(), self.make(tile=True)
        latents = torch.randn(1, 4, 1, 24, 24, generator=torch.Generator().manual_seed(0))
        calls = []
        tiled.vae.decoder.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[-1]))
        assert tiled.decode(latents).shape == whole.decode(latents).shape
        assert len(calls) > 1 and max(calls) <= 20

    def test_sizes_that_do_not_fit(self) -> None:
        with pytest.raises(UserError, match="frames of 9x8 pixels: height and width must be multiples of 2"):
            self.make().encode(torch.zeros(1, 1, 3, 9, 8))


WORDS = ("a", "ball", "blue", "green", "meadow", "over", "red", "rolls", "wagon")


def make_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    marks = ("<pad>", "<bos>", "<unk>", "<eos>")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*marks, *WORDS))}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    named = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=8, **(named | special))


def make_text(vocabulary: int = 13, **special: str | None) -> CLIPTextEncoder:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=DEPTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    return CLIPTextEncoder(randomised(CLIPTextModel(config)), make_tokenizer(**special))


class TestText:
    @torch.no_grad()
    def test_padded_to_full_length_without_mask(self) -> None:
        text = make_text()
        encoded = text(["a red ball", ""])
        ids = torch.tensor([[1, 4, 10, 5, 3, 0, 0, 0], [1, 3, 0, 0, 0, 0, 0, 0]])
        assert encoded.mask is None
        assert (text.tokens, text.depth) == (8, DEPTH)
        assert torch.equal(encoded.tokens, text.model(input_ids=ids).last_hidden_state)

    @torch.no_grad()
    def test_the_final_layer_norm_is_applied(self) -> None:
        tower = make_text().model
        with torch.no_grad():
            tower.final_layer_norm.weight.zero_()
            tower.final_layer_norm.bias.fill_(3.0)
        assert torch.equal(CLIPTextEncoder(tower, make_tokenizer())(["a"]).tokens, torch.full((1, 8, DEPTH), 3.0))

    def test_unknown_words_are_named_with_near_ones(self) -> None:
        with pytest.raises(UserError) as caught:
            make_text()(["a red ball", "a blau dragon rolls over a dragon"])
        assert str(caught.value) == (
            "unknown words 'blau' (did you mean blue?), 'dragon' (did you mean wagon?): "
            "this model knows 9 words; see `streamingt2v models --words`"
        )
        with pytest.raises(UserError, match="^unknown word 'xyz': this model knows 9 words; see `streamingt2v models"):
            make_text()(["xyz"])

    def test_many_unknown_words_make_one_short_line(self) -> None:
        with pytest.raises(UserError, match=r"'x7' and 92 more: this model knows"):
            make_text()([" ".join(f"x{i}" for i in range(100))])

    def test_too_long_prompts_are_never_cut(self) -> None:
        assert make_text()(["a a a a a a"]).tokens.shape == (1, 8, DEPTH)
        with pytest.raises(
            UserError, match="^the prompt is too long by 1 tokens: about 6 of its 7 words fit, shorten it"
        ):
            make_text()(["a a a a a a a"])

    def test_vocabulary(self) -> None:
        assert make_text().vocabulary == WORDS
        assert make_text(unk_token="<eos>").vocabulary is None

    def test_a_tokenizer_that_does_not_fit(self) -> None:
        with pytest.raises(UserError, match="knows 13 tokens, the text encoder 10: they belong to different models"):
            make_text(vocabulary=10)
        with pytest.raises(UserError, match='has no padding token: name one as "pad_token" in tokenizer_config.json'):
            make_text(pad_token=None)


class TestImage:
    @torch.no_grad()
    @pytest.mark.parametrize("rows", [8, 10])
    def test_resized_normalised_projected(self, rows: int) -> None:
        config = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            projection_dim=6,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
        tower = randomised(CLIPVisionModelWithProjection(config))
        encoder = CLIPImageEncoder(tower, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
        images = torch.rand(2, 3, rows, 8, generator=torch.Generator().manual_seed(0))
        square = images if rows == 8 else functional.interpolate(images, (8, 8), mode="bicubic", align_corners=True)
        normal = (square - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.5, 0.25, 0.2])[:, None, None]
        assert encoder.width == 6
        assert torch.allclose(encoder(images), tower(pixel_values=normal).image_embeds, atol=1e-6)


def test_layouts_are_inverse_and_in_order() -> None:
    maps = torch.arange(2 * 3 * 5 * 2 * 4.0).reshape(6, 5, 2, 4)
    features = to_features(maps, 2)
    assert features.shape == (2, 3, 8, 5)
    assert features[1, 2, 1 * 4 + 3, 4] == maps[1 * 3 + 2, 4, 1, 3]
    assert torch.equal(to_maps(features, 2), maps)


def _delta_of(name: str) -> Delta:
    """A delta that differs between rows, frames, cells and channels."""

    def delta(value: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(len(name))
        return 0.3 * torch.randn(value.shape, generator=generator) + 0.1 * torch.tanh(value)

    return delta


def _naive(unet: UNet3DConditionModel, call: Call, deltas: dict[str, Delta]) -> Tensor:
    """The same by hand: skips are edited as the UNet's own extra residuals, row by row and frame by frame."""
    batch, _, frames, _, _ = call.latents.shape
    skips: list[Tensor] = []
    unet.transformer_in.register_forward_hook(lambda module, args, output: skips.append(output[0]))
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, args, output: skips.extend(output[1]))

    def added(name: str, maps: Tensor) -> Tensor:
        value = torch.stack(
            [torch.stack([maps[row * frames + frame].flatten(1).T for frame in range(frames)]) for row in range(batch)]
        )
        delta = deltas[name](value) if name in deltas else torch.zeros_like(value)
        flat = [delta[row, frame].T.reshape(maps.shape[1:]) for row in range(batch) for frame in range(frames)]
        return maps + torch.stack(flat)

    def edit_text(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            rows = call.context + deltas[name](call.context)
            return args, {**kwargs, "encoder_hidden_states": torch.stack([row for row in rows for _ in range(frames)])}

        return hook

    for name, module in unet.named_modules():
        if name in deltas and name != "mid_block":
            module.register_forward_pre_hook(edit_text(name), with_kwargs=True)
    unet.mid_block.register_forward_hook(lambda module, args, output: added("mid_block", output))
    edits = _Late(lambda: [added(f"skips.{i}", maps) - maps for i, maps in enumerate(skips)])
    return unet(call.latents, call.time, call.context, down_block_additional_residuals=edits).sample


class _Late:
    """An iterable computed when it is first needed: the residuals depend on the skips themselves."""

    def __init__(self, make: Callable[[], list[Tensor]]) -> None:
        self.make = make

    def __iter__(self) -> Any:
        return iter(self.make())


def _motion_unet(latents: Tensor, text: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    unet = UNetMotionModel(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=DEPTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    randomised(unet)
    repeated = text.repeat_interleave(FRAMES, dim=0)
    return unet, lambda: unet(latents, torch.tensor(5), repeated).sample


def _i2vgen_unet(latents: Tensor, text: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    unet = I2VGenXLUNet(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=DEPTH,
        attention_head_dim=4,
    )
    randomised(unet)
    fps, image = torch.tensor([8, 8]), torch.ones(2, DEPTH)
    return (
        unet,
        lambda: (
            unet(
                latents,
                torch.tensor(5),
                fps=fps,
                image_latents=latents,
                image_embeddings=image,
                encoder_hidden_states=text,
            ).sample
        ),
    )
