from nalar.engine.sequence import Completion, Request, SamplingParams
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from speculation import WAYS, Run, measure, rows_of


def completion(*ids):
    return Completion(ids, (0.0,) * len(ids), "length", 0)


def test_a_ratio_is_the_median_over_rounds_of_ways_beside_each_other():
    off = [Run(100, s, 1.0, 0.0, (completion(1), completion(2))) for s in (1.0, 2.0, 4.0)]
    fast = [Run(100, s, 1.5, 0.5, (completion(1), completion(3))) for s in (0.5, 2.0, 5.0)]
    rows = rows_of("here", [{"off": a, "mtp": b} for a, b in zip(off, fast, strict=True)])
    values = {row.name.rpartition(": ")[2]: row.value for row in rows[1:]}
    assert (rows[0].value, rows[1].peer_value) == (50, 50)
    assert values == {
        "speed": 50,
        "speed against off, median of rounds": 1.0,
        "accepted length": 1.5,
        "guesses accepted": 0.5,
        "texts as without": 0.5,
    }


def test_every_way_says_the_same():
    config = ModelConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        n_routed_experts=0,
        num_experts_per_tok=0,
        first_k_dense_replace=1,
        num_nextn_predict_layers=1,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = Transformer(config).requires_grad_(False)
    model.initialize(seed=0)
    requests = [Request((1, 2, i), SamplingParams(max_tokens=20, seed=i)) for i in range(4)]
    runs = {way: measure(model, speculation, requests, 2) for way, speculation in WAYS.items()}
    said = [[c.token_ids for c in run.completions] for run in runs.values()]
    assert all(texts == said[0] for texts in said)
    assert all(run.tokens == 80 and run.seconds > 0 for run in runs.values())
    assert runs["off"].accepted_length == 1
    assert runs["mtp, 2 tokens"].accepted_length > 1
