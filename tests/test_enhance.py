"""Joint and causal enhancement on toys: against a plain reference, against each other, and against an oracle."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import final

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.toy_dit import ToyDiTBackend
from backends.toy_unet import PoolingCodec, ToyUNetBackend, WordHashes
from streaming.backbone import Backbone, NoiseLevel, Window
from streaming.blend import cross_fade, naive, randomized, randomized_official, shared_noise
from streaming.causal import meet
from streaming.codec import Codec
from streaming.enhance import assemble_enhancer, enhance_causal, enhance_joint
from streaming.enhancer import frame_noise, predict, read, slope
from streaming.errors import UserError
from streaming.guidance import ClassifierFree, Unguided
from streaming.joint import exchange
from streaming.keys import Key
from streaming.prompts import PromptSchedule
from streaming.sample import Sampler, Step
from streaming.sample_sde import TrailingSDE, make_solver

CPU, KEY, PROMPT = torch.device("cpu"), Key(5), PromptSchedule.fixed("a red ball")
BLENDERS = [randomized, randomized_official, cross_fade, shared_noise, naive]
UNET = ToyUNetBackend().enhancer(None, device=CPU, dtype=torch.float32)
DIT = ToyDiTBackend().enhancer(None, device=CPU, dtype=torch.float32)


def toy(blender=randomized, model=UNET, **changes):
    settings = {"steps": 3, "height": 16, "width": 24, **changes}
    return assemble_enhancer(model, blender(6, 2), **settings)


def video(length, seed=0, rows=8, cols=12):
    return Key(seed).fold("video").normal(1, length, 3, rows, cols).sigmoid()


def joint(enhancer, frames, **options):
    return torch.cat(list(enhance_joint(enhancer, frames, PROMPT, key=KEY, **options)), dim=1)


def causal(enhancer, *pieces):
    return torch.cat(list(enhance_causal(enhancer, pieces, PROMPT, key=KEY)), dim=1)


@final
class Oracle(Backbone):
    """Knows the clean video: chunk after chunk of a step, its values are 1, 2, 3, ... times `unit`, at v-prediction."""

    feature_sites, context_sites, window = (), (), Window(frames=6, overlap=2)

    def __init__(self, chunks, unit=0.1):
        super().__init__()
        self.chunks, self.unit, self.calls = chunks, unit, 0

    def forward(self, call, deltas):
        clean = self.unit * (1 + self.calls % self.chunks)
        self.calls += 1
        return (call.level.signal * call.latents - clean) / call.level.noise

    def feature_encoder(self):
        raise NotImplementedError


def all_knowing(oracle, blender=randomized):
    """An enhancer whose last step lands on the oracle's clean video."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True)
    sampler = Sampler("ddim", 3, eta=0.0)
    return replace(toy(blender), backbone=oracle, guidance=Unguided(), scheduler=scheduler, sampler=sampler)


@pytest.mark.parametrize("length", [1, 6, 7, 10, 11, 15])
@pytest.mark.parametrize("mode", [joint, causal])
def test_as_many_frames_come_out_at_the_size_asked_for(mode, length):
    result = mode(toy(), video(length))
    assert result.shape == (1, length, 3, 16, 24)
    assert result.min() >= 0 and result.max() <= 1


