"""Other programs load what we write: transformers' own deepseek_v3 classes, logits and greedy tokens."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from nalar.config import UserError
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model

transformers = pytest.importorskip("transformers")
IDS = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 1}


@pytest.fixture
def theirs(tiny_model: Transformer, tmp_path: Path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(loaded).__name__ == "DeepseekV3ForCausalLM"
    return loaded.eval()


@torch.no_grad()
def test_transformers_gives_the_same_logits(tiny_model, theirs):
    ids = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(3))
    ours = tiny_model.logits(tiny_model(ids).states)
    expected = theirs(ids).logits
    assert (ours - expected).abs().max() / expected.abs().max() < 2e-5


@torch.no_grad()
def test_transformers_gives_the_same_greedy_tokens(tiny_model, theirs):
    prompt = torch.randint(2, 96, (1, 7), generator=torch.Generator().manual_seed(4))
    expected = theirs.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None)[0]
    ids = prompt
    for _ in range(30):
        nxt = tiny_model.logits(tiny_model(ids).states[:, -1]).argmax(-1)
        ids = torch.cat([ids, nxt[:, None]], 1)
    assert ids[0].tolist() == expected.tolist()


def test_a_saved_model_comes_back_to_the_bit(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    back = load_model(tmp_path)
    assert back.config == tiny_model.config
    for (name, a), b in zip(
        tiny_model.state_dict().items(), back.state_dict().values(), strict=True
    ):
        assert_close(a, b, rtol=0, atol=0, msg=name)


def test_weights_that_do_not_fit_the_config_are_refused(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    save_model(tiny_model, tmp_path, token_ids=IDS)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"experts\.3\.up_proj"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(tmp_path)
    for broken in ("{", '{"model_type": "deepseek_v3"}'):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(UserError, match=r"config\.json"):
            load_model(tmp_path)
