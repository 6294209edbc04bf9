import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nalar.config import ConfigError, UserError
from nalar.engine import decode as decode_module
from nalar.engine import engine as engine_module
from nalar.engine import runner as runner_module
from nalar.engine.config import SpeculationConfig
from nalar.engine.scheduler import Scheduler
from nalar.engine.sequence import Request, SamplingParams, ThinkingParams
from nalar.kernels import switch

pytestmark = pytest.mark.few(1)

END = 12


def crowd(num=20, seed=0, **params):
    """Requests of mixed prompt length, cap and sample count."""
    rng = random.Random(seed)
    return [
        Request(
            tuple(rng.randrange(END) for _ in range(rng.randint(1, 9))),
            SamplingParams(
                **{
                    "n": rng.randint(1, 4),
                    "max_tokens": rng.randint(1, 90),
                    "stop_token_ids": (END,),
                    "seed": i,
                    **params,
                }
            ),
        )
        for i in range(num)
    ]


def assert_logprobs_hold(model, request, completion):
    ids = [*request.prompt_ids, *completion.token_ids]
    logprobs_TV = model.full_logits(ids).log_softmax(-1)
    start = len(request.prompt_ids) - 1
    want = [float(logprobs_TV[start + i, t]) for i, t in enumerate(completion.token_ids)]
    assert completion.logprobs == pytest.approx(want, abs=1e-6)


def test_a_request_draws_the_same_alone_as_in_a_crowd(make_engine):
    requests = crowd()
    together = make_engine().generate(requests)
    assert together == [make_engine().generate([request])[0] for request in requests]


@pytest.mark.parametrize("max_num_seqs", [1, 3, 7, 16])
def test_refilling_few_rows_gives_what_one_big_batch_gives(make_engine, model, max_num_seqs):
    requests = crowd()
    assert make_engine(max_num_seqs=max_num_seqs).generate(requests) == make_engine().generate(
        requests
    )
    assert max(model.decode_batches[:-1]) >= max_num_seqs


def test_a_batch_never_exceeds_its_rows(make_engine, model):
    make_engine(max_num_seqs=5).generate(crowd())
    assert max(model.decode_batches) == 5


def test_each_prompt_is_computed_once_for_all_its_samples(make_engine, model):
    requests = crowd(num=6, n=8)
    num_prompt = sum(len(request.prompt_ids) for request in requests)
    make_engine().generate(requests)
    assert model.prompt_tokens == num_prompt


@pytest.mark.parametrize("limits", [{"max_num_batched_tokens": 3}, {"block_size": 1}])
def test_prompts_in_chunks_and_small_blocks_change_nothing(make_engine, model, limits):
    requests = crowd()
    whole = make_engine().generate(requests)
    assert make_engine(**limits).generate(requests) == whole
    assert max(model.batches[-5:]) <= 3 or "block_size" in limits


def test_samples_of_one_request_differ_and_seeds_too(make_engine):
    request = Request((1, 2), SamplingParams(n=8, max_tokens=20))
    other = Request((1, 2), SamplingParams(n=8, max_tokens=20, seed=1))
    samples = [c.token_ids for group in make_engine().generate([request, other]) for c in group]
    assert len(set(samples)) == 16


def test_fewer_samples_are_a_prefix_of_more(make_engine):
    few = Request((1, 2), SamplingParams(n=2, max_tokens=20))
    many = Request((1, 2), SamplingParams(n=5, max_tokens=20))
    assert make_engine().generate([few])[0] == make_engine().generate([many])[0][:2]


def test_sequences_end_by_stop_or_by_length_and_say_which(make_engine):
    requests = crowd(num=40)
    seen = set()
    for request, completions in zip(requests, make_engine().generate(requests), strict=True):
        assert len(completions) == request.params.n
        for completion in completions:
            ids, cap = completion.token_ids, request.params.max_tokens
            assert END not in ids[:-1]
            assert completion.finish_reason == ("stop" if ids[-1] == END else "length")
            assert len(ids) == cap if completion.finish_reason == "length" else len(ids) <= cap
            assert len(completion.logprobs) == len(ids)
            seen.add(completion.finish_reason)
    assert seen == {"stop", "length"}