def reference(enhancer, frames):
    """One video of latents, whose prediction is put together frame by frame (as in the published code)."""
    large = F.interpolate(frames[0], (enhancer.height, enhancer.width), mode="bicubic", antialias=True).clamp(0, 1)
    clean = enhancer.codec.encode(large[None])
    length, text = clean.shape[2], read(enhancer, "a red ball")
    spans = enhancer.blender.spans(length)

    def denoise(latents, step):
        cuts = [(start[:, :, s.start : s.stop], latents[:, :, s.start : s.stop]) for s in spans]
        parts = [predict(enhancer, text, *cut, step, k) for k, cut in enumerate(cuts)]
        owners = enhancer.blender.owners(length, KEY.fold("blend", step.index)).tolist()
        return torch.stack([parts[k][:, :, n - spans[k].start] for n, k in enumerate(owners)], dim=2)

    def noise(key):
        return frame_noise(enhancer, key, 0, range(length), clean)

    start, strength = noise(KEY.fold("start")), enhancer.strength
    fresh = lambda step: noise(KEY.fold("step", step))  # noqa: E731
    latents = enhancer.sampler(denoise, start, fresh, enhancer.scheduler, strength=strength, clean=clean)
    return enhancer.codec.decode(latents)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "dpm++sde", "dpm++sde-trailing"])
@pytest.mark.parametrize("length", [6, 10, 11])
def test_joint_equals_the_reference(sampler, length):
    enhancer = replace(toy(), sampler=make_solver(sampler, 4))
    torch.testing.assert_close(joint(enhancer, video(length)), reference(enhancer, video(length)))


def test_joint_equals_the_reference_on_a_flow():
    enhancer = toy(model=DIT)
    torch.testing.assert_close(joint(enhancer, video(11)), reference(enhancer, video(11)))


@pytest.mark.parametrize("blender", BLENDERS)
@pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])
def test_one_chunk_is_the_same_in_both_modes(blender, model):
    for length in (4, 6):
        assert torch.equal(joint(toy(blender, model), video(length)), causal(toy(blender, model), video(length)))


@pytest.mark.parametrize("blender", [naive, shared_noise])
@pytest.mark.parametrize("length", [10, 11, 13])
def test_uncoupled_chunks_are_the_same_in_both_modes(blender, length):
    assert torch.equal(joint(toy(blender), video(length)), causal(toy(blender), video(length)))


def test_the_first_chunk_of_causal_mode_knows_nothing_of_later_ones():
    short, long = video(6), torch.cat([video(6), video(8, seed=1)], dim=1)
    enhancer = toy(steps=8)
    assert torch.equal(causal(enhancer, short)[:, :4], causal(enhancer, long)[:, :4])
    assert not torch.equal(joint(enhancer, short)[:, :4], joint(enhancer, long)[:, :4])


@pytest.mark.parametrize("blender", BLENDERS)
def test_blenders_differ(blender):
    """Randomized blending draws the same in both conventions only by chance, so all five results differ."""
    others = [other for other in BLENDERS if other is not blender]
    mine = joint(toy(blender, steps=6), video(14))
    assert not any(torch.equal(mine, joint(toy(other, steps=6), video(14))) for other in others)


@pytest.mark.parametrize("blender", BLENDERS)
def test_chunks_may_be_evaluated_in_any_order(blender):
    def backwards(function, chunks):
        return list(map(function, reversed(list(chunks))))[::-1]

    enhancer, frames = toy(blender), video(15)
    serial = joint(enhancer, frames)
    assert torch.equal(serial, joint(enhancer, frames, mapper=backwards))
    for together in (2, 3, 100):
        torch.testing.assert_close(joint(enhancer, frames, mapper=backwards, together=together), serial)
    with ThreadPoolExecutor(2) as pool:
        assert torch.equal(serial, joint(enhancer, frames, mapper=pool.map))


@settings(max_examples=8)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_causal_mode_does_not_care_how_frames_arrive(cuts):
    frames = video(sum(cuts))
    assert torch.equal(causal(toy(steps=2), frames), causal(toy(steps=2), *frames.split(cuts, dim=1)))


def test_causal_mode_gives_frames_while_they_arrive():
    asked = []

    def camera():
        for n in range(14):
            asked.append(n)
            yield video(1, seed=n)

    given, frames = [], 0
    for piece in enhance_causal(toy(), camera(), PROMPT, key=KEY):
        frames += piece.shape[1]
        given.append((len(asked), frames))
    assert given == [(6, 4), (10, 8), (14, 12), (14, 14)]


