"""One optimizer step: gradients are there, now move the weights, cap the attention logits, balance the experts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nalar.config import ConfigError
from nalar.kernels.attention import Observe
from nalar.kernels.documents import Documents
from nalar.kernels.logprobs import is_rounded, logprob_sum, token_logprobs
from nalar.model.config import ModelConfig
from nalar.model.lora import fold
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
    counted_N: Tensor | None = None
    """bool: targets that are in the loss. None: all."""


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
    skipped_steps: int = 0
    """Since the optimizer's first step, in earlier sessions too."""
    idle: tuple[tuple[int, int], ...] = ()
    """The idle experts: place among the layers with a mixture, place in it."""
    mtp_loss: float | None = None
    """Mean over the depths of multi-token prediction, before its weight. None: not trained."""
    right_frac: float | None = None
    """Of a model that scores: judgements of the step that it agreed with. None: it predicts tokens."""


@dataclass(frozen=True)
class StepOutcome:
    """The same on the device, so that the loop need not wait for every step."""

    loss: Tensor
    result: StepResult
    loads: tuple[Tensor, ...]
    clipped_heads: Tensor
    skipped_in_a_row: Tensor
    spike_score: Tensor
    skipped_steps: Tensor
    names: list[str]
    mtp_loss: Tensor | None = None
    right_frac: Tensor | None = None

    def metrics(self) -> StepMetrics:
        """Waits for the device."""
        norms = self.result.norms.isfinite().tolist()
        fracs = tuple(
            float(load_E.max() / load_E.float().mean().clamp(min=1e-9)) for load_E in self.loads
        )
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
            skipped_steps=int(self.skipped_steps),
            idle=tuple(
                (layer, expert)
                for layer, load_E in enumerate(self.loads)
                for expert in (load_E == 0).nonzero().flatten().tolist()
            ),
            mtp_loss=None if self.mtp_loss is None else float(self.mtp_loss),
            right_frac=None if self.right_frac is None else float(self.right_frac),
        )


@dataclass
class _Seen:
    """Sums and maxima over the micro-batches of a step."""

    loss: Tensor
    mtp_loss: Tensor
    loads: list[Tensor]
    max_logits: list[Tensor]

    @classmethod
    def nothing(cls, device: torch.device) -> "_Seen":
        return cls(torch.zeros((), device=device), torch.zeros((), device=device), [], [])

    def add(self, loss: Tensor, mtp_loss: Tensor | None, hidden: Hidden) -> None:
        self.loss = self.loss + loss.detach()
        if mtp_loss is not None:
            self.mtp_loss = self.mtp_loss + mtp_loss.detach()
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
    mtp_loss_weight: float = 0.0,
) -> StepOutcome:
    """Mean next-token loss over all counted targets of the micro-batches, one update.

    Two losses are added to the gradient and left out of the reported one. balance_loss_weight: of the
    sequence-wise balance loss (arXiv:2412.19437, equation 17). mtp_loss_weight: of the mean over the
    depths of multi-token prediction (equation 25); 0 leaves its blocks alone, and then the optimizer
    must not own them.
    """
    _refuse_misfits(model, optimizer, mtp_loss_weight)
    optimizer.zero_grad()
    tau, ahead = optimizer.config.qk_clip_tau, mtp_loss_weight > 0
    observe: Observe = "nothing" if tau is None else "bound"
    targets = _target_counts(batches, model.config.num_nextn_predict_layers if ahead else 0)
    counts = _denominators(batches, targets)
    seen = _Seen.nothing(batches[0].ids_N.device)
    for batch in batches:
        hidden = model(
            batch.ids_N,
            batch.documents,
            observe=observe,
            balance=balance_loss_weight > 0,
            ahead=ahead,
        )
        loss = _loss(model, hidden.states, batch.targets_N, batch.counted_N, counts[0])
        mtp_loss = _mtp_loss(model, hidden, batch, counts[1:]) if ahead else None
        total = loss if mtp_loss is None else loss + mtp_loss_weight * mtp_loss
        if hidden.balance_loss is not None:
            share = len(batch.ids_N) / targets[0]
            total = total + balance_loss_weight * hidden.balance_loss * share
        total.backward()
        seen.add(loss, mtp_loss, hidden)
    if not all(targets):  # no document was long enough for the deepest blocks
        _fill_gradients(model)
    above = None
    if tau is not None and _passes(seen.max_logits, tau):
        above = _exact_logits(model, batches, ahead=ahead)
    outcome = apply_gradients(
        model,
        optimizer,
        loss=seen.loss,
        loads=seen.loads,
        max_logits=above,
        lr_factor=lr_factor,
        balance_speed=balance_speed,
        judge_loss=True,
        ahead=ahead,
    )
    return replace(outcome, mtp_loss=seen.mtp_loss) if ahead else outcome


def _refuse_misfits(model: Transformer, optimizer: MuonClip, mtp_loss_weight: float) -> None:
    tau = optimizer.config.qk_clip_tau
    if tau is not None and model.config.qk_norm:
        raise ConfigError(
            at="optim.qk_clip_tau",
            got=f"{tau} with model.qk_norm",
            want="None: norms of queries and keys bound the logits, and undo what QK-Clip does to weights",
        )
    if mtp_loss_weight and not model.config.num_nextn_predict_layers:
        raise ConfigError(
            at="pretrain.mtp_loss_weight",
            got=f"{mtp_loss_weight} with model.num_nextn_predict_layers=0",
            want="0: the model has no blocks of multi-token prediction",
        )


