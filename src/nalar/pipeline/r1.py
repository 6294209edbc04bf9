"""The whole R1 recipe: stages in order, each a run of its own in `stages/NAME/`, each model measured when it is made.

What is done is skipped, what was cut off goes on: every stage's own `state.json` says how far it came.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nalar.config import UserError, lookup, refuse_change
from nalar.disk import only_writer
from nalar.evals.r1_html import write_r1
from nalar.pipeline.adopt import adopted
from nalar.pipeline.collect import refuse_damaged, run_collect
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import RlRunConfig, SftConfig, ZeroConfig
from nalar.pipeline.observer import Observer
from nalar.pipeline.r1_config import (
    MADE_BY,
    R1Config,
    StageConfig,
    inputs,
    references,
    stage_config,
)
from nalar.pipeline.r1_errors import of_stage
from nalar.pipeline.r1_measure import measure
from nalar.pipeline.r1_observer import StageObserver
from nalar.pipeline.reward import run_reward
from nalar.pipeline.rl import run_rl
from nalar.pipeline.sft import run_sft
from nalar.pipeline.standing import done_stages, stage_path, standing
from nalar.pipeline.state import Outcome, State
from nalar.pipeline.tasks import refuse_bad_tasks
from nalar.pipeline.training import run_stages
from nalar.pipeline.zero import run_zero
from nalar.plan.r1_stages import DATASET, MEASURE, STAGES
from nalar.run import Run

ADOPTED = "adopted"
"""In the pipeline's folder: models that were given, with our special tokens."""


def run_r1(
    config: R1Config,
    run: Run,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    first: str | None = None,
    last: str | None = None,
) -> Outcome:
    """Do every stage from `first` to `last` that is not done, and measure every model up to there that is not measured.

    None: from the first that is on, to the last. UserError that names the stage where an input of one is missing, and
    before anything is done; where a stage fails, what was done before it stays done.
    """
    chosen = chosen_stages(config, first, last)
    refuse_missing_inputs(config, chosen, done_stages(config, run))
    _adopt_given(config, run, observer)
    for stage in _up_to(config, chosen[-1]):
        if stage in chosen and standing(run, stage) != "done":
            outcome = _run_stage(config, run, stage, observer, should_stop)
            if outcome is not Outcome.FINISHED:
                return outcome
            observer.stage_finished(stage)
        if (outcome := _measure(config, run, stage, observer, should_stop)) is not Outcome.FINISHED:
            return outcome
    write_r1(run)
    return Outcome.FINISHED


def chosen_stages(config: R1Config, first: str | None, last: str | None) -> tuple[str, ...]:
    """From the one to the other, both included, of those that are on. UserError where one is not, or comes too late."""
    names = config.stages
    on = {name: name for name in names}
    begin = names[0] if first is None else _asked(first, on, "--from")
    end = names[-1] if last is None else _asked(last, on, "--to")
    if names.index(end) < names.index(begin):
        raise UserError(
            at="--to",
            got=f"{end} with --from {begin}",
            want=f"{begin}, or a stage after it",
            hint="stages in their order: " + ", ".join(names),
        )
    return names[names.index(begin) : names.index(end) + 1]


def _asked(name: str, on: Mapping[str, str], flag: str) -> str:
    known = lookup(name, {stage: stage for stage in STAGES}, at=flag)
    if known not in on:
        raise UserError(
            at=flag,
            got=f"{name}, which this pipeline has off",
            want="one of " + ", ".join(on),
        )
    return known


def refuse_missing_inputs(config: R1Config, chosen: Sequence[str], done: Sequence[str]) -> None:
    """UserError where a stage that is to be done wants what an earlier one makes that is neither done nor chosen."""
    for stage in chosen:
        if stage in done:
            continue
        for maker in inputs(config, stage):
            if maker not in chosen and maker not in done:
                makes = STAGES[maker].makes
                raise UserError(
                    at=f"stage {stage}",
                    got=f"no {_WORDS[makes]} of {maker}, which is not done",
                    want=f"the {_WORDS[makes]} of {maker}",
                    hint=f"--from {_first_missing(config, maker, done)}",
                )


def _first_missing(config: R1Config, stage: str, done: Sequence[str]) -> str:
    """The earliest stage that has to be done for this one to be."""
    missing = [maker for maker in inputs(config, stage) if maker not in done]
    every = [stage, *(_first_missing(config, maker, done) for maker in missing)]
    return min(every, key=list(STAGES).index)


def refuse_bad_tasks_of(config: R1Config) -> None:
    """UserError where a stage of RL could not trust its tasks: before anything is done."""
    for stage in config.stages:
        own = stage_config(config, stage, lambda name: f"@{name}")
        if not isinstance(own, RlRunConfig):
            continue
        try:
            refuse_bad_tasks(own)
        except UserError as error:
            raise of_stage(config, stage, error) from error


_WORDS = {"model": "model", "reward": "reward model", "data": "dataset"}


