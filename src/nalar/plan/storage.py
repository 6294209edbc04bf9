"""Bytes of a model's weights and of what a token leaves in the cache, by number format. Arithmetic only."""

from collections.abc import Iterable
from itertools import chain
from typing import Literal, get_args

from nalar.model.config import ModelConfig
from nalar.plan.matrices import Matrix, balance_params, model_matrices, mtp_matrices
from nalar.plan.model import count_parameters

Dtype = Literal["float32", "bfloat16", "float8"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
_SIZE: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float8": 1}
_TILE = 128
"""float8 weights have one float32 scale a tile of 128 × 128, as DeepSeek-V3 is published."""
_QUANTISED = ("attention", "dense", "shared", "routed")
"""Parts that are float8 in such a checkpoint. Embedding, head, router, norms and biases stay bfloat16."""


def weight_bytes(config: ModelConfig, dtype: Dtype) -> int:
    """Bytes of the model's weights, without multi-token prediction."""
    count = count_parameters(config)
    return _bytes(dtype, count.total_params, count.balance_params, model_matrices(config))


def checkpoint_bytes(config: ModelConfig, dtype: Dtype) -> int:
    """Bytes of all tensors of a checkpoint folder: each prediction block brings copies of embedding and head."""
    matrices = chain(model_matrices(config), mtp_matrices(config))
    balance = balance_params(config, mtp=False) + balance_params(config, mtp=True)
    return _bytes(dtype, checkpoint_params(config) - balance, balance, matrices)


def checkpoint_params(config: ModelConfig) -> int:
    """Numbers in all tensors of a checkpoint folder, copies counted as often as they are written."""
    count = count_parameters(config)
    copies = 2 * config.num_nextn_predict_layers * count.embedding_params
    return count.total_params + count.balance_params + count.mtp_params + copies


def kv_bytes_per_token(config: ModelConfig, dtype: Dtype) -> int:
    """What a token keeps over all layers: the latent and its rotary key, or keys and values of each group.

    float8 without the scales that an engine may keep beside it.
    """
    return _SIZE[dtype] * config.num_hidden_layers * config.cache_dim


def _bytes(dtype: Dtype, weights: int, balance: int, matrices: Iterable[Matrix]) -> int:
    """weights: all numbers but the balance biases, which are float32 in every format."""
    rest = _SIZE["float32"] * balance
    if dtype != "float8":
        return _SIZE[dtype] * weights + rest
    quantised = scales = 0
    for matrix in matrices:
        if matrix.part in _QUANTISED:
            quantised += matrix.copies * matrix.size
            scales += matrix.copies * -(-matrix.rows // _TILE) * -(-matrix.columns // _TILE)
    wide = _SIZE["bfloat16"] * (weights - quantised)
    return quantised + _SIZE["float32"] * scales + wide + rest