def _target_counts(batches: Sequence[Batch], depth: int) -> list[int]:
    """Tokens with a target, over all micro-batches: of the model, then of each depth."""
    lengths = [n for batch in batches for n in batch.documents.lengths]
    return [sum(max(n - k, 0) for n in lengths) for k in range(depth + 1)]


def _denominators(batches: Sequence[Batch], targets: Sequence[int]) -> Sequence[int | Tensor]:
    """Targets in the loss, at least 1; of the model, then of each depth. Counted on the device where a mask says."""
    masks = [(b.counted_N, b.documents.positions_N) for b in batches if b.counted_N is not None]
    if not masks:
        return [max(n, 1) for n in targets]
    assert len(masks) == len(batches), "a mask for every micro-batch of a step, or for none"
    return [
        torch.stack([(mask_N & (at_N >= k)).sum() for mask_N, at_N in masks]).sum().clamp(min=1)
        for k in range(len(targets))
    ]


def _loss(
    model: Transformer,
    states_ND: Tensor,
    targets_N: Tensor,
    counted_N: Tensor | None,
    count: int | Tensor,
) -> Tensor:
    """Sum over those of these tokens that count, as a part of the mean over `count`."""
    if is_rounded(states_ND, model.head_weight):
        weights_N = torch.full_like(targets_N, -1.0, dtype=torch.float32)
        if counted_N is not None:
            weights_N = torch.where(counted_N, weights_N, 0.0)
        return logprob_sum(
            states_ND,
            model.head_weight,
            targets_N,
            weights_N / count,
            logits_scaling=model.config.logits_scaling,
        )
    logprobs_N, _ = token_logprobs(
        states_ND,
        model.head_weight,
        targets_N,
        logits_scaling=model.config.logits_scaling,
        entropy=False,
    )
    if counted_N is not None:
        logprobs_N = torch.where(counted_N, logprobs_N, 0.0)
    return -logprobs_N.sum() / count


def _mtp_loss(
    model: Transformer, hidden: Hidden, batch: Batch, counts: Sequence[int | Tensor]
) -> Tensor:
    """Mean over depths of the mean over the tokens that a depth has a target for."""
    mask_N = batch.counted_N
    losses = [
        _loss(
            model,
            ahead.states_MD,
            batch.targets_N[ahead.at_M],
            None if mask_N is None else mask_N[ahead.at_M],
            count,
        )
        for ahead, count in zip(hidden.ahead, counts, strict=True)
    ]
    return torch.stack(losses).mean()


def _fill_gradients(model: Transformer) -> None:
    """Zeros where a depth had nothing to learn from, so that the step is the same for all others."""
    for block in model.model.prediction_blocks():
        for parameter in block.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _passes(bounds: Sequence[Tensor], tau: float) -> bool:
    """Whether a head may be above the ceiling: only then is the exact value worth a pass.

    A bound is the largest log-sum-exp of a head's rows, never below its largest logit, so a head under the ceiling
    by its bound is under it, and no head is clipped by anything but its exact logit. The only place of a step that
    waits for the device; it is then behind by the optimizer's work alone.
    """
    return bool(bounds) and bool((torch.stack(list(bounds)) > tau).any())


@torch.no_grad()
def _exact_logits(model: Transformer, batches: Sequence[Batch], *, ahead: bool) -> list[Tensor]:
    each = [model(b.ids_N, b.documents, observe="exact", ahead=ahead).max_logits for b in batches]
    return [torch.stack(layer).amax(0) for layer in zip(*each, strict=True)]


def apply_gradients(
    model: Transformer,
    optimizer: MuonClip,
    *,
    loss: Tensor,
    loads: Sequence[Tensor],
    max_logits: Sequence[Tensor] | None,
    lr_factor: float,
    balance_speed: float,
    judge_loss: bool = False,
    ahead: bool = False,
) -> StepOutcome:
    """The part of a step that every kind of training shares; loads are counts over the whole batch.

    max_logits: of each layer, by head, exact; None where no head is above the ceiling.
    judge_loss: whether a jump of the loss is a spike, as it is in pretraining and is not in RL.
    ahead: whether the blocks of multi-token prediction took part, and with them their loads and logits.
    """
    result = optimizer.step(lr_factor, loss=loss if judge_loss else None)
    fold(model)
    clipped = cap_logits(model, optimizer, max_logits, result.applied, ahead=ahead)
    speed = balance_speed if model.adapters is None else 0.0  # an adapter cannot carry the bias
    for router, load_E in zip(model.routers(ahead=ahead), loads, strict=True):
        router.rebalance(load_E, speed, result.applied)
    guard = optimizer.guard
    # The guard goes on counting while these wait to be read.
    return StepOutcome(
        loss.detach(),
        result,
        tuple(loads),
        clipped,
        guard.dropped_in_a_row.clone(),
        guard.score,
        guard.seen - guard.counted,
        optimizer.names,
    )


def cap_logits(
    model: Transformer,
    optimizer: MuonClip,
    max_logits: Sequence[Tensor] | None,
    applied: Tensor,
    *,
    ahead: bool = False,
) -> Tensor:
    """QK-Clip every head above the ceiling after a step that was applied; int64 []: how many were."""
    tau = optimizer.config.qk_clip_tau
    clipped = torch.zeros((), dtype=torch.int64, device=applied.device)
    if tau is None or max_logits is None:
        return clipped
    for block, max_logits_H in zip(model.model.blocks(ahead=ahead), max_logits, strict=True):
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
