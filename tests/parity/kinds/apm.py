"""APM: image tokens of embeddings, one cross-attention with the mixed context, and CLIP's preprocessing."""

import re

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from adapters.apm import APM, APMConfig, ContextMixer
from adapters.official_names import mixer_to_ours
from backends.image_preprocess import CLIP_MEAN, CLIP_STD, prepare, resize
from streaming.codec import ImageEncoder
from streaming.sites import ContextSite
from tests.parity.fixture import PART, Fixture
from tests.parity.registry import handles


class Looked(ImageEncoder):
    """Gives embedding number n for an image of value n / count."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    @property
    def width(self) -> int:
        """The embeddings'."""
        return self.embeddings.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """The embeddings that the images stand for."""
        count = len(self.embeddings)
        return self.embeddings[(images[:, 0, 0, 0] * count).round().long().clamp(max=count - 1)]


@handles("st2v_apm_*")
def apm(fixture: Fixture) -> None:
    """By what the file holds; a file may hold several."""
    if fixture.names(r"in\.clip_embedding\w*"):
        image_tokens(fixture)
    if fixture.names(r"in\.hidden_states"):
        cross_attention(fixture)
    elif images := _images(fixture):
        preprocessing(fixture, images)
    if not fixture.used:
        fixture.give_up("holds neither in.clip_embedding*, in.hidden_states nor images")


def image_tokens(fixture: Fixture) -> None:
    """in.clip_embedding_X [(B frames), width] -> out.tokens_X [B, tokens, depth]: mean over frames, then the MLP."""
    state = fixture.state("context_embedding.")
    inner, width = state["0.weight"].shape
    for name in fixture.names(r"in\.clip_embedding\w*"):
        given, out = fixture.read(re.escape(name)), "out.tokens" + name.removeprefix("in.clip_embedding")
        if out not in fixture.tensors:
            fixture.give_up(f"{name} without {out}")
        batch, tokens, depth = fixture.tensors[out].shape
        memory = APM(
            APMConfig(sites=(ContextSite("x", depth, 1),), image_width=width, inner=inner, image_tokens=tokens),
            Looked(given),
        )
        weights = {"proj_in.weight": "0.weight", "proj_in.bias": "0.bias"}
        weights |= {"proj_out.weight": "2.weight", "proj_out.bias": "2.bias"}
        memory.load_state_dict({ours: state[theirs] for ours, theirs in weights.items()}, strict=False)
        pixels = torch.arange(len(given)).div(len(given)).view(batch, -1, 1, 1, 1).expand(-1, -1, 3, -1, -1)
        fixture.check(out, memory.remember(pixels).tokens)


def cross_attention(fixture: Fixture) -> None:
    """One spatial cross-attention: keys and values from text + SiLU(alpha) mixed; also with alpha = 0."""
    config, state = fixture.config, fixture.state()
    context, hidden = fixture.read(r"in\.context"), fixture.read(r"in\.hidden_states")
    if "conv.weight" not in state:
        fixture.give_up("a cross-attention without state.conv.weight, which mixes the context")
    text, tokens, _ = state["conv.weight"].shape
    depth = context.shape[2]
    mixer = ContextMixer(ContextSite("x", depth, text), tokens - text)
    mixer.load_state_dict({mixer_to_ours(k): v for k, v in state.items() if k.startswith(("conv", "alpha"))})
    attention = Attention(
        query_dim=int(config.get("query_dim", hidden.shape[-1])),
        cross_attention_dim=depth,
        heads=int(config["heads"]),
        dim_head=int(config["dim_head"]),
    ).eval()
    attention.load_state_dict({k: v for k, v in state.items() if k.startswith("to_")})
    words, image = context[:, :text], context[:, text:]
    mixed = words + mixer(words, image)
    repeated = hidden.shape[0] // context.shape[0]  # one context for all frames of a video

    def attended(tokens: Tensor) -> Tensor:
        return attention(hidden, encoder_hidden_states=tokens.repeat_interleave(repeated, dim=0))

    fixture.check("out.mixed_context", mixed)
    fixture.check("out.hidden_states", attended(mixed))
    fixture.check("out.hidden_states_alpha0", attended(words))


def preprocessing(fixture: Fixture, images: list[str]) -> None:
    """CLIP's input for images [N, 3, H, W] in [-1, 1], or bytes: `in.image_256` goes with `out.NAME_256`.

    An output belongs to the image with which its name has most words in common, of several the one with least others;
    one of a zero image that is not given belongs to a grey one. `_check_prepared` says what names of outputs mean.
    """
    for name in fixture.names(r"out\.(?!clip_embed(?!\w*input)|tokens)[\w.]+"):
        words = _words(name)
        zero = words & {"zero", "zeros", "grey", "gray", "uncond"}
        if zero and not any(zero & _words(image) for image in images):
            like = fixture.tensors[images[0]]
            _check_prepared(fixture, torch.zeros_like(like[:1].float()), name)
            continue
        own = max(images, key=lambda image: (len(words & _words(image)), -len(_words(image) - words)))
        _check_prepared(fixture, _channels_first(fixture.read(re.escape(own))), name)


def _words(name: str) -> set[str]:
    """`image`, `256` of `in.image_256`."""
    return set(re.findall(r"[a-z]+|\d+", name.partition(".")[2]))


def _channels_first(image: Tensor) -> Tensor:
    return image if image.shape[-3] == 3 else image.movedim(-1, -3)


def _images(fixture: Fixture) -> list[str]:
    tensors = fixture.tensors
    return [
        name
        for name in fixture.names(r"in\.[\w.]+")
        if tensors[name].ndim >= 3 and 3 in (tensors[name].shape[-3], tensors[name].shape[-1])
    ]


def _check_prepared(fixture: Fixture, given: Tensor, name: str) -> None:
    """`resized` and `bicubic` before the normalisation (in the range of what is expected), others normalised."""
    expected = next(value for key, value in fixture.tensors.items() if PART.sub(r"\1", key) == name)
    value = given if given.is_floating_point() else given.float() / 127.5 - 1
    colours = [fixture.config.get(key, default) for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))]
    images, size = value.reshape(-1, *value.shape[-3:]) / 2 + 0.5, (expected.shape[-2], expected.shape[-1])
    if re.search(r"resize|bicubic|unnorm|before", name):
        resized = resize(images, size)
        prepared = 2 * resized - 1 if float(expected.min()) < -0.25 else resized
    else:
        prepared = prepare(images, size, *colours)
    fixture.check(name, prepared.reshape(expected.shape) if prepared.numel() == expected.numel() else prepared)
