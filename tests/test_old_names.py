"""Model folders with the names of diffusers before 0.18 and of transformers before and since 5."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from backends.modelscope_folder import load_part, quiet
from backends.modelscope_old import load_autoencoder
from streaming.errors import UserError

OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
VAE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae(tmp_path: Path) -> AutoencoderKL:
    made = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    made.save_pretrained(tmp_path)
    return made.eval()


def rewrite(path: Path, *, names: bool, convolutions: bool) -> None:
    """An autoencoder's weights, as they were."""
    old = {}
    for name, value in load_file(path).items():
        attention = ".attentions." in name and any(today in name for today in OLD)
        if attention and convolutions and name.endswith("weight"):
            value = value[:, :, None, None].contiguous()
        for today, before in OLD.items():
            name = name.replace(today, before) if attention and names else name
        old[name] = value
    save_file(old, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("names", "convolutions"), [(True, False), (True, True), (False, True)])
def test_autoencoder(vae: AutoencoderKL, tmp_path: Path, names: bool, convolutions: bool) -> None:
    before = load_file(tmp_path / VAE)
    rewrite(tmp_path / VAE, names=names, convolutions=convolutions)
    after = load_file(tmp_path / VAE)
    assert {name: value.shape for name, value in after.items()} != {name: v.shape for name, v in before.items()}
    loaded = load_autoencoder(tmp_path, torch.float32)
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    theirs = vae.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.state_dict().items())
    assert load_autoencoder(tmp_path, torch.bfloat16).dtype == torch.bfloat16


def test_half_precision_files_beside(vae: AutoencoderKL, tmp_path: Path) -> None:
    rewrite(tmp_path / VAE, names=True, convolutions=True)
    (tmp_path / VAE.replace(".s", ".fp16.s")).write_bytes((tmp_path / VAE).read_bytes())
    loaded, theirs = load_autoencoder(tmp_path, torch.float32).state_dict(), vae.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.items())


def test_an_old_autoencoder_that_is_damaged(vae: AutoencoderKL, tmp_path: Path) -> None:
    rewrite(tmp_path / VAE, names=True, convolutions=True)
    state = load_file(tmp_path / VAE)
    bias = "encoder.mid_block.attentions.0.query.bias"
    save_file({**state, bias: torch.full_like(state[bias], float("nan"))}, tmp_path / VAE)
    with pytest.raises(UserError, match="to_q.bias holds NaN or infinite numbers as float32"):
        load_autoencoder(tmp_path, torch.float32)
    save_file({name: value for name, value in state.items() if name != bias}, tmp_path / VAE)
    with pytest.raises(UserError, match="config.json and the weights don't fit together"):
        load_autoencoder(tmp_path, torch.float32)
    (tmp_path / VAE).write_bytes((tmp_path / VAE).read_bytes()[:5000])
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        load_autoencoder(tmp_path, torch.float32)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("positions", [False, True])
def test_text_tower(prefix: str, positions: bool, tmp_path: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=5, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    tower = CLIPTextModel(config).eval()
    with quiet():
        tower.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "model_type": "clip_text_model"}))
    path = tmp_path / "model.safetensors"
    state = {prefix + name.removeprefix("text_model."): value for name, value in load_file(path).items()}
    if positions:
        state[f"{prefix}embeddings.position_ids"] = torch.arange(5)[None]
    save_file(state, path, metadata={"format": "pt"})
    loaded = load_part({"CLIPTextModel": CLIPTextModel}, tmp_path, torch.float32)
    ids = torch.tensor([[0, 3, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, tower(ids).last_hidden_state)
