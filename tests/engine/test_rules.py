import json
import random
from itertools import pairwise

import pytest
import torch

from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.grammar import Grammars
from nalar.data.stopping import StopStrings
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.rules import begin, follow
from nalar.engine.sample import Sample
from nalar.engine.sequence import Request, SamplingParams, ThinkingParams
from nalar.kernels.sampling import stream_key, uniforms

pytestmark = pytest.mark.few(1)

WORD, THINK, END_THINK, STOP = 9, 10, 11, 12
PROMPT = (1, 2, 3)
OPEN = (*PROMPT, THINK)
NEVER = -100.0


@pytest.fixture(params=[True, False], ids=["one_step_ahead", "in_turn"])
def engine(request, make_engine):
    """On a GPU a step is launched before the tokens of the last are known; here on the CPU."""

    def make(**limits):
        made = make_engine(**limits)
        made._overlaps = request.param
        return made

    return make


def thinking(budget, closing=(), **params):
    """Samples that end no thought and no turn by themselves, unless asked to."""
    params = {"max_tokens": 30, "logit_bias": {END_THINK: NEVER, STOP: NEVER}, **params}
    thought = ThinkingParams(
        start_id=THINK, end_id=END_THINK, budget_tokens=budget, closing_ids=closing
    )
    return SamplingParams(thinking=thought, **params)


def one(engine, request):
    [[completion]] = engine.generate([request])
    return completion


def oracle(model, request, reference, sample_id=0, banned=lambda ids: ()):
    """Tokens with raw and processed logprobs, each by a pass over the whole text and plain Python."""
    p, ids = request.params, list(request.prompt_ids)
    out, raw, processed = [], [], []
    key = torch.tensor([stream_key(p.seed, sample_id)])
    while len(out) < p.max_tokens and not (out and out[-1] in p.stop_token_ids):
        logits = model.full_logits(ids)[-1]
        probs = reference(
            logits.tolist(),
            bias=p.logit_bias,
            banned={*banned(out), *(p.stop_token_ids if len(out) < p.min_tokens else ())},
            said=out,
            prompt=request.prompt_ids,
            repetition=p.repetition_penalty,
            presence=p.presence_penalty,
            frequency=p.frequency_penalty,
            temperature=p.temperature,
            min_p=p.min_p,
            top_k=p.top_k,
            top_p=p.top_p,
        )
        target = float(uniforms(key, torch.tensor([len(ids)])))
        token = int(torch.tensor(probs, dtype=torch.float64).cumsum(0).gt(target).nonzero()[0])
        out.append(token)
        ids.append(token)
        raw.append(float(logits.log_softmax(-1)[token]))
        processed.append(float(torch.tensor(probs).log()[token]))
    return out, raw, processed


def mixture(num=24, seed=0):
    """Requests that use everything, in any combination."""
    rng = random.Random(seed)
    return [
        Request(
            tuple(rng.randrange(13) for _ in range(rng.randint(1, 20))),
            SamplingParams(
                n=rng.choice([1, 1, 3]),
                seed=i,
                max_tokens=rng.randint(20, 40),
                min_tokens=rng.choice([0, 0, 6]),
                temperature=rng.choice([1.0, 1.0, 0.7, 1.5]),
                top_k=rng.choice([None, None, 3, 8]),
                top_p=rng.choice([1.0, 0.8]),
                min_p=rng.choice([0.0, 0.05]),
                presence_penalty=rng.choice([0.0, 0.5]),
                frequency_penalty=rng.choice([0.0, 0.3]),
                repetition_penalty=rng.choice([1.0, 1.2]),
                logit_bias=rng.choice([{}, {2: 1.5, 5: NEVER}]),
                stop_token_ids=rng.choice([(), (STOP,)]),
                logprobs=rng.choice([None, 0, 2, 20]),
                prompt_logprobs=rng.choice([None, None, 0, 3]),
            ),
        )
        for i in range(num)
    ]


# Sampling, through the whole engine


@pytest.mark.parametrize("limits", [{"num_blocks": 9, "block_size": 8}, {}])
def test_every_mixture_draws_what_a_plain_loop_draws(engine, model, reference, limits):
    requests = mixture()
    results = engine(**limits).generate(requests)
    for request, completions in zip(requests, results, strict=True):
        for i, completion in enumerate(completions):
            ids, raw, processed = oracle(model, request, reference, i)
            assert list(completion.token_ids) == ids
            assert completion.logprobs == pytest.approx(raw, abs=1e-5)
            if completion.processed_logprobs:
                assert completion.processed_logprobs == pytest.approx(processed, abs=1e-5)
            else:
                assert raw == pytest.approx(processed, abs=1e-5)


