import pytest

from nalar.model.config import ModelConfig
from nalar.plan.matrices import model_matrices, mtp_matrices
from nalar.plan.model import count_parameters, flops_per_token, sampling_flops, sequence_flops
from nalar.plan.published import PUBLISHED

DEEPSEEK_V3, KIMI_K2, MOONLIGHT = (
    PUBLISHED[name].config for name in ("deepseek-v3", "kimi-k2", "moonlight-16b-a3b")
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
    balance = count.balance_params  # the published figures hold them
    assert (count.total_params + balance, count.active_params + balance) == (total, active)
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


GROUPED = TINY.model_copy(
    update={
        "kv_lora_rank": None,
        "qk_nope_head_dim": None,
        "qk_rope_head_dim": None,
        "v_head_dim": None,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "n_routed_experts": 0,
    }
)


def test_grouped_attention_worked_out_by_hand():
    h, queries, keys = 8, 6 * 4, 2 * 4
    products = 2 * h * queries + 2 * h * keys
    count = count_parameters(GROUPED)
    assert count.attention_params == 3 * products
    assert count.bias_params == 0
    assert count.norm_params == 3 * 2 * h + h
    weights = 3 * (products + 3 * h * 12) + 50 * h
    assert flops_per_token(GROUPED, 7, backward=False) == 2 * (weights + 7 * 3 * 6 * (4 + 4))


@pytest.mark.parametrize(
    ("change", "biases", "norms"),
    [
        ({"qkv_bias": True}, 3 * (24 + 2 * 8), 0),
        ({"attention_bias": True}, 3 * (24 + 2 * 8 + 8), 0),
        ({"qk_norm": True}, 0, 3 * 2 * 4),
    ],
)
def test_biases_and_head_norms_are_counted(change, biases, norms):
    plain, with_them = (
        count_parameters(GROUPED),
        count_parameters(GROUPED.model_copy(update=change)),
    )
    assert with_them.bias_params - plain.bias_params == biases
    assert with_them.norm_params - plain.norm_params == norms
    assert with_them.total_params - plain.total_params == biases + norms


def test_a_tied_head_is_no_parameter_and_still_a_product():
    tied = GROUPED.model_copy(update={"tie_word_embeddings": True})
    count = count_parameters(tied)
    assert count.head_params == 0
    assert count_parameters(GROUPED).total_params - count.total_params == 50 * 8
    assert flops_per_token(tied, 3, backward=True) == flops_per_token(GROUPED, 3, backward=True)


def test_layers_are_dense_where_the_config_says_so():
    # Of seven layers: 0 and 1 are first, 3 stands in the list, 2, 4 and 6 are of odd number; 5 remains.
    change = {"num_hidden_layers": 7, "first_k_dense_replace": 2, "decoder_sparse_step": 2}
    config = TINY.model_copy(update={**change, "mlp_only_layers": (3,)})
    count = count_parameters(config)
    assert count.dense_params == 6 * 3 * 8 * 12
    assert count.router_params == 4 * 8
    assert count.balance_params == 4


def test_a_router_without_balance_bias_has_none_to_count():
    greedy = {"topk_method": "greedy", "scoring_func": "softmax"}
    assert count_parameters(TINY.model_copy(update=greedy)).balance_params == 0
    assert count_parameters(TINY).balance_params == 2 * 4


def test_prediction_blocks_are_a_line_of_their_own():
    deep = TINY.model_copy(update={"num_nextn_predict_layers": 2})
    plain, count = count_parameters(TINY), count_parameters(deep)
    assert count.total_params == plain.total_params
    attention = plain.attention_params // 3
    feed_forward = (plain.router_params + plain.routed_params + plain.shared_params) // 2
    norms = (2 * 8 + 4) + 3 * 8
    join, balance = 2 * 8 * 8, 4
    assert count.mtp_params == 2 * (attention + feed_forward + norms + join + balance)
    assert plain.mtp_params == 0


def test_prediction_blocks_cost_a_layer_a_join_and_a_head_each():
    deep = TINY.model_copy(update={"num_nextn_predict_layers": 1})
    forward, with_mtp = (
        flops_per_token(deep, 5, backward=False, with_mtp=mtp) for mtp in (False, True)
    )
    last = [m for m in model_matrices(deep) if m.part != "dense"]  # the blocks of layers 1 and 2
    attention = sum(m.size for m in last if m.part == "attention") / 3
    mixture = sum(m.size * m.used for m in last if m.part in ("router", "routed", "shared")) / 2
    more = attention + mixture + 2 * 8 * 8 + 50 * 8
    assert with_mtp - forward == 2 * more + 5 * 2 * 2 * (6 + 3)
    assert sum(m.copies for m in mtp_matrices(deep) if m.part == "head") == 0


def test_each_depth_passes_a_token_fewer_than_the_one_before():
    deep = TINY.model_copy(update={"num_nextn_predict_layers": 2})
    one, other = (
        {"config": deep, "backward": backward, "with_mtp": True} for backward in (True, False)
    )
    for settings in (one, other):
        plain = sequence_flops(TINY, 9, backward=settings["backward"])
        each = (
            flops_per_token(**settings, context=0)
            - flops_per_token(**(settings | {"with_mtp": False}), context=0)
        ) / 2
        scores = 2 * 2 * (6 + 3) * (3 if settings["backward"] else 1)
        passes = sum(n * each + scores * n * (n + 1) / 2 for n in (8, 7))
        assert sequence_flops(tokens=9, **settings) == pytest.approx(plain + passes)
    assert sequence_flops(deep, 1, backward=True, with_mtp=True) == sequence_flops(
        TINY, 1, backward=True
    )


def test_training_operations_are_those_that_others_publish():
    """NVIDIA's ratio of tokens and operations for DeepSeek-V3 at 4,096 tokens: 249.7 GFLOP, 260.6 with prediction."""
    by_token = flops_per_token(DEEPSEEK_V3, 2048, backward=True)
    assert by_token / 1e9 == pytest.approx(249.7, rel=0.005)
    with_mtp = flops_per_token(DEEPSEEK_V3, 2048, backward=True, with_mtp=True)
    assert with_mtp / 1e9 == pytest.approx(260.6, rel=0.001)
    assert flops_per_token(KIMI_K2, 2048, backward=True) / 1e9 == pytest.approx(205.5, abs=0.05)
