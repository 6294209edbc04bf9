import math
import random

import pytest
import torch

from nalar.kernels.sampling import Changes, Penalties, Shaping, draw, stream_key, uniforms

LOGITS_V = torch.tensor([0.1, 2.0, -1.0, 1.3, 0.7, -3.0, 1.3])
V = len(LOGITS_V)


def shaping_of(num_rows, *, temperature=1.0, top_k=V, top_p=1.0, min_p=0.0, penalties=None):
    return Shaping(
        torch.full((num_rows,), temperature),
        torch.full((num_rows,), top_k),
        torch.full((num_rows,), top_p),
        torch.full((num_rows,), min_p),
        cuts=top_k < V or top_p < 1 or min_p > 0,
        penalties=penalties,
    )


def penalties_of(
    num_rows, *, repetition=1.0, presence=0.0, frequency=0.0, said=(), prompt=(), width=V
):
    counts_V, in_prompt_V = torch.zeros(width, dtype=torch.int32), torch.zeros(width).bool()
    for token in said:
        counts_V[token] += 1
    in_prompt_V[list(prompt)] = True
    return Penalties(
        *(torch.full((num_rows,), x) for x in (repetition, presence, frequency)),
        counts_V.expand(num_rows, -1),
        in_prompt_V.expand(num_rows, -1),
    )


def packed(allowed, width=V):
    bits = bytearray(-(-width // 8))
    for token in allowed:
        bits[token // 8] |= 1 << token % 8
    return torch.frombuffer(bits, dtype=torch.uint8)


def bias_of(num_rows, *pairs):
    rows = torch.arange(num_rows).repeat_interleave(len(pairs))
    ids, values = zip(*pairs, strict=True)
    return rows, torch.tensor(ids * num_rows), torch.tensor(values * num_rows)


def setting(num_rows, params):
    """The tensors that say the same as the keyword arguments of `reference`, in every row."""

    def those(*names):
        return {name: params[name] for name in names if name in params}

    pairs = [*params.get("bias", {}).items(), *((i, -math.inf) for i in params.get("banned", ()))]
    allowed = None
    if "allowed" in params:
        allowed = (torch.arange(num_rows), packed(params["allowed"]).expand(num_rows, -1))
    costs = those("said", "prompt", "repetition", "presence", "frequency")
    cuts = those("temperature", "min_p", "top_k", "top_p")
    shaping = shaping_of(num_rows, **cuts, penalties=penalties_of(num_rows, **costs))
    return shaping, Changes(bias_of(num_rows, *pairs) if pairs else None, allowed)


def spread(num_rows):
    """Uniform numbers that cover [0, 1) evenly: every reachable token is reached."""
    return (torch.arange(num_rows, dtype=torch.float64) + 0.5) / num_rows


def frequencies(shaping=None, changes=None, num_rows=20_000, logits_V=LOGITS_V):
    drawn = draw(logits_V.expand(num_rows, -1), spread(num_rows), shaping, changes)
    return torch.bincount(drawn.ids_B, minlength=len(logits_V)) / num_rows


def assert_is(found, probs):
    torch.testing.assert_close(found, torch.tensor(probs), rtol=0, atol=1e-3)
    assert not found[torch.tensor(probs) == 0].any()


def chi_square(ids, probs):
    expected = probs * len(ids)
    counts = torch.bincount(ids, minlength=len(probs))
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_follow_the_softmax(temperature):
    num_rows = 20_000
    keys = torch.full((num_rows,), stream_key(seed=5, sample_id=3))
    u = uniforms(keys, torch.arange(num_rows))
    shaping = None if temperature == 1.0 else shaping_of(num_rows, temperature=temperature)
    ids = draw(LOGITS_V.expand(num_rows, -1), u, shaping).ids_B
    # 6 degrees of freedom: above 27.9 with probability 1e-4.
    assert chi_square(ids, (LOGITS_V / temperature).softmax(-1)) < 27.9


def test_random_numbers_are_uniform_over_samples_positions_and_seeds():
    for keys, counters in (
        ([stream_key(0, i) for i in range(10_000)], 7),
        ([stream_key(i, 0) for i in range(10_000)], 7),
        ([stream_key(1, 1)] * 10_000, None),
    ):
        counters_B = torch.arange(10_000) if counters is None else torch.full((10_000,), counters)
        u = uniforms(torch.tensor(keys), counters_B)
        assert float(u.min()) >= 0 and float(u.max()) < 1
        # 9 degrees of freedom: above 33.7 with probability 1e-4.
        assert chi_square((u * 10).long(), torch.full((10,), 0.1)) < 33.7
        assert abs(float(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1])) < 0.05


def test_random_numbers_are_splitmix64():
    # First output of the published generator started from state 0.
    published = 0xE220A8397B1DCDAF
    u = uniforms(torch.tensor([0]), torch.tensor([1]))
    assert float(u) == (published >> 11) * 2.0**-53


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("all on", {"temperature": 0.7, "min_p": 0.1, "top_k": 5, "top_p": 0.9}),
        ("temperature before min-p", {"temperature": 2.0, "min_p": 0.3}),
        ("min-p before top-p", {"min_p": 0.3, "top_p": 0.6}),
        ("top-k before top-p", {"top_k": 3, "top_p": 0.49}),
        ("penalties before temperature", {"said": (1, 1, 3), "presence": 1.0, "temperature": 0.5}),
        ("bias before penalties", {"bias": {2: 2.0, 1: -3.0}, "said": (1, 2), "repetition": 2.0}),
        ("penalties before cuts", {"said": (1,), "frequency": 2.0, "top_k": 2}),
        ("greedy behind penalties", {"said": (1, 1), "frequency": 0.5, "temperature": 0.0}),
        ("greedy behind a bias", {"bias": {5: 6.0}, "temperature": 0.0}),
        ("masks before top-k", {"allowed": {0, 2, 4, 5}, "banned": (4,), "top_k": 2}),
        ("a bias does not lift a ban", {"bias": {4: 50.0}, "banned": (4,)}),
    ],
)
def test_the_order_of_operations_is_vllms(reference, name, params):
    found = frequencies(*setting(20_000, params))
    assert_is(found, reference(LOGITS_V.tolist(), **params))


