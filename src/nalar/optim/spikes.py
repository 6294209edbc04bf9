"""Which steps count: not those with numbers that are not finite, nor sudden spikes. Decided on the device.

After OLMo-core's skip-step: a step is dropped by multiplying its update with 0, so nobody has to wait for the verdict.
Two things are otherwise. A gradient norm is judged by its logarithm. And a spike enters the window no larger than the
limit that it passed: whole, one value of a thousandfold would blind the guard for a window; left out, a norm that has
risen to stay would have every step dropped, and with weights that stand still it would stay.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# W values of the window

LEAST_SPREAD_FRAC = 1e-3
"""Of the mean: a window of nearly equal values is no reason to call the next one a spike."""
LEAST_NORM_FRAC = 0.1
"""Of the mean: smaller norms count as this, or one gradient of zero would make any norm look usual."""


class SpikeGuard:
    """Keeps the latest losses and gradient norms, and judges the next by them."""

    def __init__(self, *, sigma: float, window: int, skip: bool, device: torch.device) -> None:
        """sigma: standard deviations above the mean of the window; skip: whether a spike is dropped."""
        self.sigma, self.window, self.skip = sigma, window, skip
        self.losses_W = torch.zeros(window, device=device)
        self.norms_W = torch.zeros(window, device=device)
        self.spikes_W = torch.zeros(window, device=device)
        self.entered = torch.zeros((), dtype=torch.int64, device=device)
        """Steps whose values went into the window: all that were finite."""
        self.counted = torch.zeros_like(self.entered)
        """Steps that counted."""
        self.seen = torch.zeros_like(self.entered)
        """All steps."""
        self.dropped_in_a_row = torch.zeros_like(self.entered)

    def judge(self, loss: Tensor | None, norm: Tensor) -> Tensor:
        """Whether a step counts, a bool [] on the device. loss: None where it says nothing of progress."""
        loss = torch.zeros_like(norm) if loss is None else loss.detach().float()
        is_finite = torch.isfinite(loss) & torch.isfinite(norm)
        loss_limit, norm_limit = self._limit(self.losses_W), self._norm_limit()
        is_spike = is_finite & ((loss > loss_limit) | (norm > norm_limit))
        counts = is_finite & ~is_spike if self.skip else is_finite
        self._put(self.losses_W, self.entered, torch.fmin(loss, loss_limit), is_finite)
        self._put(self.norms_W, self.entered, torch.fmin(norm, norm_limit), is_finite)
        everything = torch.ones_like(counts)
        self._put(self.spikes_W, self.seen, (is_spike | ~is_finite).float(), everything)
        self.entered += is_finite
        self.counted += counts
        self.seen += 1
        self.dropped_in_a_row.add_(1).mul_(~counts)
        return counts

    @property
    def score(self) -> Tensor:
        """Share of the latest steps that were spikes or not finite: a float []."""
        return self.spikes_W.sum() / self.seen.clamp(1, self.window)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All that a resumed run needs, by name."""
        windows = ("losses_W", "norms_W", "spikes_W")
        for name in (*windows, "entered", "counted", "seen", "dropped_in_a_row"):
            yield name, getattr(self, name)

    def _norm_limit(self) -> Tensor:
        """By logarithms: norms of small batches lean far to the right, and a few of them lie six of their own
        standard deviations out without anything being wrong. Where they hardly vary both rules are the same.
        """
        mean = self.norms_W.sum() / self.entered.clamp(1, self.window)
        logs_W = self.norms_W.clamp(min=LEAST_NORM_FRAC * mean).log()
        return self._limit(
            logs_W, are_logs=True
        ).exp()  # nan, which nothing exceeds, where all norms are 0

    def _limit(self, values_W: Tensor, *, are_logs: bool = False) -> Tensor:
        """What is no spike yet; inf before half a window. are_logs: a difference is a fraction of the mean already."""
        n = self.entered.clamp(max=self.window)
        is_filled_W = torch.arange(self.window, device=values_W.device) < n
        mean = torch.where(is_filled_W, values_W, 0.0).sum() / n.clamp(min=1)
        deviation_W = torch.where(is_filled_W, values_W - mean, 0.0)
        spread = (deviation_W.square().sum() / n.clamp(min=1)).sqrt()
        least = LEAST_SPREAD_FRAC * (torch.ones_like(mean) if are_logs else mean.abs())
        limit = mean + self.sigma * torch.maximum(spread, least)
        return torch.where(n >= self.window // 2, limit, torch.inf)

    def _put(self, values_W: Tensor, count: Tensor, value: Tensor, where: Tensor) -> None:
        at = (count % self.window)[None]
        before = values_W.index_select(
            0, at
        )  # values_W[at[0]] would have the host wait for the place
        values_W.index_copy_(0, at, torch.where(where, value, before))
