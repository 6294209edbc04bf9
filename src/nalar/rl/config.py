"""Settings of reinforcement learning on verifiable rewards. Imports no torch."""

from typing import Literal

from pydantic import Field

from nalar.config import Config, ConfigError, lookup
from nalar.endpoint import EndpointConfig
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.tasks.language import Language


class RewardWeights(Config):
    """How much each part of a reward counts. 0: not at all, and the part is not worked out."""

    correct: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    well_formed: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Also earned by correct responses: thought closed, an answer that parses, the end token."""
    language: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Times the share of the thought that is in target_language, by its small words."""
    overlong: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Taken away at the cap on a response, and less and less down to overlong_from_frac of it."""
    length: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Half of it given to the shortest correct response of a group, half of it taken from the longest."""
    judge: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Times what a model that judges answers gives, from 0 to 1; `judged_by` says which model."""


class JudgeConfig(Config):
    """A model that judges answers, behind a chat API. It sees the problem and the answer, never the thought."""

    endpoint: EndpointConfig
    verdict: Literal["correct", "number"] = "correct"
    """The last line of its reply, alone in it. correct: CORRECT or INCORRECT. number: from 0 to 1."""
    question: str | None = None
    """What it is asked, with `{problem}` and `{answer}` in it, and `{gold}` for an answer known to be right. None: a
    question of ours. How the answer is marked off, and how the last line should read, is told it in any case."""
    max_answer_chars: int = Field(default=4000, ge=1, le=1_000_000)
    """What is longer is cut, and the judge is told so."""
    max_tokens: int = Field(default=1024, ge=1)
    """Cap on its reply. One that is cut by it is no verdict."""
    temperature: float = Field(default=0.0, ge=0, le=2)

    def model_post_init(self, _context: object) -> None:
        lacking = [
            name
            for name in ("{problem}", "{answer}")
            if self.question and name not in self.question
        ]
        if lacking or self.question == "":
            raise ConfigError(
                at="rl.reward.judged_by.question",
                got=f"{self.question!r:.120}",
                want="a text with {problem} and {answer} in it",
            )


class RewardConfig(RewardWeights):
    """What a response earns: by exact verifiers, and by a model that judges where it has a weight."""

    target_language: Language | None = None
    """Of thoughts, where their language counts."""
    overlong_from_frac: float = Field(default=0.8, ge=0, lt=1)
    """Share of the cap from which on a response is overlong."""
    judged_by: JudgeConfig | None = None
    """The model that judges; None where no weight of `judge` is above 0. Set in a recipe."""
    by_task: dict[str, RewardWeights] = Field(default_factory=dict)
    """Weights of single tasks, by id, in place of all of the above; set in a recipe."""

    def weights_of(self, task: str) -> RewardWeights:
        return self.by_task.get(task, self)

    def model_post_init(self, _context: object) -> None:
        wants = any(weights.language for weights in (self, *self.by_task.values()))
        if wants != (self.target_language is not None):
            raise ConfigError(
                at="rl.reward.target_language",
                got=f"{self.target_language} with rl.reward.language={self.language}",
                want="a language where its weight is above 0, and none where it is not",
            )
        judges = any(weights.judge for weights in (self, *self.by_task.values()))
        if judges != (self.judged_by is not None):
            raise ConfigError(
                at="rl.reward.judged_by",
                got=f"{'no judge' if judges else 'a judge'} with rl.reward.judge={self.judge}",
                want="a judge where its weight is above 0, and none where it is not",
            )


class CurriculumConfig(Config):
    """Which level of a task the next problems come from: rather those that are solved about half the time."""

    explore_frac: float = Field(default=0.2, gt=0, le=1)
    """Share of problems whose level is drawn evenly, so that every level is seen. 1: all of them."""
    focus: float = Field(default=2.0, gt=0, le=20)
    """A level solved at a rate p weighs (4p(1-p)) to this power: the higher, the more goes to levels near one half."""
    memory_problems: float = Field(default=16, ge=1, le=1e6)
    """Of a level: what lies further back than about so many of its problems is forgotten, as the model has moved on."""


class RLConfig(Config):
    """GRPO (arXiv:2402.03300) with the corrections named beside each field."""

    steps: int = Field(ge=1)
    tasks: tuple[str, ...] = ("countdown", "chain_sum")
    """Task ids. The prompts of a step take them in turn; naming one twice doubles its weight."""
    prompts_per_step: int = Field(default=16, ge=1)
    group_size: int = 16
    """Samples per prompt; rewards are compared within the group."""
    max_tokens: int = Field(default=256, ge=1)
    """Cap on a response, thought and answer together."""
    temperature: float = 1.0
    """Only 1: the log-probabilities that the loss compares are those of the model as it is."""
    minibatches: int = Field(default=2, ge=1)
    """Optimizer steps per rollout; each sees its share of the groups once."""
    advantage_std: bool = True
    """Divide by the group's standard deviation (GRPO); False: only centre (Dr. GRPO, arXiv:2503.20783)."""
    advantage_eps: float = Field(default=0.05, gt=0)
    """Added to the standard deviation, so that one rare success does not dwarf the rest."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    clip_high: float = Field(default=0.28, ge=0)
    """Wider above than below (DAPO's clip-higher, arXiv:2503.14476)."""
    mask_truncated: bool = False
    """Leave responses cut by the cap out of the loss (their reward still counts in the group)."""
    reward: RewardConfig = RewardConfig()
    curriculum: CurriculumConfig | None = None
    """For tasks with levels. None: all levels evenly."""
    lr: float = Field(default=6e-4, gt=0)
    """Peak step size of AdamW, for every parameter. (Under Muon the rewards of a prototype swung.)"""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest global norm of the gradients. None: not clipped."""
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=5, stable_frac=0.7)
    """Its horizon is all optimizer steps of the run."""
    balance_speed: float = 0.002
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens in one forward pass; bounds memory, changes no result but rounding."""
    save_every_steps: int = Field(default=25, ge=1)

    @property
    def optim(self) -> OptimConfig:
        return OptimConfig(
            name="adamw",
            lr=self.lr,
            adamw_lr=self.lr,
            weight_decay=self.weight_decay,
            clip_grad_norm=self.clip_grad_norm,
            skip_spikes=False,
        )

    def model_post_init(self, _context: object) -> None:
        if self.temperature != 1:
            # Samples drawn at another temperature come from another policy than the one whose
            # log-probabilities are recorded and trained: the gradient would be biased in silence.
            raise ConfigError(
                at="rl.temperature",
                got=str(self.temperature),
                want="1: RL trains on samples of the model's own distribution",
                hint="evaluation and chat take any temperature",
            )
        if not self.tasks:
            raise ConfigError(at="rl.tasks", got="no task", want="at least one task id")
        for name in self.reward.by_task:
            lookup(name, {task: task for task in self.tasks}, at="rl.reward.by_task")
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
