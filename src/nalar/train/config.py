"""Settings of pretraining and of checkpoints. Imports no torch."""

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
    compile: bool = False
    """Run blocks as torch.compile makes them: faster steps, after a first that takes up to a minute."""
    prefetch_processes: int | None = Field(default=None, ge=0, le=64)
    """Processes that make the procedural corpus of later steps while one is trained; batches stay the same to the bit.
    None: on a GPU 4, and at most half the cores; on a CPU none. 0: none."""
    log_every_steps: int = Field(default=20, ge=1)
    save_every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps from one checkpoint to the next, beside the end of each slice. None: only there."""


class CheckpointConfig(Config):
    """How a run saves itself, in every stage that trains."""

    keep: int = Field(default=2, ge=1)
    """The newest checkpoints of each stage that stay. With 1 there is none to go back to from a damaged one."""
    keep_slices: bool = True
    """The end of every slice of pretraining stays too."""
    background: bool = True
    """Write while training goes on, from a copy in memory. False: training waits, and no weights are copied."""