def test_a_stop_token_at_the_cap_is_a_stop(make_engine):
    free = Request((1, 2), SamplingParams(max_tokens=3))
    [[completion]] = make_engine().generate([free])
    last = completion.token_ids[-1]
    cap = completion.token_ids.index(last) + 1
    stopped = Request((1, 2), SamplingParams(max_tokens=cap, stop_token_ids=(last,)))
    [[again]] = make_engine().generate([stopped])
    assert (again.token_ids[-1], again.finish_reason) == (last, "stop")


def test_without_stop_tokens_every_sequence_runs_to_its_cap(make_engine):
    for group in make_engine().generate(crowd(stop_token_ids=(), max_tokens=30)):
        assert all(len(c.token_ids) == 30 and c.finish_reason == "length" for c in group)


def test_logprobs_are_those_of_a_pass_over_the_whole_text(make_engine, model):
    requests = crowd(max_tokens=100, temperature=0.7)
    for request, group in zip(
        requests, make_engine(max_num_seqs=9).generate(requests), strict=True
    ):
        for completion in group:
            assert_logprobs_hold(model, request, completion)


def test_greedy_follows_the_best_token(make_engine, model):
    request = Request((4, 5, 6), SamplingParams(temperature=0, max_tokens=40))
    ids = list(request.prompt_ids)
    for _ in range(40):
        ids.append(int(model.full_logits(ids)[-1].argmax()))
    [[completion]] = make_engine().generate(
        [
            request,
        ]
    )
    assert list(completion.token_ids) == ids[3:]


def test_differently_shaped_requests_share_a_batch(make_engine):
    plain, greedy, cut = (
        crowd(4),
        crowd(4, temperature=0),
        crowd(4, temperature=0.8, top_k=3, top_p=0.9),
    )
    mixed = make_engine().generate([*plain, *greedy, *cut])
    apart = [make_engine().generate(part) for part in (plain, greedy, cut)]
    assert mixed == [group for part in apart for group in part]


def test_banned_tokens_never_appear_and_the_rule_sees_the_true_past(make_engine, model):
    seen = []

    def no_repeats(past):
        seen.append(tuple(past))
        return past[-1:]

    base = crowd(num=12, max_tokens=40, stop_token_ids=(END,))
    requests = [
        Request(r.prompt_ids, r.params, no_repeats if i % 2 else None) for i, r in enumerate(base)
    ]
    results = make_engine(max_num_seqs=5).generate(requests)
    pasts = set()
    for request, group in zip(requests, results, strict=True):
        for completion in group:
            assert_logprobs_hold(model, request, completion)
            if request.banned_tokens:
                ids = completion.token_ids
                assert all(a != b for a, b in pairwise(ids))
                pasts |= {ids[:length] for length in range(len(ids))}
    assert set(seen) == pasts
    free = make_engine().generate(base)
    assert results[::2] == free[::2]


def test_banning_everything_is_an_error(make_engine):
    request = Request((1,), SamplingParams(), banned_tokens=lambda past: range(END + 1))
    with pytest.raises(UserError, match="no token that may come"):
        make_engine().generate([request])


def test_a_stream_gives_what_generate_gives(make_engine):
    for request in crowd(num=8, n=1):
        engine = make_engine()
        [[completion]] = engine.generate([request])
        streamed = list(engine.stream(request))
        assert tuple(t for t, _ in streamed) == completion.token_ids
        assert tuple(p for _, p in streamed) == completion.logprobs


def test_no_inference_mode_reaches_the_caller(make_engine):
    engine = make_engine(num_scheduler_steps=1)
    modes = []
    request = Request((1,), SamplingParams(max_tokens=5))
    engine.generate([request], on_step=lambda _: modes.append(torch.is_inference_mode_enabled()))
    for _ in engine.stream(request):
        modes.append(torch.is_inference_mode_enabled())
    assert len(modes) == 10 and not any(modes)