def test_each_request_of_a_mixture_gives_the_same_alone_to_the_bit(engine):
    requests = mixture(16, seed=1)
    made = engine(enable_prefix_caching=False)
    together = made.generate(requests)
    assert together == [made.generate([request])[0] for request in requests]


def test_penalties_survive_preemption(engine, model):
    params = {"max_tokens": 60, "presence_penalty": 0.7, "frequency_penalty": 0.4}
    requests = [
        Request((i, 2, 3), SamplingParams(seed=i, repetition_penalty=1.3, **params))
        for i in range(6)
    ]
    roomy, tight = engine(), engine(num_blocks=17, block_size=4)
    want = roomy.generate(requests)
    num_computed, model.prompt_tokens = model.prompt_tokens, 0
    assert tight.generate(requests) == want
    assert model.prompt_tokens > num_computed  # some were preempted, and computed anew


@pytest.mark.parametrize("count", [4, 0, 1, 13, 20])
def test_top_logprobs_are_the_models_best(engine, model, count):
    params = SamplingParams(max_tokens=20, logprobs=count, temperature=0.5, logit_bias={3: 9.0})
    completion = one(engine(), Request(PROMPT, params))
    logprobs_TV = model.full_logits([*PROMPT, *completion.token_ids]).log_softmax(-1)[2:-1]
    for top, logprobs_V in zip(completion.top_logprobs, logprobs_TV, strict=True):
        best = logprobs_V.sort(descending=True)
        assert [i for i, _ in top] == best.indices[:count].tolist()
        assert [p for _, p in top] == pytest.approx(best.values[:count].tolist(), abs=1e-6)


def assert_prompt_logprobs_hold(model, request, completion):
    ids = list(request.prompt_ids)
    logprobs_TV = model.full_logits(ids).log_softmax(-1)
    assert len(completion.prompt_logprobs) == len(ids)
    assert completion.prompt_logprobs[0] is None
    for entry, logprobs_V, token in zip(
        completion.prompt_logprobs[1:], logprobs_TV, ids[1:], strict=False
    ):
        best = logprobs_V.sort(descending=True)
        count = min(request.params.prompt_logprobs, 13)
        assert entry.logprob == pytest.approx(float(logprobs_V[token]), abs=1e-6)
        assert entry.rank == best.indices.tolist().index(token) + 1
        assert [i for i, _ in entry.top] == best.indices[:count].tolist()


@pytest.mark.parametrize(
    "limits",
    [
        {"num_blocks": 14, "block_size": 4, "max_num_batched_tokens": 9},
        {},
        {"max_num_batched_tokens": 5},
        {"deterministic": True},
    ],
)
def test_prompt_logprobs_are_those_of_a_full_pass(engine, model, limits):
    rng = random.Random(2)
    requests = [
        Request(
            tuple(rng.randrange(13) for _ in range(length)),
            SamplingParams(n=1 + i % 3, max_tokens=25, prompt_logprobs=i % 4 * 5, seed=i),
        )
        for i, length in enumerate([1, 2, 5, 17, 24, 9, 20, 13])
    ]
    for request, completions in zip(requests, engine(**limits).generate(requests), strict=True):
        for completion in completions:
            assert_prompt_logprobs_hold(model, request, completion)


def test_prompt_logprobs_do_not_read_what_is_cached(engine, model):
    made = engine(block_size=4)
    prompt = tuple(i % 7 for i in range(30))
    one(made, Request(prompt, SamplingParams(max_tokens=2)))
    request = Request(prompt, SamplingParams(max_tokens=2, prompt_logprobs=2))
    completion = one(made, request)
    assert completion.num_cached_tokens == 0
    assert_prompt_logprobs_hold(model, request, completion)
    assert one(made, Request(prompt, SamplingParams(max_tokens=2))).num_cached_tokens == 28


# Stopping


def test_no_stop_token_comes_among_the_first_min_tokens(engine):
    made, lengths = engine(), set()
    for seed in range(20):
        params = SamplingParams(max_tokens=40, min_tokens=7, stop_token_ids=(STOP, 4, 5), seed=seed)
        ids = one(made, Request(PROMPT, params)).token_ids
        assert not {STOP, 4, 5} & set(ids[:7])
        lengths.add(len(ids))
    assert min(lengths) == 8


