"""The whole R1 recipe as one config: a config for each stage, and where it takes its model and its data from.

`@NAME`, wherever a stage's settings have a text, stands for what another stage makes: `@base` and `@student` for the
models that all begins with, and a stage's name for its model, its reward model or its dataset. Imports no torch.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import Field

from nalar.config import Config, ConfigError, lookup
from nalar.evals.config import EvalConfig
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import RewardRunConfig, RlRunConfig, RunConfig, SftConfig, ZeroConfig
from nalar.plan.r1_stages import STAGES

PREFIX = "r1-"
"""What the name of every recipe of this kind begins with: a run's kind is told by it."""
MADE_BY: Mapping[str, str] = {
    "base": "pretrain",
    **{name: name for name in STAGES if name != "pretrain"},
}
"""The stage behind each name that may follow an @."""
SHARED = ("threads", "device", "dtype", "checkpoint", "price", "tensorboard")
"""What the pipeline's config says for all of its stages, beside the seed."""
_REFERENCE = re.compile(r"@(\w+)")

StageConfig = ZeroConfig | RlRunConfig | SftConfig | CollectConfig | RewardRunConfig


class HardwareConfig(Config):
    """What a forecast counts with. Nothing is run by it."""

    name: str
    train_flops_per_s: float = Field(gt=0)
    """Of the whole machine: operations of forward and backward passes a second."""
    sample_flops_per_s: float = Field(gt=0)
    """The same of sampling token by token, which waits for memory and not for arithmetic."""
    dialogue_tokens: int | None = Field(default=None, ge=1)
    """Mean length of a dialogue that is kept to be fine-tuned on. None: as of any response."""


class MeasureConfig(Config):
    """How each model of the pipeline is measured: the same held-out problems for all."""

    evals: EvalConfig
    max_prompt_tokens: int = Field(default=64, ge=1)
    """Longest prompt, its turn's special tokens included."""
    thinking_budget: int | None = Field(default=64, ge=1)
    """Tokens of thought, for models that were taught to answer without one: they are asked with no thought, with so
    much of it, and with all they want. None: the middle one is left out."""


