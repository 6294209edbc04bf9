"""Thinking on, off, and with a budget: what a model is asked, what is counted, and that no thought is longer."""

import pytest
from pydantic import ValidationError

from nalar.config import ConfigError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import encode_prompt, has_thought, parse
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.evals.config import EvalConfig
from nalar.evals.protocol import evaluate
from nalar.evals.results import TaskResult
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.tasks.chain_sum import ChainSum

TOKENIZER = Tokenizer.train(["3+4-5+6"] * 4, TokenizerConfig(vocab_size=261))
THINK, END_THINK, END = TOKENIZER.think_id, TOKENIZER.end_think_id, TOKENIZER.end_id
PROBLEMS = ChainSum().problems("test", 3, seed=7)


@pytest.fixture(scope="module")
def engine():
    shape = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8}
    heads = {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2}
    model = Transformer(
        ModelConfig(
            vocab_size=TOKENIZER.vocab_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=96,
            **shape,
            **heads,
            **experts,
        )
    )
    model.initialize(seed=0)
    return Engine(model, EngineConfig(max_model_len=96))


def measured(engine, **changes):
    config = EvalConfig(problems=3, k=8, max_tokens=24, **changes)
    return evaluate(engine, TOKENIZER, ChainSum(), PROBLEMS, config, seed=7)


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_no_thought_is_longer_than_its_budget_and_its_closing_is_not_drawn(engine, budget):
    found = measured(engine, thinking_budget=budget)
    assert found.result.longest_thought_tokens == budget  # an untrained model does not close one
    for sample in (s for group in found.samples for s in group):
        ids, forced = sample.completion.token_ids, sample.completion.forced
        thought = ids[: ids.index(END_THINK)] if END_THINK in ids else ids
        assert len(thought) <= budget and sample.thought_tokens <= budget
        assert forced in ((), (budget,)) and all(ids[place] == END_THINK for place in forced)
        assert len(ids) <= budget or END_THINK in ids or ids[-1] == END
        assert ids.count(THINK) == 0 or THINK in thought  # none begins behind a spent budget


def test_without_a_budget_nothing_is_forced_and_thoughts_fill_the_cap(engine):
    found = measured(engine)
    assert all(s.completion.forced == () for group in found.samples for s in group)
    assert found.result.longest_thought_tokens > 5
    assert found.result.thought_frac == 1.0
    lengths = [s.thought_tokens for group in found.samples for s in group]
    assert found.result.mean_thought_tokens == pytest.approx(sum(lengths) / len(lengths))


def test_off_asks_with_the_thought_closed_and_reads_an_answer(engine):
    found = measured(engine, thinking="off")
    for problem, group in zip(PROBLEMS, found.samples, strict=True):
        messages = [{"role": "user", "content": problem.prompt}]
        asked = encode_prompt(TOKENIZER, messages, thinking=False)
        assert {s.num_prompt_tokens for s in group} == {len(asked)}
        for sample in group:
            ids = sample.completion.token_ids
            assert sample.parsed == parse(TOKENIZER, ids, thinking=False)
            assert sample.parsed.thought == ""
            assert sample.has_thought == bool({THINK, END_THINK} & set(ids))
            assert not (sample.has_thought and sample.correct)
    shares = [s.has_thought for group in found.samples for s in group]
    assert found.result.thought_frac == sum(shares) / len(shares)


@pytest.mark.parametrize(
    ("reply", "thinks"),
    [
        ("24<|end|>", False),
        ("8-3=5</think>24<|end|>", True),
        ("</think>24<|end|>", True),
        ("<think>8-3=5</think>24<|end|>", True),
        ("24<think>", True),
    ],
)
def test_any_mark_of_a_thought_counts_where_none_was_asked_for(reply, thinks):
    ids = TOKENIZER.encode(reply, allow_special=True)
    parsed = parse(TOKENIZER, ids, thinking=False)
    assert has_thought(TOKENIZER, ids, parsed, thinking=False) == thinks
    assert parsed.well_formed == (not thinks)
    spelled = [*TOKENIZER.encode(reply.removesuffix("<|end|>")), END]  # letter by letter, no ids
    parsed = parse(TOKENIZER, spelled, thinking=False)
    assert has_thought(TOKENIZER, spelled, parsed, thinking=False) == thinks
    assert parsed.well_formed == (not thinks)


@pytest.mark.parametrize(
    ("reply", "thinks"),
    [("8-3=5</think>5<|end|>", True), (" \n</think>5<|end|>", False), ("</think>5<|end|>", False)],
)
def test_a_thought_that_says_nothing_is_none(reply, thinks):
    ids = TOKENIZER.encode(reply, allow_special=True)
    assert has_thought(TOKENIZER, ids, parse(TOKENIZER, ids)) == thinks


def test_results_from_before_this_was_measured_still_load(engine):
    fields = ("mean_thought_tokens", "longest_thought_tokens", "thought_frac")
    old = measured(engine).result.model_dump(exclude=set(fields))
    assert [getattr(TaskResult.model_validate(old), name) for name in fields] == [None] * 3


def test_a_budget_without_a_thought_is_refused():
    with pytest.raises(ConfigError, match=r"thinking_budget: got 8 with evals\.thinking=off"):
        EvalConfig(thinking="off", thinking_budget=8)
    with pytest.raises(ValidationError):
        EvalConfig(thinking_budget=-1)
    with pytest.raises(ValidationError):
        EvalConfig(thinking="sometimes")