def test_progress_adds_up(make_engine):
    requests = crowd()
    steps = []
    results = make_engine(max_num_seqs=6).generate(requests, on_step=steps.append)
    completions = [c for group in results for c in group]
    assert all(p.num_waiting + p.num_running + p.num_finished == len(completions) for p in steps)
    assert steps[-1].num_finished == len(completions)
    assert steps[-1].num_tokens == sum(len(c.token_ids) for c in completions)


def test_an_interrupted_call_leaves_the_engine_as_it_was(make_engine):
    engine = make_engine(max_num_seqs=4)
    requests = crowd()

    def interrupt(progress):
        if progress.num_tokens > 30:
            raise KeyboardInterrupt

    want = engine.generate(requests)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(requests, on_step=interrupt)
    assert engine.generate(requests) == want
    engine.load({}, version=1)


def test_logits_that_are_not_finite_are_an_error(make_engine, model):
    model.table.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        make_engine().generate(crowd(num=2))


def test_no_requests_give_no_completions(make_engine):
    assert make_engine().generate([]) == []


def test_a_request_that_cannot_fit_is_refused_before_anything_runs(make_engine, model):
    good = Request((1,) * 8, SamplingParams(max_tokens=8))
    bad = Request((1,) * 8, SamplingParams(max_tokens=9))
    engine = make_engine(max_model_len=16)
    assert len(engine.generate([good])[0][0].token_ids) == 8
    calls = len(model.batches)
    with pytest.raises(UserError, match=r"(?s)requests\[1\].*max_model_len=16"):
        engine.generate([good, bad])
    with pytest.raises(UserError, match="max_model_len=16"):
        engine.stream(bad)
    assert len(model.batches) == calls