def test_a_stop_matcher_sees_the_whole_output_and_ends_it(engine):
    seen = []

    def two_alike(ids):
        seen.append(tuple(ids))
        return len(ids) > 1 and ids[-1] == ids[-2]

    free = one(engine(), Request(PROMPT, SamplingParams(max_tokens=60)))
    ids = free.token_ids
    end = next(i for i in range(1, 60) if ids[i] == ids[i - 1]) + 1
    completion = one(
        engine(), Request(PROMPT, SamplingParams(max_tokens=60), stop_matcher=two_alike)
    )
    assert (completion.token_ids, completion.finish_reason) == (ids[:end], "stop")
    assert seen == [ids[:length] for length in range(1, end + 1)]


def test_a_stop_matcher_waits_for_min_tokens(engine):
    params = SamplingParams(max_tokens=20, min_tokens=5)
    completion = one(engine(), Request(PROMPT, params, stop_matcher=lambda ids: True))
    assert (len(completion.token_ids), completion.finish_reason) == (6, "stop")


def test_more_min_tokens_than_max_tokens_is_an_error():
    with pytest.raises(ConfigError, match="to max_tokens=4"):
        SamplingParams(max_tokens=4, min_tokens=5)


def test_bans_and_biases_hold_and_are_felt_by_processed_logprobs_alone(engine, model, reference):
    params = SamplingParams(max_tokens=40, logit_bias={3: 2.0, 4: NEVER})

    def ban(ids):
        return (5, ids[-1]) if ids else (5,)

    request = Request(PROMPT, params, banned_tokens=ban)
    completion = one(engine(), request)
    ids, raw, processed = oracle(model, request, reference, banned=ban)
    assert list(completion.token_ids) == ids and not {4, 5} & set(ids)
    assert completion.logprobs == pytest.approx(raw, abs=1e-5)
    assert completion.processed_logprobs == pytest.approx(processed, abs=1e-5)


def test_bans_that_leave_nothing_end_their_request_alone(engine):
    made = engine()
    bad = Request(
        PROMPT, SamplingParams(n=2), banned_tokens=lambda ids: range(13) if len(ids) > 2 else ()
    )
    good = Request(PROMPT, SamplingParams(max_tokens=9))
    want = one(engine(), good)
    bad_id, good_id = made.add(bad), made.add(good)
    events = []
    while made.has_work:
        events += made.step()
    errors = [e for e in events if e.error is not None]
    assert {(e.request_id, e.sample_id) for e in errors} == {(bad_id, 0), (bad_id, 1)}
    assert all("no token that may come after 3" in str(e.error) for e in errors)
    [completion] = [e.completion for e in events if e.request_id == good_id and e.completion]
    assert completion.token_ids == want.token_ids


# Thinking


@pytest.mark.parametrize("closing", [(WORD, WORD, END_THINK), ()], ids=["several_ids", "one_id"])
@pytest.mark.parametrize("budget", [7, 0, 1])
def test_a_thought_ends_at_exactly_its_budget(engine, budget, closing):
    made = engine()
    completion = one(made, Request(OPEN, thinking(budget, closing)))
    ids, closing = completion.token_ids, closing or (END_THINK,)
    end = budget + len(closing)
    assert ids[budget:end] == closing
    assert completion.forced == tuple(range(budget, end))
    assert END_THINK not in ids[:budget] and THINK not in ids[end:]
    assert len(ids) == 30
    # Before it all is as without a budget, and after it as if the thought had come with the prompt.
    assert ids[:budget] == one(made, Request(OPEN, thinking(None))).token_ids[:budget]
    later = thinking(0, max_tokens=30 - end)
    assert ids[end:] == one(made, Request((*OPEN, *ids[:end]), later)).token_ids


def test_forced_tokens_carry_the_models_logprob_and_are_certain(engine, model):
    completion = one(engine(), Request(OPEN, thinking(4, (WORD, END_THINK))))
    logprobs_TV = model.full_logits([*OPEN, *completion.token_ids]).log_softmax(-1)
    for place in completion.forced:
        want = float(logprobs_TV[len(OPEN) - 1 + place, completion.token_ids[place]])
        assert completion.logprobs[place] == pytest.approx(want, abs=1e-6)
        assert completion.processed_logprobs[place] == 0


