"""Settings of reinforcement learning on verifiable rewards. Imports no torch."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from nalar.config import Config, ConfigError, lookup
from nalar.endpoint import EndpointConfig
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.tasks.language import Language
from nalar.tasks.registry import id_of

ScoredBy = Literal["preference", "safety"]
"""Parts of a reward that a model scores, by the name of their weight."""


class RewardWeights(Config):
    """How much each part of a reward counts. 0: not at all, and the part is not worked out."""

    correct: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    well_formed: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Also earned by correct responses: thought closed, an answer that parses, the end token."""
    language: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Times the share of the thought (without one, of the answer) that is in target_language, by its small words."""
    overlong: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Taken away at the cap on a response, and less and less down to overlong_from_frac of it."""
    length: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Half of it given to the shortest correct response of a group, half of it taken from the longest."""
    judge: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Times what a model that judges answers gives, from 0 to 1; `judged_by` says which model."""
    preference: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Times the score that `preference_model` gives the final answer, squashed between 0 and 1."""
    safety: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Times the score that `safety_model` gives thought and answer, likewise."""


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
    preference_model: str | None = None
    """A run of `nalar reward`, or the folder of its model; None where no weight of `preference` is above 0."""
    safety_model: str | None = None
    """The same for `safety`."""
    model_rewards_last_steps: int | None = Field(default=None, ge=1)
    """Both count in so many last steps alone: a policy that is trained on a model's score for long learns what fools it
    (DeepSeek-R1: the last 400 of 1,700). None: in all steps."""
    by_task: dict[str, RewardWeights] = Field(default_factory=dict)
    """Weights of single tasks, by id, in place of all of the above; set in a recipe."""

    def weights_of(self, task: str) -> RewardWeights:
        return self.by_task.get(task, self)

    @property
    def models(self) -> dict[ScoredBy, str]:
        """The folders of the models that score, by the name of their weight."""
        given: tuple[tuple[ScoredBy, str | None], ...] = (
            ("preference", self.preference_model),
            ("safety", self.safety_model),
        )
        return {name: folder for name, folder in given if folder is not None}

    def models_count(self, step: int, steps: int) -> bool:
        """Whether models that score have a say in a step, counted from 0, of so many."""
        last = self.model_rewards_last_steps
        return bool(self.models) and (last is None or step >= steps - last)

    def _refuse_half_a_model(self) -> None:
        for name in ("preference", "safety"):
            is_weighed = any(getattr(w, name) for w in (self, *self.by_task.values()))
            if is_weighed != (name in self.models):
                raise ConfigError(
                    at=f"rl.reward.{name}_model",
                    got=f"{'no model' if is_weighed else 'a model'} with "
                    f"rl.reward.{name}={getattr(self, name)}",
                    want="a model where its weight is above 0, and none where it is not",
                    hint=f"`nalar reward --kind {name}` trains one"
                    if is_weighed
                    else f"--rl.reward.{name} 0.5",
                )
        if self.model_rewards_last_steps is not None and not self.models:
            raise ConfigError(
                at="rl.reward.model_rewards_last_steps",
                got=f"{self.model_rewards_last_steps} without a model that scores",
                want="None, or a preference_model or safety_model",
            )

    def model_post_init(self, _context: object) -> None:
        self._refuse_half_a_model()
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

    focus: float | None = Field(default=None, gt=0, le=20)
    """A level solved at a rate p weighs (4p(1-p)) to this power: the higher, the more goes to levels near one half.
    2 is usual. None: no curriculum, and a task draws its levels evenly."""
    explore_frac: float = Field(default=0.2, gt=0, le=1)
    """Share of problems whose level is drawn evenly, so that every level is seen. 1: all of them."""
    memory_problems: float = Field(default=16, ge=1, le=1e6)
    """Of a level: what lies further back than about so many of its problems is forgotten, as the model has moved on."""