def test_any_mixture_follows_the_reference(reference):
    rng = random.Random(0)
    for _ in range(40):
        logits = [rng.gauss(0, 2) for _ in range(V)]
        params = {
            "bias": {rng.randrange(V): rng.uniform(-3, 3)},
            "banned": (rng.randrange(V),),
            "allowed": set(rng.sample(range(V), rng.randint(3, V))),
            "said": [rng.randrange(V) for _ in range(rng.randint(0, 6))],
            "prompt": [rng.randrange(V) for _ in range(rng.randint(0, 3))],
            "repetition": rng.choice([1.0, 0.7, 1.6]),
            "presence": rng.choice([0.0, -1.0, 1.5]),
            "frequency": rng.choice([0.0, -0.4, 0.6]),
            "temperature": rng.choice([0.0, 0.4, 1.0, 1.7]),
            "min_p": rng.choice([0.0, 0.05, 0.5]),
            "top_k": rng.choice([1, 2, 4, V]),
            "top_p": rng.choice([0.3, 0.8, 1.0]),
        }
        found = frequencies(*setting(5000, params), 5000, torch.tensor(logits))
        assert_is(found, reference(logits, **params))


def test_penalties_on_paper():
    logits_V = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0])
    penalties = penalties_of(
        1, repetition=2.0, presence=0.5, frequency=0.25, said=(0, 0, 2), prompt=(1, 2), width=5
    )
    # id 0: said twice, not in the prompt: 2/2 - 2*.25 - .5. id 1: prompt alone: 2/2.
    # id 2: both, once said: -2*2 - .25 - .5. ids 3 and 4: neither.
    want = [0.0, 1.0, -4.75, -2.0, 2.0]
    assert penalties.apply(logits_V[None])[0].tolist() == want


