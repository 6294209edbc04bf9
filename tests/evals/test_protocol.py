"""Shares, votes and pass@k counted by hand."""

import pytest

from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import Parsed, parse
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, SamplingParams
from nalar.evals.config import EvalConfig
from nalar.evals.protocol import Sample, evaluate, sample_problems, summarise
from nalar.evals.results import TaskResult
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.problem import Problem, Score

COUNTDOWN = Problem(task="countdown", key="countdown:a", prompt="make 24 from 3 8 9", data={})
CHAIN = Problem(task="chain_sum", key="chain_sum:a", prompt="1+2+3+4+5", data={"total": 15})


def answered(answer, *, correct, tokens=4, thought="", problem=COUNTDOWN):
    completion = Completion((1,) * tokens, (0.0,) * tokens, "stop", policy_version=0)
    parsed = Parsed(thought, answer, closed=True, well_formed=True)
    score = Score(correct=correct, well_formed=True, canonical=answer)
    return Sample(problem, 9, completion, parsed, score)


def cut(tokens=8, *, canonical=None, correct=False, problem=COUNTDOWN):
    """A response that ran into the cap; whatever stands in its answer, it is none."""
    completion = Completion((1,) * tokens, (0.0,) * tokens, "length", policy_version=0)
    parsed = Parsed("9-8=1", canonical or "", closed=False, well_formed=False)
    score = Score(correct=correct, well_formed=canonical is not None, canonical=canonical)
    return Sample(problem, 9, completion, parsed, score)


def test_pass_at_1_is_the_mean_and_pass_at_k_asks_for_one():
    result = summarise(
        [
            [answered("a", correct=True), answered("b", correct=False)],
            [answered("b", correct=False), answered("c", correct=False)],
            [answered("a", correct=True), answered("a", correct=True)],
        ],
        searches=True,
        seed=0,
    )
    assert (result.n, result.k) == (3, 2)
    assert result.pass_at_1.mean == pytest.approx((0.5 + 0 + 1) / 3)
    assert result.pass_at_k.mean == pytest.approx(2 / 3)
    low, high = result.pass_at_1.ci95
    assert 0 <= low <= result.pass_at_1.mean <= high <= 1


def majority_of(group):
    return summarise([group], searches=True, seed=0).maj_at_k.mean


def test_the_answer_with_most_votes_counts():
    good, bad = answered("a", correct=True), answered("b", correct=False)
    other = answered("c", correct=False)
    assert majority_of([good, good, bad, other]) == 1.0
    assert majority_of([good, bad, bad, other]) == 0.0


def test_a_tie_is_wrong_even_one_of_correct_answers():
    good, bad = answered("a", correct=True), answered("b", correct=False)
    also_good = answered("d", correct=True)
    assert majority_of([good, good, bad, bad]) == 0.0
    assert majority_of([good, also_good]) == 0.0
    assert majority_of([good, bad, also_good]) == 0.0


def test_no_answer_is_no_vote():
    good = answered("a", correct=True)
    assert majority_of([good, cut(), cut(), cut()]) == 1.0
    assert majority_of([cut(), cut()]) == 0.0


def test_an_answer_that_was_cut_neither_counts_nor_votes():
    good = answered("a", correct=True)
    lucky, stubborn = cut(canonical="a", correct=True), cut(canonical="b")
    result = summarise([[lucky, lucky]], searches=True, seed=0)
    assert result.pass_at_1.mean == result.maj_at_k.mean == 0.0
    assert result.well_formed_frac == 0.0
    assert majority_of([good, stubborn, stubborn]) == 1.0


def test_shares_and_lengths_are_over_all_responses():
    checking = answered("a", correct=True, tokens=10, thought="8-3=5✗\n9-3=6✓")
    blurting = answered("b", correct=False, tokens=2)
    result = summarise(
        [[checking, blurting], [cut(tokens=8), cut(tokens=8)]], searches=True, seed=0
    )
    assert result.truncated_frac == 0.5
    assert result.well_formed_frac == 0.5
    assert result.mean_response_tokens == (10 + 2 + 8 + 8) / 4
    assert result.self_check_frac == 0.25
    assert result.verifier_errors == 0


