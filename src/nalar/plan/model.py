"""Parameters and floating-point operations of a model, by formula from its config. Arithmetic only."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nalar.model.config import LoraConfig, ModelConfig
from nalar.model.families.adapters import adapted
from nalar.plan.matrices import (
    Matrix,
    Part,
    balance_params,
    depth_matrices,
    model_matrices,
    mtp_matrices,
    mtp_vector_params,
    vector_params,
)


@dataclass(frozen=True)
class ParamCount:
    """Parameters by kind, over all layers."""

    embedding_params: int
    head_params: int
    """The output matrix; 0 where it is the embedding."""
    attention_params: int
    dense_params: int
    router_params: int
    shared_params: int
    routed_params: int
    norm_params: int
    routed_active_params: int
    """The part of `routed_params` that one token passes through."""
    bias_params: int = 0
    """Biases of attention."""
    balance_params: int = 0
    """Biases that steer the choice of experts: buffers, in a checkpoint and in no sum below."""
    mtp_params: int = 0
    """Blocks of multi-token prediction, without what they share with the model: in no sum below."""

    @property
    def total_params(self) -> int:
        vectors = self.norm_params + self.bias_params
        return self.matrix_params + self.embedding_params + self.head_params + vectors

    @property
    def active_params(self) -> int:
        """What one token passes through, embedding and head included in full."""
        return self.total_params - self.routed_params + self.routed_active_params

    @property
    def matrix_params(self) -> int:
        """Everything but embedding, head, norms and biases."""
        blocks = self.attention_params + self.dense_params + self.router_params
        return blocks + self.shared_params + self.routed_params


def count_parameters(config: ModelConfig) -> ParamCount:
    """Exact: what the module's `parameters()` sum to."""
    matrices = list(model_matrices(config))
    held: Counter[Part] = Counter()
    for matrix in matrices:
        held[matrix.part] += matrix.copies * matrix.size
    norms, biases = vector_params(config)
    return ParamCount(
        embedding_params=config.vocab_size * config.hidden_size,
        head_params=held["head"],
        attention_params=held["attention"],
        dense_params=held["dense"],
        router_params=held["router"],
        shared_params=held["shared"],
        routed_params=held["routed"],
        norm_params=norms,
        routed_active_params=_multiplied(m for m in matrices if m.part == "routed"),
        bias_params=biases,
        balance_params=balance_params(config, mtp=False),
        mtp_params=_mtp_params(config),
    )


def _mtp_params(config: ModelConfig) -> int:
    """Balance biases included, as published counts do."""
    matrices = sum(m.copies * m.size for m in mtp_matrices(config))
    vectors = mtp_vector_params(config)
    return matrices + vectors + balance_params(config, mtp=True)


def _multiplied(matrices: Iterable[Matrix]) -> int:
    """Weights that one token is multiplied with."""
    return sum(matrix.used * matrix.size for matrix in matrices)


def adapter_params(config: ModelConfig, lora: LoraConfig | None) -> int | None:
    """Numbers of all adapters, of which one of a matrix [rows, columns] has r of each. None: there are none."""
    if lora is None:
        return None
    return lora.r * sum(rows + columns for rows, columns in adapted(config, lora).values())


def flops_per_token(
    config: ModelConfig,
    context: float,
    *,
    backward: bool,
    with_mtp: bool = False,
    adapter_params: int | None = None,
) -> float:
    """Operations for one token that attends to `context` tokens, itself included; with `backward`, three times that.

    Two for each weight of a matrix product (the embedding is a look-up, the head is a product), and two for each
    term of the attention scores and of their weighted sum, in the expanded form. Norms, biases, rotary and softmax
    are left out, as is usual.
    with_mtp: count the blocks of multi-token prediction too, each with its product by the head.
    adapter_params: weights are frozen and adapters of so many numbers are trained. The backward pass then goes through
    the weights once, to what came in, and multiplies by each number of an adapter twice; the forward pass does not know
    them, for they are folded in.
    """
    products, layers = _products(config), config.num_hidden_layers
    if with_mtp:
        products += _multiplied(mtp_matrices(config))
        layers += config.num_nextn_predict_layers
    attention = layers * _layer_flops_by_context(config) * context
    forward = 2.0 * products + attention
    if not backward:
        return forward
    if adapter_params is None:
        return 3.0 * forward
    return 4.0 * products + 3.0 * attention + 4.0 * adapter_params


def sequence_flops(
    config: ModelConfig,
    tokens: int,
    *,
    backward: bool,
    with_mtp: bool = False,
    adapter_params: int | None = None,
) -> float:
    """Operations for a whole sequence of which each token attends to all before it and itself.

    with_mtp: depth k of multi-token prediction passes k tokens fewer. adapter_params: as `flops_per_token` has it.
    """
    context = (tokens + 1) / 2
    flops = tokens * flops_per_token(
        config, context, backward=backward, adapter_params=adapter_params
    )
    if with_mtp:
        for depth in range(1, config.num_nextn_predict_layers + 1):
            passed = max(tokens - depth, 0)
            products = 2.0 * _multiplied(depth_matrices(config, depth))
            attention = _layer_flops_by_context(config) * (passed + 1) / 2
            flops += passed * (products + attention) * (3.0 if backward else 1.0)
    return flops


def sampling_flops(
    config: ModelConfig, prompt_tokens: int, completion_tokens: Sequence[int]
) -> float:
    """Operations for one request: its prompt passes once, then each sample token by token over a growing context.

    A sample's last token is never passed, so a sample of m tokens takes m - 1 passes; the head is applied to
    the prompt's last position alone. Counted in the expanded form of attention, as in training.
    """
    products = 2.0 * _products(config)
    by_context = config.num_hidden_layers * _layer_flops_by_context(config)
    head = 2.0 * config.vocab_size * config.hidden_size
    prompt = prompt_tokens * (products - head) + head + by_context * _sum_to(prompt_tokens)
    passes = [max(m - 1, 0) for m in completion_tokens]
    contexts = sum(_sum_to(prompt_tokens + p) - _sum_to(prompt_tokens) for p in passes)
    return prompt + products * sum(passes) + by_context * contexts


def _products(config: ModelConfig) -> int:
    """Weights of all matrix products that one token takes part in."""
    return _multiplied(model_matrices(config))


def _layer_flops_by_context(config: ModelConfig) -> float:
    """Operations a token in one layer for each token that it attends to."""
    return 2.0 * config.num_attention_heads * (config.qk_head_dim + config.value_head_dim)


def _sum_to(n: int) -> int:
    return n * (n + 1) // 2
