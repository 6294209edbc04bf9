"""Guesses change the pace alone: the same tokens, the same logprobs, the same distribution."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from nalar.config import ConfigError
from nalar.engine.config import EngineConfig, SpeculationConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams, Speculated, ThinkingParams
from nalar.kernels.sampling import Shaping, draw, stream_key, uniforms

pytestmark = pytest.mark.few(2)

END = 4
PLAIN = {"max_model_len": 300}


@pytest.fixture
def model(make_model):
    return make_model(vocab_size=5, depths=1)


def speculation(method, k, **fields):
    return SpeculationConfig(method=method, num_speculative_tokens=k, **fields)


BOTH = [speculation("ngram", 3, prompt_lookup_min=1), speculation("mtp", 1), speculation("mtp", 3)]
each_method = pytest.mark.parametrize("guessing", BOTH, ids=["ngram", "mtp", "mtp-3"])


def crowd(num=8, seed=0, **params):
    rng = random.Random(seed)
    return [
        Request(
            tuple(rng.randrange(END) for _ in range(rng.randint(1, 9))),
            SamplingParams(
                **{
                    "n": rng.randint(1, 3),
                    "max_tokens": rng.randint(1, 30),
                    "stop_token_ids": (END,) if i % 2 else (),
                    "seed": i,
                    **params,
                }
            ),
        )
        for i in range(num)
    ]


def together(results):
    return sum((c.speculated for g in results for c in g if c.speculated), Speculated(0, 0, 0))


def assert_same(results, others):
    """All but what is found in the cache, which depends on the pace; rounding is that of a whole batch."""
    for group, other in zip(results, others, strict=True):
        for a, b in zip(group, other, strict=True):
            assert a.processed_logprobs == pytest.approx(b.processed_logprobs, abs=1e-6)
            own = {"processed_logprobs": (), "num_cached_tokens": 0}
            assert replace(a, **own) == replace(b, **own)


def run(model, requests, guessing=None, **limits):
    return Engine(model, EngineConfig(**PLAIN | limits, speculation=guessing)).generate(requests)


@each_method
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_num_seqs": 3, "block_size": 4},
        {"num_blocks": 12, "block_size": 4},  # little enough that samples give way
        {"max_num_batched_tokens": 5, "block_size": 1},
        {"deterministic": True},
    ],
    ids=["wide", "few-rows", "tiny-cache", "chunks", "deterministic"],
)
def test_what_comes_out_is_what_comes_without(model, guessing, limits):
    requests = crowd()
    results = run(model, requests, guessing, **limits)
    assert_same(results, run(model, requests))
    total = together(results)
    assert 0 < total.accepted < total.drafted <= total.steps * guessing.num_speculative_tokens


@each_method
def test_shaped_draws_are_the_same_too(model, guessing):
    shapes = [
        {"temperature": 0},
        {"temperature": 0.6, "top_p": 0.9},
        {"top_k": 2},
        {"min_p": 0.3, "logprobs": 2},
        {"logit_bias": {1: 2.0}, "min_tokens": 9, "max_tokens": 20, "stop_token_ids": (END, 0)},
        {"presence_penalty": 1.0, "repetition_penalty": 1.3},
        {"prompt_logprobs": 1},
    ]
    requests = [r for i, shape in enumerate(shapes) for r in crowd(2, i, **shape)]
    results = run(model, requests, guessing, max_num_seqs=7)
    assert_same(results, run(model, requests))
    assert together(results).accepted > 0


@each_method
@pytest.mark.parametrize("budget", [0, 1, 3, 5])
def test_a_thought_closes_at_its_budget(model, guessing, budget):
    thinking = ThinkingParams(start_id=1, end_id=2, budget_tokens=budget, closing_ids=(3, 2))
    requests = crowd(12, thinking=thinking, max_tokens=30)
    results = run(model, requests, guessing)
    assert_same(results, run(model, requests))
    assert any(c.forced for group in results for c in group)
    assert together(results).accepted > 0


@each_method
def test_samples_with_rules_of_their_own_go_beside_others(model, guessing):
    seen = []

    def no_repeats(past):
        seen.append(tuple(past))
        return list(past)[-1:]

    class Alternating:
        """Even ids and odd ones in turn."""

        is_odd = False

        def accept(self, token_id):
            self.is_odd = not self.is_odd

        def allowed(self):
            return bytes([0b01010 if self.is_odd else 0b10101])

    base = crowd(9)
    requests = [
        Request(r.prompt_ids, r.params, banned_tokens=no_repeats)
        if i % 3 == 1
        else Request(r.prompt_ids, r.params, make_grammar=Alternating if i % 3 == 2 else None)
        for i, r in enumerate(base)
    ]
    results = run(model, requests, guessing)
    with_guesses, seen[:] = Counter(seen), []
    assert_same(results, run(model, requests))
    assert with_guesses == Counter(seen)
    ruled = [c for i, group in enumerate(results) for c in group if i % 3]
    assert all(c.speculated is None for c in ruled)
    assert together(results).accepted > 0


@each_method
def test_a_stop_among_guesses_ends_the_sample_there(model, guessing):
    free = crowd(10, stop_token_ids=(), max_tokens=40, n=1, temperature=0)
    for request, [whole] in zip(free, run(model, free), strict=True):
        for matcher, stop_ids in (
            (None, whole.token_ids[20:21]),
            (lambda past: len(past) == 17, ()),
        ):
            params = request.params.model_copy(update={"stop_token_ids": stop_ids})
            stopped = Request(request.prompt_ids, params, stop_matcher=matcher)
            [[completion]] = run(model, [stopped], guessing)
            assert [[completion]] == run(model, [stopped])
            assert completion.finish_reason == "stop"
            end = whole.token_ids.index(stop_ids[0]) + 1 if stop_ids else 17
            assert completion.token_ids == whole.token_ids[:end]


@each_method
def test_a_stream_brings_all_tokens_of_a_step(model, guessing):
    for request in crowd(5, n=1):
        engine = Engine(model, EngineConfig(**PLAIN, speculation=guessing))
        [[completion]] = run(model, [request])
        streamed = list(engine.stream(request))
        assert tuple(t for t, _ in streamed) == completion.token_ids
        assert tuple(p for _, p in streamed) == completion.logprobs
        assert not engine.has_work


@each_method
def test_requests_can_go_at_any_step(model, guessing):
    want = run(model, crowd(6))
    engine = Engine(model, EngineConfig(**PLAIN, speculation=guessing, num_blocks=16, block_size=4))
    for cut in range(1, 12, 2):
        ids = [engine.add(r) for r in crowd(6)]
        got = {}
        for step in range(1000):
            if step == cut:
                engine.abort(ids[0])
            if not engine.has_work:
                break
            for event in engine.step():
                if event.completion is not None:
                    key = (ids.index(event.request_id), event.sample_id)
                    assert key not in got
                    got[key] = event.completion
        assert len(got) == sum(len(group) for group in want)
        for (i, j), completion in got.items():
            if completion.finish_reason == "abort":
                assert i == 0
                length = len(completion.token_ids)
                assert completion.token_ids == want[i][j].token_ids[:length]
            else:
                assert_same([[completion]], [[want[i][j]]])


def simulated(model, request, completion, k):
    """The rounds that drafts without any cache would have taken."""
    params, ids = request.params, [*request.prompt_ids, *completion.token_ids]
    key = torch.tensor([stream_key(params.seed, 0)])
    shaping = Shaping(
        torch.tensor([params.temperature]),
        torch.tensor([5]),
        torch.tensor([params.top_p]),
        torch.tensor([0.0]),
        cuts=params.top_p < 1,
    )
    known, steps, drafted, accepted = len(request.prompt_ids) + 1, 0, 0, 0
    while known < len(ids):
        count = min(k, len(request.prompt_ids) + params.max_tokens - known - 1)

        def draws(logits, i, known=known):
            uniform = uniforms(key, torch.tensor([known + i]))
            return int(draw(logits, uniform, shaping).ids_B)

        drafts = model.full_drafts(ids[:known], count, draws)
        right = 0
        while right < min(count, len(ids) - known - 1) and drafts[right] == ids[known + right]:
            right += 1
        steps, drafted, accepted = steps + (count > 0), drafted + count, accepted + right
        known += 1 + right
    return Speculated(steps, drafted, accepted)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "limits",
    [{}, {"max_num_batched_tokens": 6, "block_size": 2, "max_num_seqs": 1}, {"block_size": 1}],
    ids=["whole", "chunks", "single"],
)
def test_drafts_are_those_of_a_pass_over_the_whole_text(model, k, limits):
    """Also behind chunks, behind a prefix that was found, and beside rows that had fewer accepted."""
    requests = crowd(8, n=1, temperature=0.6, top_p=0.9)
    requests += requests[:3]  # by now their prompts are in the cache
    config = EngineConfig(**PLAIN | limits, speculation=speculation("mtp", k))
    engine = Engine(model, config)
    results = engine.generate(requests)
    again = engine.generate(requests)
    assert "block_size" not in limits or any(c.num_cached_tokens for [c] in again)
    for round_ in (results, again):
        for request, [completion] in zip(requests, round_, strict=True):
            want = simulated(model, request, completion, k)
            assert (completion.speculated or Speculated(0, 0, 0)) == want
    total = together(again)
    assert total.accepted > 0
    assert engine.speculated == total + total


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [{}, {"temperature": 0.6, "top_p": 0.95}], ids=["own", "shaped"])
@pytest.mark.parametrize("guessing", BOTH[::2], ids=["ngram", "mtp-3"])
def test_the_distribution_is_the_models(make_model, guessing, shape):
    """Chi-square over all texts of four tokens; by chance beyond the bound once in ten thousand."""
    model = make_model(vocab_size=4, depths=1)
    prompt, length, n = (0, 1, 0, 1, 2, 0), 4, 3000
    params = SamplingParams(n=n, max_tokens=length, seed=3, **shape)
    config = EngineConfig(
        max_model_len=16, max_num_seqs=n, num_blocks=n * 4, block_size=4, speculation=guessing
    )
    [completions] = Engine(model, config).generate([Request(prompt, params)])
    seen = Counter(c.token_ids for c in completions)
    cells, rare = [], [0.0, 0]
    for text, share in texts(model, prompt, length, **shape).items():
        if n * share >= 5:
            cells.append((n * share, seen.pop(text, 0)))
        else:
            rare = [rare[0] + n * share, rare[1] + seen.pop(text, 0)]
    assert not seen  # what has no share is never said
    cells += [tuple(rare)] if rare[0] else []
    chi2, free = sum((got - want) ** 2 / want for want, got in cells), len(cells) - 1
    # Wilson and Hilferty: the cube root of chi-square over its mean is nearly normal.
    bound = free * (1 - 2 / (9 * free) + 3.72 * (2 / (9 * free)) ** 0.5) ** 3
    assert free > 8 and chi2 < bound
    total = together([completions])
    assert n / 4 < total.accepted < total.drafted - n / 4


def texts(model, prompt, length, temperature=1.0, top_p=1.0):
    """All texts that can be said, with their probabilities."""
    found = {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, share in found.items():
            shares = (model.full_logits([*prompt, *text])[-1] / temperature).double().softmax(-1)
            kept, mass = [], 0.0
            for token in sorted(range(len(shares)), key=lambda i: -shares[i]):
                if mass < top_p:
                    kept.append(token)
                mass += float(shares[token])
            for token in kept:
                longer[*text, token] = share * float(shares[token] / shares[kept].sum())
        found = longer
    return found


def test_a_text_that_repeats_itself_is_guessed_in_long_runs(model):
    model.table[:] = -1e9
    model.table[:, 1] = 0  # whatever it reads, it says 1
    request = Request((2, 3), SamplingParams(max_tokens=41))
    [[completion]] = run(model, [request], speculation("ngram", 4))
    assert completion.speculated.accepted_length > 4.5
    assert len(model.batches) < 14


def test_steps_of_many_samples_go_without(model):
    requests = crowd(8, n=1, stop_token_ids=())
    few = speculation("mtp", 2, disable_by_batch_size=3)
    engine = Engine(model, EngineConfig(**PLAIN, speculation=few))
    assert engine.generate(requests) == run(model, requests)
    assert 0 < engine.speculated.steps < together(run(model, requests, BOTH[2])).steps
    assert max(model.decode_batches) > 3


def test_without_speculation_nothing_is_said_of_it(model):
    assert all(c.speculated is None for group in run(model, crowd(3)) for c in group)


def test_accepted_length_counts_the_models_own_token():
    assert Speculated(4, 8, 2).accepted_length == 1.5
    assert Speculated(0, 0, 0).accepted_length == 1


def test_prompts_have_the_first_say_in_a_step(model):
    engine = Engine(
        model, EngineConfig(**PLAIN, speculation=BOTH[2], max_num_batched_tokens=4, max_num_seqs=3)
    )
    engine.generate(crowd(8, stop_token_ids=()))
    assert engine.speculated.drafted > 0
    drafting = speculation("ngram", 3, prompt_lookup_min=1)
    run(model, crowd(8), drafting, max_num_batched_tokens=4, max_num_seqs=3)


def test_a_model_without_the_block_cannot_draft_by_it(make_model):
    with pytest.raises(ConfigError, match="num_nextn_predict_layers"):
        run(make_model(vocab_size=5), [], BOTH[1])


def test_lookups_of_no_length_are_refused():
    with pytest.raises(ConfigError, match="prompt_lookup_max=4"):
        speculation("ngram", 1, prompt_lookup_min=5)


def test_runs_of_steps_are_refused_beside_guesses_and_left_to_the_device_they_are_none():
    with pytest.raises(ConfigError, match="num_scheduler_steps"):
        EngineConfig(**PLAIN, speculation=BOTH[0], num_scheduler_steps=4)
    config = EngineConfig(**PLAIN, speculation=BOTH[0])
    assert config.settled(is_gpu=True).num_scheduler_steps == 1
    assert EngineConfig(**PLAIN).settled(is_gpu=False).num_scheduler_steps == 4
