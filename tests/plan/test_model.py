import pytest

from nalar.model.config import ModelConfig
from nalar.plan.model import count_parameters, flops_per_token, sampling_flops, sequence_flops

# Groups of experts change which experts are chosen, not how many parameters there are.
HEADS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}
DEEPSEEK_V3 = ModelConfig(
    **HEADS,
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    first_k_dense_replace=3,
    num_attention_heads=128,
    q_lora_rank=1536,
    n_routed_experts=256,
    num_experts_per_tok=8,
)
KIMI_K2 = DEEPSEEK_V3.model_copy(
    update={
        "vocab_size": 163840,
        "first_k_dense_replace": 1,
        "num_attention_heads": 64,
        "n_routed_experts": 384,
    }
)
MOONLIGHT = ModelConfig(
    **HEADS,
    vocab_size=163840,
    hidden_size=2048,
    intermediate_size=11264,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
)
TINY = ModelConfig(
    vocab_size=50,
    hidden_size=8,
    intermediate_size=12,
    moe_intermediate_size=6,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    kv_lora_rank=4,
    qk_nope_head_dim=4,
    qk_rope_head_dim=2,
    v_head_dim=3,
)


@pytest.mark.parametrize(
    ("config", "total", "active", "embedding"),
    [
        (DEEPSEEK_V3, 671_026_419_200, 37_552_297_472, 926_679_040),
        (KIMI_K2, 1_026_408_232_448, 32_861_500_928, 1_174_405_120),
        (MOONLIGHT, 15_960_110_208, 2_914_776_192, 335_544_320),
    ],
    ids=["DeepSeek-V3", "Kimi-K2", "Moonlight"],
)
def test_counts_are_those_of_the_released_models(config, total, active, embedding):
    count = count_parameters(config)
    # The published figures hold one balance bias an expert; here it is a buffer.
    biases = config.n_routed_experts * (config.num_hidden_layers - config.first_k_dense_replace)
    assert (count.total_params + biases, count.active_params + biases) == (total, active)
    assert count.embedding_params == count.head_params == embedding


@pytest.mark.parametrize(
    "change", [{}, {"q_lora_rank": 5}, {"n_routed_experts": 0}, {"n_shared_experts": 0}]
)
def test_the_formula_counts_what_the_module_holds(change):
    from nalar.model.transformer import Transformer

    config = TINY.model_copy(update=change)
    held = sum(parameter.numel() for parameter in Transformer(config).parameters())
    assert count_parameters(config).total_params == held


def test_a_dense_model_is_active_as_a_whole():
    count = count_parameters(TINY.model_copy(update={"n_routed_experts": 0}))
    assert count.active_params == count.total_params
    assert count.router_params == count.shared_params == count.routed_params == 0


def test_flops_of_a_tiny_model_worked_out_by_hand():
    queries, latent, expanded, out = 8 * 2 * 6, 8 * (4 + 2), 4 * 2 * (4 + 3), 2 * 3 * 8
    attention = 3 * (queries + latent + expanded + out)
    dense, expert, router, head = 3 * 8 * 12, 3 * 8 * 6, 8 * 4, 50 * 8
    weights = attention + dense + 2 * (router + 3 * expert) + head
    scores_and_sum = 3 * 2 * (6 + 3)
    assert flops_per_token(TINY, 7, backward=False) == 2 * (weights + 7 * scores_and_sum)
    assert flops_per_token(TINY, 7, backward=True) == 6 * (weights + 7 * scores_and_sum)


def test_without_context_flops_come_near_six_times_the_active_parameters():
    count = count_parameters(DEEPSEEK_V3)
    rule_of_thumb = 6 * (count.active_params - count.embedding_params)
    assert flops_per_token(DEEPSEEK_V3, 0, backward=True) == pytest.approx(rule_of_thumb, rel=1e-4)


@pytest.mark.parametrize("backward", [False, True])
def test_a_sequence_costs_what_its_tokens_cost(backward):
    by_token = sum(flops_per_token(TINY, context, backward=backward) for context in range(1, 10))
    assert sequence_flops(TINY, 9, backward=backward) == pytest.approx(by_token, rel=1e-12)


def test_sampling_costs_the_prompt_once_and_each_sample_token_by_token():
    head = 2 * 50 * 8
    prompt = (
        sum(flops_per_token(TINY, context, backward=False) for context in range(1, 6)) - 4 * head
    )
    # Samples of 4 and of 1 tokens: their last tokens are never passed.
    samples = sum(flops_per_token(TINY, context, backward=False) for context in (6, 7, 8))
    assert sampling_flops(TINY, 5, [4, 1]) == pytest.approx(prompt + samples, rel=1e-12)


def test_published_roundings_are_met():
    v3, moonlight = count_parameters(DEEPSEEK_V3), count_parameters(MOONLIGHT)
    assert round(v3.total_params / 1e9) == 671
    assert v3.routed_params / v3.total_params == pytest.approx(0.974, abs=5e-4)
    without_words = (
        2 * moonlight.embedding_params
    )  # as Moonlight's authors count: 15.29B, 2.24B active
    assert (moonlight.total_params - without_words) / 1e9 == pytest.approx(15.29, abs=0.005)
    assert (moonlight.active_params - without_words) / 1e9 == pytest.approx(2.24, abs=0.005)