class AlarmsConfig(Config):
    """Limits beyond which a step sets off an alarm (docs/alarms.md)."""

    stop: bool = False
    """Save and stop at the first alarm, rather than say it and go on."""
    window_steps: int = Field(default=8, ge=1)
    """Steps over which what varies is averaged."""
    held_out_every_steps: int | None = Field(default=25, ge=1)
    """How often problems that are not trained on are tried. None: never, and two alarms are off."""
    held_out_problems: int = Field(default=32, ge=1)
    """Of each task, from its valid split: the same every time."""
    held_out_k: int = Field(default=4, ge=1)
    """Samples of each."""
    audit_every_steps: int | None = Field(default=25, ge=1)
    """How often experts chosen by sampler and trainer are compared. None: never."""
    max_log_ratio_rms: float | None = Field(default=None, gt=0)
    """Of trainer against sampler before a step's first update. None: what rounding explains, 0.01 in float32 and 0.1
    in bfloat16."""
    max_rerouted_frac: float | None = Field(default=None, ge=0, le=1)
    """Of choices of experts, those in which sampler and trainer differ. None: likewise, 0.01 and 0.2."""
    max_silent_frac: float = Field(default=0.9, ge=0, le=1)
    """Share of groups whose rewards are all equal."""
    max_verifier_error_frac: float = Field(default=0.01, ge=0, le=1)
    max_timeout_frac: float = Field(default=0.1, ge=0, le=1)
    max_looping_frac: float = Field(default=0.2, ge=0, le=1)
    """Share of responses that end in a loop."""
    min_length_frac: float = Field(default=0.5, ge=0, le=1)
    """Of the mean length of a task's responses in the first steps."""
    min_entropy_frac: float = Field(default=0.03, ge=0, le=1)
    """Of the entropy of the first steps."""
    solved_frac: float = Field(default=0.9, ge=0, le=1)
    """Mean accuracy from which on silent groups and little entropy are what one expects."""
    min_change: float = Field(default=0.1, gt=0, lt=1)
    """What counts as a change of pass@1, pass@k or reward on so few problems."""

    def rounded_as(self, dtype: str) -> "AlarmsConfig":
        """With the limits that depend on how weights of this dtype round, where none were given."""
        given = self.model_dump(exclude_none=True)
        return self.model_copy(update=_OF_ROUNDING[dtype] | given)


_OF_ROUNDING: Mapping[str, dict[str, float]] = {
    "float32": {"max_log_ratio_rms": 0.01, "max_rerouted_frac": 0.01},
    "bfloat16": {"max_log_ratio_rms": 0.1, "max_rerouted_frac": 0.2},
}


class AdvantageConfig(Config):
    """How much better than others a response counts as."""

    name: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"] = "grpo"
    """Rewards less their group's mean, over its standard deviation (grpo, arXiv:2402.03300); less the mean alone
    (dr_grpo, arXiv:2503.20783); less the mean of the group's others (rloo, arXiv:2402.14740); less the mean of the
    whole rollout, over its standard deviation (reinforce_pp, arXiv:2501.03262); less the group's mean, over the
    standard deviation of the whole rollout (reinforce_pp_baseline)."""
    eps: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    """Added to a standard deviation that is divided by, so that one rare success does not dwarf the rest."""

    @property
    def over_groups(self) -> bool:
        """Whether rewards of one group are compared with those of another."""
        return self.name == "reinforce_pp"