def test_naive_chunks_are_given_with_their_overlap():
    sizes = [piece.shape[1] for piece in enhance_causal(toy(naive), [video(14)], PROMPT, key=KEY)]
    assert sizes == [6, 4, 4]


def test_joint_mode_gives_pieces_of_a_stride():
    sizes = [piece.shape[1] for piece in enhance_joint(toy(), video(15), PROMPT, key=KEY)]
    assert sizes == [4, 4, 1, 6]


def living_bytes():
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum(storage for _, storage in {(t.data_ptr(), t.untyped_storage().nbytes()) for t in tensors})


@pytest.mark.parametrize("blender", [randomized, naive])
def test_causal_memory_does_not_grow(blender):
    stream = (video(1, seed=n) for n in range(46))
    pieces = enhance_causal(toy(blender, steps=2), stream, PROMPT, key=KEY)
    gc.freeze()  # what lives already is not looked at
    held = [living_bytes() for _ in pieces]
    gc.unfreeze()
    assert len(held) > 9
    assert max(held[2:-1]) == min(held[2:-1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_a_prediction_carried_over_stands_for_the_same_clean_video(kind):
    level = NoiseLevel(0.75, 0.25) if kind == "flow" else NoiseLevel(0.6, 0.8)
    scheduler = FlowMatchEulerDiscreteScheduler() if kind == "flow" else DDIMScheduler(prediction_type=kind)
    clean, here, there = (KEY.fold(name).normal(1, 3, 4, 2, 2) for name in ("clean", "here", "there"))

    def standing_for(latents):
        noise = (latents - level.signal * clean) / level.noise
        predictions = {"epsilon": noise, "sample": clean, "flow": noise - clean}
        return predictions.get(kind, level.signal * noise - level.noise * clean)

    enhancer = replace(toy(), scheduler=scheduler, sampler=Sampler("euler" if kind == "flow" else "ddim", 3))
    rate = slope(enhancer, Step(0, 500.0, level))
    met = meet(torch.zeros_like(here), here, (there, standing_for(there)), torch.zeros(4), rate)
    torch.testing.assert_close(met, standing_for(here))
    spans, weights = [range(4), range(4)], torch.tensor([[1.0] * 4, [0.0] * 4])
    stack = torch.cat([standing_for(there), torch.zeros_like(here)])
    agreed = exchange(stack, torch.cat([there, here]), spans, weights, rate)
    torch.testing.assert_close(agreed, torch.cat([standing_for(there), standing_for(here)]))


def clean_values(frames):
    """The oracle's clean values (in tenths) that decoded frames show."""
    return ((4 * frames - 2)[0, :, 0, 0, 0] * 10).round().int().tolist()


def test_every_frame_is_its_owners_at_the_end_of_joint_mode():
    result = clean_values(joint(all_knowing(Oracle(3)), video(14)))
    owners = randomized(6, 2).owners(14, KEY.fold("blend", 2))
    assert result == (owners + 1).tolist()


def causal_owners(blender, length):
    """Chunk by chunk: a later one takes over behind the cut in the regular overlap, wherever it begins itself."""
    owners, spans = [0] * length, blender.spans(length)
    for right in range(1, len(spans)):
        met = range(spans[right - 1].stop - blender.overlap, spans[right - 1].stop)
        share = blender.boundary_share(right, blender.overlap, KEY.fold("blend", 2))
        for frame in [n for n, weight in zip(met, share, strict=True) if weight] + [*range(met.stop, length)]:
            owners[frame] = right
    return owners


@pytest.mark.parametrize("length", [11, 13, 14, 15])
def test_every_frame_is_its_owners_at_the_end_of_causal_mode(length):
    """A last chunk that is shifted left (all lengths but 14) meets more frames, but changes no more of them."""
    enhancer = all_knowing(Oracle(12))
    owners = causal_owners(enhancer.blender, length)
    if length == 14:
        assert owners == enhancer.blender.owners(14, KEY.fold("blend", 2)).tolist()
    values = []
    for piece in enhance_causal(enhancer, [video(length)], PROMPT, key=KEY):
        values += clean_values(piece)
    assert values == [3 * (owner + 1) for owner in owners]  # three steps a chunk; the last is what it believes


@pytest.mark.parametrize("blender", BLENDERS)
@pytest.mark.parametrize("mode", [joint, causal])
def test_chunks_that_agree_have_no_seams(mode, blender):
    assert set(clean_values(mode(all_knowing(Oracle(1, unit=0.3), blender), video(11)))) == {3}


def test_a_chunk_follows_the_prompt_at_its_first_frame():
    seen = []

    @final
    class Listening(WordHashes.__mro__[1]):
        def forward(self, prompts):
            seen.append(prompts[-1])
            return UNET.text(prompts)

    enhancer = replace(toy(), text=Listening())
    prompts = PromptSchedule.of({0: "walk", 4: "run", 9: "sit"})
    list(enhance_causal(enhancer, [video(14)], prompts, key=KEY))
    assert seen == ["walk", "run", "run"]
    by_schedule = torch.cat(list(enhance_joint(toy(), video(14), prompts, key=KEY)), dim=1)
    assert torch.equal(
        by_schedule,
        torch.cat(list(enhance_joint(toy(), video(14), PromptSchedule.of({0: "walk", 1: "run"}), key=KEY)), 1),
    )
    assert not torch.equal(by_schedule, joint(toy(), video(14)))


@pytest.mark.parametrize(
    "changed",
    [
        {"strength": 0.3},
        {"steps": 5},
        {"guidance": Unguided()},
        {"negative_prompt": "blurred"},
    ],
    ids=lambda changed: next(iter(changed)),
)
@pytest.mark.parametrize("mode", [joint, causal])
def test_every_setting_changes_the_result(mode, changed):
    assert not torch.equal(mode(toy(), video(8)), mode(toy(**changed), video(8)))


def test_a_key_is_a_result():
    once, again, other = (
        torch.cat(list(enhance_joint(toy(), video(8), PROMPT, key=key)), dim=1) for key in (Key(1), Key(1), Key(2))
    )
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_progress_counts_evaluations():
    said = []
    joint(toy(), video(10), progress=lambda done, total: said.append((done, total)))
    assert said == [(n, 6) for n in range(1, 7)]


def test_noise_is_shared_by_frame_or_not_at_all():
    like = torch.zeros(1, 3, 6, 2, 2)
    for blender, shared in ((randomized, True), (shared_noise, True), (naive, False)):
        left = frame_noise(toy(blender), KEY, 0, range(6), like)
        right = frame_noise(toy(blender), KEY, 1, range(4, 10), like)
        assert torch.equal(left[:, :, 4:], right[:, :, :2]) is shared


@final
class PairsOfFrames(Codec):
    """Packs two pixel frames into a latent one (their mean)."""

    channels, factor = 3, 4

    def latent_frames(self, pixel_frames):
        return (pixel_frames + 1) // 2

    def pixel_frames(self, latent_frames):
        return 2 * latent_frames

    def encode(self, frames):
        even = torch.cat([frames, frames[:, -1:]], dim=1) if frames.shape[1] % 2 else frames
        return PoolingCodec().encode(even.unflatten(1, (-1, 2)).mean(dim=2))

    def decode(self, latents):
        return PoolingCodec().decode(latents).repeat_interleave(2, dim=1)


@pytest.mark.parametrize("length", [1, 11, 12, 13, 20, 25])
@pytest.mark.parametrize("blender", BLENDERS)
def test_a_codec_may_pack_frames_in_time(blender, length):
    enhancer = replace(toy(blender, steps=2), codec=PairsOfFrames())
    assert joint(enhancer, video(length)).shape[1] == length
    assert torch.equal(causal(enhancer, video(length)), causal(enhancer, *video(length).split(3, dim=1)))
    assert causal(enhancer, video(length)).shape[1] == length


@pytest.mark.parametrize(
    "mode", [enhance_joint, lambda e, frames, *rest, **key: enhance_causal(e, [frames], *rest, **key)]
)
def test_prompts_count_pixel_frames_where_a_codec_packs_them(mode):
    """The second chunk begins at latent frame 4, which is pixel frame 8."""
    enhancer = replace(toy(steps=2), codec=PairsOfFrames())

    def prompted(switch):
        prompts = PromptSchedule.of({0: "walk", switch: "run"})
        return torch.cat(list(mode(enhancer, video(20), prompts, key=KEY)), dim=1)

    assert torch.equal(prompted(6), prompted(1)) and torch.equal(prompted(8), prompted(1))
    assert not torch.equal(prompted(9), prompted(1))


@final
class Packing(Codec):
    """Four latent frames for every 13 pixel frames: chunks that are no multiples of 4 do not fit."""

    channels, factor = 3, 4

    def latent_frames(self, pixel_frames):
        return 4 * (pixel_frames // 13) + (pixel_frames % 13 + 3) // 4

    def pixel_frames(self, latent_frames):
        return 13 * (latent_frames // 4) + max(4 * (latent_frames % 4) - 3, 0)

    def encode(self, frames):
        return torch.zeros(1, 3, self.latent_frames(frames.shape[1]), 4, 6)

    def decode(self, latents):
        return torch.zeros(1, self.pixel_frames(latents.shape[2]), 3, 16, 24)


def test_chunks_that_do_not_fit_the_codec_are_refused():
    fitting = replace(toy(), blender=randomized(8, 4), codec=Packing())
    assert joint(fitting, video(52)).shape[1] == 52
    with pytest.raises(UserError, match="cannot begin at latent frame 6, where the codec has packed frames together"):
        joint(replace(fitting, blender=randomized(8, 2)), video(52))


@final
class Failing(Backbone):
    """NaN from its n-th evaluation on."""

    feature_sites, context_sites, window = (), (), Window(frames=6, overlap=2)

    def __init__(self, first):
        super().__init__()
        self.first, self.calls = first, 0

    def forward(self, call, deltas):
        self.calls += 1
        return torch.full_like(call.latents, float("nan") if self.calls > self.first else 0.0)

    def feature_encoder(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("mode", "where"),
    [(joint, "chunk 1 of the enhancement at step 1"), (causal, "chunk 1 of the enhancement at step 0")],
)
def test_nan_is_told_with_chunk_and_step(mode, where):
    with pytest.raises(UserError, match=f"latents became NaN in {where}: lower --guidance or use --dtype float32"):
        mode(replace(toy(), backbone=Failing(3)), video(10))


def test_bad_frames_are_refused():
    for mode in (joint, causal):
        with pytest.raises(UserError, match="2 videos at once: enhancement takes one"):
            mode(toy(), video(6).repeat(2, 1, 1, 1, 1))
        with pytest.raises(UserError, match="frames that are NaN or infinite"):
            mode(toy(), video(6) / 0)
    with pytest.raises(UserError, match="video without frames"):
        joint(toy(), video(1)[:, :0])
    with pytest.raises(UserError, match="no frame to be enhanced"):
        causal(toy(), video(1)[:, :0])
    with pytest.raises(UserError, match="frames of 8x8 pixels after frames of 12x8 pixels: a video has one size"):
        causal(toy(), video(2), video(2, cols=8))


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="enhancement to 24x15: width and height must be positive multiples of 4"):
        toy(height=15)
    for strength in (0.0, 1.5):
        with pytest.raises(UserError, match=f"strength {strength}: choose more than 0 and at most 1"):
            toy(strength=strength)


@pytest.mark.parametrize("mode", [joint, causal])
@pytest.mark.parametrize("bars", [False, True])
def test_a_video_in_the_middle_of_a_canvas(mode, bars):
    enhancer = replace(toy(), canvas=(24, 40), bars=bars)
    seen = []
    codec = enhancer.codec.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enhancer.codec, "encode", lambda frames: seen.append(frames) or codec(frames))
        result = mode(enhancer, video(10))
    assert all(frames.shape[3:] == (24, 40) for frames in seen)
    middle = seen[0][..., 4:20, 8:32]
    black = seen[0].clone()
    black[..., 4:20, 8:32] = 0
    assert not bool(black.any()) and float(middle.min()) >= 0 and float(middle.mean()) > 0.3
    assert result.shape[3:] == enhancer.made == ((24, 40) if bars else (16, 24))
    if not bars:
        whole = mode(replace(enhancer, bars=True), video(10))
        assert torch.equal(result, whole[..., 4:20, 8:32])


def test_a_canvas_of_the_video_s_own_size_changes_nothing():
    assert torch.equal(joint(replace(toy(), canvas=(16, 24)), video(10)), joint(toy(), video(10)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"canvas": (16, 16)}, "enhancement to 24x16: this model takes at most 16x16"),
        ({"canvas": (17, 24)}, "enhancement to 24x17: width and height must be positive multiples of"),
    ],
)
def test_canvases_that_do_not_fit(changes, line):
    with pytest.raises(UserError, match=line):
        replace(toy(), **changes)


