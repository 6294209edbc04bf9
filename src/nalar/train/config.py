"""Settings of pretraining. Imports no torch."""

from pydantic import Field

from nalar.config import Config
from nalar.optim.config import OptimConfig, ScheduleConfig


class PretrainConfig(Config):
    """Next-token prediction on packed documents, in equal slices of tokens."""

    slice_tokens: int = Field(ge=1)
    """Tokens of one slice; after each the run saves and may be told to stop."""
    max_slices: int = Field(ge=1)
    """Slices at most."""
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    """Its horizon is all slices. Warming up anew in every slice was tried and undid what a decay had taught."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one forward and backward pass at most (one document at least). None: the whole step's."""
    balance_speed: float = 0.01
    """Step of the router's balance bias, times the learning-rate factor."""
    balance_loss_weight: float = Field(default=0.0, ge=0)
    """Of the sequence-wise balance loss; DeepSeek-V3 has 1e-4. 0: not computed."""
    mtp_loss_weight: float = Field(default=0.0, ge=0)
    """Of multi-token prediction; DeepSeek-V3 has 0.3, later 0.1. 0: its blocks, if there are any, are not trained."""
    recompute: bool = False
    """Run each block again in the backward pass instead of keeping what it computed."""
    log_every_steps: int = Field(default=20, ge=1)
