"""The pure parts of bench/lift.py, and the parts that need a model on one of a few thousand weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from controls.agreement import WatchedEngine, router_margins, watched
from controls.dense import dense_of
from controls.equal_flops import epochs, whole_steps, within
from controls.limits import merged, won
from controls.results import LimitRow, Shares
from controls.sampled import on_until_hit
from controls.search import chance, ratio, search_of, within_cap
from controls.spread import Spread, verdict
from controls.table import BEGIN, END, between
from lift import OF_SEARCH, PARTS, parts_of
from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.plan.model import count_parameters
from nalar.recipes.zero import zero_cpu
from nalar.tasks.problem import Problem


def row(thought="", *, correct=True, tokens=50, finish_reason="stop"):
    return {
        "thought": thought,
        "correct": correct,
        "tokens": tokens,
        "finish_reason": finish_reason,
    }


@pytest.mark.parametrize(
    ("response", "cap", "counts"),
    [
        (row(tokens=50), 50, True),
        (row(tokens=51), 50, False),
        (row(tokens=20, correct=False), 50, False),
        (row(tokens=50, finish_reason="length"), 50, False),
    ],
)
def test_a_cap_counts_what_ended_correctly_within_it(response, cap, counts):
    assert within_cap(response, cap) is counts


def test_first_try_wrong_goes_by_the_steps_whatever_the_mark():
    hit = "9-8=1,3*1=3"
    data = {"numbers": [3, 8, 9], "target": 3}
    problem = Problem("countdown", "k", "", data)
    rows = [
        row(f"{hit}✗", correct=True),  # a hit, marked as a miss: the first try is right
        row(f"9+8=17,17+3=20✓\n{hit}✓", correct=True),  # a miss, marked as a hit
        row("9+8=17,17+3=20✗\n9+8=17,17+3=20✗", correct=False),  # the same try twice
        row("", correct=True),  # no try: in no denominator
    ]
    found = search_of([rows], [problem])
    assert (found.first_try_wrong.n, found.first_try_wrong.mean) == (3, pytest.approx(2 / 3))
    assert (found.correct_after_first_wrong.n, found.correct_after_first_wrong.mean) == (2, 0.5)
    assert found.correct_after_first_right.mean == 1.0
    assert (found.repeated_tries.n, found.repeated_tries.mean) == (5, 0.2)
    assert (found.hits_marked.n, found.hits_marked.mean) == (2, 0.5)
    assert (found.misses_marked_as_hits.n, found.misses_marked_as_hits.mean) == (3, 1 / 3)
    assert (found.steps_right.n, found.steps_right.mean) == (10, 1.0)
    assert found.mean_tries == 1.25


def test_a_ratio_is_of_sums_and_knows_when_there_is_nothing():
    assert ratio(np.array([1.0, 0.0]), np.array([1.0, 3.0]), seed=0).mean == 0.25
    assert ratio(np.zeros(2), np.zeros(2), seed=0).mean is None


def test_the_chance_of_blind_tries_is_that_of_drawing():
    assert chance(1, 4, 1, repeats=True) == chance(1, 4, 1, repeats=False) == 0.25
    assert chance(1, 4, 2, repeats=False) == 0.5
    assert chance(1, 4, 2, repeats=True) == 1 - 0.75**2
    assert chance(1, 4, 9, repeats=False) == 1.0


def test_whole_steps_come_nearest_to_the_budget():
    assert [whole_steps(budget, 10.0) for budget in (1, 94, 96, 1000)] == [1, 9, 10, 100]


def test_items_are_taken_until_the_budget_is_used_within_half_an_item():
    items = [("a", 4.0), ("b", 4.0), ("c", 4.0)]
    assert within(items, 9.0) == ["a", "b"]
    assert within(items, 10.0) == ["a", "b", "c"]
    assert within(items, 0.0) == []
    taken = within(((i, 3.0) for i in range(1000)), 300.0)
    assert len(taken) * 3.0 == pytest.approx(300.0, rel=0.02)


def test_an_epoch_holds_each_item_once():
    order = list(epochs([1, 2, 3, 4, 5], 3, seed=0))
    assert [sorted(order[i : i + 5]) for i in (0, 5, 10)] == [[1, 2, 3, 4, 5]] * 3


def test_a_dense_model_of_equal_active_size_is_within_two_percent():
    model = zero_cpu().model
    dense = dense_of(model)
    active = count_parameters(model).active_params
    count = count_parameters(dense)
    assert count.active_params == count.total_params == pytest.approx(active, rel=0.02)
    assert not any(dense.is_moe(layer) for layer in range(dense.num_hidden_layers))


def test_a_verdict_needs_disjoint_intervals():
    low, high = Spread.of_problems([[0.0] * 50]), Spread.of_problems([[1.0] * 50])
    middle = Spread.of_problems([[0.0, 1.0] * 25])
    assert verdict(high, low) == "above" and verdict(low, high) == "below"
    assert verdict(middle, Spread.of_problems([[1.0, 0.0] * 25])) == "level"


def test_only_settings_above_blind_search_are_won():
    def shares(value: float) -> Shares:
        return Shares.of([value] * 20)

    rows = [
        LimitRow(
            limit=48,
            base=shares(0.1),
            final=shares(0.3),
            final_greedy=shares(0.5),
            blind_repeats=shares(0.2),
            blind_no_repeats=shares(0.4),
        )
    ]
    assert list(won("cap", merged([rows, rows]))) == [
        "cap 48, with repeats",
        "cap 48, greedy, with repeats",
        "cap 48, greedy, no repeats",
    ]
    assert merged([rows, None]) == []


def test_prose_around_the_markers_stays():
    text = f"# T\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    made = between(text, "new")
    assert made == f"# T\n\nbefore\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert between(made, "new") == made
    assert BEGIN in between("", "new") and "before" in between("before\n", "new")
    with pytest.raises(UserError):
        between(f"{BEGIN} {BEGIN} {END} {END}", "new")


def test_the_forced_base_may_only_stop_after_a_marked_hit():
    tokenizer = Tokenizer.train(["9-8=1✓"], TokenizerConfig(vocab_size=261))
    rule = on_until_hit(tokenizer)
    assert set(rule(())) == set(rule(tokenizer.encode("9-8=1✗"))) == tokenizer.special_ids
    assert list(rule(tokenizer.encode("9-8=1✓\n"))) == []


@pytest.fixture
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        n_routed_experts=6,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=96,
        initializer_range=0.2,
    )
    model = Transformer(config)
    model.initialize(seed=3)
    return model


def answered(engine, requests):
    """Asked as RL asks: added, and stepped until all is said."""
    ids = [engine.add(request) for request in requests]
    found = {}
    while engine.has_work:
        for event in engine.step():
            if event.completion is not None:
                found[event.request_id, event.sample_id] = event.completion
    return [
        [found[i, j] for j in range(request.params.n)]
        for i, request in zip(ids, requests, strict=True)
    ]


def test_the_watched_engine_gives_the_same_tokens_and_the_experts_of_each(model):
    requests = [
        Request(
            tuple(range(5, 8 + i)),
            SamplingParams(n=6, max_tokens=24, stop_token_ids=(1, 2, 3, 4), seed=i),
        )
        for i in range(4)
    ]
    limits = EngineConfig(max_model_len=64, max_num_seqs=16, num_scheduler_steps=1)
    engine = WatchedEngine(model, limits)
    groups = answered(engine, requests)
    assert groups == Engine(model, limits).generate(requests)
    assert len({len(c.token_ids) for group in groups for c in group}) > 3  # rows did move
    for request, group, experts in zip(requests, groups, engine.experts(), strict=True):
        for completion, seen in zip(group, experts, strict=True):
            ids = torch.tensor([request.prompt_ids + completion.token_ids[:-1]])
            with torch.no_grad(), watched(model) as log:
                model(ids)
            [(expected, margins)] = log.take(2)
            differs = (expected != seen).any(-1)
            assert not differs[margins > 1e-5].any()


def test_a_model_without_routers_can_be_watched_too(model):
    dense = Transformer(dense_of(model.config))
    dense.initialize(seed=0)
    requests = [
        Request((5, 6), SamplingParams(n=2, max_tokens=4)),
        Request((7,), SamplingParams(max_tokens=3)),
    ]
    limits = EngineConfig(max_model_len=64, num_scheduler_steps=1)
    engine = WatchedEngine(dense, limits)
    groups = answered(engine, requests)
    assert groups == Engine(dense, limits).generate(requests)
    assert [[e.numel() for e in group] for group in engine.experts()] == [[0, 0], [0]]


def test_a_router_margin_is_the_gap_behind_the_last_expert_chosen(model):
    router = next(model.routers())
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    scores = (x @ router.weight.T).sigmoid().sort(descending=True).values
    torch.testing.assert_close(router_margins(router, x), scores[:, 1] - scores[:, 2])


@pytest.mark.parametrize(
    ("searches", "parts"), [(True, set(PARTS)), (False, set(PARTS) - OF_SEARCH)]
)
def test_runs_that_search_nothing_have_no_parts_about_tries(searches, parts):
    assert set(parts_of(SimpleNamespace(searches=searches))) == parts