def test_min_p_on_paper():
    # Shares .5, .3, .15, .05 of the likeliest: 1, .6, .3, .1
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for min_p, kept in ((0.0, 4), (0.09, 4), (0.2, 3), (0.5, 2), (0.61, 1), (1.0, 1)):
        shaping = Shaping(*(torch.full((100,), x) for x in (1.0, 4, 1.0, min_p)), cuts=True)
        found = frequencies(shaping, num_rows=100, logits_V=logits_V)
        assert found.nonzero()[:, 0].tolist() == list(range(kept))


def test_raw_logprobs_are_the_models_and_processed_ones_those_of_the_draw(reference):
    num_rows = 500
    params = {"temperature": 0.5, "top_k": 3, "top_p": 0.97}
    shaping = shaping_of(num_rows, **params)
    changes = Changes(bias_of(num_rows, (0, 1.5), (3, -math.inf)))
    drawn = draw(LOGITS_V.expand(num_rows, -1), spread(num_rows), shaping, changes)
    raw = LOGITS_V.log_softmax(-1)[drawn.ids_B]
    torch.testing.assert_close(drawn.logprobs_B, raw, rtol=0, atol=1e-6)
    probs = torch.tensor(reference(LOGITS_V.tolist(), bias={0: 1.5}, banned=(3,), **params))
    torch.testing.assert_close(drawn.processed_B, probs.log()[drawn.ids_B], rtol=0, atol=1e-6)
    assert drawn.logprobs_B.dtype == drawn.processed_B.dtype == torch.float32
    assert len(set(drawn.ids_B.tolist())) == 3


def test_without_shaping_both_logprobs_are_the_same():
    drawn = draw(LOGITS_V.expand(50, -1), spread(50))
    torch.testing.assert_close(drawn.logprobs_B, drawn.processed_B, rtol=0, atol=1e-6)


def test_greedy_draws_are_certain():
    assert draw(LOGITS_V[None], spread(1), shaping_of(1, temperature=0.0)).processed_B.item() == 0


def test_forced_tokens_come_whatever_the_model_says():
    changes = Changes(
        bias_of(4, (2, -math.inf)), forced=(torch.tensor([1, 3]), torch.tensor([2, 5]))
    )
    plain = draw(LOGITS_V.expand(4, -1), spread(4), None, Changes(bias_of(4, (2, -math.inf))))
    drawn = draw(LOGITS_V.expand(4, -1), spread(4), None, changes)
    assert drawn.ids_B[[1, 3]].tolist() == [2, 5]
    assert drawn.processed_B[[1, 3]].tolist() == [0, 0]
    torch.testing.assert_close(drawn.logprobs_B[[1, 3]], LOGITS_V.log_softmax(-1)[[2, 5]])
    assert torch.equal(drawn.ids_B[::2], plain.ids_B[::2])
    assert torch.equal(drawn.processed_B[::2], plain.processed_B[::2])


def test_temperature_zero_takes_the_best_token():
    assert frequencies(shaping_of(20_000, temperature=0.0))[1] == 1


def test_a_tiny_temperature_neither_overflows_nor_leaves_the_best_token():
    assert frequencies(shaping_of(20_000, temperature=1e-30))[1] == 1


@pytest.mark.parametrize(
    ("top_k", "support"), [(1, {1}), (2, {1, 3}), (3, {1, 3, 6}), (7, set(range(7)))]
)
def test_top_k_keeps_exactly_k_tokens(top_k, support):
    found = frequencies(shaping_of(20_000, top_k=top_k))
    assert set(found.nonzero()[:, 0].tolist()) == support
    probs = LOGITS_V.softmax(-1)[sorted(support)]
    torch.testing.assert_close(found[sorted(support)], probs / probs.sum(), rtol=0, atol=1e-3)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probs = LOGITS_V.softmax(-1)
    order = LOGITS_V.argsort(descending=True, stable=True).tolist()
    for size in range(1, 8):
        reached = float(probs[order[:size]].sum())
        found = frequencies(shaping_of(20_000, top_p=min(reached - 1e-3, 1.0)))
        assert set(found.nonzero()[:, 0].tolist()) == set(order[:size])


