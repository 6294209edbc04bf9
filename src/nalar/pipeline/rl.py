"""RL from a model that is there, on any tasks: evaluate, RL, evaluate again, report. Resumes where it stopped."""

import functools
from collections.abc import Callable
from pathlib import Path

from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.weights import load_model, refuse_unfit_weights
from nalar.pipeline.adapting import refuse_unfit_adapters
from nalar.pipeline.base import read_folder
from nalar.pipeline.config import RlRunConfig
from nalar.pipeline.evaluation import Policy, Tasks, prompt_tokens
from nalar.pipeline.forecast import Forecast, forecast_rl
from nalar.pipeline.models import keep_models
from nalar.pipeline.observer import Observer
from nalar.pipeline.policy import rl_stages
from nalar.pipeline.scorers import read_scorers
from nalar.pipeline.session import Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import keep_tasks, refuse_long_prompts, tasks_of
from nalar.pipeline.teacher import read_teacher
from nalar.pipeline.tools import environments
from nalar.pipeline.training import run_stages
from nalar.run import Run


def run_rl(
    config: RlRunConfig,
    run: Run,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    only_rl: bool = False,
) -> Outcome:
    """Do every stage that the run has not done.

    only_rl: without evaluations and report, for whoever measures the model in another way.
    """
    keep_tasks(run, config)
    keep_models(run, config, "rl")
    tasks = tasks_of(config)
    if only_rl:
        stages = rl_stages(tasks, functools.partial(_ready_base, tasks=tasks))
        return run_stages(config, run, observer, should_stop, {"rl": stages["rl"]})
    return run_stages(config, run, observer, should_stop, rl_stages(tasks, _base))


def read_base(config: RlRunConfig) -> tuple[ModelConfig, Tokenizer]:
    """What RL begins with. UserError where a part of it is missing or does not fit the others or the settings."""
    model, tokenizer = read_folder(Path(config.model))
    config.refuse_unfit(model)
    refuse_unfit_adapters(model, config.lora)
    return model, tokenizer


def plan_rl(config: RlRunConfig) -> Forecast:
    """What it will take. UserError where the base cannot be trained so, does not know the tools that it is to call, or
    a prompt is too long for it."""
    model, tokenizer = read_base(config)
    teacher = read_teacher(config, tokenizer)
    refuse_unfit_weights(Path(config.model))
    environments(config.tools, tokenizer)
    scorers = read_scorers(config, tokenizer)
    refuse_long_prompts(tasks_of(config), lambda prompt: prompt_tokens(tokenizer, prompt), config)
    return forecast_rl(config, model, teacher, scorers)


def _ready_base(session: Session[RlRunConfig], tasks: Tasks) -> Policy:
    """The base, where no evaluation comes first that would refuse prompts that are too long."""
    policy = _base(session)
    refuse_long_prompts(
        tasks, lambda prompt: prompt_tokens(policy.tokenizer, prompt), session.config
    )
    return policy


def _base(session: Session[RlRunConfig]) -> Policy:
    _, tokenizer = read_base(session.config)
    place = session.place
    model = load_model(session.config.model, device=place.device, dtype=place.dtype)
    return Policy(model, tokenizer)
