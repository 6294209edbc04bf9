"""A model's weight matrices, one by one: what parameters, operations and bytes are counted from. Arithmetic only.

h hidden_size · H heads · k heads of keys and values · d width of a head · rq, rkv ranks of compressed queries and of
the latent · dn, dr, dv widths of a latent head (plain, rotary, value) · F, f hidden widths of a dense block and of an
expert · E experts, K of them a token · S shared experts · V vocabulary

    latent attention   [rq, h] [H(dn+dr), rq] [rkv+dr, h] [H(dn+dv), rkv] [h, H dv]    (no rq: [H(dn+dr), h] for two)
    grouped queries    [H d, h] [k d, h] [k d, h] [h, H d]
    dense              [F, h] [F, h] [h, F]
    mixture            [E, h]; E times [f, h] [f, h] [h, f]; [S f, h] [S f, h] [h, S f]
    head               [V, h]; of a model that scores [1, h]
    prediction block   [h, 2 h], attention, feed-forward, and the model's head
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nalar.model.config import ModelConfig

Part = Literal["attention", "dense", "router", "shared", "routed", "head", "join"]
"""join: what a block of multi-token prediction makes of the next token and the state before it."""


@dataclass(frozen=True)
class Matrix:
    """Weights of one shape in one place."""

    part: Part
    rows: int
    columns: int
    copies: int = 1
    """How many there are: one an expert; 0 where the head is the embedding."""
    used: int = 1
    """How many of them one token is multiplied with."""

    @property
    def size(self) -> int:
        """Numbers in one copy."""
        return self.rows * self.columns


def model_matrices(config: ModelConfig) -> Iterator[Matrix]:
    """All layers and the head; without multi-token prediction. The embedding is a table, not a matrix of products."""
    for layer in range(config.num_hidden_layers):
        yield from _block(config, layer)
    if config.num_labels is not None:
        yield Matrix("head", config.num_labels, config.hidden_size)
        return
    yield _head(config, copies=0 if config.tie_word_embeddings else 1)


def mtp_matrices(config: ModelConfig) -> Iterator[Matrix]:
    """The blocks of multi-token prediction, which share the model's embedding and head."""
    for depth in range(1, config.num_nextn_predict_layers + 1):
        yield from depth_matrices(config, depth)


def depth_matrices(config: ModelConfig, depth: int) -> Iterator[Matrix]:
    """One block of multi-token prediction, counted from 1."""
    yield Matrix("join", config.hidden_size, 2 * config.hidden_size)
    yield from _block(config, config.num_hidden_layers + depth - 1)
    yield _head(config, copies=0)


def vector_params(config: ModelConfig) -> tuple[int, int]:
    """Numbers of norms and of attention biases, over all layers and the norm before the head."""
    norms, biases = _block_vectors(config)
    layers = config.num_hidden_layers
    return layers * norms + config.hidden_size, layers * biases


def mtp_vector_params(config: ModelConfig) -> int:
    """The same for multi-token prediction: its blocks', and the norms of token, of state and before the head."""
    return config.num_nextn_predict_layers * (sum(_block_vectors(config)) + 3 * config.hidden_size)


def balance_params(config: ModelConfig, *, mtp: bool) -> int:
    """The biases that steer the choice of experts, of the model or of its prediction blocks: one an expert."""
    if config.topk_method != "noaux_tc":
        return 0
    layers = config.num_hidden_layers
    numbers = range(layers, layers + config.num_nextn_predict_layers) if mtp else range(layers)
    return config.n_routed_experts * sum(config.is_moe(layer) for layer in numbers)


def _block(config: ModelConfig, layer: int) -> Iterator[Matrix]:
    is_latent = config.kv_lora_rank is not None
    yield from _latent_attention(config) if is_latent else _grouped_attention(config)
    if config.is_moe(layer):
        yield from _mixture(config)
    else:
        yield from _feed_forward("dense", config.hidden_size, config.intermediate_size)


def _latent_attention(config: ModelConfig) -> Iterator[Matrix]:
    h, heads, q_rank = config.hidden_size, config.num_attention_heads, config.q_lora_rank
    nope, value, kv_rank = config.qk_nope_head_dim, config.value_head_dim, config.kv_lora_rank
    assert nope is not None and kv_rank is not None, "checked when the config was made"
    queries = heads * config.qk_head_dim
    if q_rank is not None:
        yield Matrix("attention", q_rank, h)
    yield Matrix("attention", queries, h if q_rank is None else q_rank)
    yield Matrix("attention", config.cache_dim, h)
    yield Matrix("attention", heads * (nope + value), kv_rank)
    yield Matrix("attention", h, heads * value)


def _grouped_attention(config: ModelConfig) -> Iterator[Matrix]:
    h, queries = config.hidden_size, config.num_attention_heads * config.qk_head_dim
    keys = config.cache_dim // 2
    for rows, columns in ((queries, h), (keys, h), (keys, h), (h, queries)):
        yield Matrix("attention", rows, columns)


def _mixture(config: ModelConfig) -> Iterator[Matrix]:
    h, width = config.hidden_size, config.moe_intermediate_size
    yield Matrix("router", config.n_routed_experts, h)
    counts = {"copies": config.n_routed_experts, "used": config.num_experts_per_tok}
    yield from _feed_forward("routed", h, width, **counts)
    if config.n_shared_experts:
        yield from _feed_forward("shared", h, config.n_shared_experts * width)


def _feed_forward(
    part: Part, h: int, width: int, *, copies: int = 1, used: int = 1
) -> Iterator[Matrix]:
    for rows, columns in ((width, h), (width, h), (h, width)):
        yield Matrix(part, rows, columns, copies, used)


def _head(config: ModelConfig, *, copies: int) -> Matrix:
    return Matrix("head", config.vocab_size, config.hidden_size, copies)


def _block_vectors(config: ModelConfig) -> tuple[int, int]:
    """Numbers of norms and of biases in one block."""
    h, heads, keys = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    norms = 2 * h
    if keys is None:  # latent attention
        return norms + (config.q_lora_rank or 0) + (config.kv_lora_rank or 0), 0
    if config.qk_norm:
        norms += 2 * config.qk_head_dim
    biases = 0
    if config.qkv_bias or config.attention_bias:
        biases = (heads + 2 * keys) * config.qk_head_dim
    return norms, biases + (h if config.attention_bias else 0)
