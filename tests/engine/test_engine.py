import random
from itertools import pairwise

import pytest
import torch

from nalar.config import ConfigError, UserError
from nalar.engine.sequence import Request, SamplingParams

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
    engine = make_engine()
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
