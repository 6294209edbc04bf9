"""What a run will take: memory, hours and money, from a config and stated assumptions. Arithmetic only."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from nalar.config import Config, ConfigError
from nalar.model.config import LoraConfig, ModelConfig
from nalar.model.families.adapters import adapted
from nalar.plan.matrices import balance_params, model_matrices, mtp_matrices
from nalar.plan.model import adapter_params, count_parameters

FP32_BYTES = 4
Dtype = Literal["float32", "bfloat16"]
BYTES_OF: Mapping[Dtype, int] = {"float32": FP32_BYTES, "bfloat16": 2}
Optimizer = Literal["muonclip", "adamw"]
MOST_LOGITS = 2**28
"""At a time, of rounded weights on a GPU: as `kernels.logprobs` has it."""


class PriceConfig(Config):
    """What the machine costs while it runs."""

    usd_per_hour: float = 0.05
    """US dollars an hour. The default is an assumption: two shared cores rented in a cloud."""

    def usd(self, wall_s: float) -> float:
        """The price of this many seconds."""
        return self.usd_per_hour * wall_s / 3600

    def model_post_init(self, _context: object) -> None:
        if not 0 <= self.usd_per_hour < float("inf"):
            raise ConfigError(
                at="price.usd_per_hour", got=str(self.usd_per_hour), want="a price of 0 or more"
            )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of training, by what holds them. An interpreter with torch takes some 400 MB more on a CPU."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """What the forward pass keeps for the backward one, and the logits: an estimate, as is the next."""
    update_bytes: int
    """What the optimizer's step takes for a moment, when activations are gone."""
    accumulates: bool
    """Whether gradients are there before: those of one batch alone are made while activations go."""

    @property
    def total_bytes(self) -> int:
        """At the peak."""
        state = self.parameters_bytes + self.optimizer_bytes
        before = self.gradients_bytes if self.accumulates else 0
        return state + max(
            before + self.activations_bytes, self.gradients_bytes + self.update_bytes
        )


