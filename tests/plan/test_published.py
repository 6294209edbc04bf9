"""The published models, held against figures that others publish of them."""

import pytest

from nalar.model.config import ModelConfig
from nalar.model.families.registry import FAMILIES
from nalar.plan.model import count_parameters
from nalar.plan.published import PUBLISHED
from nalar.plan.storage import checkpoint_params
from nalar.recipes.registry import RECIPES

# As huggingface.co counts the tensors of the repository; the first three by formula, without what lies beside the
# model there: prediction blocks and the scales of float8.
TOTALS = {
    "deepseek-v3": 671_026_419_200,
    "kimi-k2": 1_026_408_232_448,
    "moonlight-16b-a3b": 15_960_110_208,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "granite-3.3-8b": 8_170_864_640,
}
SIZING = {
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "qkv_bias",
    "qk_norm",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
    "scoring_func",
    "topk_method",
    "tie_word_embeddings",
    "num_nextn_predict_layers",
}


def total(config: ModelConfig) -> int:
    count = count_parameters(config)
    return count.total_params + count.balance_params


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_those_of_the_released_weights(name):
    assert total(PUBLISHED[name].config) == TOTALS[name]


def test_prediction_blocks_and_their_copies_make_up_the_685_billion_of_deepseek():
    config = PUBLISHED["deepseek-v3"].config
    assert count_parameters(config).mtp_params == 11_610_068_224
    assert checkpoint_params(config) == 684_489_845_504


def test_active_parameters_round_to_what_the_authors_state():
    deepseek = count_parameters(
        PUBLISHED["deepseek-v3"].config
    )  # its README_WEIGHTS, head included
    assert round((deepseek.active_params - deepseek.embedding_params) / 1e9, 1) == 36.6
    qwen = count_parameters(PUBLISHED["qwen3-30b-a3b"].config)  # its model card
    assert round(qwen.total_params / 1e9, 1) == 30.5
    assert qwen.active_params / 1e9 == pytest.approx(3.3, abs=0.06)


def test_only_fields_that_sizes_follow_from_are_given():
    for name, published in PUBLISHED.items():
        assert published.config.model_fields_set <= SIZING, name


def test_names_are_lower_case_repositories_and_no_recipe_has_one():
    assert not set(PUBLISHED) & set(RECIPES)
    for name, published in PUBLISHED.items():
        repository = published.source.partition("/")[2].lower()
        assert repository.startswith(name), (name, repository)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_family_places_just_as_many_numbers(name):
    """Another count of the same model: tensor by tensor, from the tables that weights are read by."""
    config = PUBLISHED[name].config
    placed = 0
    for placement in FAMILIES[config.model_type].placements(config):
        if not placement.is_copy:
            size = 1
            for width in placement.shape:
                size *= width
            placed += size
    assert placed == total(config) + count_parameters(config).mtp_params
