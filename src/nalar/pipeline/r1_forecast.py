"""What a pipeline will take, stage by stage: the forecasts of its stages added up. Imports no torch."""

import math
from dataclasses import dataclass
from pathlib import Path

from nalar.config import UserError
from nalar.data.config import FileSource
from nalar.model.config import ModelConfig
from nalar.model.families.registry import family_of
from nalar.model.folder import CONFIG, read_json
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import RewardRunConfig, RlRunConfig, SftConfig, ZeroConfig
from nalar.pipeline.forecast import (
    PROMPT_TOKENS,
    RESPONSE_FILL_FRAC,
    SAMPLE_FLOPS_PER_S,
    TRAIN_FLOPS_PER_S,
    Forecast,
    StageForecast,
    forecast,
    forecast_rl,
    forecast_sft,
)
from nalar.pipeline.r1_config import MADE_BY, R1Config, references, stage_config, taught_switch
from nalar.plan.model import flops_per_token, sampling_flops
from nalar.plan.published import PUBLISHED
from nalar.plan.r1_stages import STAGES

MEASURE = "measure"
USUAL_PAIRS = 4000
"""Where a reward model's config names no number."""
BYTES_PER_TOKEN = 4
"""Of a file of dialogues that nobody has read yet."""


@dataclass(frozen=True)
class _Use:
    """Of one stage."""

    tokens: int
    trained_flops: float
    sampled_flops: float = 0.0
    whole: Forecast | None = None
    """Of the kinds that have one: for memory and disk."""


def forecast_r1(config: R1Config) -> Forecast:
    """Arithmetic on all stages. UserError where a model that is given is neither a folder nor a published one."""
    uses = {name: _use(config, name) for name in config.stages}
    stages = [_staged(config, name, use) for name, use in uses.items()]
    stages.append(_staged(config, MEASURE, _measuring(config)))
    wholes = [use.whole for use in uses.values() if use.whole is not None]
    largest = max(wholes, key=lambda whole: whole.total_params)
    return largest.model_copy(
        update={
            "stages": stages,
            "memory_bytes": max(whole.memory_bytes for whole in wholes),
            "gpu_bytes": max(whole.gpu_bytes for whole in wholes),
            "disk_bytes": sum(whole.disk_bytes for whole in wholes),
            "tokens": sum(stage.tokens for stage in stages),
            "flops": math.fsum(stage.flops for stage in stages),
            "wall_s": math.fsum(stage.wall_s for stage in stages),
            "usd": math.fsum(stage.usd for stage in stages),
            "assumptions": _assumptions(config),
        }
    )


def refuse_no_room(config: R1Config) -> None:
    """UserError that names the first stage whose prompts and responses are longer than its model has positions."""
    for stage in config.stages:
        settings, room = config.settings(stage), model_of(config, stage).max_position_embeddings
        if isinstance(settings, RlRunConfig):
            prompt = settings.max_prompt_tokens
            _refuse_above(room, f"{stage}.rl.max_tokens", settings.rl.max_tokens, prompt)
            _refuse_above(room, f"{stage}.evals.max_tokens", settings.evals.max_tokens, prompt)
        elif isinstance(settings, SftConfig):
            tokens = settings.packing.document_tokens
            _refuse_above(room, f"{stage}.packing.document_tokens", tokens)
        elif isinstance(settings, CollectConfig | RewardRunConfig):
            _refuse_above(room, f"{stage}.max_tokens", settings.max_tokens)
        measure = config.measure
        if STAGES[stage].model is not None:
            longest, prompt = measure.evals.max_tokens, measure.max_prompt_tokens
            _refuse_above(room, "measure.evals.max_tokens", longest, prompt)


def _refuse_above(room: int, at: str, tokens: int, prompt_tokens: int = 0) -> None:
    if prompt_tokens + tokens <= room:
        return
    behind = f" behind prompts of {prompt_tokens}" if prompt_tokens else ""
    raise UserError(
        at=at,
        got=f"{tokens}{behind}",
        want=f"at most the model's max_position_embeddings={room}, prompt included",
        hint=f"--set {at}={room - prompt_tokens}" if prompt_tokens < room else None,
    )


def model_of(config: R1Config, stage: str) -> ModelConfig:
    """Of the model that a stage trains or asks: its own, or that of the stage that its settings name."""
    settings = config.settings(stage)
    return settings.model if isinstance(settings, ZeroConfig) else _named(config, settings.model)


def _named(config: R1Config, name: str) -> ModelConfig:
    if not name.startswith("@"):
        return given_model(name, at="model")
    given = {"@base": config.base, "@student": config.student_base}.get(name)
    if given is not None:
        return given_model(given, at=name.removeprefix("@"))
    return model_of(config, MADE_BY[name.removeprefix("@")])


def given_model(name: str, *, at: str) -> ModelConfig:
    """What a folder holds, or a published model of this name, which is good for a plan alone."""
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        published = read_json(folder / CONFIG)
        return family_of(published).read_config(published)
    if name in PUBLISHED:
        return PUBLISHED[name].config
    raise UserError(
        at=at,
        got=f"{name}, which is no folder with a {CONFIG}",
        want="a folder with a model and its tokenizer",
        hint=f"--{at} FOLDER",
    )


