"""The learning rate over a run: warm up, hold, decay. Imports no torch."""

import math

from nalar.optim.config import ScheduleConfig


def lr_factor(
    config: ScheduleConfig, step: int, total_steps: int, *, tokens_per_step: int = 1
) -> float:
    """What to multiply the peak learning rates by at `step` (counted from 0), in (0, 1].

    The last warm-up step has the full rate, the last of all `final_lr_frac`; later steps keep it.
    """
    warmup_steps = config.warmup_steps or math.ceil(config.warmup_tokens / tokens_per_step)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_start = max(warmup_steps, round(config.stable_frac * total_steps))
    if config.shape == "constant" or step < decay_start or decay_start >= total_steps:
        return 1.0
    progress = min(1.0, (step + 1 - decay_start) / (total_steps - decay_start))
    remaining = {
        "wsd_linear": 1.0 - progress,
        "wsd_sqrt": 1.0 - math.sqrt(progress),
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.shape]
    return config.final_lr_frac + (1.0 - config.final_lr_frac) * remaining
