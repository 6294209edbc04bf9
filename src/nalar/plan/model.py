"""Parameters and floating-point operations of a model, by formula from its config. Arithmetic only.

h hidden_size · H heads · rq, rkv ranks of compressed queries and of the latent · dn, dr, dv widths of a head (plain,
rotary, value) · F, f hidden widths of a dense block and of an expert · E experts · K of them a token · S shared

    attention  h*rq + rq*H*(dn+dr) + h*(rkv+dr) + rkv*H*(dn+dv) + H*dv*h    (no rq: h*H*(dn+dr) for the first two)
    dense      3*h*F          router  E*h          shared  S*3*h*f          routed  E*3*h*f, of which K*3*h*f active
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nalar.model.config import ModelConfig


@dataclass(frozen=True)
class ParamCount:
    """Parameters by kind, over all layers. The balance bias of the router is a buffer and not counted."""

    embedding_params: int
    head_params: int
    """The output matrix, which is not tied to the embedding."""
    attention_params: int
    dense_params: int
    router_params: int
    shared_params: int
    routed_params: int
    norm_params: int
    routed_active_params: int
    """The part of `routed_params` that one token passes through."""

    @property
    def total_params(self) -> int:
        return self.matrix_params + self.embedding_params + self.head_params + self.norm_params

    @property
    def active_params(self) -> int:
        """What one token passes through, embedding and head included in full."""
        return self.total_params - self.routed_params + self.routed_active_params

    @property
    def matrix_params(self) -> int:
        """Everything but embedding, head and norms."""
        blocks = self.attention_params + self.dense_params + self.router_params
        return blocks + self.shared_params + self.routed_params


def count_parameters(config: ModelConfig) -> ParamCount:
    """Exact: what the module's `parameters()` sum to."""
    h, layers = config.hidden_size, config.num_hidden_layers
    moe_layers = sum(config.is_moe(layer) for layer in range(layers))
    expert = 3 * h * config.moe_intermediate_size
    latent_norms = (config.q_lora_rank or 0) + (config.kv_lora_rank or 0)
    return ParamCount(
        embedding_params=config.vocab_size * h,
        head_params=config.vocab_size * h,
        attention_params=layers * _attention_matrices(config),
        dense_params=(layers - moe_layers) * 3 * h * config.intermediate_size,
        router_params=moe_layers * config.n_routed_experts * h,
        shared_params=moe_layers * config.n_shared_experts * expert,
        routed_params=moe_layers * config.n_routed_experts * expert,
        norm_params=layers * (2 * h + latent_norms) + h,
        routed_active_params=moe_layers * config.num_experts_per_tok * expert,
    )


def _attention_matrices(config: ModelConfig) -> int:
    """One layer: queries (whole or by way of their rank), latent, what the latent expands to, output."""
    h, heads, q_rank, kv_rank = (
        config.hidden_size,
        config.num_attention_heads,
        config.q_lora_rank,
        config.kv_lora_rank,
    )
    queries_out, value = heads * config.qk_head_dim, config.value_head_dim
    queries = h * queries_out if q_rank is None else h * q_rank + q_rank * queries_out
    nope = config.qk_head_dim - config.rotary_dim
    expanded = 0 if kv_rank is None else kv_rank * heads * (nope + value)
    return queries + h * config.cache_dim + expanded + heads * value * h


def flops_per_token(config: ModelConfig, context: float, *, backward: bool) -> float:
    """Operations for one token that attends to `context` tokens, itself included; with `backward`, three times that.

    Two for each weight of a matrix product (the embedding is a look-up, the head is a product), and two for each
    term of the attention scores and of their weighted sum, in the expanded form. Norms, rotary and softmax are
    left out, as is usual.
    """
    forward = 2.0 * _products(config) + _attention_by_context(config) * context
    return 3.0 * forward if backward else forward


def sequence_flops(config: ModelConfig, tokens: int, *, backward: bool) -> float:
    """Operations for a whole sequence of which each token attends to all before it and itself."""
    return tokens * flops_per_token(config, (tokens + 1) / 2, backward=backward)


def sampling_flops(
    config: ModelConfig, prompt_tokens: int, completion_tokens: Sequence[int]
) -> float:
    """Operations for one request: its prompt passes once, then each sample token by token over a growing context.

    A sample's last token is never passed, so a sample of m tokens takes m - 1 passes; the head is applied to
    the prompt's last position alone. Counted in the expanded form of attention, as in training.
    """
    products, by_context = 2.0 * _products(config), _attention_by_context(config)
    head = 2.0 * config.vocab_size * config.hidden_size
    prompt = prompt_tokens * (products - head) + head + by_context * _sum_to(prompt_tokens)
    passes = [max(m - 1, 0) for m in completion_tokens]
    contexts = sum(_sum_to(prompt_tokens + p) - _sum_to(prompt_tokens) for p in passes)
    return prompt + products * sum(passes) + by_context * contexts


def _products(config: ModelConfig) -> int:
    """Weights of all matrix products that one token takes part in."""
    count = count_parameters(config)
    return count.active_params - count.embedding_params - count.norm_params


def _attention_by_context(config: ModelConfig) -> float:
    """Operations a token, over all layers, for each token that it attends to."""
    per_head = config.qk_head_dim + config.value_head_dim
    return 2.0 * config.num_hidden_layers * config.num_attention_heads * per_head


def _sum_to(n: int) -> int:
    return n * (n + 1) // 2