def test_a_thought_that_ends_early_is_left_alone(engine):
    own = {"logit_bias": {THINK: NEVER, END_THINK: 1.0}}
    made, early = engine(), 0
    for seed in range(12):
        free = one(made, Request(OPEN, thinking(None, seed=seed, **own)))
        kept = one(made, Request(OPEN, thinking(25, seed=seed, **own)))
        if END_THINK in free.token_ids[:25]:
            assert kept.token_ids == free.token_ids and kept.forced == ()
            early += 1
    assert early > 5


def test_several_thoughts_share_one_budget(engine):
    bias = {THINK: 2.5, END_THINK: 1.0, STOP: NEVER}
    made, spent, several = engine(), 0, 0
    for seed in range(12):
        params = thinking(9, (WORD, END_THINK), seed=seed, max_tokens=60, logit_bias=bias)
        completion = one(made, Request(PROMPT, params))
        is_open, thoughts, tokens = False, 0, 0
        for place, token in enumerate(completion.token_ids):
            if place in completion.forced:
                assert tokens == 9
                is_open = token != END_THINK
            elif token == THINK and not is_open:
                assert tokens < 9  # none begins once the budget is spent
                is_open, thoughts = True, thoughts + 1
            elif token == END_THINK:
                is_open = False
            else:
                tokens += is_open
        assert tokens <= 9
        assert len(completion.forced) in (0, 2)
        spent += len(completion.forced) == 2
        several += thoughts > 1
    assert spent > 6 and several > 6


def test_with_no_budget_no_thought_begins(engine):
    params = thinking(0, logit_bias={THINK: 3.0}, max_tokens=60)
    free = one(engine(), Request(PROMPT, thinking(None, logit_bias={THINK: 3.0}, max_tokens=60)))
    assert THINK in free.token_ids
    completion = one(engine(), Request(PROMPT, params))
    assert THINK not in completion.token_ids and completion.forced == ()


def test_thoughts_of_earlier_turns_are_not_counted(engine):
    history = (1, THINK, 2, 3, 4, 5, END_THINK, 6)
    for prompt in (history, (*history, THINK), (*history, THINK, 1, 1, 1)):
        bias = {THINK: NEVER, END_THINK: NEVER}
        completion = one(engine(), Request(prompt, thinking(3, logit_bias=bias)))
        assert completion.forced == ((3,) if THINK in prompt[len(history) :] else ())


def test_without_a_budget_thinking_changes_no_draw(engine):
    plain = Request(OPEN, SamplingParams(max_tokens=40))
    aware = Request(OPEN, thinking(None, max_tokens=40, logit_bias={}))
    assert one(engine(), aware).token_ids == one(engine(), plain).token_ids


@pytest.mark.parametrize(("max_tokens", "forced"), [(7, (5, 6)), (3, ()), (5, ()), (6, (5,))])
def test_max_tokens_counts_inside_a_thought_too(engine, max_tokens, forced):
    params = thinking(5, (WORD, END_THINK), max_tokens=max_tokens)
    completion = one(engine(), Request(OPEN, params))
    assert len(completion.token_ids) == max_tokens
    assert completion.finish_reason == "length"
    assert completion.forced == forced


def test_budgets_hold_for_samples_in_a_crowd_that_is_preempted(engine):
    requests = [
        Request((i, *OPEN), thinking(2 * i, (WORD, END_THINK), n=3, seed=i)) for i in range(7)
    ]
    tight = engine(num_blocks=14, block_size=4).generate(requests)
    for i, completions in enumerate(tight):
        assert all(c.forced == (2 * i, 2 * i + 1) for c in completions)
    alone = [engine().generate([request])[0] for request in requests]
    assert [[c.token_ids for c in group] for group in tight] == [
        [c.token_ids for c in group] for group in alone
    ]


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("known", "num_drawn", "waits"),
    [
        ((), 1, False),  # one of two tokens under way
        ((1,), 2, True),  # the token under way may be the last of the budget
        ((1, 1), 2, True),  # the closing is due
        ((1, 1, WORD), 4, True),
        ((1, 1, WORD, END_THINK), 5, False),  # spent, so that no other thought can begin
        ((END_THINK,), 2, False),  # one that begins in the token under way has all its budget left
    ],
)
def test_the_host_is_waited_for_only_where_the_closing_may_be_due(known, num_drawn, waits):
    request = Request(OPEN, thinking(2, (WORD, END_THINK)))
    sample = Sample(0, 0, request, 0, list(request.prompt_ids))
    begin(sample)
    for token in known:
        sample.token_ids.append(token)
        follow(sample, token)
    sample.num_drawn = num_drawn
    assert sample.needs_host == waits


