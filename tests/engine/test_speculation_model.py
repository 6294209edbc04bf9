"""Guesses over a real transformer: latent attention with a block of multi-token prediction, and grouped-query."""

import pytest
import torch

from nalar.engine.config import EngineConfig, SpeculationConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels.sampling import draw, stream_key, uniforms
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer

SIZES = {
    "vocab_size": 7,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LATENT = ModelConfig(
    **SIZES,
    num_nextn_predict_layers=1,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=16,
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
)
GROUPED = ModelConfig(
    **SIZES,
    model_type="qwen2",
    qkv_bias=True,
    kv_lora_rank=None,
    num_key_value_heads=1,
    head_dim=16,
    rope_interleave=False,
    n_shared_experts=0,
)
NGRAM = SpeculationConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_min=1)
MTP, MTP_2 = (SpeculationConfig(method="mtp", num_speculative_tokens=k) for k in (1, 2))


def model_of(config):
    model = Transformer(config).eval().requires_grad_(False)
    model.initialize(seed=0)
    return model


def requests_of(**params):
    prompts = [(1, 2, 3, 4, 5, 6, 1, 2, 3), (3,), (1, 2, 3, 4, 5, 6, 1, 0), (6, 5, 6, 5)]
    return [
        Request(ids, SamplingParams(**{"max_tokens": 24, "seed": i, "n": 2, **params}))
        for i, ids in enumerate(prompts)
    ]


def engine_of(model, speculation, **limits):
    limits = {"max_model_len": 48, "block_size": 4, **limits}
    return Engine(model, EngineConfig(**limits, speculation=speculation))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("config", "speculation"),
    [(LATENT, NGRAM), (LATENT, MTP), (LATENT, MTP_2), (GROUPED, NGRAM)],
    ids=["latent-ngram", "latent-mtp", "latent-mtp-2", "grouped-ngram"],
)
def test_a_transformer_says_what_it_says_without_guesses(config, speculation):
    model = model_of(config)
    requests = [*requests_of(), *requests_of(temperature=0.6, top_p=0.9)]
    plain = [c for group in engine_of(model, None).generate(requests) for c in group]
    for limits in ({}, {"max_num_batched_tokens": 7, "max_num_seqs": 3}):
        engine = engine_of(model, speculation, **limits)
        guessed = [c for group in engine.generate(requests) for c in group]
        assert [c.token_ids for c in guessed] == [c.token_ids for c in plain]
        for a, b in zip(guessed, plain, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert 0 < engine.speculated.accepted < engine.speculated.drafted


@pytest.mark.parametrize("speculation", [NGRAM, MTP_2], ids=["ngram", "mtp-2"])
def test_in_deterministic_mode_guesses_change_no_bit(speculation):
    model, requests = model_of(LATENT), requests_of()
    plain = engine_of(model, None, deterministic=True).generate(requests)
    engine = engine_of(model, speculation, deterministic=True)
    assert engine.generate(requests) == plain
    assert engine.speculated.accepted > 0


@pytest.mark.few(1)
@pytest.mark.parametrize("limits", [{}, {"max_num_batched_tokens": 5}], ids=["whole", "chunks"])
def test_drafts_are_those_of_the_forward_pass_that_trained_them(limits):
    """So for a prompt that was found in the cache: its second time gives the same rounds."""
    model = model_of(LATENT)
    engine = engine_of(model, MTP, **limits)
    requests = requests_of(n=1)
    for again in (False, True):
        for request in requests:
            [[completion]] = engine.generate([request])
            assert completion.num_cached_tokens > 0 or not again or len(request.prompt_ids) < 5
            ids = [*request.prompt_ids, *completion.token_ids]
            assert completion.speculated.accepted == accepted_by_forward(model, request, ids)


def accepted_by_forward(model, request, ids):
    states_MD = model(torch.tensor(ids)[None], ahead=True).ahead[0].states_MD
    key = torch.tensor([stream_key(request.params.seed, 0)])
    known, accepted = len(request.prompt_ids) + 1, 0
    while known < len(ids) - 1:
        # The first state is of the second token; at `known` the draft stands.
        logits_1V = model.logits(states_MD[known - 2 : known - 1])
        is_right = int(draw(logits_1V, uniforms(key, torch.tensor([known]))).ids_B) == ids[known]
        accepted += is_right
        known += 1 + is_right
    return accepted
