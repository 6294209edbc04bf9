"""Everything that is counted of a model, as one form for programs."""

from pydantic import BaseModel, ConfigDict

from nalar.model.config import ModelConfig
from nalar.plan.model import count_parameters, flops_per_token, sequence_flops
from nalar.plan.storage import (
    DTYPES,
    Dtype,
    checkpoint_bytes,
    checkpoint_params,
    kv_bytes_per_token,
    weight_bytes,
)


class PartParams(BaseModel):
    """Parameters by kind, over all layers. They sum to all of the model."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    embedding: int
    head: int
    """0 where the head is the embedding."""
    attention: int
    dense: int
    router: int
    balance: int
    """Biases that steer the choice of experts, one an expert: in the checkpoint, not trained by gradients."""
    shared: int
    routed: int
    norm: int
    bias: int
    """Of attention's projections."""


class Sizes(BaseModel):
    """Of a whole model, without multi-token prediction where its name does not say otherwise."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model_type: str
    total_params: int
    """Every number of the model, the balance biases of its routers included, as published figures count."""
    active_params: int
    """What one token passes through: all but the routed experts that are not chosen."""
    active_params_without_embeddings: int
    """The same without embedding and head."""
    params: PartParams
    routed_active_params: int
    """The part of `params.routed` that one token passes through; of all other parts it passes the whole."""
    mtp_params: int
    """Blocks of multi-token prediction, without the embedding and head that they share."""
    checkpoint_params: int
    """Every number of a checkpoint folder: prediction blocks too, each with its copies of embedding and head."""
    context_tokens: int
    """Length of the sequences that operations are counted for."""
    flops_per_token: float
    """Forward and backward, mean over a sequence in which each token attends to all before it and itself."""
    forward_flops_per_token: float
    mtp_flops_per_token: float
    """What multi-token prediction adds to `flops_per_token`."""
    weight_bytes: dict[Dtype, int]
    checkpoint_bytes: dict[Dtype, int]
    """As `checkpoint_params`, headers of files not counted."""
    kv_bytes_per_token: dict[Dtype, int]
    """What each token keeps in the cache, over all layers."""


def sizes_of(config: ModelConfig, *, context_tokens: int) -> Sizes:
    """Counts of a config."""
    count = count_parameters(config)
    parts = PartParams(
        embedding=count.embedding_params,
        head=count.head_params,
        attention=count.attention_params,
        dense=count.dense_params,
        router=count.router_params,
        balance=count.balance_params,
        shared=count.shared_params,
        routed=count.routed_params,
        norm=count.norm_params,
        bias=count.bias_params,
    )
    active = count.active_params + count.balance_params
    mean_context = (context_tokens + 1) / 2
    trained = flops_per_token(config, mean_context, backward=True)
    predicting = flops_per_token(config, mean_context, backward=True, with_mtp=True)
    return Sizes(
        model_type=config.model_type,
        total_params=count.total_params + count.balance_params,
        active_params=active,
        active_params_without_embeddings=active - count.embedding_params - count.head_params,
        params=parts,
        routed_active_params=count.routed_active_params,
        mtp_params=count.mtp_params,
        checkpoint_params=checkpoint_params(config),
        context_tokens=context_tokens,
        flops_per_token=trained,
        forward_flops_per_token=sequence_flops(config, context_tokens, backward=False)
        / context_tokens,
        mtp_flops_per_token=predicting - trained,
        weight_bytes={dtype: weight_bytes(config, dtype) for dtype in DTYPES},
        checkpoint_bytes={dtype: checkpoint_bytes(config, dtype) for dtype in DTYPES},
        kv_bytes_per_token={dtype: kv_bytes_per_token(config, dtype) for dtype in DTYPES},
    )
