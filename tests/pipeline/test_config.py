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
