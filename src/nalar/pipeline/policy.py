"""RL on tasks as stages of a run: measured, trained, measured again, reported."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

from nalar.engine.engine import Engine
from nalar.engine.turns import MakeEnvironment
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.adapting import base_of, begin_adapters
from nalar.pipeline.config import TaskRunConfig, lora_of
from nalar.pipeline.evaluation import (
    Policy,
    Tasks,
    engine_for,
    evaluate_base,
    evaluate_final,
    report,
)
from nalar.pipeline.scorers import load_scorers
from nalar.pipeline.session import Learner, Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.teacher import load_teacher
from nalar.pipeline.tools import environments
from nalar.pipeline.vigil import Vigil
from nalar.plan.model import adapter_params, sequence_flops
from nalar.rl.config import RLConfig
from nalar.rl.group import Carried
from nalar.rl.lessons import lessons
from nalar.rl.loop import replay_rl, train_rl
from nalar.rl.progress import RLProgress
from nalar.rl.reference import Reference
from nalar.rl.rollout import Rollout
from nalar.rl.scorers import Scorers
from nalar.run import ROLLOUTS
from nalar.tasks.problem import Task
from nalar.train.checkpoint import Resumed, load_optimizer, load_reference

C = TypeVar("C", bound=TaskRunConfig)


def rl_stages(
    tasks: Tasks, base: Callable[[Session[C]], Policy]
) -> dict[str, Callable[[Session[C]], Outcome]]:
    """In their order. base: what RL begins with."""
    return {
        "evaluate_base": lambda session: evaluate_base(session, tasks, base),
        "rl": lambda session: _rl(session, tasks, base),
        "evaluate_final": lambda session: evaluate_final(session, tasks),
        "report": lambda session: report(session, tasks),
    }


def _rl(session: Session[C], tasks: Tasks, base: Callable[[Session[C]], Policy]) -> Outcome:
    config = session.config
    resumed = session.resume("rl", base=base_of(config))
    policy = Policy.of(resumed) if resumed else base(session)
    if not resumed:
        begin_adapters(policy.model, config)
    learner = _learner(config, resumed, policy)
    first_step = resumed.progress.step if resumed else 0
    carried = Carried()
    if resumed and resumed.loop:
        carried = Carried.from_json(resumed.loop, learner.tokenizer)
    model = learner.model.config
    with session.start("rl", steps=config.rl.steps, resumed=resumed) as meter:
        session.find_ceiling(learner.model)
        teacher = load_teacher(config, learner.tokenizer, session.place)
        replays = config.rl.rollout.replay_dir is not None
        engine = None if replays else engine_for(learner.model, config)
        make_environment = environments(config.tools, learner.tokenizer)
        scorers = load_scorers(config, learner.tokenizer, session.place)
        learned = [tasks[word] for word in config.rl.tasks]
        vigil = Vigil(
            config.rl,
            learner.model,
            engine,
            learner.tokenizer,
            learned,
            lambda groups: session.add_sampling(model, groups),
            make_environment,
        )
        vigil.remember(session.run.metrics("rl"))

        def save(step: int) -> None:
            session.save("rl", step, learner, meter, loop=carried.to_json())

        def on_step(progress: RLProgress, groups: list[list[Rollout]]) -> None:
            _count(session, learner.model, groups, teacher)
            session.work.flops += scorers.used_flops() if scorers else 0.0
            values = rl_values(progress) | vigil.look(progress.step, groups)
            session.log("rl", progress.step, meter, values)
            if progress.step == 1 and (agreement := replayed(config.rl, progress)):
                session.observer.note(agreement)
            for warning in vigil.see(progress.step, values, progress.idle):
                session.observer.note(str(warning))
            if progress.step % config.rl.save_every_steps == 0 or progress.step == config.rl.steps:
                save(progress.step)

        loop = _loop(session, learner, engine, learned, carried, make_environment, scorers)
        done = loop(
            first_step=first_step,
            on_step=on_step,
            should_stop=lambda: session.should_stop() or vigil.has_enough,
            reference=learner.reference,
            teacher=teacher,
        )
        if done < config.rl.steps:
            if done > first_step:
                save(done)
            return Outcome.STOPPED
    return Outcome.FINISHED


def _loop(
    session: Session[C],
    learner: Learner,
    engine: Engine | None,
    tasks: Sequence[Task],
    carried: Carried,
    make_environment: MakeEnvironment | None,
    scorers: Scorers | None,
) -> Callable[..., int]:
    """Both halves of RL, or, without an engine, the one that trains on what was saved. Returns the steps done."""
    config = session.config
    if engine is None:
        return partial(
            replay_rl,
            learner.model,
            learner.optimizer,
            learner.tokenizer,
            tasks,
            config.rl,
            Path(str(config.rl.rollout.replay_dir)),
        )
    return partial(
        train_rl,
        learner.model,
        learner.optimizer,
        engine,
        learner.tokenizer,
        tasks,
        config.rl,
        seed=config.seed,
        carried=carried,
        save_dir=session.run.path / ROLLOUTS,
        make_environment=make_environment,
        scorers=scorers,
    )


def _count(
    session: Session[C],
    model: Transformer,
    groups: list[list[Rollout]],
    teacher: Transformer | None,
) -> None:
    """What a step has used: whichever of its halves took place."""
    half = session.config.rl.rollout.debug
    if half != "train_only":
        session.add_sampling(model.config, groups)
    if half != "rollout_only":
        session.work.flops += trained_flops(session, model.config, groups, teacher)


def replayed(config: RLConfig, progress: RLProgress) -> str | None:
    """Of rollouts that were saved: how far the trainer is from who sampled them. None where they are sampled now."""
    if config.rollout.debug != "train_only":
        return None
    off = progress.first_log_ratio_rms
    if off is None:
        return "replay: no group of the first step has anything to teach, so nothing says who sampled it"
    return (
        f"replay: log-probabilities of trainer and sampler are {off:.1e} apart at the first step (root mean square); "
        "rounding alone gives less than 1e-5 in float32, other weights give more"
    )


def _learner(config: TaskRunConfig, resumed: Resumed | None, policy: Policy) -> Learner:
    """The weights that RL begins or goes on with; its optimizer begins anew, but where RL itself goes on."""
    optimizer = MuonClip(policy.model.trained_parameters(ahead=False), config.rl.optim)
    reference = None if config.rl.kl.coef is None else Reference(policy.model)
    if resumed:
        load_optimizer(resumed.folder, optimizer)
        if reference is not None:
            reference.restore(load_reference(resumed.folder))
    return Learner(policy.model, optimizer, policy.tokenizer, reference)


def trained_flops(
    session: Session[C],
    model: ModelConfig,
    groups: list[list[Rollout]],
    teacher: Transformer | None,
) -> float:
    """Forward and backward over the sequences of an RL step that had something to teach, and forward for whatever else
    looked at them: the policy before its first update, the reference, the teacher."""
    config, adapters = session.config.rl, adapter_params(model, lora_of(session.config))
    lengths = [one.length for group in lessons(groups, config) for one in group]
    return sum(
        sequence_flops(model, length, backward=True, adapter_params=adapters)
        + config.looks * sequence_flops(model, length, backward=False)
        + (sequence_flops(teacher.config, length, backward=False) if teacher else 0.0)
        for length in lengths
    )


def rl_values(progress: RLProgress) -> dict[str, float]:
    """A step's report as flat metrics; what a step lacks is left out."""
    values: dict[str, float] = {}
    for name, value in asdict(progress).items():
        if isinstance(value, dict):
            values |= {f"{name}/{task}": float(v) for task, v in value.items()}
        elif isinstance(value, (int, float)) and name != "step":
            values[name] = float(value)
    return values
