"""One optimizer step: gradients are there, now move the weights, cap the attention logits, balance the experts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nalar.config import ConfigError
from nalar.kernels.attention import Observe
from nalar.kernels.documents import Documents
from nalar.kernels.logprobs import token_logprobs
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.optim.qkclip import HeadViews, clip_heads


@dataclass(frozen=True)
class Batch:
    """Whole documents, flat, on the model's device."""

    ids_N: Tensor
    """int64."""
    targets_N: Tensor
    """int64: the next token of each."""
    documents: Documents


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step reports."""

    loss: float
    grad_norm: float
    max_load_frac: float
    """Load of the busiest expert of any layer, as a multiple of the mean: 1 is perfect balance."""
    clipped_heads: int
    """Heads whose query and key weights QK-Clip scaled down."""
    skipped: bool
    """The gradient was not finite and nothing moved."""


def pretrain_step(
    model: Transformer,
    optimizer: MuonClip,
    batch: Batch,
    *,
    lr_factor: float,
    balance_speed: float,
) -> StepMetrics:
    """Mean next-token loss over a batch, one update."""
    tau = optimizer.config.qk_clip_tau
    if tau is not None and model.config.qk_norm:
        raise ConfigError(
            at="optim.qk_clip_tau",
            got=f"{tau} with model.qk_norm",
            want="None: norms of queries and keys bound the logits, and undo what QK-Clip does to weights",
        )
    optimizer.zero_grad()
    observe: Observe = "nothing" if tau is None else "bound"
    hidden = model(batch.ids_N, batch.documents, observe=observe)
    logprobs_N, _ = token_logprobs(
        hidden.states,
        model.head_weight,
        batch.targets_N,
        logits_scaling=model.config.logits_scaling,
    )
    loss = -logprobs_N.mean()
    loss.backward()
    max_logits = hidden.max_logits
    if tau is not None and any(bool((bound_H > tau).any()) for bound_H in max_logits):
        # A bound passed the ceiling: only now is the exact value worth a pass.
        with torch.no_grad():
            max_logits = model(batch.ids_N, batch.documents, observe="exact").max_logits
    return apply_gradients(
        model,
        optimizer,
        loss=float(loss.detach()),
        loads=hidden.loads,
        max_logits=max_logits,
        lr_factor=lr_factor,
        balance_speed=balance_speed,
    )


def apply_gradients(
    model: Transformer,
    optimizer: MuonClip,
    *,
    loss: float,
    loads: Sequence[Tensor],
    max_logits: Sequence[Tensor],
    lr_factor: float,
    balance_speed: float,
) -> StepMetrics:
    """The part of a step that every kind of training shares; loads are counts over the whole batch."""
    result = optimizer.step(lr_factor)
    clipped = cap_logits(model, optimizer, max_logits) if result.applied else 0
    if result.applied:
        for router, load_E in zip(model.routers(), loads, strict=True):
            router.rebalance(load_E, balance_speed)
    return StepMetrics(
        loss=loss,
        grad_norm=result.grad_norm,
        max_load_frac=max((float(x.max() / x.float().mean()) for x in loads), default=1.0),
        clipped_heads=clipped,
        skipped=not result.applied,
    )


def cap_logits(model: Transformer, optimizer: MuonClip, max_logits: Sequence[Tensor]) -> int:
    """QK-Clip every head above the ceiling; returns how many heads were."""
    tau, clipped = optimizer.config.qk_clip_tau, 0
    if tau is None:
        return 0
    for block, max_logits_H in zip(model.model.blocks(), max_logits, strict=True):
        over = int((max_logits_H > tau).sum())
        if not over:
            continue
        weights = block.self_attn.qk_weights()
        views, master = _head_views(model.config, weights), None
        if weights[0].dtype != torch.float32:  # a float32 weight is its own master
            master = _head_views(model.config, [optimizer.master(w) for w in weights])
        clip_heads(views, max_logits_H, tau, master=master)
        clipped += over
    return clipped


def _head_views(config: ModelConfig, weights: Sequence[Tensor]) -> HeadViews:
    if config.num_key_value_heads is not None:
        return HeadViews.grouped(weights, num_kv_heads=config.num_key_value_heads)
    nope = config.qk_head_dim - config.rotary_dim
    return HeadViews.latent(weights, num_heads=config.num_attention_heads, nope_dim=nope)
