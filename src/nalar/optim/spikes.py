"""Which steps count: not those with numbers that are not finite, nor sudden spikes. Decided on the device.

After OLMo-core's skip-step: a step is dropped by multiplying its update with 0, so nobody has to wait for the verdict.
Unlike there, a norm is judged by its logarithm, and what was dropped does not enter the window.
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
    """Keeps the latest losses and gradient norms of steps that counted, and judges the next by them."""

    def __init__(self, *, sigma: float, window: int, skip: bool, device: torch.device) -> None:
        """sigma: standard deviations above the mean of the window; skip: whether a spike is dropped."""
        self.sigma, self.window, self.skip = sigma, window, skip
        self.losses_W = torch.zeros(window, device=device)
        self.norms_W = torch.zeros(window, device=device)
        self.spikes_W = torch.zeros(window, device=device)
        self.counted = torch.zeros((), dtype=torch.int64, device=device)
        """Steps that counted."""
        self.seen = torch.zeros_like(self.counted)
        """All steps."""
        self.dropped_in_a_row = torch.zeros_like(self.counted)

    def judge(self, loss: Tensor | None, norm: Tensor) -> Tensor:
        """Whether a step counts, a bool [] on the device. loss: None where it says nothing of progress."""
        loss = torch.zeros_like(norm) if loss is None else loss.detach().float()
        is_finite = torch.isfinite(loss) & torch.isfinite(norm)
        is_spike = is_finite & (self._sticks_out(loss, self.losses_W) | self._norm_sticks_out(norm))
        counts = is_finite & ~is_spike if self.skip else is_finite
        for values_W, value in ((self.losses_W, loss), (self.norms_W, norm)):
            self._put(values_W, self.counted, value, counts)
        everything = torch.ones_like(counts)
        self._put(self.spikes_W, self.seen, (is_spike | ~is_finite).float(), everything)
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
        for name in ("losses_W", "norms_W", "spikes_W", "counted", "seen", "dropped_in_a_row"):
            yield name, getattr(self, name)

    def _norm_sticks_out(self, norm: Tensor) -> Tensor:
        """By logarithms: norms of small batches lean far to the right, and a few of them lie six of their own
        standard deviations out without anything being wrong. Where they hardly vary both rules are the same.
        """
        mean = self.norms_W.sum() / self.counted.clamp(1, self.window)
        least = LEAST_NORM_FRAC * mean
        return self._sticks_out(
            norm.clamp(min=least).log(), self.norms_W.clamp(min=least).log(), are_logs=True
        )

    def _sticks_out(self, value: Tensor, values_W: Tensor, *, are_logs: bool = False) -> Tensor:
        """Against at least half a window. are_logs: a difference is a fraction of the mean already."""
        n = self.counted.clamp(max=self.window)
        is_filled_W = torch.arange(self.window, device=values_W.device) < n
        mean = torch.where(is_filled_W, values_W, 0.0).sum() / n.clamp(min=1)
        deviation_W = torch.where(is_filled_W, values_W - mean, 0.0)
        spread = (deviation_W.square().sum() / n.clamp(min=1)).sqrt()
        least = LEAST_SPREAD_FRAC * (torch.ones_like(mean) if are_logs else mean.abs())
        spread = torch.maximum(spread, least)
        return (n >= self.window // 2) & (value - mean > self.sigma * spread)

    def _put(self, values_W: Tensor, count: Tensor, value: Tensor, where: Tensor) -> None:
        at = (count % self.window)[None]
        values_W.index_copy_(0, at, torch.where(where, value, values_W[at[0]])[None])