class R1Config(RunConfig):
    """Pretrain, R1-Zero, cold start, RL, rejection sampling, fine-tuning, RL again, distillation. None: a stage is off.

    A stage's seed, and all else that the pipeline says for the whole, is the pipeline's to say.
    """

    base: str | None = None
    """A folder with a model and its tokenizer that all begins with. None: it is pretrained."""
    pretrain: ZeroConfig | None = None
    """Of it only the pretraining is run."""
    zero: RlRunConfig | None = None
    cold_start_data: CollectConfig | None = None
    cold_start: SftConfig | None = None
    rl1: RlRunConfig | None = None
    rejection_sampling: CollectConfig | None = None
    sft: SftConfig | None = None
    preference_model: RewardRunConfig | None = None
    safety_model: RewardRunConfig | None = None
    rl2: RlRunConfig | None = None
    student_base: str | None = None
    """A folder with a model and the base's tokenizer, to distil into. None: `student` pretrains it, if it is on."""
    student: ZeroConfig | None = None
    """Of it only the pretraining is run."""
    distil: SftConfig | None = None
    on_policy: RlRunConfig | None = None
    measure: MeasureConfig
    hardware: HardwareConfig | None = None
    """For forecasts. None: two cores of a server, as for every other recipe."""

    def model_post_init(self, context: object) -> None:
        RunConfig.model_post_init(self, context)
        if not self.recipe.startswith(PREFIX):
            raise ConfigError(at="recipe", got=repr(self.recipe), want=f"a name like {PREFIX}cpu")
        self._check_start()
        for name in self.stages:
            self._check_shared(name)
            for at, wanted in references(self, name):
                self._check_reference(name, at, wanted)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of those that are on, in their order."""
        return tuple(name for name in STAGES if getattr(self, name) is not None)

    def settings(self, stage: str) -> StageConfig:
        """Of a stage that is on, as they were asked for."""
        found: StageConfig | None = getattr(self, stage)
        assert found is not None, f"{stage} is off"
        return found

    def _check_start(self) -> None:
        if (self.base is None) == (self.pretrain is None):
            raise ConfigError(
                at="base",
                got="neither a base nor its pretraining" if self.base is None else "both",
                want="a folder with a base, or the settings of pretraining one",
                hint="--base FOLDER",
            )
        if self.student_base is not None and self.student is not None:
            raise ConfigError(
                at="student_base", got="both a student and its pretraining", want="one of them"
            )

    def _check_shared(self, stage: str) -> None:
        """What the pipeline says for all is not said by a stage too, where it would be passed over."""
        settings = self.settings(stage)
        for field in ("seed", *SHARED):
            usual = RunConfig.model_fields[field].get_default(call_default_factory=True)
            if getattr(settings, field) != usual:
                raise ConfigError(
                    at=f"{stage}.{field}",
                    got=str(getattr(settings, field)),
                    want="nothing: one setting holds for the whole pipeline",
                    hint=f"{field} beside the stages: --{field}",
                )

    def _check_reference(self, stage: str, at: str, wanted: str) -> None:
        """ConfigError where a stage wants what is not made, or not before it, or is of another kind."""
        maker = lookup(wanted, MADE_BY, at=f"{stage}.{at}: @")
        given = {"base": self.base, "student": self.student_base}.get(wanted)
        names = list(STAGES)
        where = f"{stage}.{at}"
        if given is None and getattr(self, maker) is None:
            raise ConfigError(
                at=where,
                got=f"@{wanted}, and the stage {maker} is off",
                want="what a stage makes that is on",
                hint=f"a folder or a file in its place, or {stage} off as well",
            )
        if names.index(maker) >= names.index(stage):
            raise ConfigError(
                at=where,
                got=f"@{wanted}, which is made by {maker}",
                want=f"what is made before {stage}",
                hint="stages in their order: " + ", ".join(names),
            )
        kind = "data" if at == "data.path" else "reward" if "reward." in at else "model"
        if STAGES[maker].makes != kind:
            raise ConfigError(
                at=where,
                got=f"@{wanted}, which is {_MADE[STAGES[maker].makes]}",
                want=_MADE[kind],
            )


_MADE = {"data": "a dataset", "reward": "a reward model", "model": "a model"}


def references(config: R1Config, stage: str) -> list[tuple[str, str]]:
    """Dotted name of each setting of a stage that stands for what another stage makes, and the name behind its @."""
    return list(_references(config.settings(stage).model_dump(mode="json")))


def _references(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _references(value, f"{prefix}{key}.")
        elif isinstance(value, str) and (found := _REFERENCE.fullmatch(value)):
            yield prefix + key, found[1]


def inputs(config: R1Config, stage: str) -> tuple[str, ...]:
    """The stages that must be done before this one, by what its settings refer to."""
    given = {"base": config.base, "student": config.student_base}
    wanted = (name for _, name in references(config, stage))
    return tuple(dict.fromkeys(MADE_BY[name] for name in wanted if given.get(name) is None))


def stage_config(config: R1Config, stage: str, place: Callable[[str], str]) -> StageConfig:
    """What a stage's own run is asked: with the pipeline's settings, and paths in place of references.

    place: where that lies which stands behind an @.
    """
    settings = config.settings(stage)
    document = _placed(settings.model_dump(mode="json"), place)
    for field in SHARED:
        document[field] = config.model_dump(mode="json")[field]
    document["seed"] = seed_of(config, stage)
    try:
        return type(settings).model_validate(document)
    except ConfigError as error:
        raise ConfigError(
            at=f"{stage}.{error.at}", got=error.got, want=error.want, hint=error.hint
        ) from error


def _placed(settings: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    placed = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = _placed(value, place)
        elif isinstance(value, str) and (found := _REFERENCE.fullmatch(value)):
            value = place(found[1])
        placed[key] = value
    return placed


def seed_of(config: R1Config, stage: str) -> int:
    """Each stage has its own: two that draw problems draw different ones. The first has the pipeline's."""
    return (config.seed + 1_000_003 * list(STAGES).index(stage)) % 2**63


def taught_switch(config: R1Config, stage: str) -> bool:
    """Whether the model of a stage has been shown, or trained on, answers without a thought."""
    own = config.settings(stage).model_dump(mode="json")
    return _is_taught(own) or any(taught_switch(config, name) for name in inputs(config, stage))


def _is_taught(settings: Mapping[str, Any]) -> bool:
    if settings.get("no_thinking_frac"):
        return True
    return any(_is_taught(value) for value in settings.values() if isinstance(value, Mapping))