def _use(config: R1Config, stage: str) -> _Use:
    own, model = stage_config(config, stage, lambda name: f"@{name}"), model_of(config, stage)
    if isinstance(own, ZeroConfig):
        return _of_forecast(forecast(own), "pretrain")
    if isinstance(own, RlRunConfig):
        return _of_forecast(forecast_rl(own, model, *_beside(config, stage)), "rl")
    if isinstance(own, SftConfig):
        tokens = round(dialogue_tokens(config, stage) * (1 - own.held_out_frac))
        return _of_forecast(forecast_sft(own, model, tokens), "sft")
    if isinstance(own, CollectConfig):
        prompts = own.problems_per_task * len(own.tasks)
        return _sampled(model, prompts, own.samples, own.max_tokens)
    return _judged(own, model)


def _beside(config: R1Config, stage: str) -> tuple[ModelConfig | None, list[ModelConfig]]:
    """The teacher of a stage of RL, and the models that score in it."""
    wanted = references(config, stage)
    teachers = [_named(config, f"@{name}") for at, name in wanted if at == "rl.distil.teacher"]
    scorers = [_named(config, f"@{name}") for at, name in wanted if at.startswith("rl.reward.")]
    return (teachers[0] if teachers else None), scorers


def _of_forecast(whole: Forecast, name: str) -> _Use:
    """The part of a run that a pipeline does of it."""
    stage = next(stage for stage in whole.stages if stage.name == name)
    # Its time is that of training and of sampling, each at its own rate: two equations, two unknowns.
    slower = 1 / SAMPLE_FLOPS_PER_S - 1 / TRAIN_FLOPS_PER_S
    sampled = max(stage.wall_s - stage.flops / TRAIN_FLOPS_PER_S, 0.0) / slower
    return _Use(stage.tokens, stage.flops - sampled, sampled, whole)


def _sampled(model: ModelConfig, prompts: int, samples: int, max_tokens: int) -> _Use:
    length = max(1, round(RESPONSE_FILL_FRAC * max_tokens))
    flops = prompts * sampling_flops(model, PROMPT_TOKENS, [length] * samples)
    return _Use(prompts * (PROMPT_TOKENS + samples * length), 0.0, flops)


def _judged(own: RewardRunConfig, model: ModelConfig) -> _Use:
    """Two answers a pair, each as long as a prompt and the usual share of a response."""
    length = PROMPT_TOKENS + round(RESPONSE_FILL_FRAC * own.max_tokens)
    tokens = own.epochs * 2 * (own.pairs or USUAL_PAIRS) * length
    return _Use(tokens, tokens * flops_per_token(model, length / 2, backward=True))


def dialogue_tokens(config: R1Config, stage: str) -> int:
    """Of the dialogues that a stage is fine-tuned on: of a file by its size, else as many as may be kept at most."""
    settings = config.settings(stage)
    assert isinstance(settings, SftConfig)
    path = settings.data.path if isinstance(settings.data, FileSource) else ""
    if not path.startswith("@"):
        file = Path(path).expanduser()
        return file.stat().st_size // BYTES_PER_TOKEN if file.is_file() else 0
    source = config.settings(MADE_BY[path.removeprefix("@")])
    assert isinstance(source, CollectConfig)
    kept = (
        source.problems_per_task * len(source.tasks) * min(source.keep_per_problem, source.samples)
    )
    mean = PROMPT_TOKENS + RESPONSE_FILL_FRAC * source.max_tokens
    if config.hardware is not None and config.hardware.dialogue_tokens is not None:
        mean = config.hardware.dialogue_tokens
    more = 1 + source.no_thinking_frac + source.cut_thought_frac
    return round(kept * more * mean) + _general_tokens(source)


def _general_tokens(source: CollectConfig) -> int:
    return len(source.general) * source.general_per_task * 2 * PROMPT_TOKENS


def _measuring(config: R1Config) -> _Use:
    """Every model, on every task, as often as it is asked in another way."""
    evals, uses = config.measure.evals, []
    given = [
        *(["@base"] if config.base is not None else []),
        *(["@student"] if config.student_base is not None else []),
    ]
    asked: list[tuple[ModelConfig, int]] = [(_named(config, name), 1) for name in given]
    for stage in config.stages:
        if STAGES[stage].model is not None:
            ways = 1
            if taught_switch(config, stage):
                ways = 2 if config.measure.thinking_budget is None else 3
            asked.append((model_of(config, stage), ways))
    for model, ways in asked:
        prompts = evals.problems * len(evals.tasks) * ways
        uses.append(_sampled(model, prompts, evals.k, evals.max_tokens))
    flops = math.fsum(use.sampled_flops for use in uses)
    return _Use(sum(use.tokens for use in uses), 0.0, flops)


def _staged(config: R1Config, name: str, use: _Use) -> StageForecast:
    train, sample = TRAIN_FLOPS_PER_S, SAMPLE_FLOPS_PER_S
    if config.hardware is not None:
        train, sample = config.hardware.train_flops_per_s, config.hardware.sample_flops_per_s
    seconds = use.trained_flops / train + use.sampled_flops / sample
    return StageForecast(
        name=name,
        tokens=use.tokens,
        flops=use.trained_flops + use.sampled_flops,
        wall_s=seconds,
        usd=config.price.usd(seconds),
    )


def _assumptions(config: R1Config) -> list[str]:
    hardware = config.hardware
    where = "two cores of a server gave" if hardware is None else f"{hardware.name} may give"
    train = TRAIN_FLOPS_PER_S if hardware is None else hardware.train_flops_per_s
    sample = SAMPLE_FLOPS_PER_S if hardware is None else hardware.sample_flops_per_s
    return [
        f"a response fills {RESPONSE_FILL_FRAC:.0%} of its cap",
        "every filter keeps what it may",
        f"{train:.3g} FLOP/s in training and {sample:.3g} in sampling, as {where}",
        f"{config.price.usd_per_hour:g} USD an hour",
    ]
