import pytest

from nalar.model.config import ModelConfig
from nalar.plan.model import count_parameters
from nalar.plan.published import PUBLISHED
from nalar.plan.storage import (
    checkpoint_bytes,
    checkpoint_params,
    kv_bytes_per_token,
    weight_bytes,
)

TINY = ModelConfig(
    vocab_size=50,
    hidden_size=8,
    intermediate_size=12,
    moe_intermediate_size=6,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    kv_lora_rank=4,
    qk_nope_head_dim=4,
    qk_rope_head_dim=2,
    v_head_dim=3,
)


def test_float8_is_what_the_released_weights_of_deepseek_take():
    """huggingface.co counts the tensors of deepseek-ai/DeepSeek-V3 by number format."""
    float8, bfloat16, float32 = 680_571_043_840, 3_918_786_560, 41_555_600
    expected = float8 + 2 * bfloat16 + 4 * float32
    assert checkpoint_bytes(PUBLISHED["deepseek-v3"].config, "float8") == expected


def test_bytes_by_number_format():
    count = count_parameters(TINY)
    assert count.balance_params == 8
    assert weight_bytes(TINY, "float32") == 4 * (count.total_params + 8)
    assert weight_bytes(TINY, "bfloat16") == 2 * count.total_params + 4 * 8
    # Each matrix is smaller than a tile of 128 x 128, so each has one scale.
    quantised = count.matrix_params - count.router_params
    attention, dense, shared, routed = 3 * 4, 3, 2 * 3, 2 * 3 * 4
    scales = attention + dense + shared + routed
    wide = count.total_params - quantised
    assert weight_bytes(TINY, "float8") == quantised + 4 * scales + 2 * wide + 4 * 8


def test_a_scale_covers_a_tile_or_what_is_left_of_one():
    wider = TINY.model_copy(update={"n_routed_experts": 0, "intermediate_size": 129})
    narrow = wider.model_copy(update={"intermediate_size": 128})
    rows = 3 * 3  # matrices of the dense blocks, each one row or column longer
    assert weight_bytes(wider, "float8") - weight_bytes(narrow, "float8") == rows * (8 + 4)


def test_a_checkpoint_writes_embedding_and_head_again_for_each_prediction_block():
    deep = TINY.model_copy(update={"num_nextn_predict_layers": 2})
    count = count_parameters(deep)
    model = count.total_params + count.balance_params
    assert checkpoint_params(deep) == model + count.mtp_params + 2 * 2 * 50 * 8
    assert checkpoint_params(TINY) == model
    assert weight_bytes(deep, "bfloat16") == weight_bytes(TINY, "bfloat16")
    assert checkpoint_bytes(deep, "float32") == 4 * checkpoint_params(deep)
    assert checkpoint_bytes(deep, "bfloat16") == 2 * checkpoint_params(deep) + 2 * (8 + 2 * 4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepseek-v3", 2 * 61 * (512 + 64)),  # a latent and one rotary key, whatever the heads
        ("kimi-k2", 2 * 61 * (512 + 64)),
        ("llama-3.1-8b", 2 * 32 * 2 * 8 * 128),  # keys and values of each group
        ("qwen3-30b-a3b", 2 * 48 * 2 * 4 * 128),
        ("granite-3.3-2b", 2 * 40 * 2 * 8 * 64),
    ],
)
def test_what_a_token_keeps(name, expected):
    config = PUBLISHED[name].config
    assert kv_bytes_per_token(config, "bfloat16") == expected
    assert kv_bytes_per_token(config, "float32") == 2 * expected
    assert kv_bytes_per_token(config, "float8") == expected / 2
