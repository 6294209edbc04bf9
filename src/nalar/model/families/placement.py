"""Which bytes of a published tensor are which bytes of ours. Imports no torch."""

# D hidden · H query heads · V vocabulary · E experts · F expert width

from collections.abc import Iterator
from dataclasses import dataclass

from nalar.model.config import ModelConfig


@dataclass(frozen=True)
class Placement:
    """The published tensor `key` is `state_dict()[name][index]`, viewed in `shape`: the same bytes."""

    key: str
    name: str
    shape: tuple[int, ...]
    index: tuple[int, ...] = ()
    """Leading indices into ours, as of an expert in the stack."""
    is_copy: bool = False
    """A second key of a parameter. Where it is read, it must equal the first."""
    is_written: bool = True
    """False: some folders have it, ours do not, and reading does without."""


def as_named(name: str, *shape: int) -> Placement:
    """A tensor that has the same name on both sides."""
    return Placement(name, name, shape)


def model_placements(config: ModelConfig) -> Iterator[Placement]:
    """What all families have around their layers."""
    vocabulary = (config.vocab_size, config.hidden_size)
    yield as_named("model.embed_tokens.weight", *vocabulary)
    yield as_named("model.norm.weight", config.hidden_size)
    if config.num_labels is not None:
        yield as_named("score.weight", config.num_labels, config.hidden_size)
        return
    if not config.tie_word_embeddings:
        yield as_named("lm_head.weight", *vocabulary)
        return
    yield Placement(
        "lm_head.weight", "model.embed_tokens.weight", vocabulary, is_copy=True, is_written=False
    )


def block_norms(config: ModelConfig, layer: int) -> Iterator[Placement]:
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield as_named(f"model.layers.{layer}.{name}.weight", config.hidden_size)


def prediction(config: ModelConfig, layer: int) -> Iterator[Placement]:
    """What a block of multi-token prediction has beside a block's own. Embedding and head are the model's."""
    at, D = f"model.layers.{layer}", config.hidden_size
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield as_named(f"{at}.{name}.weight", D)
    yield as_named(f"{at}.eh_proj.weight", D, 2 * D)
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    for key, name in (("embed_tokens", embedding), ("shared_head.head", head)):
        shape = (config.vocab_size, D)
        yield Placement(f"{at}.{key}.weight", name, shape, is_copy=True)


def latent_attention(config: ModelConfig, layer: int) -> Iterator[Placement]:
    at = f"model.layers.{layer}.self_attn"
    D, H, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    assert rank is not None and nope is not None and rope is not None, "latent attention"
    queries, value = H * config.qk_head_dim, config.value_head_dim
    if config.q_lora_rank is None:
        yield as_named(f"{at}.q_proj.weight", queries, D)
    else:
        yield as_named(f"{at}.q_a_proj.weight", config.q_lora_rank, D)
        yield as_named(f"{at}.q_a_layernorm.weight", config.q_lora_rank)
        yield as_named(f"{at}.q_b_proj.weight", queries, config.q_lora_rank)
    yield as_named(f"{at}.kv_a_proj_with_mqa.weight", rank + rope, D)
    yield as_named(f"{at}.kv_a_layernorm.weight", rank)
    yield as_named(f"{at}.kv_b_proj.weight", H * (nope + value), rank)
    yield as_named(f"{at}.o_proj.weight", D, H * value)


def grouped_attention(config: ModelConfig, layer: int) -> Iterator[Placement]:
    at = f"model.layers.{layer}.self_attn"
    D, width, kv_heads = config.hidden_size, config.head_dim, config.num_key_value_heads
    assert width is not None and kv_heads is not None, "grouped-query attention"
    queries, keys = config.num_attention_heads * width, kv_heads * width
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield as_named(f"{at}.{name}_proj.weight", rows, D)
        if config.qkv_bias or config.attention_bias:
            yield as_named(f"{at}.{name}_proj.bias", rows)
    yield as_named(f"{at}.o_proj.weight", D, queries)
    if config.attention_bias:
        yield as_named(f"{at}.o_proj.bias", D)
    if config.qk_norm:
        yield as_named(f"{at}.q_norm.weight", width)
        yield as_named(f"{at}.k_norm.weight", width)


def feed_forward(at: str, hidden_size: int, width: int) -> Iterator[Placement]:
    """A dense SwiGLU block under the name `at`."""
    yield as_named(f"{at}.gate_proj.weight", width, hidden_size)
    yield as_named(f"{at}.up_proj.weight", width, hidden_size)
    yield as_named(f"{at}.down_proj.weight", hidden_size, width)


def split_experts(config: ModelConfig, layer: int) -> Iterator[Placement]:
    """A mixture with three published tensors an expert; ours are two stacks over all of them."""
    at = f"model.layers.{layer}.mlp"
    D, E, F = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    yield as_named(f"{at}.gate.weight", E, D)
    if config.topk_method == "noaux_tc":
        yield as_named(f"{at}.gate.e_score_correction_bias", E)
    for e in range(E):
        each = f"{at}.experts.{e}"
        yield Placement(f"{each}.gate_proj.weight", f"{at}.experts.gate_up", (F, D), (e, 0))
        yield Placement(f"{each}.up_proj.weight", f"{at}.experts.gate_up", (F, D), (e, 1))
        yield Placement(f"{each}.down_proj.weight", f"{at}.experts.down", (D, F), (e,))
    if config.n_shared_experts:
        yield from feed_forward(f"{at}.shared_experts", D, F * config.n_shared_experts)


def stacked_experts(config: ModelConfig, layer: int) -> Iterator[Placement]:
    """A mixture as Granite publishes it: stacks as ours are, under other names."""
    ours, theirs = f"model.layers.{layer}.mlp", f"model.layers.{layer}.block_sparse_moe"
    D, E, F = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    yield Placement(f"{theirs}.router.layer.weight", f"{ours}.gate.weight", (E, D))
    yield Placement(f"{theirs}.input_linear.weight", f"{ours}.experts.gate_up", (E, 2 * F, D))
    yield Placement(f"{theirs}.output_linear.weight", f"{ours}.experts.down", (E, D, F))