def made(config: R1Config, run: Run, name: str) -> Path:
    """What stands behind @NAME: a model's folder as it is now, or a dataset. UserError that names the stage."""
    given = _given(config).get(name)
    if given is not None:
        taken_in = run.path / ADOPTED / name
        return taken_in.resolve() if taken_in.is_dir() else given
    maker = MADE_BY[name]
    path = stage_path(run, maker)
    makes_data = STAGES[maker].makes == "data"
    found = path / (DATASET if makes_data else "model")
    if found.exists() and makes_data:
        refuse_damaged(path, stage=maker)
    if not found.exists():
        raise UserError(
            at=f"stage {maker}",
            got=f"no {found.name} in {path}",
            want="what the stage has made",
            hint=f"move {path} away, and it is made again",
        )
    return found.resolve()


def _given(config: R1Config) -> dict[str, Path]:
    """Folders of models that are not made here, by the name behind an @."""
    named = {"base": config.base, "student": config.student_base}
    return {name: Path(one).expanduser() for name, one in named.items() if one is not None}


def _adopt_given(config: R1Config, run: Run, observer: Observer) -> None:
    """Take in models whose tokenizers do not know our turns and thoughts, once."""
    for name, folder in _given(config).items():
        target = run.path / ADOPTED / name
        if folder.is_dir() and not target.is_dir() and adopted(folder, target) == target:
            observer.note(f"{folder}: another chat template; taken in as {target}")


def _run_stage(
    config: R1Config, run: Run, stage: str, observer: Observer, should_stop: Callable[[], bool]
) -> Outcome:
    """Begin a stage's own run, or go on with it."""
    own = stage_config(config, stage, lambda name: str(made(config, run, name)))
    sub = _opened(config, run, stage, own)
    try:
        with only_writer(sub.path):
            outcome = run_as_its_kind(own, sub, StageObserver(observer, stage), should_stop)
    except UserError as error:
        raise of_stage(config, stage, error) from error
    if outcome is Outcome.PROBE_FAILED:
        raise UserError(
            at=f"stage {stage}: probe",
            got=f"a base that is not ready for RL ({sub.path / 'probe.json'} says why)",
            want="a base that recognises its own hits",
            hint=f"--set {stage}.probe=null in a new run, or more slices",
        )
    is_main = STAGES[stage].makes == "model" and STAGES[stage].row != "distillation"
    if outcome is Outcome.FINISHED and is_main:
        run.point_model_to(sub.model_dir())
    return outcome


def run_as_its_kind(
    config: StageConfig, run: Run, observer: Observer, should_stop: Callable[[], bool]
) -> Outcome:
    """What the verb of this kind of run does, without evaluations of its own."""
    if isinstance(config, ZeroConfig):
        return run_zero(config, run, observer, should_stop, until="pretrain")
    if isinstance(config, RlRunConfig):
        return run_rl(config, run, observer, should_stop, only_rl=True)
    if isinstance(config, SftConfig):
        return run_sft(config, run, observer, should_stop)
    if isinstance(config, CollectConfig):
        return run_collect(config, run, observer, should_stop)
    return run_reward(config, run, observer, should_stop)


def _opened(config: R1Config, run: Run, stage: str, own: StageConfig) -> Run:
    """The run of a stage, made where it is not there. ConfigError where it was begun with another config."""
    path = stage_path(run, stage)
    asked = own.model_dump(mode="json")
    if not (path / "run.json").is_file():
        return Run.create(path.parent, stage, asked, run.info.command, own.seed)
    sub = Run.open(path)
    moved = [
        at for at, _ in references(config, stage)
    ]  # the folder around may have another name by now
    refuse_change(_without(asked, moved), _without(sub.info.config, moved), at=path)
    return sub


def _without(settings: Mapping[str, Any], dotted: list[str]) -> dict[str, Any]:
    own = {name for name in dotted if "." not in name}
    inner: dict[str, list[str]] = {}
    for name in dotted:
        head, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(head, []).append(rest)
    return {
        key: _without(value, inner[key]) if key in inner else value
        for key, value in settings.items()
        if key not in own
    }


def _up_to(config: R1Config, last: str) -> list[str]:
    """The stages up to this one that are on, and those whose model was given."""
    names = list(STAGES)
    given = {
        *(["pretrain"] if config.base is not None else []),
        *(["student"] if config.student_base is not None else []),
    }
    return [
        name for name in names[: names.index(last) + 1] if name in config.stages or name in given
    ]


def _measure(
    config: R1Config, run: Run, stage: str, observer: Observer, should_stop: Callable[[], bool]
) -> Outcome:
    """Measure a stage's model, if it makes one and has made it; a stage of the pipeline's own run."""
    is_given = stage not in config.stages
    if STAGES[stage].model is None or not (is_given or standing(run, stage) == "done"):
        return Outcome.FINISHED
    if _is_measured(run, MEASURE + stage):
        return Outcome.FINISHED
    name = "base" if stage == "pretrain" else stage
    doing = {
        MEASURE + stage: functools.partial(measure, stage=stage, folder=made(config, run, name))
    }
    return run_stages(config, run, observer, should_stop, doing)


def _is_measured(run: Run, name: str) -> bool:
    """Where its file was moved away it is measured again, and with it all that was measured after it."""
    state = State.read(run)
    if name in state.done and not (run.path / f"{name}.json").is_file():
        state.without(name).write(run)
        return False
    return name in state.done