def test_masks_span_bytes_and_reach_no_further_than_the_vocabulary():
    generator = torch.Generator().manual_seed(0)
    for width in (8, 9, 31, 40, 77):
        logits_V = torch.randn(width, generator=generator)
        allowed = {0, width - 1, width // 2}
        changes = Changes(allowed=(torch.tensor([1]), packed(allowed, width)[None]))
        u = spread(300)
        for start in range(0, 300, 3):
            drawn = draw(logits_V.expand(3, -1), u[start : start + 3], None, changes)
            free = draw(logits_V.expand(3, -1), u[start : start + 3])
            assert int(drawn.ids_B[1]) in allowed
            assert drawn.ids_B[[0, 2]].tolist() == free.ids_B[[0, 2]].tolist()


def test_banning_all_likely_tokens_leaves_the_others_reachable():
    logits_V = torch.tensor([500.0, 0.0, 0.0])
    changes = Changes(bias_of(100, (0, -math.inf)))
    assert frequencies(None, changes, 100, logits_V).tolist() == [0.0, 0.5, 0.5]


def test_rounding_never_reaches_beyond_the_last_possible_token():
    logits_BV = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]] * 3)
    u = torch.tensor([1.0, 1 - 2.0**-53, 0.0], dtype=torch.float64)
    assert draw(logits_BV, u).ids_B.tolist() == [1, 1, 0]


def test_a_row_draws_the_same_whatever_stands_beside_it():
    B, width = 200, 320
    generator = torch.Generator().manual_seed(1)
    logits_BV, u = torch.randn(B, width, generator=generator) * 3, spread(B)
    choices = torch.arange(B) % 5
    shaping = Shaping(
        torch.tensor([1.0, 0.3, 1.0, 0.0, 1.4])[choices],
        torch.tensor([width, 5, width, width, 50])[choices],
        torch.tensor([1.0, 0.5, 1.0, 1.0, 0.9])[choices],
        torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1])[choices],
        cuts=True,
        penalties=Penalties(
            torch.tensor([1.0, 1.0, 1.0, 1.3, 1.3])[choices],
            torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5])[choices],
            torch.tensor([0.0, 0.0, 0.0, 0.1, 0.1])[choices],
            torch.randint(0, 3, (B, width), generator=generator),
            torch.randint(0, 2, (B, width), generator=generator).bool(),
        ),
    )
    changes = Changes((torch.tensor([2, 7]), torch.tensor([0, 2]), torch.tensor([1.0, -torch.inf])))
    mixed = draw(logits_BV, u, shaping, changes)
    plain = draw(logits_BV, u)
    # Rows 0, 5, ... and 2, 12, ... are neither shaped nor changed.
    own = [i for i in range(B) if i % 5 in (0, 2) and i not in (2, 7)]
    for name in ("ids_B", "logprobs_B", "processed_B"):
        assert torch.equal(getattr(mixed, name)[own], getattr(plain, name)[own])
    for i in (1, 2, 3, 4, 7):
        penalties = shaping.penalties
        one = Shaping(
            *(x[i : i + 1] for x in (shaping.temperature_B, shaping.top_k_B, shaping.top_p_B)),
            shaping.min_p_B[i : i + 1],
            cuts=True,
            penalties=Penalties(*(getattr(penalties, f)[i : i + 1] for f in vars(penalties))),
        )
        rows, ids, values = changes.bias
        at = (rows == i).nonzero()[:, 0]
        single = Changes((rows[at] * 0, ids[at], values[at])) if len(at) else None
        alone = draw(logits_BV[i : i + 1], u[i : i + 1], one, single)
        assert alone.ids_B.item() == mixed.ids_B[i].item()
        assert alone.processed_B.item() == mixed.processed_B[i].item()
