"""RL on tasks as stages of a run: measured, trained, measured again, reported."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

from nalar.model.config import ModelConfig
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.config import TaskRunConfig
from nalar.pipeline.evaluation import (
    Policy,
    Tasks,
    engine_for,
    evaluate_base,
    evaluate_final,
    report,
)
from nalar.pipeline.session import Learner, Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.vigil import Vigil
from nalar.plan.model import sequence_flops
from nalar.rl.lessons import lessons
from nalar.rl.loop import train_rl
from nalar.rl.progress import RLProgress
from nalar.rl.reference import Reference
from nalar.rl.rollout import Rollout
from nalar.run import ROLLOUTS
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
    config, resumed = session.config, session.resume("rl")
    learner = _learner(config, resumed, Policy.of(resumed) if resumed else base(session))
    model = learner.model.config
    first_step = resumed.progress.step if resumed else 0
    with session.start("rl", steps=config.rl.steps, resumed=resumed) as meter:
        session.find_ceiling(learner.model)
        engine = engine_for(learner.model, config)
        learned = [tasks[word] for word in config.rl.tasks]
        vigil = Vigil(
            config.rl,
            learner.model,
            engine,
            learner.tokenizer,
            learned,
            lambda groups: session.add_sampling(model, groups),
        )
        vigil.remember(session.run.metrics("rl"))

        def on_step(progress: RLProgress, groups: list[list[Rollout]]) -> None:
            session.add_sampling(model, groups)
            session.work.flops += trained_flops(session, model, groups)
            values = rl_values(progress) | vigil.look(progress.step, groups)
            session.log("rl", progress.step, meter, values)
            for warning in vigil.see(progress.step, values, progress.idle):
                session.observer.note(str(warning))
            if progress.step % config.rl.save_every_steps == 0 or progress.step == config.rl.steps:
                session.save("rl", progress.step, learner, meter)

        done = train_rl(
            learner.model,
            learner.optimizer,
            engine,
            learner.tokenizer,
            learned,
            config.rl,
            seed=config.seed,
            first_step=first_step,
            on_step=on_step,
            should_stop=lambda: session.should_stop() or vigil.has_enough,
            reference=learner.reference,
            save_dir=session.run.path / ROLLOUTS,
        )
        if done < config.rl.steps:
            if done > first_step:
                session.save("rl", done, learner, meter)
            return Outcome.STOPPED
    return Outcome.FINISHED


def _learner(config: TaskRunConfig, resumed: Resumed | None, policy: Policy) -> Learner:
    """The weights that RL begins or goes on with; its optimizer begins anew, but where RL itself goes on."""
    optimizer = MuonClip(policy.model.trained_parameters(ahead=False), config.rl.optim)
    reference = None if config.rl.kl.coef is None else Reference(policy.model)
    if resumed:
        load_optimizer(resumed.folder, optimizer)
        if reference is not None:
            reference.restore(load_reference(resumed.folder))
    return Learner(policy.model, optimizer, policy.tokenizer, reference)


def trained_flops(session: Session[C], model: ModelConfig, groups: list[list[Rollout]]) -> float:
    """Forward and backward over the sequences of an RL step that had something to teach, and forward for whatever else
    looked at them: the policy before its first update, the reference."""
    config = session.config.rl
    lengths = [one.length for group in lessons(groups, config) for one in group]
    looks = (config.correction.old_logprobs == "trainer") + (config.kl.coef is not None)
    return sum(
        sequence_flops(model, length, backward=True)
        + looks * sequence_flops(model, length, backward=False)
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
