"""The learning rate over a run: warm up, hold, decay. Imports no torch."""

import math

from nalar.optim.config import ScheduleConfig


def lr_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """What to multiply the peak learning rates by at `step` (counted from 0), in (0, 1].

    The last warm-up step has the full rate, the last of all `final_lr_frac`; later steps keep it.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_start = max(config.warmup_steps, round(config.stable_frac * total_steps))
    if config.shape == "constant" or step < decay_start or decay_start >= total_steps:
        return 1.0
    progress = min(1.0, (step + 1 - decay_start) / (total_steps - decay_start))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    remaining = cosine if config.shape == "cosine" else 1.0 - progress
    return config.final_lr_frac + (1.0 - config.final_lr_frac) * remaining