def training_memory(
    config: ModelConfig,
    *,
    batch_tokens: int,
    row_tokens: int,
    optimizer: Optimizer = "muonclip",
    logit_chunk_tokens: int = 8192,
    dtype: Dtype = "float32",
    recompute: bool = False,
    with_mtp: bool = False,
    on_gpu: bool = False,
    accumulates: bool = True,
    lora: LoraConfig | None = None,
) -> MemoryEstimate:
    """Memory of one training step over rows of `row_tokens`, nothing sharded.

    muonclip keeps one number for each weight of a hidden matrix and two for all else, adamw two for everything;
    both keep a float32 master of weights in bfloat16, and on a CPU gather gradients in float32. recompute: a block
    keeps its input alone, and one block at a time has all of its activations. with_mtp: the blocks of multi-token
    prediction are trained too. on_gpu: rows of one length, through the kernels that a GPU has. accumulates: a step has
    several such batches. lora: adapters in float32 are trained, under AdamW; beside the weights that they are folded
    into lie those that they are on.
    """
    count = count_parameters(config)
    parameters, under_muon = count.total_params, count.matrix_params - count.router_params
    if with_mtp:
        parameters += count.mtp_params - balance_params(config, mtp=True)
        under_muon += sum(m.copies * m.size for m in mtp_matrices(config) if m.part != "router")
    muon = under_muon if optimizer == "muonclip" else 0
    size = BYTES_OF[dtype]
    master = 0 if dtype == "float32" else parameters
    chunk = min(batch_tokens, logit_chunk_tokens)
    layers = config.num_hidden_layers + with_mtp * config.num_nextn_predict_layers
    is_fused = on_gpu and dtype == "bfloat16"
    per_token = _activations_per_token(config, row_tokens, layers, on_gpu=on_gpu, fused=is_fused)
    # Logits are float32 whatever the weights are; the backward pass has them and their gradient.
    logits = FP32_BYTES * 2 * chunk * config.vocab_size
    if is_fused:  # the gradient is as narrow as the weights; that of the head is summed in float32
        chunk = min(chunk, max(MOST_LOGITS // config.vocab_size, 1))
        logits = (FP32_BYTES + size) * chunk * config.vocab_size
        logits += FP32_BYTES * 2 * config.vocab_size * config.hidden_size
    activations = size * batch_tokens * per_token + logits
    if recompute:  # logits come before the blocks, and of those each has its activations and what they turn into
        kept = size * batch_tokens * (layers + 2) * config.hidden_size
        activations = kept + max(logits, 3 * size * batch_tokens * per_token // (2 * layers))
    if lora is not None:
        return _with_adapters(config, lora, size * parameters, size, activations, on_gpu)
    gathered = 0 if on_gpu else parameters
    return MemoryEstimate(
        parameters_bytes=size * parameters,
        gradients_bytes=size * parameters,
        optimizer_bytes=FP32_BYTES * (2 * parameters - muon + gathered + master),
        activations_bytes=activations,
        update_bytes=_update_bytes(config, with_mtp, on_gpu) if muon else 0,
        accumulates=accumulates,
    )


def _with_adapters(
    config: ModelConfig,
    lora: LoraConfig,
    weights_bytes: int,
    size: int,
    activations_bytes: int,
    on_gpu: bool,
) -> MemoryEstimate:
    """Of a model whose weights, of `size` bytes each, are frozen. An update folds one matrix at a time, in float32."""
    sizes = [rows * columns for rows, columns in adapted(config, lora).values()]
    learned = FP32_BYTES * (adapter_params(config, lora) or 0)
    return MemoryEstimate(
        parameters_bytes=weights_bytes + size * sum(sizes) + learned,
        gradients_bytes=learned,
        optimizer_bytes=(2 if on_gpu else 3) * learned,
        activations_bytes=activations_bytes,
        update_bytes=2 * FP32_BYTES * max(sizes),
        accumulates=True,
    )


def moving_bytes(config: ModelConfig, lora: LoraConfig, dtype: Dtype) -> int:
    """What training adapters changes, and a copy of the model has to hold: them, and the weights that they are in."""
    folded = sum(rows * columns for rows, columns in adapted(config, lora).values())
    return BYTES_OF[dtype] * folded + FP32_BYTES * (adapter_params(config, lora) or 0)


def _update_bytes(config: ModelConfig, with_mtp: bool, on_gpu: bool) -> int:
    """What Newton-Schulz takes for the largest group of matrices of one shape: on a GPU all in bfloat16.

    There a tall matrix is of another shape than a wide one, and there are the products of the shorter side.
    """
    sizes: dict[tuple[int, int], int] = {}
    squares: dict[tuple[int, int], int] = {}
    for matrix in chain(model_matrices(config), mtp_matrices(config) if with_mtp else ()):
        if matrix.part not in ("embedding", "head", "router"):
            sides = (matrix.rows, matrix.columns)
            if not on_gpu:
                sides = (min(sides), max(sides))
            sizes[sides] = sizes.get(sides, 0) + matrix.copies * matrix.size
            squares[sides] = squares.get(sides, 0) + matrix.copies * min(sides) ** 2
    if not on_gpu:
        return FP32_BYTES * 2 * max(sizes.values(), default=0)
    return max((2 * 2 * (sizes[sides] + squares[sides]) for sides in sizes), default=0)


def _activations_per_token(
    config: ModelConfig, row_tokens: int, layers: int, *, on_gpu: bool, fused: bool
) -> int:
    """Numbers kept a token for the backward pass: the operands of each product and of each non-linear step.

    layers: those of multi-token prediction included, where they are trained.
    """
    h = config.hidden_size
    moe_layers = sum(config.is_moe(layer) for layer in range(layers))
    # A norm keeps its input at unit size and what its weight makes of it; there are two a layer.
    attention = 4 * h + (
        _fused_attention_activations(config)
        if fused
        else _attention_activations(config, row_tokens, has_scores=not on_gpu)
    )
    dense = 4 * config.intermediate_size
    # A routed token is gathered, passed through gate, up and their product, and weighted on its way back; the kernels
    # of a GPU keep the gathered one, gate and up.
    width = config.moe_intermediate_size
    routed = config.num_experts_per_tok * (h + 2 * width if fused else 2 * h + 4 * width)
    shared = 4 * config.n_shared_experts * config.moe_intermediate_size
    moe = routed + shared + 2 * config.n_routed_experts
    # A block of multi-token prediction has three norms of its own, and what it joins.
    joins = (layers - config.num_hidden_layers) * 6 * h
    blocks = layers * attention + (layers - moe_layers) * dense + moe_layers * moe
    return blocks + joins + 2 * h


def _fused_attention_activations(config: ModelConfig) -> int:
    """The same by the kernels of a GPU: nothing is repeated for heads that share keys, and values stay beside keys."""
    heads, width, value = config.num_attention_heads, config.qk_head_dim, config.value_head_dim
    if config.kv_lora_rank is not None:
        latents = 2 * ((config.q_lora_rank or 0) + config.kv_lora_rank)
        return latents + heads * (2 * width + 2 * value + width - config.rotary_dim)
    groups = config.num_key_value_heads or heads
    normed = 2 * (heads + groups) * width if config.qk_norm else 0
    # Pairs that stand apart are brought together in float32 to be turned.
    paired = 0 if config.rope_interleave else 2 * (heads + groups) * config.rotary_dim
    return normed + paired + 2 * (heads + groups) * width


def _attention_activations(config: ModelConfig, row_tokens: int, *, has_scores: bool = True) -> int:
    """Of one layer, without the norm before it. has_scores: where no kernel takes such widths."""
    heads, width, value = config.num_attention_heads, config.qk_head_dim, config.value_head_dim
    # The fused attention wants keys as wide as values; without it the scores are kept.
    scores = row_tokens if has_scores and width != value else 0
    if config.kv_lora_rank is not None:
        latents = 2 * ((config.q_lora_rank or 0) + config.kv_lora_rank)  # their norms, as above
        return latents + heads * (2 * width + 2 * value + scores)
    groups = config.num_key_value_heads or heads
    normed = 2 * (heads + groups) * width if config.qk_norm else 0
    # Queries, the output in two forms, and keys and values, which are repeated for each head of their group.
    return normed + 5 * heads * width
