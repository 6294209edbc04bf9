"""Which steps count: not those with numbers that are not finite, nor sudden spikes. Decided on the device.

After OLMo-core's skip-step: a step is dropped by multiplying its update with 0, so nobody has to wait for the verdict.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# W values of the window

LEAST_SPREAD_FRAC = 1e-3
"""Of the mean: a window of nearly equal values is no reason to call the next one a spike."""


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
        is_spike = is_finite & (
            self._sticks_out(loss, self.losses_W) | self._sticks_out(norm, self.norms_W)
        )
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

    def _sticks_out(self, value: Tensor, values_W: Tensor) -> Tensor:
        """Against at least half a window."""
        n = self.counted.clamp(max=self.window)
        is_filled_W = torch.arange(self.window, device=values_W.device) < n
        mean = values_W.sum() / n.clamp(min=1)
        deviation_W = (values_W - mean) * is_filled_W
        spread = (deviation_W.square().sum() / n.clamp(min=1)).sqrt()
        spread = torch.maximum(spread, LEAST_SPREAD_FRAC * mean.abs())
        return (n >= self.window // 2) & (value - mean > self.sigma * spread)

    def _put(self, values_W: Tensor, count: Tensor, value: Tensor, where: Tensor) -> None:
        at = (count % self.window)[None]
        values_W.index_copy_(0, at, torch.where(where, value, values_W[at[0]])[None])
