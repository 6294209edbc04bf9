import pytest

from nalar.config import ConfigError
from nalar.kernels import switch
from nalar.model.config import ModelConfig
from nalar.plan.cost import PriceConfig, training_memory
from nalar.plan.model import count_parameters

SMALL = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=192,
    moe_intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=8,
    num_experts_per_tok=2,
    kv_lora_rank=32,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
)

GROUPED = {
    "kv_lora_rank": None,
    "qk_nope_head_dim": None,
    "qk_rope_head_dim": None,
    "v_head_dim": None,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rope_interleave": False,
    "n_shared_experts": 0,
}


def test_an_hour_costs_the_price_of_an_hour():
    assert PriceConfig(usd_per_hour=3.0).usd(3600) == 3.0
    assert PriceConfig().usd(360) == pytest.approx(0.005)
    assert PriceConfig(usd_per_hour=0).usd(9) == 0


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(ConfigError, match=r"price\.usd_per_hour"):
        PriceConfig(usd_per_hour=price)


def test_state_is_counted_by_optimizer():
    count = count_parameters(SMALL)
    adamw = training_memory(SMALL, batch_tokens=2304, row_tokens=288, optimizer="adamw")
    muon = training_memory(SMALL, batch_tokens=2304, row_tokens=288)
    assert adamw.parameters_bytes == adamw.gradients_bytes == 4 * count.total_params
    assert adamw.optimizer_bytes == 12 * count.total_params
    saved = count.matrix_params - count.router_params
    assert adamw.optimizer_bytes - muon.optimizer_bytes == 4 * saved
    assert muon.total_bytes < adamw.total_bytes < 200e6


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"n_routed_experts": 0},
        {"hidden_size": 128, "num_attention_heads": 8, "q_lora_rank": 48},
        {"qk_nope_head_dim": 16, "num_attention_heads": 4},
        GROUPED,
        GROUPED | {"qk_norm": True, "hidden_size": 256, "n_routed_experts": 0},
        GROUPED | {"num_attention_heads": 8, "num_key_value_heads": 1, "qkv_bias": True},
        GROUPED | {"num_attention_heads": 2, "tie_word_embeddings": True},
    ],
)
@pytest.mark.parametrize("row_tokens", [128, 300])
def test_activations_are_estimated_within_a_tenth_of_what_autograd_keeps(change, row_tokens):
    config = SMALL.model_copy(update=change)
    assert estimated(config, row_tokens) == pytest.approx(kept(config, row_tokens), rel=0.1)


@pytest.mark.parametrize("row_tokens", [128, 300])
def test_activations_of_prediction_blocks_too(row_tokens):
    config = SMALL.model_copy(update={"num_nextn_predict_layers": 2})
    more, measured = (
        of(config, row_tokens, with_mtp=True) - of(config, row_tokens) for of in (estimated, kept)
    )
    assert more == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"hidden_size": 128, "num_attention_heads": 8, "q_lora_rank": 48},
        {"qk_nope_head_dim": 16, "num_attention_heads": 4},
        GROUPED | {"hidden_size": 256},  # small ones keep as many bytes for who goes where
        GROUPED | {"qk_norm": True, "hidden_size": 256, "n_routed_experts": 0},
    ],
)
def test_activations_of_a_gpu_too(change, monkeypatch):
    """Its path, in its dtype, with stand-ins that keep what its kernels for norms and attention keep."""
    import torch

    from nalar.kernels import attention
    from nalar.kernels.router import BFloat16Logits
    from nalar.model import attention as model_attention
    from nalar.model import moe

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x * weight

        @staticmethod
        def backward(ctx, grad):
            raise AssertionError("nobody asks")

    monkeypatch.setattr(model_attention, "rms_norm", lambda x, weight, eps: Norm.apply(x, weight))
    monkeypatch.setattr(attention, "_is_on_cpu", lambda x: False)
    monkeypatch.setattr(attention, "can_fuse", lambda q, v: True)
    monkeypatch.setattr(moe, "router_logits", BFloat16Logits.apply)
    config = SMALL.model_copy(update=change)
    memory = training_memory(
        *(config,),
        batch_tokens=256,
        row_tokens=128,
        logit_chunk_tokens=0,
        dtype="bfloat16",
        on_gpu=True,
    )
    head_bytes = 8 * config.vocab_size * config.hidden_size
    with switch.forced("routed_experts"):
        measured = kept(config, 128, dtype="bfloat16")
    assert memory.activations_bytes - head_bytes == pytest.approx(measured, rel=0.1)


def test_a_gpu_gathers_no_gradients_and_keeps_no_scores():
    of = {
        on_gpu: training_memory(
            SMALL, batch_tokens=2304, row_tokens=288, dtype="bfloat16", on_gpu=on_gpu
        )
        for on_gpu in (True, False)
    }
    total = count_parameters(SMALL).total_params
    assert of[False].optimizer_bytes - of[True].optimizer_bytes == 4 * total
    assert of[True].update_bytes < of[False].update_bytes
    assert of[True].activations_bytes < of[False].activations_bytes


def estimated(config: ModelConfig, row_tokens: int, *, with_mtp: bool = False) -> int:
    return training_memory(
        config,
        batch_tokens=2 * row_tokens,
        row_tokens=row_tokens,
        logit_chunk_tokens=0,
        with_mtp=with_mtp,
    ).activations_bytes


def kept(
    config: ModelConfig, row_tokens: int, *, with_mtp: bool = False, dtype: str = "float32"
) -> int:
    """Bytes that autograd keeps of a forward pass over two rows, parameters aside."""
    import torch

    from nalar.model.transformer import Transformer

    model = Transformer(config).to(getattr(torch, dtype))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(torch.zeros(2, row_tokens, dtype=torch.long), ahead=with_mtp)
    assert hidden.states.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
