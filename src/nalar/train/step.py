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
from nalar.model.transformer import Hidden, Transformer
from nalar.optim.muonclip import MuonClip, StepResult
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
    idle_experts: int
    """Experts, over all layers, that got no token."""
    layer_load_frac: tuple[float, ...]
    """Per mixture layer, the load of its busiest expert as a multiple of the mean."""
    clipped_heads: int
    """Heads whose query and key weights QK-Clip scaled down."""
    skipped: bool
    """Loss or gradient were not finite, or a spike, and nothing moved."""
    skipped_in_a_row: int
    spike_score: float
    """Share of the latest steps that were spikes or not finite."""
    bad_parameter: str | None
    """The first parameter whose gradient is not finite."""


@dataclass(frozen=True)
class StepOutcome:
    """The same on the device, so that the loop need not wait for every step."""

    loss: Tensor
    result: StepResult
    loads: tuple[Tensor, ...]
    clipped_heads: Tensor
    skipped_in_a_row: Tensor
    spike_score: Tensor
    names: list[str]

    def metrics(self) -> StepMetrics:
        """Waits for the device."""
        norms = self.result.norms.isfinite().tolist()
        fracs = tuple(float(load_E.max() / load_E.float().mean()) for load_E in self.loads)
        return StepMetrics(
            loss=float(self.loss),
            grad_norm=float(self.result.grad_norm),
            max_load_frac=max(fracs, default=1.0),
            idle_experts=sum(int((load_E == 0).sum()) for load_E in self.loads),
            layer_load_frac=fracs,
            clipped_heads=int(self.clipped_heads),
            skipped=not bool(self.result.applied),
            skipped_in_a_row=int(self.skipped_in_a_row),
            spike_score=float(self.spike_score),
            bad_parameter=None if all(norms) else self.names[norms.index(False)],
        )


@dataclass
class _Seen:
    """Sums and maxima over the micro-batches of a step."""

    loss: Tensor
    loads: list[Tensor]
    max_logits: list[Tensor]

    def add(self, loss: Tensor, hidden: Hidden) -> None:
        self.loss = self.loss + loss.detach()
        self.loads = (
            [a + b for a, b in zip(self.loads, hidden.loads, strict=True)]
            if self.loads
            else list(hidden.loads)
        )
        self.max_logits = (
            [torch.maximum(a, b) for a, b in zip(self.max_logits, hidden.max_logits, strict=True)]
            if self.max_logits
            else list(hidden.max_logits)
        )


def pretrain_step(
    model: Transformer,
    optimizer: MuonClip,
    batches: Sequence[Batch],
    *,
    lr_factor: float,
    balance_speed: float,
    balance_loss_weight: float = 0.0,
) -> StepOutcome:
    """Mean next-token loss over all tokens of the micro-batches, one update.

    balance_loss_weight: of the sequence-wise balance loss (arXiv:2412.19437, equation 17), which
    is added to the gradient and left out of the reported loss.
    """
    tau = optimizer.config.qk_clip_tau
    if tau is not None and model.config.qk_norm:
        raise ConfigError(
            at="optim.qk_clip_tau",
            got=f"{tau} with model.qk_norm",
            want="None: norms of queries and keys bound the logits, and undo what QK-Clip does to weights",
        )
    optimizer.zero_grad()
    observe: Observe = "nothing" if tau is None else "bound"
    tokens = sum(len(batch.ids_N) for batch in batches)
    seen = _Seen(torch.zeros((), device=batches[0].ids_N.device), [], [])
    for batch in batches:
        hidden = model(
            batch.ids_N, batch.documents, observe=observe, balance=balance_loss_weight > 0
        )
        logprobs_N, _ = token_logprobs(
            hidden.states,
            model.head_weight,
            batch.targets_N,
            logits_scaling=model.config.logits_scaling,
            entropy=False,
        )
        loss = -logprobs_N.sum() / tokens
        total = loss
        if hidden.balance_loss is not None:
            total = loss + balance_loss_weight * hidden.balance_loss * (len(batch.ids_N) / tokens)
        total.backward()
        seen.add(loss, hidden)
    if tau is not None and any(bool((bound_H > tau).any()) for bound_H in seen.max_logits):
        # A bound passed the ceiling: only now is the exact value worth a pass.
        seen.max_logits = _exact_logits(model, batches)
    return apply_gradients(
        model,
        optimizer,
        loss=seen.loss,
        loads=seen.loads,
        max_logits=seen.max_logits,
        lr_factor=lr_factor,
        balance_speed=balance_speed,
        judge_loss=True,
    )


@torch.no_grad()
def _exact_logits(model: Transformer, batches: Sequence[Batch]) -> list[Tensor]:
    each = [model(b.ids_N, b.documents, observe="exact").max_logits for b in batches]
    return [torch.stack(layer).amax(0) for layer in zip(*each, strict=True)]


def apply_gradients(
    model: Transformer,
    optimizer: MuonClip,
    *,
    loss: Tensor,
    loads: Sequence[Tensor],
    max_logits: Sequence[Tensor],
    lr_factor: float,
    balance_speed: float,
    judge_loss: bool = False,
) -> StepOutcome:
    """The part of a step that every kind of training shares; loads are counts over the whole batch.

    judge_loss: whether a jump of the loss is a spike, as it is in pretraining and is not in RL.
    """
    result = optimizer.step(lr_factor, loss=loss if judge_loss else None)
    clipped = cap_logits(model, optimizer, max_logits, result.applied)
    for router, load_E in zip(model.routers(), loads, strict=True):
        router.rebalance(load_E, balance_speed, result.applied)
    guard = optimizer.guard
    # The guard goes on counting while these wait to be read.
    return StepOutcome(
        loss.detach(),
        result,
        tuple(loads),
        clipped,
        guard.dropped_in_a_row.clone(),
        guard.score,
        optimizer.names,
    )


def cap_logits(
    model: Transformer, optimizer: MuonClip, max_logits: Sequence[Tensor], applied: Tensor
) -> Tensor:
    """QK-Clip every head above the ceiling after a step that was applied; int64 []: how many were."""
    tau = optimizer.config.qk_clip_tau
    clipped = torch.zeros((), dtype=torch.int64, device=applied.device)
    if tau is None:
        return clipped
    for block, max_logits_H in zip(model.model.blocks(), max_logits, strict=True):
        largest_H = torch.where(applied, max_logits_H, 0.0)
        weights = block.self_attn.qk_weights()
        views, master = _head_views(model.config, weights), None
        if weights[0].dtype != torch.float32:  # a float32 weight is its own master
            master = _head_views(model.config, [optimizer.master(w) for w in weights])
        clip_heads(views, largest_H, tau, master=master)
        clipped += (largest_H > tau).sum()
    return clipped


def _head_views(config: ModelConfig, weights: Sequence[Tensor]) -> HeadViews:
    if config.num_key_value_heads is not None:
        return HeadViews.grouped(weights, num_kv_heads=config.num_key_value_heads)
    nope = config.qk_head_dim - config.rotary_dim
    return HeadViews.latent(weights, num_heads=config.num_attention_heads, nope_dim=nope)
