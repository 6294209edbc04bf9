"""What the engine says of real models, in all the ways in which it can come to say it."""

import random

import pytest
import torch

from nalar.engine import decode
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels import paging
from nalar.kernels.paging import read
from nalar.model.attention import LatentAttention

WAYS = {
    "at once": {},
    "in chunks": {"max_num_batched_tokens": 9, "block_size": 4},
    "pushed out": {"num_blocks": 16, "block_size": 8},
    "deterministic": {"deterministic": True, "block_size": 8},
}


def crowd(count, *, seed=0, max_tokens=12):
    """Requests of which every third begins as the one before."""
    rng, requests = random.Random(seed), []
    for i in range(count):
        ids = [rng.randrange(96) for _ in range(rng.randint(1, 40))]
        if i % 3 == 2:
            ids = [*requests[-1].prompt_ids, *ids][:60]
        params = SamplingParams(n=1 + i % 2, max_tokens=rng.randint(1, max_tokens), seed=i)
        requests.append(Request(tuple(ids), params))
    return requests


def engine_of(model, **limits):
    return Engine(model, EngineConfig(**{"max_model_len": 80, **limits}))


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_sampled_logprobs_are_those_of_the_training_forward(family_config, random_model, way):
    """None off by more than 1e-4, 99.9% within 1e-5. These models have no ties that rounding could break."""
    model = random_model(family_config)
    requests = crowd(6, max_tokens=9)
    errors = []
    for request, samples in zip(
        requests, engine_of(model, **WAYS[way]).generate(requests), strict=True
    ):
        for sample in samples:
            ids = torch.tensor([[*request.prompt_ids, *sample.token_ids]])
            states = model(ids[:, :-1]).states[0, len(request.prompt_ids) - 1 :]
            logprobs = model.logits(states).log_softmax(-1)
            own = logprobs.gather(-1, ids[0, len(request.prompt_ids) :, None])[:, 0]
            errors.append((torch.tensor(sample.logprobs) - own).abs())
    error = torch.cat(errors)
    assert float(error.max()) < 1e-4
    assert float((error < 1e-5).float().mean()) >= 0.999


@pytest.mark.parametrize("absorbs", [True, False])
def test_a_chunk_sees_the_same_absorbed_or_expanded(
    tiny_families, random_model, monkeypatch, absorbs
):
    model = random_model(tiny_families["deepseek_v3"])
    requests = crowd(6)
    whole = engine_of(model).generate(requests)
    monkeypatch.setattr(LatentAttention, "_absorbs", lambda *_: absorbs)
    parts = engine_of(model, max_num_batched_tokens=7, block_size=4).generate(requests)
    all_samples = ([c for samples in group for c in samples] for group in (whole, parts))
    for one, other in zip(*all_samples, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.few(2)
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3"])
@pytest.mark.parametrize("limits", [{}, {"num_blocks": 16}, {"num_scheduler_steps": 1}])
def test_rows_that_are_held_side_by_side_are_as_if_gathered_anew(
    tiny_families, random_model, monkeypatch, family, limits
):
    """To the bit, whatever comes between steps of the same rows; and held they are."""
    model, gathers = random_model(tiny_families[family]), []
    limits = {"block_size": 8, "max_num_seqs": 6, "max_num_batched_tokens": 40, **limits}

    def gathered(*args):
        gathers.append(1)
        return read(*args)

    monkeypatch.setattr(paging, "read", gathered)
    found, counts = [], []
    for most_bytes in (decode.MOST_HELD_BYTES, 0):
        monkeypatch.setattr(decode, "MOST_HELD_BYTES", most_bytes)
        engine = engine_of(model, **limits)
        gathers.clear()
        found.append([_bits(samples) for samples in engine.generate(crowd(12, max_tokens=30))])
        counts.append(len(gathers))
    assert found[0] == found[1]
    assert 0 < counts[0] < 0.8 * counts[1]


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3", "granitemoe"])
def test_deterministic_mode_gives_the_same_bits_whatever_else_happens(
    tiny_families, random_model, family
):
    """Alone or in a crowd, with a cold or a warm cache, in one piece or in chunks, in any block size."""
    model = random_model(tiny_families[family])
    requests = crowd(8)
    engine = engine_of(model, deterministic=True)
    together = [_bits(samples) for samples in engine.generate(requests)]
    warm = engine.generate(requests)
    assert [_bits(samples) for samples in warm] == together
    assert sum(sample.num_cached_tokens for samples in warm for sample in samples) > 0
    ways = ({"max_num_batched_tokens": 5}, {"block_size": 4}, {"max_num_seqs": 3, "num_blocks": 4})
    for limits in ways:
        done = engine_of(model, deterministic=True, **limits).generate(requests)
        assert [_bits(samples) for samples in done] == together, limits
    for request, expected in zip(requests, together, strict=True):
        alone = engine_of(model, deterministic=True).generate([request])[0]
        assert _bits(alone) == expected


def _bits(samples):
    return [(sample.token_ids, sample.logprobs) for sample in samples]