def test_marks_that_are_no_two_ids_and_closings_that_do_not_close_are_refused():
    with pytest.raises(ConfigError, match="two ids of their own"):
        ThinkingParams(start_id=5, end_id=5)
    with pytest.raises(ConfigError, match="end_id=11 is the last"):
        ThinkingParams(start_id=THINK, end_id=END_THINK, closing_ids=(END_THINK, WORD))


def test_closing_ids_outside_the_vocabulary_are_refused(make_engine):
    with pytest.raises(UserError, match="from 0 to 12"):
        make_engine().generate([Request(OPEN, thinking(3, (13, END_THINK)))])


# Grammars


class Steps:
    """Digits that go up by one or two, modulo 8; after `length` of them the end alone."""

    def __init__(self, length=5):
        self.seen, self.length = [], length

    def accept(self, token_id):
        self.seen.append(token_id)

    def allowed(self):
        if not self.seen:
            return bytes([0xFF])
        if len(self.seen) >= self.length:
            return bytes([0, 1 << STOP - 8])
        return bytes([1 << (self.seen[-1] + 1) % 8 | 1 << (self.seen[-1] + 2) % 8])


def made_by(kind):
    """Keeps what it makes."""
    made = []

    def make():
        made.append(kind())
        return made[-1]

    return make, made


def assert_steps(ids, length=5):
    assert len(ids) == length + 1 and ids[-1] == STOP
    assert all((b - a) % 8 in (1, 2) for a, b in pairwise(ids[:-1]))


def test_every_sample_holds_to_its_grammar_and_the_others_are_unaffected(engine):
    make, made = made_by(Steps)
    held = Request(
        PROMPT, SamplingParams(n=4, max_tokens=9, stop_token_ids=(STOP,)), make_grammar=make
    )
    free = mixture(8, seed=3)
    want = engine().generate(free)
    steps, *others = engine(num_blocks=30, block_size=4).generate([held, *free])
    assert [[c.token_ids for c in g] for g in others] == [[c.token_ids for c in g] for g in want]
    assert len(made) == 4 and len({c.token_ids for c in steps}) > 1
    for completion, grammar in zip(steps, made, strict=True):
        assert_steps(completion.token_ids)
        assert grammar.seen == list(completion.token_ids)


def test_a_grammar_holds_behind_the_thought_alone(engine):
    # Ids from 8 up are for no grammar of these.
    for budget, end_bias in ((6, NEVER), (None, 2.0)):
        make, made = made_by(Steps)
        bias = {END_THINK: end_bias, WORD: 3.0}
        params = thinking(budget, max_tokens=90, logit_bias=bias, stop_token_ids=(STOP,), seed=1)
        ids = one(engine(), Request(OPEN, params, make_grammar=make)).token_ids
        end = ids.index(END_THINK)
        assert WORD in ids[:end]
        assert_steps(ids[end + 1 :])
        assert made[0].seen == list(ids[end + 1 :])


def test_a_thought_may_begin_before_the_answer_but_not_within(engine):
    bias = {THINK: 4.0, END_THINK: 2.0}
    for prompt, begins in ((PROMPT, True), ((THINK, END_THINK, *PROMPT), False)):
        params = thinking(None, max_tokens=90, logit_bias=bias, stop_token_ids=(STOP,))
        ids = one(engine(), Request(prompt, params, make_grammar=Steps)).token_ids
        assert (ids[0] == THINK) == begins
        assert_steps(ids[ids.index(END_THINK) + 1 :] if begins else ids)


def test_a_grammar_without_thinking_holds_from_the_first_token(engine):
    ids = one(
        engine(), Request(OPEN, SamplingParams(stop_token_ids=(STOP,)), make_grammar=Steps)
    ).token_ids
    assert_steps(ids)


def test_a_grammar_at_a_dead_end_fails_its_request_alone(engine):
    class Dead(Steps):
        def allowed(self):
            return bytes([0, 0, 0xFF]) if len(self.seen) == 2 else None  # ids beyond the vocabulary

    for request in (
        Request(PROMPT, SamplingParams(), make_grammar=Dead),
        # Masks and bans leave something each, but nothing together.
        Request(PROMPT, SamplingParams(min_tokens=8, stop_token_ids=(STOP,)), make_grammar=Steps),
    ):
        made = engine()
        good = Request(PROMPT, SamplingParams(max_tokens=9))
        with pytest.raises(UserError, match="make_grammar: got no token that may come after"):
            made.generate([request, good])
        assert one(made, good) == one(engine(), good)