class ObjectiveConfig(Config):
    """What is maximised for each token, and how tokens are added up."""

    name: Literal["clip", "gspo", "cispo"] = "clip"
    """The ratio of each token's probabilities, clipped (clip, PPO's: arXiv:1707.06347); that of the whole response, the
    geometric mean over its tokens, clipped (gspo, arXiv:2507.18071); log-probabilities weighted by the clipped ratio,
    through which no gradient goes (cispo, arXiv:2506.13585)."""
    clip_low: float | None = Field(default=0.2, ge=0, allow_inf_nan=False)
    """The ratio is held above 1 less this; from 1 up that holds nothing. None: no bound below."""
    clip_high: float | None = Field(default=0.28, ge=0, allow_inf_nan=False)
    """The ratio is held below 1 and this. Wider above than below is DAPO's clip-higher (arXiv:2503.14476). None: no
    bound above."""
    dual_clip: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """Where the advantage is negative, a ratio above this teaches nothing (arXiv:1912.09729). None: off."""
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    """Over the minibatch: a mean over tokens (DAPO); over responses of each one's mean over tokens (GRPO); a sum over
    tokens divided by responses times rl.max_tokens, whatever their length (Dr. GRPO)."""
    entropy_coef: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Times the mean entropy of the next token, which is maximised too. None: off."""

    def model_post_init(self, _context: object) -> None:
        if self.dual_clip is not None and self.name == "cispo":
            raise ConfigError(
                at="rl.objective.dual_clip",
                got=f"{self.dual_clip} with rl.objective.name=cispo",
                want="None: the weight of cispo is held by clip_high, whatever the sign of the advantage",
            )
        for field in ("clip_low", "clip_high") if self.name == "gspo" else ():
            width = getattr(self, field)
            if width is not None and width >= _WIDEST_OF_SEQUENCES:
                raise ConfigError(
                    at=f"rl.objective.{field}",
                    got=f"{width} with rl.objective.name=gspo",
                    want=f"below {_WIDEST_OF_SEQUENCES}: ratios of whole responses stay near 1",
                    hint="--rl.objective.clip-low 3e-4 --rl.objective.clip-high 4e-4, as in the paper",
                )


_WIDEST_OF_SEQUENCES = 0.1


class KLConfig(Config):
    """A pull towards a reference policy."""

    coef: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Times the divergence from the reference, in the loss, by the estimator k3 of each drawn token: exp(d) - d - 1, d
    the reference's log-probability less the policy's. None: no reference is kept."""
    refresh_every_steps: int | None = Field(default=None, ge=1)
    """Steps of RL after which the reference becomes the policy of that moment. None: it stays where RL began."""

    def model_post_init(self, _context: object) -> None:
        if self.refresh_every_steps is not None and self.coef is None:
            raise ConfigError(
                at="rl.kl.refresh_every_steps",
                got=f"{self.refresh_every_steps} without rl.kl.coef",
                want="None where there is no reference, or a coefficient",
            )


class DistilConfig(Config):
    """On-policy distillation: the policy samples, and a teacher says of every token how likely it would have been."""

    teacher: str | None = None
    """A run, or the folder of a model, with the tokenizer of the one that is trained. None: off."""
    coef: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What it takes to add the teacher's log-probability of a token, less the sampler's, to the token's advantage."""


class CorrectionConfig(Config):
    """What is done about tokens that were drawn by another policy than the one that is trained."""

    old_logprobs: Literal["sampler", "trainer"] = "sampler"
    """What the objective compares with: log-probabilities as they were drawn, or as the training forward finds them
    before the first update of a step, which costs that forward."""
    weights: Literal["truncate", "mask"] | None = None
    """Multiply each token's objective by the trainer's probability over the sampler's, held below the cap (truncate);
    or count at weight only what lies between floor and cap (mask). None: neither."""
    level: Literal["token", "sequence"] = "token"
    """A weight for each token, or for a whole response, the product over its tokens."""
    cap: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    floor: float | None = Field(default=None, gt=0, le=1)
    """None: no bound below."""

    def model_post_init(self, _context: object) -> None:
        checks = (
            (
                "weights",
                self.weights is None or self.old_logprobs == "trainer",
                "None, or rl.correction.old_logprobs=trainer: else the ratio has the weight in it",
            ),
            ("level", self.weights is not None or self.level == "token", "token without weights"),
            (
                "floor",
                self.floor is None or self.weights == "mask",
                "None, or rl.correction.weights=mask",
            ),
        )
        for field, is_good, want in checks:
            if not is_good:
                raise ConfigError(
                    at=f"rl.correction.{field}", got=str(getattr(self, field)), want=want
                )


