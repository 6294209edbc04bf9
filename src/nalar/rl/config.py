"""Settings of reinforcement learning on verifiable rewards. Imports no torch."""

from nalar.config import Config, ConfigError
from nalar.optim.config import OptimConfig, ScheduleConfig


class RewardConfig(Config):
    """What a response earns. Only a verifier decides; no model judges."""

    correct: float = 1.0
    well_formed: float = 0.1
    """Also earned by correct responses: thought closed, an answer that parses, the end token."""


class RLConfig(Config):
    """GRPO (arXiv:2402.03300) with the corrections named beside each field."""

    steps: int
    tasks: tuple[str, ...] = ("countdown", "chain_sum")
    """Task ids. The prompts of a step take them in turn; naming one twice doubles its weight."""
    prompts_per_step: int = 16
    group_size: int = 16
    """Samples per prompt; rewards are compared within the group."""
    max_tokens: int = 256
    """Cap on a response, thought and answer together."""
    temperature: float = 1.0
    minibatches: int = 2
    """Optimizer steps per rollout; each sees its share of the groups once."""
    advantage_std: bool = True
    """Divide by the group's standard deviation (GRPO); False: only centre (Dr. GRPO, arXiv:2503.20783)."""
    advantage_eps: float = 0.05
    """Added to the standard deviation, so that one rare success does not dwarf the rest."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """Wider above than below (DAPO's clip-higher, arXiv:2503.14476)."""
    mask_truncated: bool = False
    """Leave responses cut by the cap out of the loss (their reward still counts in the group)."""
    reward: RewardConfig = RewardConfig()
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=5, stable_frac=0.7)
    """Its horizon is all optimizer steps of the run."""
    balance_speed: float = 0.002
    micro_batch_tokens: int = 8192
    """Padded tokens in one forward pass; bounds memory, changes no result but rounding."""
    save_every_steps: int = 25

    def model_post_init(self, _context: object) -> None:
        if self.prompts_per_step % self.minibatches:
            raise ConfigError(
                at="rl.minibatches",
                got=f"{self.minibatches} for {self.prompts_per_step} prompts",
                want="a divisor of rl.prompts_per_step, so that groups stay whole",
            )
        if self.group_size < 2:
            raise ConfigError(
                at="rl.group_size", got=str(self.group_size), want="at least 2: a group is compared"
            )