def test_a_grammar_that_raises_fails_its_request_alone(engine):
    class Broken(Steps):
        def accept(self, token_id):
            if len(self.seen) == 3:
                raise ZeroDivisionError
            super().accept(token_id)

    made = engine()
    good = Request(PROMPT, SamplingParams(max_tokens=9))
    bad_id = made.add(Request(PROMPT, SamplingParams(n=2), make_grammar=Broken))
    good_id = made.add(good)
    events = []
    while made.has_work:
        events += made.step()
    errors = [(e.request_id, e.sample_id, type(e.error)) for e in events if e.error is not None]
    assert sorted(errors) == [(bad_id, 0, ZeroDivisionError), (bad_id, 1, ZeroDivisionError)]
    assert [e.completion for e in events if e.completion] == [one(made, good)]
    assert {e.request_id for e in events if e.error is None} <= {bad_id, good_id}


def test_who_may_not_draw_yet_misses_steps_and_nothing_else(engine):
    is_late = [False]
    params = SamplingParams(n=2, max_tokens=9, stop_token_ids=(STOP,))
    late = Request(PROMPT, params, make_grammar=Steps, may_draw=lambda: not is_late[0])
    good = Request(PROMPT, SamplingParams(max_tokens=12))
    expected = [engine().generate([request])[0] for request in (late, good)]
    made = engine()
    late_id, _ = made.add(late), made.add(good)
    events = made.step() + made.step()
    is_late[0] = True
    meanwhile = [event for _ in range(20) for event in made.step()]
    assert late_id not in {event.request_id for event in meanwhile}
    assert [e.completion for e in meanwhile if e.completion] == expected[1]
    assert made.has_work and not made.step()
    is_late[0] = False
    while made.has_work:
        events += made.step()
    ended = sorted((e.sample_id, e.completion) for e in events if e.completion)
    assert [completion for _, completion in ended] == expected[0]


def test_a_grammar_that_cannot_be_made_is_an_error_before_anything_runs(engine, model):
    def bad():
        raise UserError(at="grammar.regex", got="[", want="an expression")

    made = engine()
    good_id = made.add(Request(PROMPT, SamplingParams(max_tokens=4)))
    with pytest.raises(UserError, match=r"grammar\.regex"):
        made.add(Request(PROMPT, SamplingParams(), make_grammar=bad))
    events = []
    while made.has_work:
        events += made.step()
    assert {e.request_id for e in events} == {good_id} and events[-1].completion is not None


# Text, by what `data` makes of it


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["abc abc [true, false]"] * 20, TokenizerConfig(vocab_size=5 + 256 + 9))


@pytest.fixture
def talker(model, tokenizer):
    """An engine whose model knows a few ids more than the tokenizer, as padded ones do."""
    return Engine(type(model)(tokenizer.vocab_size + 11), EngineConfig(max_model_len=300))


def test_a_schema_holds_through_the_engine(talker, tokenizer):
    pytest.importorskip("llguidance")
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}
    make = Grammars(tokenizer).json_schema(schema | {"x-guidance": {"whitespace_flexible": False}})
    params = SamplingParams(n=12, max_tokens=60, stop_token_ids=(tokenizer.end_id,))
    request = Request((5, 6), params, make_grammar=make)
    answers = set()
    for completion in talker.generate([request])[0]:
        assert completion.finish_reason == "stop"
        answers.add(tokenizer.decode(completion.token_ids[:-1]))
    found = [json.loads(answer) for answer in answers]
    assert all(len(f) in (2, 3) and all(isinstance(x, bool) for x in f) for f in found)
    assert len(answers) > 3


def test_stop_strings_end_an_output_through_the_engine(talker, tokenizer):
    letters = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) in (b"a", b"b")]
    free = SamplingParams(max_tokens=100, logit_bias=dict.fromkeys(letters, 12.0))
    [[completion]] = talker.generate([Request((5,), free)])
    text = tokenizer.decode(completion.token_ids)
    stopper = StopStrings(tokenizer, ["abba", "babb"])
    [[stopped]] = talker.generate([Request((5,), free, stop_matcher=stopper)])
    cut = tokenizer.decode(stopped.token_ids)
    first = min(text.index(s) for s in ("abba", "babb") if s in text)
    assert stopped.finish_reason == "stop"
    assert cut[: len(cut) - stopper.num_cut(stopped.token_ids)] == text[:first]
