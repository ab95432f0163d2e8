"""Open-Sora's codecs: pieces of 17 frames, windows that are possible, loading by the published names."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from backends.modelscope_codec import AutoencoderKLCodec
from backends.opensora_codec import SCALE, SHIFT, OpenSoraCodec, PieceVAE, autoencoder_config, latent_window, load_codec
from backends.opensora_vae import TemporalSizes, TemporalVAE
from streaming.backbone import Window
from streaming.codec import Codec
from streaming.errors import UserError
from streaming.keys import Key
from tests.parity.kinds.opensora_vae import temporal_vae
from tests.parity.registry import handler_of
from tests.parity_synthesis import changed, met, numbers, synthesise
from tests.toys import run, toy

SDXL = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}


def sizes(**changes):
    plain = dict(channels=4, latents=4, inner=3, entry=2, widths=(2, 4, 4), blocks=1, shortened=(0, 1), groups=2)
    return TemporalSizes(**{**plain, **changes})


def randomised(module, key):
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(key.fold(name).normal(*value.shape) / 3)
    return module.eval()


def pieces(piece=17, **changes):
    return randomised(PieceVAE(TemporalVAE(sizes(**changes)), piece), Key(1))


def autoencoder():
    return randomised(
        AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            scaling_factor=0.18215,
        ),
        Key(2),
    )


@pytest.fixture(scope="module")
def codec():
    return OpenSoraCodec(AutoencoderKLCodec(autoencoder()), pieces()).eval()


def pixels(frames, rows=4, cols=4, batch=1):
    return Key(3).fold(frames).normal(batch, frames, 3, rows, cols).sigmoid()


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (7, 2), (17, 5), (24, 7), (34, 10), (51, 15), (102, 30)])
def test_frames_and_latents_as_published(codec, frames, latents):
    assert codec.latent_frames(frames) == latents
    grid = frames % 17 in (0, 1)
    assert (codec.pixel_frames(latents) == frames) == grid


@torch.no_grad()
def test_lengths_are_what_encode_and_decode_give(codec):
    for frames in range(1, 61):
        latents = codec.encode(pixels(frames, 2, 2))
        assert latents.shape == (1, 4, codec.latent_frames(frames), 1, 1)
        back = codec.decode(latents)
        assert back.shape == (1, codec.pixel_frames(latents.shape[2]), 3, 2, 2)
        assert codec.latent_frames(back.shape[1]) == latents.shape[2] and back.shape[1] <= frames


@given(st.integers(0, 3), st.integers(1, 40), st.integers(1, 400))
def test_lengths_of_other_compressions(halvings, piece, frames):
    with torch.device("meta"):
        vae = PieceVAE(TemporalVAE(sizes(widths=(2,) * 4, shortened=tuple(range(halvings)))), piece)
    factor, left, latents = 2**halvings, frames, 0
    while left > 0:  # piece by piece
        latents += math.ceil(min(left, piece) / factor)
        left -= piece
    assert vae.latent_frames(frames) == latents
    assert vae.latent_frames(vae.frames(latents)) == latents
    assert vae.frames(vae.latent_frames(frames * piece)) == frames * piece
    if latents % vae.latent_frames(piece):  # of an unfinished piece, the fewest frames
        assert vae.latent_frames(vae.frames(latents) - 1) < latents and vae.frames(latents) <= frames


@torch.no_grad()
def test_pieces_know_nothing_of_each_other(codec):
    video = pixels(51)
    latents = codec.encode(video)
    assert torch.equal(codec.encode(video[:, 34:]), latents[:, :, 10:])
    assert not torch.allclose(codec.encode(video[:, 35:])[:, :, -1], latents[:, :, -1], atol=1e-3)
    torch.testing.assert_close(codec.decode(latents)[:, 17:], codec.decode(latents[:, :, 5:]))


@torch.no_grad()
def test_a_frame_changes_all_latents_of_its_piece_and_no_other(codec):
    video = pixels(40)
    changed = video.clone()
    changed[:, 16] = 1 - changed[:, 16]
    moved = (codec.encode(changed) - codec.encode(video)).abs().amax(dim=(0, 1, 3, 4))
    assert bool((moved[:5] > 0).all()) and bool((moved[5:] == 0).all())


@torch.no_grad()
def test_one_piece_at_a_time_is_in_memory():
    class Counting(Codec):
        channels, factor = 4, 1
        seen: list[int] = []

        def latent_frames(self, pixel_frames: int) -> int:
            return pixel_frames

        def pixel_frames(self, latent_frames: int) -> int:
            return latent_frames

        def encode(self, frames):
            self.seen.append(frames.shape[1])
            return F.pad(frames, (0, 0, 0, 0, 0, 1)).transpose(1, 2)

        def decode(self, latents):
            self.seen.append(latents.shape[2])
            return latents[:, :3].transpose(1, 2).clamp(0, 1)

    codec = OpenSoraCodec(Counting(), pieces())
    codec.decode(codec.encode(pixels(41)))
    assert codec.spatial.seen == [17, 17, 7, 17, 17, 5]


@torch.no_grad()
def test_codec_is_the_spatial_one_then_the_temporal_one_then_shift_and_scale(codec):
    video = pixels(20, batch=2)
    maps = codec.spatial.encode(video)
    vae = codec.pieces.temporal_vae
    means = torch.cat([vae.moments(maps[:, :, part])[:, :4] for part in (slice(17), slice(17, 20))], dim=2)
    shift, scale = (torch.tensor(values).view(4, 1, 1, 1) for values in (SHIFT, SCALE))
    latents = codec.encode(video)
    torch.testing.assert_close(latents, (means - shift) / scale)
    again = [vae.decode(means[:, :, part], n) for part, n in ((slice(5), 17), (slice(5, 6), 1))]
    torch.testing.assert_close(codec.decode(latents), codec.spatial.decode(torch.cat(again, dim=2)), atol=1e-4, rtol=0)


@torch.no_grad()
def test_decode_of_a_given_number_of_frames():
    vae = pieces()
    latents = Key(4).normal(1, 4, 7, 2, 3)
    long, short = vae.decode(latents, 25), vae.decode(latents)
    assert long.shape == (1, 4, 25, 2, 3) and short.shape == (1, 4, 22, 2, 3)
    assert torch.equal(long[:, :, :17], short[:, :, :17]) and torch.equal(long[:, :, 20:], short[:, :, 17:])
    with pytest.raises(UserError, match="7 latents do not hold 26 frames: give 8"):
        vae.decode(latents, 26)


@torch.no_grad()
def test_time_padding_is_in_front_only():
    """A naive reference: every convolution sees zeros before the first frame and nothing after the last."""
    from backends.opensora_vae import CausalConv3d

    for kernel, stride in ((3, 1), (3, 2), (1, 1)):
        conv = randomised(CausalConv3d(2, 3, kernel, stride=stride), Key(kernel))
        maps = Key(5).normal(1, 2, 8, 4, 5)
        found = conv(maps)
        for t in range(8 // stride):
            last = stride * t + stride - 1
            frames = [maps[:, :, i] if i >= 0 else torch.zeros(1, 2, 4, 5) for i in range(last - kernel + 1, last + 1)]
            parts = [F.conv2d(f, conv.conv.weight[:, :, i], padding=kernel // 2) for i, f in enumerate(frames)]
            torch.testing.assert_close(found[:, :, t], sum(parts) + conv.conv.bias.view(-1, 1, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shortened": (1,)},
        {"shortened": ()},
        {"blocks": 2, "entry": 4},
        {"channels": 3, "latents": 5, "inner": 6},
        {"widths": (4,), "shortened": ()},
        {"widths": (2, 2, 2, 4), "shortened": (0, 1, 2)},
    ],
)
def test_sizes_come_from_the_shapes(changes):
    vae = pieces(**changes)
    again = PieceVAE.of(vae.state_dict(), groups=2)
    assert again.temporal_vae.sizes == vae.temporal_vae.sizes
    maps = Key(6).normal(1, vae.temporal_vae.sizes.channels, 5, 2, 2)
    with torch.no_grad():
        assert torch.equal(again.encode(maps), vae.encode(maps))
        assert torch.equal(again.decode(vae.encode(maps), 5), vae.decode(vae.encode(maps), 5))


def published(codec):
    state = {f"spatial_vae.module.{name}": value for name, value in codec.spatial.vae.state_dict().items()}
    return {name: value.clone() for name, value in (state | codec.pieces.state_dict()).items()}


@torch.no_grad()
def test_the_published_file_loads(codec, tmp_path):
    save_file(published(codec), tmp_path / "vae.safetensors")
    again, video = load_codec(tmp_path / "vae.safetensors", groups=2), pixels(19)
    assert torch.equal(again.encode(video), codec.encode(video))
    assert (again.channels, again.factor, again.piece) == (4, 2, 17)
    half = load_codec(tmp_path / "vae.safetensors", groups=2, dtype=torch.bfloat16)
    latents = half.encode(video)
    assert latents.dtype == torch.bfloat16 and half.decode(latents.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (
            "spatial_vae.",
            r"is no autoencoder of Open-Sora 1.2: it has not both spatial_vae.module.\* and temporal_vae.\*",
        ),
        ("temporal_vae.", r"it has not both"),
        (
            "temporal_vae.encoder.conv_in",
            "no temporal autoencoder of Open-Sora 1.2: encoder.conv_in.conv.weight is missing",
        ),
        (
            "temporal_vae.decoder.norm1.bias",
            "weights do not fit together: Missing key.*temporal_vae.decoder.norm1.bias",
        ),
        ("scale", "weights do not fit together: Missing key.*scale"),
        ("spatial_vae.module.encoder.conv_in.weight", "no spatial autoencoder .* encoder.conv_in.weight is missing"),
    ],
)
def test_files_that_do_not_load(codec, tmp_path, drop, words):
    state = {name: value for name, value in published(codec).items() if not name.startswith(drop)}
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=words):
        load_codec(tmp_path / "vae.safetensors", groups=2)


def test_wrong_groups_and_unlike_codecs(codec):
    with pytest.raises(UserError, match="2 channels of the temporal autoencoder do not split into 32 groups"):
        PieceVAE.of(codec.pieces.state_dict())
    with pytest.raises(UserError, match="gives 4 channels, the temporal one takes 6: they belong to different models"):
        OpenSoraCodec(codec.spatial, pieces(channels=6))
    with pytest.raises(UserError, match="pieces of 0 frames: choose at least 1"):
        pieces(piece=0)


def test_the_published_sizes():
    """309.7 million parameters of the temporal autoencoder."""
    with torch.device("meta"):
        vae = TemporalVAE(sizes(inner=4, entry=128, widths=(128, 256, 256, 512), blocks=4, shortened=(1, 2), groups=32))
    assert round(sum(value.numel() for value in vae.parameters()) / 1e6, 1) == 309.7
    assert vae.factor == 4
    told = TemporalSizes.of({name: tuple(value.shape) for name, value in vae.state_dict().items()})
    assert told == vae.sizes
    with torch.device("meta"):
        spatial = AutoencoderKL(**autoencoder_config(autoencoder().state_dict(), 2) | SDXL)
    assert autoencoder_config(spatial.state_dict()).items() >= SDXL.items()


def test_default_windows(codec):
    assert latent_window(codec) == Window(15, 5)
    assert latent_window(AutoencoderKLCodec(autoencoder())) == Window(16, 8)
    assert latent_window(codec, overlap=51) == Window(20, 15)
    assert latent_window(codec, 34) == Window(10, 5)
    assert latent_window(codec, 17, 0) == Window(5, 0)
    assert latent_window(codec, 1) == Window(1, 0)
    assert latent_window(AutoencoderKLCodec(autoencoder()), 10) == Window(10, 5)


@pytest.mark.parametrize(
    ("frames", "overlap", "near"),
    [
        (16, 8, (34, 17)),
        (2, 0, (17, 0)),
        (51, 16, (51, 17)),
        (40, 17, (34, 17)),
        (50, 26, (51, 34)),
        (51, 51, (68, 51)),
    ],
)
def test_impossible_windows_name_the_nearest(codec, frames, overlap, near):
    words = (
        f"a window of {frames} frames with an overlap of {overlap} is impossible, because this model codes video in "
        f"pieces of 17 frames: the nearest is {near[0]} with {near[1]}"
    )
    with pytest.raises(UserError, match=words):
        latent_window(codec, frames, overlap)
    latent_window(codec, *near)


@given(st.integers(1, 200), st.integers(0, 200))
def test_a_window_is_whole_pieces_or_an_error_with_a_possible_one(codec, frames, overlap):
    possible = frames % 17 == 0 and overlap % 17 == 0 and overlap < frames or (frames, overlap) == (1, 0)
    try:
        window = latent_window(codec, frames, overlap)
    except UserError as error:
        assert not possible
        near = [int(word) for word in str(error).split("nearest is ")[1].split(" with ")]
        assert latent_window(codec, *near).frames >= 5 and (near[1] > 0) == (overlap > 0)
    else:
        assert possible
        shared = codec.pixel_frames(window.overlap) if window.overlap else 0
        assert (codec.pixel_frames(window.frames), shared) == (frames, overlap)


def test_windows_of_nothing(codec):
    for frames, overlap in ((0, 0), (17, -1)):
        with pytest.raises(UserError, match="neither can be negative or nothing"):
            latent_window(codec, frames, overlap)
    with pytest.raises(
        UserError, match="a window of 8 frames with an overlap of 8 is impossible: the nearest is 9 with 8"
    ):
        latent_window(AutoencoderKLCodec(autoencoder()), 8, 8)


def test_in_the_loop(codec):
    """Opening and later chunks of 51 and 34 frames; the tail is one piece."""
    small = OpenSoraCodec(AutoencoderKLCodec(autoencoder()), pieces(latents=2))
    kit = toy(codec=small, window=latent_window(small))
    chunks = run(kit, 3)
    assert [chunk.frames.shape[1] for chunk in chunks] == [51, 34, 34]
    tail = chunks[-1].checkpoint.tail
    assert tail.frames.shape[1] == 17 and tail.latents.shape[2] == 5
    with torch.no_grad():
        assert torch.equal(small.decode(tail.latents), tail.frames)
    assert torch.equal(tail.frames, chunks[-1].frames[:, 17:])


@pytest.mark.parametrize(("piece", "groups"), [(17, 2), (9, 1), (None, 2)])
def test_fixtures_of_other_sizes(tmp_path, piece, groups):
    vae = pieces(piece or 17, channels=3, latents=5, inner=2, shortened=(1,), groups=groups, blocks=2)
    tensors = {f"state.{name}": value for name, value in vae.state_dict().items()}
    whole = pieces(piece or 20, shortened=(1,))
    for frames in (1, 6, 20):
        latents = whole.latent_frames(frames)
        tensors |= {f"f{frames}.in.x": numbers(frames, 2, 3, frames, 3, 5)}
        tensors |= {f"f{frames}.z": torch.zeros(2, 5, latents, 3, 5), f"f{frames}.y": torch.zeros(2, 3, frames, 3, 5)}
    tensors["f20.moments"] = torch.zeros(2, 10, whole.latent_frames(20), 3, 5)
    config = {"num_groups": groups, "micro_frame_size": piece, "temporal_downsample": [False, True]}
    path = synthesise(tmp_path / "opensora_v12_vae_temporal_b.safetensors", tensors, {"config": config})
    met(path)
    for name in ("f6.y", "f20.z", "f20.moments", "f1.z"):
        with pytest.raises(AssertionError, match=f"{name}: differs by up to"):
            met(changed(path, name, 1e-3))
    wrong = {**config, "temporal_downsample": [True, True], "filters": 4}
    with pytest.raises(AssertionError, match=r"tell filters 2, temporal_downsample \(1,\), its config something else"):
        synthesise(path, tensors, {"config": wrong})


def test_files_of_these_names_are_handled_here():
    for ending in ("", "2", "_b", "_17"):
        assert handler_of(f"opensora_v12_vae_temporal{ending}") is temporal_vae
        for name in ("opensora_v12_rflow", "opensora_v10_iddpm"):
            handler = handler_of(name + ending)
            assert handler is not None and handler.__module__.endswith(name.split("_")[-1])