@pytest.mark.parametrize(
    "request_",
    [
        Request((1, 13), SamplingParams()),
        Request((-1,), SamplingParams()),
        Request((1,), SamplingParams(stop_token_ids=(13,))),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(make_engine, request_):
    with pytest.raises(UserError, match="from 0 to 12"):
        make_engine().generate([request_])


def test_a_stream_is_of_one_sample(make_engine):
    with pytest.raises(UserError, match="one sample"):
        make_engine().stream(Request((1,), SamplingParams(n=2)))


def test_loading_the_models_own_tensors_only_sets_the_version(make_engine, model):
    engine = make_engine()
    before = model.table._version
    engine.load(model.state_dict(), version=3)
    assert model.table._version == before
    [[completion]] = engine.generate([Request((1,), SamplingParams(max_tokens=2))])
    assert (engine.policy_version, completion.policy_version) == (3, 3)


def test_loading_foreign_tensors_copies_them(make_engine, model):
    engine = make_engine()
    new = torch.randn_like(model.table)
    engine.load({"table": new}, version=4)
    assert torch.equal(model.table, new)
    assert model.table.data_ptr() != new.data_ptr()


@pytest.mark.parametrize("params", [{"tabel": torch.zeros(101, 13)}, {"table": torch.zeros(3, 13)}])
def test_parameters_that_do_not_fit_change_nothing(make_engine, model, params):
    engine = make_engine()
    before = model.table.clone()
    with pytest.raises(UserError, match=r"engine\.load: tab"):
        engine.load(params, version=5)
    assert torch.equal(model.table, before)
    assert engine.policy_version == 0


def test_parameters_cannot_change_under_an_open_stream(make_engine):
    engine = make_engine()
    stream = engine.stream(Request((1,), SamplingParams(max_tokens=9)))
    next(stream)
    with pytest.raises(RuntimeError, match="still open"):
        engine.load({}, version=1)
    stream.close()
    engine.load({}, version=1)


def test_parameters_can_be_trained_after_sampling(make_engine, model):
    model.table.requires_grad_()
    make_engine().generate(crowd(num=2))
    model.full_logits([1, 2, 3]).sum().backward()
    assert model.table.grad is not None


def test_an_engine_cannot_hold_longer_sequences_than_its_model(make_engine):
    with pytest.raises(ConfigError, match="max_position_embeddings=4096"):
        make_engine(max_model_len=4097)


def demanding(num=8, seed=1):
    """Requests with all that the host has a say in, short enough for a tiny cache."""
    kinds = [
        {},
        {"thinking": ThinkingParams(start_id=3, end_id=4, budget_tokens=0)},
        {"thinking": ThinkingParams(start_id=3, end_id=4, budget_tokens=3, closing_ids=(7, 4))},
        {"min_tokens": 6, "temperature": 0.7, "top_p": 0.9},
        {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"logit_bias": {5: 2.0}, "logprobs": 2},
        {"prompt_logprobs": 1, "min_p": 0.05},
    ]
    requests = []
    for i, request in enumerate(crowd(num, seed)):
        params = request.params.model_copy(
            update={"max_tokens": min(request.params.max_tokens, 23), **kinds[i % len(kinds)]}
        )
        banned = (lambda past: past[-1:]) if i % 3 == 1 else None
        requests.append(Request(request.prompt_ids, params, banned, priority=i % 2))
    return requests


def said(groups):
    """Completions apart from what the cache had of their prompts; what is shaped up to rounding."""
    return [
        [
            replace(
                completion,
                num_cached_tokens=0,
                processed_logprobs=[round(p, 4) for p in completion.processed_logprobs],
            )
            for completion in group
        ]
        for group in groups
    ]


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize(
    "limits",
    [
        {"block_size": 4, "num_blocks": 9},
        {"block_size": 4, "num_blocks": 9, "enable_prefix_caching": False},
        {"block_size": 1, "num_blocks": 40, "max_num_batched_tokens": 3},
        {"block_size": 3, "num_blocks": 12, "max_num_batched_tokens": 5, "max_num_seqs": 4},
        {"max_num_seqs": 1},
        {"deterministic": True, "max_num_batched_tokens": 10, "block_size": 5, "num_blocks": 9},
        {"num_scheduler_steps": 4, "block_size": 4, "num_blocks": 9},
        {"num_scheduler_steps": 7, "block_size": 3, "num_blocks": 30},
        {"num_scheduler_steps": 5, "deterministic": True, "block_size": 5, "num_blocks": 12},
    ],
)
def test_limits_change_nothing_that_is_said(make_engine, monkeypatch, limits, overlaps):
    preempted = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(
        Scheduler, "_preempt", lambda self, s: (preempted.append(s), preempt(self, s))
    )
    want = said(make_engine().generate(demanding()))
    engine = make_engine(**limits)
    engine._overlaps = overlaps
    assert said(engine.generate(demanding())) == want
    assert said(engine.generate(demanding())) == want  # the cache is warm now
    assert preempted or "num_blocks" not in limits
    assert engine._scheduler.pool.num_free == engine._num_blocks - 1
    assert not engine.has_work or engine._pending is not None


@given(
    block_size=st.integers(1, 7),
    spare=st.integers(0, 20),
    budget=st.integers(1, 30),
    rows=st.integers(1, 9),
    caching=st.booleans(),
    overlaps=st.booleans(),
    steps=st.integers(1, 9),
    seed=st.integers(0, 3),
)
@settings(
    max_examples=settings.default.max_examples // 4,  # each is two runs
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # the model has no state that counts
)
def test_any_limits_change_nothing_that_is_said(
    make_engine, block_size, spare, budget, rows, caching, overlaps, steps, seed
):
    requests = demanding(4, seed)
    want = said(make_engine(max_model_len=32).generate(requests))
    engine = make_engine(
        max_model_len=32,
        block_size=block_size,
        num_blocks=-(-32 // block_size) + 1 + spare,
        max_num_batched_tokens=budget,
        max_num_seqs=rows,
        enable_prefix_caching=caching,
        num_scheduler_steps=steps,
    )
    engine._overlaps = overlaps
    assert said(engine.generate(requests)) == want


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize(
    "limits",
    [
        {"num_scheduler_steps": 4},
        {"num_scheduler_steps": 3, "block_size": 4, "num_blocks": 30},
        {"num_scheduler_steps": 1, "max_num_seqs": 11},
        {"num_scheduler_steps": 4, "deterministic": True, "block_size": 5},
    ],
)
def test_steps_that_are_recorded_give_what_others_give(make_engine, tapes, limits, overlaps):
    requests = [*demanding(), *crowd(9, seed=3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_module, "recorder_for", lambda device, config: None)
        want = said(make_engine().generate(requests))
    engine = make_engine(**limits)
    engine._overlaps = overlaps
    assert said(engine.generate(requests)) == want
    [tape] = tapes
    shapes = len(tape.steps)
    assert shapes + 1 < len(tape.played)
    assert said(engine.generate(requests)) == want
    assert (
        len(tapes) == 1 and len(tape.steps) <= shapes + 2
    )  # a warm cache makes batches of its own


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors of the CPU: for the interpreter")
def test_recorded_steps_may_use_kernels_of_their_own(make_engine, tapes):
    pytest.importorskip("triton")
    requests = crowd(6)
    want = said(make_engine(num_scheduler_steps=4).generate(requests))
    with switch.forced("rows"):
        assert said(make_engine(num_scheduler_steps=4).generate(requests)) == want


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("speculation", [None, {"method": "ngram", "num_speculative_tokens": 3}])
def test_short_prompts_may_be_recorded_steps_of_rows(
    make_engine, tapes, model, overlaps, speculation
):
    pytest.importorskip("triton")
    requests = [*demanding(), *crowd(9, seed=3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_module, "recorder_for", lambda device, config: None)
        want = said(make_engine().generate(requests))
    speculating = speculation and SpeculationConfig(**speculation)
    steps = None if speculation else 3
    for budget in (7, 8192):
        engine = make_engine(
            num_scheduler_steps=steps, max_num_batched_tokens=budget, speculation=speculating
        )
        engine._overlaps = overlaps
        with switch.forced("paged_attention"):  # of which this model knows nothing
            assert said(engine.generate(requests)) == want
            assert said(engine.generate(requests)) == want
    assert all(any(key[0] == "tokens" for key in tape.steps) for tape in tapes)


@pytest.mark.parametrize("limits", [{"block_size": 3}, {"deterministic": True}])
def test_where_attention_reads_all_that_a_table_names_tables_are_no_wider_than_need_be(
    make_engine, tapes, limits
):
    """The kernel that reads what a row sees takes blocks of a power of two, and no tiles of fixed size."""
    pytest.importorskip("triton")
    engine = make_engine(num_scheduler_steps=4, max_model_len=4000, num_blocks=200, **limits)
    with switch.forced("paged_attention"):
        engine.generate(crowd(4))
    [tape] = tapes
    assert all(kind != "tokens" and width <= 16 for kind, _, width in tape.steps)


def test_what_is_recorded_lasts_as_long_as_cache_and_weights_stay(make_engine, tapes, model):
    engine = make_engine(num_scheduler_steps=4)
    requests = crowd(4)
    want = engine.generate(requests)
    engine.load(model.state_dict(), 1)
    again = engine.generate(requests)
    assert [c.token_ids for g in again for c in g] == [c.token_ids for g in want for c in g]
    assert len(tapes) == 1
    engine.sleep()
    assert [c.token_ids for g in engine.generate(requests) for c in g] == [
        c.token_ids for g in want for c in g
    ]
    assert len(tapes) == 2
    model.table = model.table.clone()
    engine.load(model.state_dict(), 2)
    engine.generate(requests)
    assert len(tapes) == 3


def test_a_recording_touches_nobodys_block(make_engine, tapes, monkeypatch):
    engine = make_engine(num_scheduler_steps=2, block_size=4)
    engine.generate(crowd(5))
    tape = type(tapes[0])
    record, seen = tape.record, []

    def watched(self, key, step):
        cache = engine._runner._cache
        rows = engine._runner._rows
        nobody = rows.nobody
        before = [x[:nobody].clone() for x in (rows.ids_R, rows.positions_R)]
        blocks = cache[:, 1:].clone()
        record(self, key, step)
        assert torch.equal(cache[:, 1:], blocks)
        after = [x[:nobody] for x in (rows.ids_R, rows.positions_R)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        seen.append(key)

    monkeypatch.setattr(tape, "record", watched)
    engine.sleep()
    engine.generate(crowd(9, seed=2))
    assert seen


def test_the_end_of_a_run_of_steps_is_seen_in_its_middle(make_engine, model):
    """Stops, caps and aborts fall anywhere in a run, and what was drawn behind them is gone."""
    requests = crowd(12)
    want = make_engine().generate(requests)
    engine = make_engine(num_scheduler_steps=8)
    events = []
    for request in requests:
        engine.add(request)
    while engine.has_work:
        events += engine.step()
    ends = [e for e in events if e.completion]
    assert len(ends) == sum(len(g) for g in want)
    for event in ends:
        own = [e for e in events if (e.request_id, e.sample_id) == event[:2]]
        assert event.completion == want[event.request_id][event.sample_id]
        assert tuple(t for e in own for t in e.token_ids) == event.completion.token_ids
        assert max(len(e.token_ids) for e in own) <= 8
    assert any(1 < len(e.token_ids) < 8 for e in ends)
    assert engine._scheduler.pool.num_free == engine._num_blocks - 1


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("moment", [0, 1, 2, 5, 30])
def test_an_abort_at_any_moment_answers_once_and_disturbs_nobody(make_engine, overlaps, moment):
    victim, others = crowd(1, seed=5, n=3, max_tokens=20)[0], crowd(6)
    [want_victim] = make_engine().generate([victim])
    want = make_engine().generate(others)
    engine = make_engine(max_num_seqs=6)
    engine._overlaps = overlaps
    request_id = engine.add(victim)
    steps = []

    def on_step(progress):
        if len(steps) == moment:
            engine.abort(request_id)
            engine.abort(request_id)
        steps.append(progress)

    assert engine.generate(others, on_step=on_step) == want
    events = []
    while engine.has_work:
        events += engine.step()
    assert {e.request_id for e in events} == {request_id}
    assert sorted(e.sample_id for e in events if e.completion) == [0, 1, 2]
    reasons = set()
    for event in events:
        if event.completion is not None:
            own = [e for e in events if e.sample_id == event.sample_id]
            assert own[-1] is event
            ids = event.completion.token_ids
            assert tuple(t for e in own for t in e.token_ids) == ids
            assert ids == want_victim[event.sample_id].token_ids[: len(ids)]
            reasons.add(event.completion.finish_reason)
    assert "abort" in reasons or moment == 30
    assert engine._scheduler.pool.num_free == engine._num_blocks - 1


def test_a_call_whose_own_request_is_aborted_returns_what_there_is(make_engine):
    requests = crowd(5, max_tokens=40, stop_token_ids=())
    want = make_engine().generate(requests)
    engine = make_engine()

    def on_step(progress):
        if progress.num_tokens > 40:
            engine.abort(1)

    found = engine.generate(requests, on_step=on_step)
    assert {c.finish_reason for c in found[1]} == {"abort"}
    for cut, whole in zip(found[1], want[1], strict=True):
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert found[:1] + found[2:] == want[:1] + want[2:]


class Moody:
    """A grammar that allows all for three tokens."""

    def __init__(self):
        self.past = []

    def accept(self, token_id):
        self.past.append(token_id)

    def allowed(self):
        moody_rule(self.past)


class Touchy(Moody):
    """A grammar that cannot take its third token."""

    def accept(self, token_id):
        super().accept(token_id)
        moody_rule(self.past)

    def allowed(self):
        return None


def moody_rule(past):
    """Holds for three tokens."""
    if len(past) >= 3:
        raise ZeroDivisionError("a rule's own error")
    return ()


def moody(kind):
    rules = {
        "banned": {"banned_tokens": moody_rule},
        "stop": {"stop_matcher": lambda past: bool(moody_rule(past))},
        "grammar": {"make_grammar": Moody},
        "accept": {"make_grammar": Touchy},
    }
    return Request((1, 2), SamplingParams(n=2, max_tokens=9), **rules[kind])


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("kind", ["banned", "stop", "grammar", "accept"])
def test_a_rule_that_raises_ends_its_request_alone(make_engine, kind, overlaps):
    good = crowd(4)
    want = [list(make_engine().generate([r])[0]) for r in good]
    engine = make_engine()
    engine._overlaps = overlaps
    ids = [engine.add(request) for request in [*good, moody(kind)]]
    events = []
    while engine.has_work:
        events += engine.step()
    errors = [e for e in events if e.error is not None]
    assert sorted((e.request_id, e.sample_id) for e in errors) == [(ids[-1], 0), (ids[-1], 1)]
    assert all(isinstance(e.error, ZeroDivisionError) for e in errors)
    found = {(e.request_id, e.sample_id): e.completion for e in events if e.completion}
    assert found == {(i, j): c for i, group in enumerate(want) for j, c in enumerate(group)}
    with pytest.raises(ZeroDivisionError):
        engine.generate([good[0], moody(kind)])
    assert engine.generate(good) == want


def test_a_grammar_that_cannot_be_made_is_an_error_of_its_request(make_engine):
    def make_grammar():
        raise UserError(at="grammar", got="nonsense", want="sense")

    engine = make_engine()
    with pytest.raises(UserError, match="nonsense"):
        engine.add(Request((1,), SamplingParams(), make_grammar=make_grammar))
    assert not engine.has_work


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("moment", [1, 2, 7])
def test_an_error_of_the_model_drops_one_call_and_a_stream_beside_it_goes_on(
    flaky, make_engine, moment, overlaps
):
    model, engine = flaky, make_engine(flaky)
    engine._overlaps = overlaps
    request = Request((4, 2), SamplingParams(max_tokens=40))
    want = list(engine.stream(request))
    queued = engine.add(Request((1, 2, 3), SamplingParams(n=3, max_tokens=30)))
    stream = engine.stream(request)
    got = [next(stream) for _ in range(5)]
    model.fails_at = {model.calls + moment}
    with pytest.raises(RuntimeError, match="tired"):
        engine.generate(crowd(4, max_tokens=30, stop_token_ids=()))
    assert got + list(stream) == want
    events = []
    while engine.has_work:
        events += engine.step()
    [alone] = engine.generate([Request((1, 2, 3), SamplingParams(n=3, max_tokens=30))])
    completions = {e.sample_id: e.completion for e in events if e.completion}
    assert {e.request_id for e in events} == {queued}
    assert [completions[i].token_ids for i in range(3)] == [c.token_ids for c in alone]
    assert engine._scheduler.pool.num_free == engine._num_blocks - 1


def test_numbers_that_are_not_finite_do_not_stay_in_the_cache(flaky, make_engine):
    model, engine = flaky, make_engine(flaky)
    requests = crowd(3)
    want = engine.generate(requests)
    model.poison = float("nan")
    with pytest.raises(FloatingPointError):
        engine.generate(crowd(3, seed=1))
    model.poison = 1.0
    assert engine.generate(requests) == want
    assert engine._runner._cache.isfinite().all()


@pytest.mark.parametrize("overlaps", [False, True])
def test_sleep_frees_the_cache_and_changes_nothing(make_engine, overlaps):
    requests = demanding()
    want = said(make_engine().generate(requests))
    engine = make_engine()
    engine._overlaps = overlaps
    naps = []

    def nap(progress):
        if progress.num_tokens % 3 == 0:
            engine.sleep()
            naps.append(engine._runner._cache_LPSC)

    assert said(engine.generate(requests, on_step=nap)) == want
    assert naps and not any(cache is not None for cache in naps)


def test_a_second_turn_computes_only_what_is_new(make_engine, model):
    engine = make_engine(block_size=4)
    first = Request(tuple(range(12)) * 4, SamplingParams(max_tokens=15))
    [[answer]] = engine.generate([first])
    assert answer.num_cached_tokens == 0
    turn = (*first.prompt_ids, *answer.token_ids, 3, 1)
    before = sum(model.batches)
    [pair] = engine.generate([Request(turn, SamplingParams(n=2, max_tokens=1))])
    computed = (len(first.prompt_ids) + len(answer.token_ids) - 1) // 4 * 4
    assert [c.num_cached_tokens for c in pair] == [computed] * 2
    assert sum(model.batches) - before == len(turn) - computed
    for kwargs in (
        {"cache_salt": "a"},
        {"params": SamplingParams(max_tokens=1, prompt_logprobs=0)},
    ):
        request = Request(turn, **{"params": SamplingParams(max_tokens=1), **kwargs})
        [[completion]] = engine.generate([request])
        assert completion.num_cached_tokens == 0
    assert_logprobs_hold(model, Request(turn, SamplingParams()), pair[0])


@pytest.mark.parametrize("budget", [5, 8192])
def test_short_chunks_may_be_computed_as_rows(make_engine, model, monkeypatch, budget):
    pytest.importorskip("triton")
    requests = [replace(r, prompt_ids=r.prompt_ids * 4) for r in demanding()]
    want = said(make_engine(max_model_len=128).generate(requests))
    engine = make_engine(block_size=4, max_model_len=128, max_num_batched_tokens=budget)
    monkeypatch.setattr(runner_module, "SHORT", 2)
    with switch.forced("paged_attention"):  # of which this model knows nothing
        assert said(engine.generate(requests)) == want
        assert said(engine.generate(requests)) == want
    assert max(model.decode_batches) > len(requests)


def test_new_weights_find_nothing_of_the_old(make_engine, model):
    engine = make_engine(block_size=2)
    request = Request((1, 2, 3, 4, 5), SamplingParams(max_tokens=4))
    engine.generate([request])
    engine.load({"table": model.table.flip(0)}, version=1)
    [[completion]] = engine.generate([request])
    assert completion.num_cached_tokens == 0
    assert_logprobs_hold(model, request, completion)


def test_followers_that_had_to_wait_report_what_their_request_found(make_engine):
    engine = make_engine(max_num_seqs=2, block_size=2)
    [group] = engine.generate([Request((1, 2, 3, 4, 5), SamplingParams(n=5, max_tokens=3))])
    assert [c.num_cached_tokens for c in group] == [0] * 5


def test_a_request_that_the_cache_cannot_hold_is_refused_and_the_engine_goes_on(make_engine):
    engine = make_engine(block_size=4, num_blocks=5)
    good, bad = (Request((1,) * 8, SamplingParams(max_tokens=n)) for n in (8, 9))
    queued = engine.add(good)
    with pytest.raises(UserError, match=r"at most 16, what the cache holds"):
        engine.add(bad)
    events = []
    while engine.has_work:
        events += engine.step()
    assert [e.request_id for e in events if e.completion] == [queued]
    with pytest.raises(UserError, match="thinking"):
        engine.add(
            Request(
                (1,),
                SamplingParams(max_tokens=1, thinking=ThinkingParams(start_id=3, end_id=END + 1)),
            )
        )


@pytest.mark.parametrize("n", [0, 16385])
def test_too_few_and_too_many_samples_are_refused(n):
    with pytest.raises(ConfigError, match="from 1 to 16384"):
        SamplingParams(n=n)


def test_a_cache_that_memory_cannot_hold_is_a_config_error(make_engine, monkeypatch):
    monkeypatch.setattr(engine_module, "free_memory_bytes", lambda: 5_000)
    with pytest.raises(ConfigError, match=r"(?s)engine\.num_blocks.*at most 4"):
        make_engine(num_blocks=5)
    assert make_engine(num_blocks=4)._num_blocks == 4
    monkeypatch.setattr(engine_module, "free_memory_bytes", lambda: 1_500)
    with pytest.raises(ConfigError, match=r"engine\.memory_frac"):
        make_engine()


def test_memory_that_is_gone_when_the_cache_is_taken_is_a_config_error(make_engine, monkeypatch):
    engine = make_engine()
    zeros = runner_module.zeros

    def too_much(*args):
        raise MemoryError

    monkeypatch.setattr(runner_module, "zeros", too_much)
    with pytest.raises(ConfigError, match=r"engine\.num_blocks"):
        engine.generate(crowd(2))
    monkeypatch.setattr(runner_module, "zeros", zeros)
    assert engine.generate(crowd(2)) == make_engine().generate(crowd(2))
