"""What every backbone keeps."""
# ruff: noqa: D102 - the names of tests are sentences

from abc import ABC, abstractmethod
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from streaming.backbone import Backbone, Call, FeatureEncoder
from streaming.conformance.one_graph import check_one_graph
from streaming.conformance.probe import Listener, plain_call, sites_of, unit
from streaming.keys import Key
from streaming.sites import Delta, Deltas, FeatureSite, InputSite

KEY = Key(0).fold("backbone conformance")


class BackboneConformance(ABC):
    """Subclass it as `TestMine`, define `make`, and set the attributes that differ."""

    channels: int = 4
    """Latent channels."""
    high: int = 8
    """Latent cells; choose few."""
    wide: int = 8
    """Latent cells."""
    time: float = 500.0
    """A time within the backbone's range."""
    text_depth: int | None = None
    """Channels of a text token as the backbone takes it, if its sites hold a projection; None: those of the sites."""
    features_are_everything: bool = True
    """Whether the decoder half knows the latents through the feature sites alone (a UNet's skips and middle)."""
    text_enters_at_sites: bool = True
    """Whether text reaches the prediction through the context sites alone (no pooled text beside them)."""
    encoder_continues_backbone: bool = True
    """Whether a new feature encoder, given no condition, has the backbone's own features at the sites."""

    @abstractmethod
    def make(self) -> Backbone:
        """The backbone under test: small, in eval mode, in float32, with weights that are not zero."""

    def call(self, rows: int = 2, seed: int = 0, frames: int | None = None) -> Call:
        """A call that the backbone takes, by default as long as its window."""
        backbone, key = self.make(), KEY.fold("call", seed)
        site = backbone.context_sites[0]
        shape = (rows, self.channels, frames or backbone.window.frames, self.high, self.wide)
        text = key.fold("text").normal(rows, site.tokens, self.text_depth or site.depth)
        return plain_call(key.normal(*shape), text, self.time)

    def test_sites_have_names_of_their_own(self) -> None:
        names = [site.name for site in sites_of(self.make())]
        assert len(names) == len(set(names))

    def test_the_prediction_has_the_shape_of_the_latents(self) -> None:
        for frames in (None, self.make().window.overlap or None):
            call = self.call(frames=frames)
            prediction = _run(self.make(), call)
            assert prediction.shape == call.latents.shape and prediction.dtype == call.latents.dtype
            assert bool(torch.isfinite(prediction).all())

    def test_it_keeps_no_state(self) -> None:
        backbone = self.make()
        first = _run(backbone, self.call())
        _run(backbone, self.call(rows=1, seed=1), {site.name: lambda value: value for site in sites_of(backbone)})
        assert torch.equal(_run(backbone, self.call()), first)

    def test_rows_do_not_know_of_each_other(self) -> None:
        backbone, call = self.make(), self.call(rows=2)
        both = _run(backbone, call)
        for row in range(2):
            alone = _run(backbone, _row(call, row))
            torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-5, atol=1e-5)

    def test_deltas_of_zero_change_no_bit(self) -> None:
        backbone = self.make()
        zeros = {site.name: torch.zeros_like for site in sites_of(backbone)}
        assert torch.equal(_run(backbone, self.call(), zeros), _run(backbone, self.call()))

    def test_every_site_is_reached_once_with_the_shape_it_declares(self) -> None:
        backbone, call = self.make(), self.call()
        listener = Listener(sites_of(backbone))
        _run(backbone, call, listener.deltas)
        assert {name: len(values) for name, values in listener.seen.items()} == dict.fromkeys(listener.seen, 1)
        rows, frames = call.latents.shape[0], call.latents.shape[2]
        for site in _of_features(backbone):
            shape = listener.seen[site.name][0].shape
            assert (len(shape), shape[0], shape[1], shape[3]) == (4, rows, frames, site.width), site
            assert not isinstance(site, InputSite) or shape[2] == _positions(site, self.high, self.wide), site
        for site in backbone.context_sites:
            assert listener.seen[site.name][0].shape == (rows, site.tokens, site.depth), site

    def test_every_site_matters(self) -> None:
        backbone, call = self.make(), self.call()
        plain = _run(backbone, call)
        for site in sites_of(backbone):
            changed = _run(backbone, call, {site.name: lambda value: unit(KEY.fold("delta"), value)})
            assert not torch.equal(changed, plain), f"{site.name} changes nothing"

    def test_deltas_are_added_to_features(self) -> None:
        """Deltas that cancel every feature leave a prediction that knows nothing of the latents."""
        if not self.features_are_everything:
            pytest.skip("the decoder half also reads latents some other way")
        backbone, call = self.make(), self.call()
        constant = _replacing(backbone.feature_sites, lambda value: unit(KEY.fold("feature"), value))
        one, other = (_run(backbone, c, constant) for c in (call, call.with_(latents=call.latents.flip(3) + 1)))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def test_deltas_are_added_to_the_text(self) -> None:
        """Deltas that turn one text into another give the other's prediction."""
        if not self.text_enters_at_sites:
            pytest.skip("text also enters some other way")
        backbone, call = self.make(), self.call()
        listener = Listener(backbone.context_sites)
        expected = _run(backbone, call.with_(context=self.call(seed=1).context), listener.deltas)
        other = {name: lambda value, text=seen[0]: text - value for name, seen in listener.seen.items()}
        swapped = _run(backbone, call, other)
        torch.testing.assert_close(swapped, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(_run(backbone, call), expected, rtol=1e-4, atol=1e-4)

    def test_an_unknown_site_is_an_error_that_lists_the_sites(self) -> None:
        backbone = self.make()
        with pytest.raises(KeyError, match="no such site: elsewhere") as told:
            backbone(self.call(), {"elsewhere": torch.zeros_like})
        assert all(site.name in str(told.value) for site in sites_of(backbone))

    def test_gradients_reach_every_delta(self) -> None:
        backbone = self.make()
        knobs = {site.name: torch.zeros((), requires_grad=True) for site in sites_of(backbone)}
        deltas = {name: lambda value, knob=knob: knob * unit(KEY, value) for name, knob in knobs.items()}
        prediction = backbone(self.call(), deltas)
        (prediction * unit(KEY.fold("loss"), prediction)).sum().backward()
        assert all(knob.grad is not None and float(knob.grad) != 0 for knob in knobs.values())

    def test_the_encoder_gives_features_at_every_site_in_order(self) -> None:
        backbone = self.make()
        for frames in (backbone.window.frames, backbone.window.overlap or 1):
            call, listener = self.call(frames=frames), Listener(backbone.feature_sites)
            _run(backbone, call, listener.deltas)
            encoder = backbone.feature_encoder().eval()
            features = encoder(call, self._condition(encoder, call))
            assert list(features) == [site.name for site in backbone.feature_sites]
            assert [f.shape for f in features.values()] == [values[0].shape for values in listener.seen.values()]

    def test_the_encoder_begins_as_the_backbones_own(self) -> None:
        if not self.encoder_continues_backbone:
            pytest.skip("its features are not those of the sites")
        backbone, call = self.make(), self.call()
        listener, encoder = Listener(backbone.feature_sites), backbone.feature_encoder().eval()
        _run(backbone, call, listener.deltas)
        features = encoder(call, torch.zeros_like(self._condition(encoder, call)))
        for name, values in listener.seen.items():
            torch.testing.assert_close(features[name], values[0], rtol=1e-5, atol=1e-5)

    def test_the_encoder_reads_its_condition_in_every_feature(self) -> None:
        encoder, call = self.make().feature_encoder().eval(), self.call()
        one, other = (encoder(call, scale * self._condition(encoder, call)) for scale in (1, 2))
        assert not any(torch.equal(one[name], other[name]) for name in one)

    def test_every_weight_of_the_encoder_gets_a_gradient(self) -> None:
        encoder, call = self.make().feature_encoder(), self.call()
        features = encoder(call, self._condition(encoder, call))
        torch.stack([(value * unit(KEY.fold("loss"), value)).sum() for value in features.values()]).sum().backward()
        assert not [name for name, weight in encoder.named_parameters() if weight.grad is None]

    def test_the_encoder_shares_nothing_with_the_backbone(self) -> None:
        backbone, call = self.make(), self.call()
        before, encoder = _run(backbone, call), backbone.feature_encoder()
        assert any(True for _ in encoder.parameters())
        assert all(weight.requires_grad for weight in encoder.parameters())
        with torch.no_grad():
            for weight in encoder.parameters():
                weight.add_(1)
        assert torch.equal(_run(backbone, call), before)

    def test_frames_may_have_times_of_their_own(self) -> None:
        backbone, call = self._taking_given_frames(), self.call()
        generated = _generated(call)
        spread = call.with_(time=call.time[:, None].expand(*generated.shape), mask=generated)
        torch.testing.assert_close(_run(backbone, spread), _run(backbone, call))

    def test_given_frames_are_clean_at_any_time(self) -> None:
        backbone, call = self._taking_given_frames(), self.call()
        given = call.with_(mask=_generated(call, given=1))
        prediction = _run(backbone, given)[:, :, 1:]
        assert not torch.allclose(prediction, _run(backbone, call)[:, :, 1:])
        times = call.time[:, None].repeat(1, call.latents.shape[2])
        times[:, 0] /= 2
        torch.testing.assert_close(_run(backbone, given.with_(time=times))[:, :, 1:], prediction)

    def test_every_row_has_its_own_given_frames(self) -> None:
        backbone, call = self._taking_given_frames(), self.call(rows=2)
        given = _generated(call, given=1)
        first = given | torch.tensor([[False], [True]])
        expected = [_run(backbone, call.with_(mask=given))[:1], _run(backbone, call)[1:]]
        mixed = _run(backbone, call.with_(mask=first))
        torch.testing.assert_close(mixed, torch.cat(expected), rtol=1e-5, atol=1e-5)

    def test_given_frames_are_not_ignored_in_silence(self) -> None:
        backbone, call = self.make(), self.call()
        if backbone.takes_given_frames:
            pytest.skip("it takes them")
        with pytest.raises(ValueError):
            _run(backbone, call.with_(mask=_generated(call, given=1)))

    def test_it_compiles_to_one_graph(self) -> None:
        check_one_graph(self)

    def _taking_given_frames(self) -> Backbone:
        backbone = self.make()
        if not backbone.takes_given_frames:
            pytest.skip("it takes no given frames")
        return backbone

    def _condition(self, encoder: FeatureEncoder, call: Call) -> Tensor:
        rows, _, frames, high, wide = call.latents.shape
        return KEY.fold("condition").normal(rows, frames, high * wide, encoder.condition_width)


@torch.no_grad()
def _run(backbone: Backbone, call: Call, deltas: Deltas | None = None) -> Tensor:
    return backbone(call, deltas or {})


def _generated(call: Call, given: int = 0) -> Tensor:
    """A mask of all frames but the first so many."""
    mask = torch.ones(call.latents.shape[0], call.latents.shape[2], dtype=torch.bool)
    mask[:, :given] = False
    return mask


def _row(call: Call, row: int) -> Call:
    one = slice(row, row + 1)
    return call.with_(
        latents=call.latents[one], time=call.time[one], context=call.context[one], guided=call.guided[one]
    )


def _of_features(backbone: Backbone) -> tuple[FeatureSite | InputSite, ...]:
    first = () if backbone.input_site is None else (backbone.input_site,)
    return (*first, *backbone.feature_sites)


def _positions(site: InputSite, high: int, wide: int) -> int:
    """Of the first layer's output: cells by the stride, rounded up."""
    return -(-high // site.stride[0]) * -(-wide // site.stride[1])


def _replacing(sites: Iterable[FeatureSite], by: Delta) -> Deltas:
    return {site.name: lambda value: by(value) - value for site in sites}
