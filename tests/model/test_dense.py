"""An all-dense model is the same code without routers, and other programs load it too."""

from pathlib import Path

import pytest
import torch

from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model

IDS = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 1}


@pytest.fixture
def dense_model(tiny_config: ModelConfig) -> Transformer:
    layers = tiny_config.num_hidden_layers
    dense = {"n_routed_experts": 0, "first_k_dense_replace": layers}
    model = Transformer(tiny_config.model_copy(update=dense))
    model.initialize(seed=1)
    return model


@torch.no_grad()
def test_transformers_gives_the_same_logits_and_nothing_is_missing(
    dense_model: Transformer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(dense_model, tmp_path, token_ids=IDS)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(3))
    ours = dense_model.logits(dense_model(ids).states)
    expected = theirs.eval()(ids).logits
    assert (ours - expected).abs().max() / expected.abs().max() < 2e-5


def test_a_dense_model_comes_back_to_the_bit(dense_model: Transformer, tmp_path: Path) -> None:
    save_model(dense_model, tmp_path, token_ids=IDS)
    back = load_model(tmp_path)
    assert back.config == dense_model.config
    assert list(back.routers()) == []
    for name, tensor in dense_model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