class RolloutConfig(Config):
    """How the samples of a step are gathered. By default a step draws its groups to their ends and trains on them."""

    max_refills: int = Field(default=0, ge=0)
    """Rounds of further prompts in the place of groups whose rewards are all equal (DAPO's dynamic sampling,
    arXiv:2503.14476). 0: such groups stay, and teach nothing."""
    step_tokens: int | None = Field(default=None, ge=1)
    """Tokens drawn in a step; then what is unfinished waits for the next policy to go on with (partial rollouts, Kimi
    k1.5, arXiv:2501.12599). None: a step waits for its longest sample."""
    max_staleness: int = Field(default=2, ge=0)
    """Of partial rollouts: steps at most between the policy of a sample's first token and the one that is trained on
    it. A step does not end before groups as old as that are whole, so none is thrown away for its age."""
    save_every_steps: int | None = Field(default=25, ge=1)
    """Steps from one file in the run's `rollouts/` to the next; the first and the last step have one too (`nalar
    samples` shows them). None: rollouts are not kept."""
    debug: Literal["rollout_only", "train_only"] | None = None
    """rollout_only: sample and score, and leave the weights as they are. train_only: train on rollouts that were saved,
    without an engine. None: both halves."""
    replay_dir: str | None = None
    """The `rollouts/` that train_only takes its steps from, one file after the other."""

    def model_post_init(self, _context: object) -> None:
        if (self.debug == "train_only") != (self.replay_dir is not None):
            raise ConfigError(
                at="rl.rollout.replay_dir",
                got=f"{self.replay_dir} with rl.rollout.debug={self.debug}",
                want="a folder of saved rollouts with train_only, and none without",
            )


class RLConfig(Config):
    """Reinforcement learning on groups of responses to one prompt, in parts that combine (docs/rl.md)."""

    steps: int = Field(ge=1)
    tasks: tuple[str, ...] = ("countdown", "chain_sum")
    """Ids with settings such as `,num_numbers=4`, .jsonl files, .py files (docs/tasks.md). The prompts of a step take
    them in turn; naming one twice doubles its weight."""
    prompts_per_step: int = Field(default=16, ge=1)
    group_size: int = 16
    """Samples per prompt; rewards are compared within the group."""
    max_tokens: int = Field(default=256, ge=1)
    """Cap on a response, thought and answer together."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Logits are divided by it, in sampling and in training: what is drawn is what is trained."""
    no_thinking_frac: float = Field(default=0.0, ge=0, lt=1)
    """Share of the groups of every task that is asked with the thought closed: there a reply with a thought is not
    whole, and earns nothing (docs/thinking.md). 0: all think."""
    minibatches: int = Field(default=2, ge=1)
    """Optimizer steps per rollout; each sees its share of the groups once."""
    advantage: AdvantageConfig = AdvantageConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    kl: KLConfig = KLConfig()
    distil: DistilConfig = DistilConfig()
    correction: CorrectionConfig = CorrectionConfig()
    mask_truncated: bool = False
    """Leave responses cut by the cap out of the loss (their reward still counts in the group)."""
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    """For tasks with levels."""
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

    @field_validator("curriculum", mode="before")
    @classmethod
    def _off(cls, given: object) -> object:
        """Runs that began when it had no flags say None."""
        return CurriculumConfig() if given is None else given

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

    @property
    def looks(self) -> int:
        """Forward passes over what is taught, before the updates: by the trainer, by the reference. A teacher's are
        those of another model."""
        return (self.correction.old_logprobs == "trainer") + (self.kl.coef is not None)

    def model_post_init(self, _context: object) -> None:
        if not self.tasks:
            raise ConfigError(at="rl.tasks", got="no task", want="at least one task id")
        for name in self.reward.by_task:
            lookup(name, {id_of(word): word for word in self.tasks}, at="rl.reward.by_task")
        if self.distil.teacher is not None and self.rollout.max_refills:
            raise ConfigError(
                at="rl.rollout.max_refills",
                got=f"{self.rollout.max_refills} with rl.distil.teacher",
                want="0: a group of equal rewards is not to be replaced, for the teacher has something to say of it",
            )
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
        if (
            self.objective.name == "gspo"
            and self.correction.weights
            and self.correction.level == "token"
        ):
            raise ConfigError(
                at="rl.correction.level",
                got="token with rl.objective.name=gspo",
                want="sequence: that objective has one ratio for a whole response",
            )
