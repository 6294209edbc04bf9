"""Adapters as a word: what it means, that it comes back, and what cannot be meant."""

import pytest

from nalar.cli.lora_words import lora_of, word_of
from nalar.config import UserError
from nalar.model.config import LoraConfig


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("None", None),
        ("r=8", LoraConfig()),
        ("r=4,lora_alpha=1.5", LoraConfig(r=4, lora_alpha=1.5)),
        (
            "r=2,target_modules=q_proj+o_proj,adapter=runs/x/model/adapter",
            LoraConfig(r=2, target_modules=("q_proj", "o_proj"), adapter="runs/x/model/adapter"),
        ),
    ],
)
def test_a_word_and_what_it_means(word, meant):
    assert lora_of(word) == meant
    assert lora_of(word_of(meant)) == meant


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("rank=8", "'rank'"),
        ("lora_alfa=8", "did you mean 'lora_alpha'"),
        ("8", "name=value"),
        ("", "name=value"),
        ("r=", "name=value"),
        ("r=0", "r=0"),
        ("r=many", "r=many"),
        ("lora_alpha=-1", "lora_alpha=-1"),
        ("lora_alpha=inf", "lora_alpha=inf"),
    ],
)
def test_a_word_that_cannot_be_is_refused_by_its_setting(word, words):
    with pytest.raises(UserError, match=words):
        lora_of(word)
