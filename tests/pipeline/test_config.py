"""Settings that disagree are found before anything runs."""

import pytest

from nalar.config import ConfigError
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.corpus import named_or_learned
from nalar.recipes.registry import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_passes_its_own_checks(name):
    """Recipes are made by copying, which checks nothing."""
    config = RECIPES[name]()
    assert ZeroConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("room", "changes", "at"),
    [
        ("rl", {"tasks": ["countdwon"]}, r"rl\.tasks"),
        ("evals", {"tasks": ["chain_sums"]}, r"evals\.tasks"),
        ("model", {"vocab_size": 321}, r"model\.vocab_size"),
        ("tokenizer", {"vocab_size": 300}, r"model\.vocab_size"),
        ("model", {"model_type": "llama3"}, r"model\.model_type"),
        ("model", {"scoring_func": "softmax"}, r"model\.scoring_func"),
        ("packing", {"document_tokens": 1000}, r"packing\.document_tokens"),
        ("rl", {"max_tokens": 500}, r"model\.max_position_embeddings"),
        ("probe", {"max_tokens": 500}, r"model\.max_position_embeddings"),
    ],
)
def test_what_does_not_fit_is_named(room, changes, at):
    config = RECIPES["zero-cpu"]().model_dump()
    config[room] |= changes
    with pytest.raises(ConfigError, match=at):
        ZeroConfig.model_validate(config)


def test_runs_that_began_before_tools_and_curricula_had_flags_are_read():
    config = RECIPES["zero-cpu"]()
    older = config.model_dump() | {"tools": None}
    older["rl"]["curriculum"] = None
    assert ZeroConfig.model_validate(older) == config


QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "kv_lora_rank": None,
    "qk_nope_head_dim": None,
    "qk_rope_head_dim": None,
    "v_head_dim": None,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_norm": True,
    "rope_interleave": False,
    "n_shared_experts": 0,
    "first_k_dense_replace": 0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
}


def test_a_recipe_takes_another_family_but_not_a_rule_that_the_family_has_no_place_for():
    config = RECIPES["zero-cpu"]().model_dump()
    config["model"] |= QWEN3_MOE
    with pytest.raises(ConfigError, match="qk_norm"):
        ZeroConfig.model_validate(config)
    config["pretrain"]["optim"]["qk_clip_tau"] = None
    with pytest.raises(ConfigError, match=r"pretrain\.balance_speed"):
        ZeroConfig.model_validate(config)
    config["pretrain"]["balance_speed"] = 0.0
    with pytest.raises(ConfigError, match=r"rl\.balance_speed"):
        ZeroConfig.model_validate(config)
    config["rl"]["balance_speed"] = 0.0
    assert ZeroConfig.model_validate(config).model.model_type == "qwen3_moe"


@pytest.mark.parametrize(("depth", "weight"), [(1, 0.0), (0, 0.3)])
def test_draft_blocks_come_with_a_loss_and_a_loss_with_blocks(depth, weight):
    config = RECIPES["zero-cpu"]().model_dump()
    config["model"]["num_nextn_predict_layers"] = depth
    config["pretrain"]["mtp_loss_weight"] = weight
    with pytest.raises(ConfigError, match="mtp_loss_weight"):
        ZeroConfig.model_validate(config)


def test_a_family_without_draft_blocks_gets_none():
    config = RECIPES["zero-cpu"]().model_dump()
    config["model"] |= QWEN3_MOE | {"num_nextn_predict_layers": 1}
    with pytest.raises(ConfigError, match="num_nextn_predict_layers"):
        ZeroConfig.model_validate(config)


def test_a_misspelt_task_is_told_the_nearest():
    config = RECIPES["zero-cpu"]().model_dump()
    config["rl"]["tasks"] = ["countdwon"]
    with pytest.raises(ConfigError, match="did you mean 'countdown'"):
        ZeroConfig.model_validate(config)


def test_a_vocabulary_that_the_corpus_cannot_fill_is_refused(shrunk):
    config = shrunk.model_dump()
    config["model"]["vocab_size"] = config["tokenizer"]["vocab_size"] = 400
    with pytest.raises(ConfigError, match=r"the corpus gave \d+ ids"):
        named_or_learned(ZeroConfig.model_validate(config))
