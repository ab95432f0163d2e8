"""Model folders of Open-Sora in miniature, as their publishers lay them out."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from backends.modelscope_folder import quiet
from backends.opensora_codec import OpenSoraCodec
from backends.opensora_config import Grid
from backends.opensora_stdit import STDiT
from backends.opensora_stdit2 import STDiT2
from backends.opensora_stdit3 import STDiT3
from streaming.keys import Key, initial_weights
from tests.opensora_networks import SMALL, drawn
from tests.test_model_directories import TEXT, make_tokenizer
from tests.test_opensora_codec import AutoencoderKLCodec, autoencoder, pieces, published

TOKENS, DEPTH = 10, 32
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "ball", "rolls", "slowly", "blue", "aesthetic", "score:", "6.5.")
GRID = Grid(frames=4, rows=3, cols=4)
SETTINGS = {
    "1.0": {},
    "1.1": {"height": 12, "width": 14, "frames": 4, "overlap": 2},
    "1.2": {"height": 12, "width": 14, "frames": 34, "overlap": 17},
}
TRANSFORMER = "transformer/model.safetensors"


def transformer(version, **changes):
    config = replace(SMALL, depth=2, text_depth=DEPTH, text_tokens=TOKENS, qk_norm=version != "1.0")
    config = replace(config, **changes)
    with initial_weights(0):
        if version == "1.0":
            return drawn(STDiT(config, GRID, space_scale=0.5))
        return drawn((STDiT2 if version == "1.1" else STDiT3)(config))


def t5(width=DEPTH, words=WORDS):
    """Draws its own random numbers: as published, but for its sizes."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with initial_weights(3):
        return T5EncoderModel(T5Config(vocab_size=len(words), feed_forward_proj="gated-gelu", **sizes)).eval()


def t5_tokenizer(words=WORDS, **marks):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"} | marks
    )


def save(tensors, path, dtype=torch.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(dtype).contiguous() for name, value in tensors.items()}, path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def settings(folder, **said):
    write_json(folder / "streamingt2v.json", {"steps": 2, **said})


def save_vae(folder, version):
    if version != "1.2":
        autoencoder().save_pretrained(folder)
        return
    save(published(OpenSoraCodec(AutoencoderKLCodec(autoencoder()), pieces())), folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "VideoAutoencoderPipeline", "norm_num_groups": 2})


def build(folder, version):
    """The whole folder, with settings that keep it small."""
    save(transformer(version).state_dict(), folder / TRANSFORMER)
    if version == "1.0":
        write_json(folder / "transformer" / "config.json", {"num_heads": SMALL.heads, "depth": 99})
    with quiet():
        save_vae(folder / "vae", version)
        t5().save_pretrained(folder / "text_encoder")
        t5_tokenizer().save_pretrained(folder / "tokenizer")
    settings(folder, **SETTINGS[version])
    return Path(folder)


def build_shared(own, other):
    """A 1.2 whose latents are single frames: a transformer and settings, the rest lies in another model's folder."""
    save(transformer("1.2", text_depth=TEXT["hidden_size"], text_tokens=6).state_dict(), own / TRANSFORMER)
    settings(own, height=12, width=16, frames=4, overlap=2)
    with quiet(), initial_weights(4):
        autoencoder().save_pretrained(other / "vae")
        CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(other / "text_encoder")
        make_tokenizer().save_pretrained(other / "tokenizer")
    return own, other


def noise(*shape):
    return Key(7).normal(*shape)