def test_nothing_is_searched_in_a_chain_sum():
    result = summarise([[answered("15", correct=True, problem=CHAIN)]], searches=False, seed=0)
    assert result.self_check_frac is None


def test_readable_thoughts_are_a_share_of_those_in_words():
    thoughts = ("3 is 3, so 4 is 4", "3 jadi 3, maka 4 jadi 4", "3 is 3, maka 4 is 4", "3+4=7")
    group = [answered("7", correct=True, thought=thought) for thought in thoughts]
    result = summarise([group], searches=False, seed=0)
    assert result.readable_frac == 2 / 3
    assert TaskResult.model_validate(result.model_dump()) == result


def test_bare_calculations_are_not_called_readable():
    bare = [answered("7", correct=True, thought="3+4=7")] * 19
    worded = answered("7", correct=True, thought="3 is 3, so 4 is 4")
    assert summarise([bare], searches=False, seed=0).readable_frac is None
    assert summarise([[*bare, worded]], searches=False, seed=0).readable_frac is None
    assert summarise([[*bare[:9], worded]], searches=False, seed=0).readable_frac == 1.0


def test_results_of_before_there_was_that_figure_still_load():
    row = summarise([[answered("7", correct=True)]], searches=False, seed=0).model_dump()
    del row["readable_frac"]
    assert TaskResult.model_validate(row).readable_frac is None


def test_a_verifier_that_failed_is_counted_apart():
    failed = Sample(
        CHAIN,
        9,
        Completion((1,), (0.0,), "stop", 0),
        Parsed("", "15", closed=True, well_formed=True),
        Score(correct=False, well_formed=False, error="timed out"),
    )
    assert summarise([[failed, failed]], searches=True, seed=0).verifier_errors == 2


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["3+4-5+6"] * 4, TokenizerConfig(vocab_size=261))


@pytest.fixture(scope="module")
def engine(tokenizer):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=64,
    )
    model = Transformer(config)
    model.initialize(seed=0)
    return Engine(model, EngineConfig(max_model_len=64))


def test_an_evaluation_is_the_same_each_time_and_another_seed_is_another(engine, tokenizer):
    task, config = ChainSum(), EvalConfig(problems=3, k=2, max_tokens=8)
    problems = task.problems("test", 3, seed=7)
    first, again, other = (
        evaluate(engine, tokenizer, task, problems, config, seed=seed) for seed in (7, 7, 8)
    )
    assert first == again
    assert first.samples != other.samples
    assert [len(group) for group in first.samples] == [2, 2, 2]


def test_a_problem_draws_the_same_beside_others_only_at_its_own_place(engine, tokenizer):
    task = ChainSum()
    a, b = task.problems("test", 2, seed=7)
    params = SamplingParams(n=2, max_tokens=6, seed=7)

    def ids(problems):
        groups = sample_problems(engine, tokenizer, task, problems, params)
        return [[s.completion.token_ids for s in group] for group in groups]

    both, alone = ids([a, b]), ids([a])
    assert both[0] == alone[0]
    assert ids([a, a])[0] != ids([a, a])[1]  # the same problem twice is not the same samples twice


def test_scores_belong_to_their_own_response(engine, tokenizer):
    task = ChainSum()
    problems = task.problems("test", 3, seed=7)
    params = SamplingParams(n=2, max_tokens=6, seed=7)
    groups = sample_problems(engine, tokenizer, task, problems, params)
    for problem, group in zip(problems, groups, strict=True):
        for sample in group:
            assert sample.problem is problem
            assert sample.parsed == parse(tokenizer, sample.completion.token_ids)
            assert sample.score == task.score(problem, sample.parsed.answer)
            assert sample.num_prompt_tokens == len(problem.prompt) + 3


def test_a_verifier_that_raises_ends_no_evaluation_and_is_counted(engine, tokenizer):
    class Broken(ChainSum):
        def score(self, problem, answer):
            raise RecursionError("too deep")

    task, config = Broken(), EvalConfig(problems=2, k=2, max_tokens=8)
    measured = evaluate(engine, tokenizer, task, task.problems("test", 2, seed=7), config, seed=7)
    assert measured.result.verifier_errors == 4
    errors = {sample.score.error for group in measured.samples for sample in group}
    assert errors == {"Broken.score raised RecursionError: too deep"}
