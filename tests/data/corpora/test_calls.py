"""Dialogues with a calculator: train problems only, nothing filtered, outputs not to be learned."""

import random
import re

import pytest

from nalar.config import ConfigError
from nalar.data.config import (
    CallsConfig,
    CorpusConfig,
    DocumentWeights,
    PackingConfig,
    TokenizerConfig,
)
from nalar.data.corpora.calls import Calls, echo
from nalar.data.corpora.procedural import documents
from nalar.data.dialogue import encode_prompt, parse
from nalar.data.packing import Packing, own_targets
from nalar.data.tokenizer import Tokenizer
from nalar.sandbox import expression
from nalar.tasks.problem import split_of

NONE = DocumentWeights(facts=0, verdicts=0, word_problems=0, conversions=0, search=0, chains=0)
CORPUS = CorpusConfig(weights=NONE, calls=CallsConfig())
TOKENIZER = Tokenizer.train(
    ["calculator 12*34=408\n"] * 4, TokenizerConfig(vocab_size=266, tools=True)
)


def dialogues(count, **settings):
    calls, rng = Calls(CallsConfig(**settings)), random.Random(0)
    return [calls.dialogue(rng) for _ in range(count)]


def parsed(document):
    ids = TOKENIZER.encode(document, allow_special=True)
    prompt = re.fullmatch(r"<\|user\|>(What is (.+)\?)<\|assistant\|>.*", document)
    start = encode_prompt(TOKENIZER, [{"role": "user", "content": prompt[1]}])
    assert ids[: len(start)] == start
    return prompt[2], parse(TOKENIZER, ids[len(start) :])


def test_dialogues_are_well_formed_and_outputs_are_the_calculators():
    for asked, said in map(parsed, dialogues(200)):
        assert said.well_formed and said.thought == ""
        assert split_of(f"arithmetic:{expression.parse(asked).canonical}") == "train"
        for call in said.calls:
            if call.output.startswith("error: "):
                assert call.arguments.endswith("*")
                continue
            found = expression.parse(call.arguments)
            assert call.output == str(found.value)
            assert split_of(f"arithmetic:{found.canonical}") == "train"


def test_calls_are_made_and_read_as_often_as_the_config_says():
    said = [parsed(d) for d in dialogues(600, call_frac=0.5, right_frac=0.4, read_frac=0.7)]
    called = [(asked, one) for asked, one in said if one.calls]
    right = [(a, one) for a, one in called if one.calls[0].arguments == a]
    read = [one for _, one in right if one.answer == one.calls[0].output]
    assert len(called) / len(said) == pytest.approx(0.5, abs=0.06)
    assert len(right) / len(called) == pytest.approx(0.4, abs=0.08)
    assert len(read) / len(right) == pytest.approx(0.7, abs=0.12)
    guessed = [one for _, one in said if not one.calls]
    assert all(7 <= len(one.answer) <= 8 for one in guessed)


def test_an_echo_says_one_thing_again_and_again():
    rng = random.Random(1)
    for _ in range(50):
        said = re.split(r"[ \n=,]", echo(rng).removesuffix("<|end|>"))
        assert 3 <= len(said) <= 6 and len(set(said)) == 1 and re.fullmatch(r"[0-9*+-]+", said[0])


def test_the_corpus_mixes_both_and_makes_no_tables_that_nobody_wants(monkeypatch):
    monkeypatch.setattr("nalar.data.corpora.procedural.sources", None)
    found = documents(CORPUS, random.Random(2))
    kinds = [next(found).startswith("<|user|>") for _ in range(400)]
    assert sum(kinds) / 400 == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ConfigError, match="at least one kind"):
        CorpusConfig(weights=NONE)


def not_own(text):
    ids = TOKENIZER.encode(text, allow_special=True)
    own = own_targets(ids, TOKENIZER.tools)
    assert len(own) == len(ids) - 1
    return TOKENIZER.decode(i for i, mine in zip(ids[1:], own, strict=True) if not mine)


def test_outputs_do_not_count_as_targets_wherever_a_document_is_cut():
    whole = "<tool_call>1</tool_call><tool_output>12</tool_output>3"
    assert not_own(f"a{whole}{whole}4") == "<tool_output>12</tool_output>" * 2
    assert not_own("a<tool_output>12") == "<tool_output>12"
    assert not_own("812</tool_output>3") == "12</tool_output>"
    assert not_own("812</tool_output>3<tool_output>4</tool_output>5") == (
        "12</tool_output><tool_output>4</tool_output>"
    )
    assert own_targets(TOKENIZER.encode("12*34"), TOKENIZER.tools) is None
    assert own_targets([1, 2], None) is None


def test_batches_leave_outputs_out_of_the_loss():
    packed = Packing(TOKENIZER, CORPUS, PackingConfig(step_tokens=600), seed=0).batch(3)
    left_out = {TOKENIZER.decode([i]) for i in packed.targets_N[~packed.counted_N]}
    assert {"<tool_output>", "</tool_output>"} <= left_out
    assert not {"<tool_call>", "</think>", "<|end|>", "*"} & left_out
