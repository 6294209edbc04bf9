"""The loss on what is not trained on."""

from collections.abc import Iterable

import torch

from nalar.kernels.logprobs import token_logprobs
from nalar.model.transformer import Transformer
from nalar.train.step import Batch


@torch.no_grad()
def mean_loss(model: Transformer, batches: Iterable[Batch]) -> float:
    """Nats a counted target over all batches, of which at least one target counts. Waits for the device once."""
    device = model.head_weight.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    model.eval()
    for batch in batches:
        logprobs_N, _ = token_logprobs(
            model(batch.ids_N, batch.documents).states,
            model.head_weight,
            batch.targets_N,
            logits_scaling=model.config.logits_scaling,
            entropy=False,
        )
        counted_N = batch.counted_N
        if counted_N is None:
            counted_N = torch.ones_like(logprobs_N, dtype=torch.bool)
        total -= torch.where(counted_N, logprobs_N, 0.0).sum(dtype=torch.float64)
        count += counted_N.sum()
    return float(total / count)