def test_presets():
    model = replace(UNET, defaults=replace(UNET.defaults, guidance=3.0, rescale=0.1, canvas_height=80, canvas_width=96))
    window = model.backbone.window
    paper, official = (assemble_enhancer(model, preset=preset) for preset in ("paper", "official"))
    assert paper.guidance == ClassifierFree(3.0, 0.1) and paper.sampler == Sampler("ddim", UNET.defaults.steps, 1.0)
    assert paper.blender == randomized(window.frames, window.overlap)
    assert (paper.canvas, paper.bars, paper.prompt_suffix) == ((80, 96), False, "")
    assert official.guidance == ClassifierFree(7.5, 0.2) and official.sampler == TrailingSDE(30, 1.0, True)
    assert official.blender == randomized_official(window.frames, window.overlap) and official.strength == 0.6
    assert (official.canvas, official.bars, official.prompt_suffix) == ((80, 96), True, ", ")
    asked = assemble_enhancer(model, naive(6, 2), preset="official", steps=4, strength=0.5, guidance=2.0)
    assert (asked.blender, asked.sampler.steps, asked.strength) == (naive(6, 2), 4, 0.5)
    assert asked.guidance == ClassifierFree(2.0, 0.2)
    assert assemble_enhancer(model, guidance=1.0).guidance == Unguided()
    with pytest.raises(UserError, match="unknown preset 'fast': choose paper or official"):
        assemble_enhancer(model, preset="fast")


def test_the_official_preset_s_start_and_comma_show():
    official = toy(preset="official")
    results = [joint(official, video(10))]
    results.append(joint(replace(official, sampler=TrailingSDE(3)), video(10)))
    results.append(joint(replace(official, prompt_suffix=""), video(10)))
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(results[0], joint(replace(official, sampler=TrailingSDE(3, 1.0, True)), video(10)))


@pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])
def test_chunks_with_other_prompts_are_no_batch(model):
    prompts = PromptSchedule.of({0: "a red ball", 8: "a blue box over there"})
    enhancer, frames = toy(model=model), video(23)
    done = []

    def report(at, of):
        done.append((at, of))

    alone, grouped = (
        torch.cat(list(enhance_joint(enhancer, frames, prompts, key=KEY, together=n, progress=report)), dim=1)
        for n in (1, 4)
    )
    torch.testing.assert_close(grouped, alone)
    total = done[0][1]
    assert done.count((total, total)) == 2 and len(done) < 2 * total
