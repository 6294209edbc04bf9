"""R1-Zero from random weights: pretrain, probe, evaluate, RL, evaluate again, report. Resumes where it stopped."""

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from nalar.config import lookup
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.evals.baselines import mean_tries, measure_baselines
from nalar.evals.probe import probe
from nalar.evals.protocol import Sample, evaluate
from nalar.evals.report import read_probe
from nalar.evals.report_html import write_report
from nalar.evals.results import TaskResult
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.config import PROMPT_TOKENS, ZeroConfig
from nalar.pipeline.corpus import prepare
from nalar.pipeline.idle_experts import IdleExperts
from nalar.pipeline.observer import Observer
from nalar.pipeline.place import Place
from nalar.pipeline.session import Learner, Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.training import Trained, Training, run_stages, train_slices
from nalar.plan.model import sequence_flops
from nalar.rl.config import RLConfig
from nalar.rl.group import Carried
from nalar.rl.loop import OnStep, replay_rl, train_rl
from nalar.rl.progress import RLProgress
from nalar.rl.rollout import Rollout
from nalar.rl.step import useful
from nalar.run import Run
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Problem, Task
from nalar.train.checkpoint import Resumed, load_optimizer

Stage = Literal["pretrain", "evaluate_base", "rl", "evaluate_final", "report"]
STAGES: tuple[Stage, ...] = ("pretrain", "evaluate_base", "rl", "evaluate_final", "report")
SPIKE_REMEDY = (
    "a lower --pretrain.optim.lr, in a new run; "
    "--pretrain.optim.no-skip-spikes where a jump is wanted"
)
EVAL_SEED = 7  # the same samples' seeds before and after


def run_zero(
    config: ZeroConfig,
    run: Run,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    force: bool = False,
    until: Stage = "report",
) -> Outcome:
    """Do every stage up to `until` that the run has not done. `force` goes on after a failed probe."""
    stages = STAGES[: STAGES.index(until) + 1]
    chosen: dict[str, Callable[[Session[ZeroConfig]], Outcome]] = {
        stage: functools.partial(_STAGES[stage], force=force) for stage in stages
    }
    return run_stages(config, run, observer, should_stop, chosen)


def tasks_of(config: ZeroConfig) -> dict[str, Task]:
    """The tasks as the corpus is configured, by id."""
    tasks: tuple[Task, ...] = (
        Countdown(config.corpus.countdown),
        ChainSum(config.corpus.chain_sum),
    )
    return {task.id: task for task in tasks}


def engine_for(model: Transformer, config: ZeroConfig) -> Engine:
    return Engine(model, EngineConfig(max_model_len=PROMPT_TOKENS + config.longest_response))


def _pretrain(session: Session[ZeroConfig], force: bool) -> Outcome:
    config, resumed = session.config, session.resume("pretrain")
    prepared = prepare(session, resumed)
    if prepared is None:
        return Outcome.STOPPED
    tokenizer, batches = prepared
    learner = _base(config, resumed, tokenizer, session.place)
    trained = train_slices(
        session,
        Training("pretrain", learner, batches, config.pretrain, SPIKE_REMEDY),
        resumed,
        lambda number: _probe_passed(session, learner, number),
    )
    if trained is Trained.STOPPED:
        return Outcome.STOPPED
    is_free = trained is Trained.ENOUGH or force or config.probe is None
    return Outcome.FINISHED if is_free else Outcome.PROBE_FAILED


def _base(
    config: ZeroConfig, resumed: Resumed | None, tokenizer: Tokenizer, place: Place
) -> Learner:
    """From random weights, or as a checkpoint of pretraining has it."""
    if resumed:
        model = resumed.model
    else:
        model = Transformer(config.model)
        model.initialize(config.seed)  # on the CPU: the same weights on every device
        model.to(place.device, place.dtype)
    with_mtp = config.pretrain.mtp_loss_weight > 0
    optimizer = MuonClip(model.trained_parameters(ahead=with_mtp), config.pretrain.optim)
    if resumed:
        load_optimizer(resumed.folder, optimizer)
    return Learner(model, optimizer, tokenizer)


def _probe_passed(session: Session[ZeroConfig], learner: Learner, slice_number: int) -> bool:
    """Probe after a slice, write it down, say what came out. Without a probe no slice is the last before its time."""
    config, model = session.config, learner.model
    if config.probe is None:
        return False
    searching = next(task for task in tasks_of(config).values() if task.searches)
    result, samples = probe(engine_for(model, config), learner.tokenizer, searching, config.probe)
    session.add_sampling(model.config, samples)
    earlier = [entry.model_dump() for entry in read_probe(session.run)]
    kept = [entry for entry in earlier if entry["slice"] < slice_number]  # a resume may go back
    session.run.write_json("probe.json", [*kept, result.model_dump() | {"slice": slice_number}])
    verdict = "passed" if result.passed else "not yet"
    session.observer.note(
        f"probe after slice {slice_number}: {verdict}: {result.reason} "
        f"(recall {result.recall:.0%} of {result.hits} hits, "
        f"{result.false_frac:.1%} of {result.misses} misses marked as hits)"
    )
    return result.passed


def _evaluate(
    session: Session[ZeroConfig], stage: Stage, model_stage: str, results_name: str
) -> Outcome:
    config = session.config
    ended = session.load(model_stage)
    model, tokenizer = ended.model, Tokenizer.load(ended.folder)
    engine = engine_for(model, config)
    tasks = tasks_of(config)
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with session.start(stage, steps=len(config.evals.tasks)) as meter:
        for step, task_id in enumerate(config.evals.tasks, start=1):
            if session.should_stop():
                # What was sampled is sampled again on resuming, and its time was paid for all the same.
                session.receipt(stage, meter)
                return Outcome.STOPPED
            task = lookup(task_id, tasks, at="evals.tasks")
            problems = test_problems(task, config)
            measured = evaluate(engine, tokenizer, task, problems, config.evals, seed=EVAL_SEED)
            session.add_sampling(model.config, measured.samples)
            results[task_id] = measured.result.model_dump()
            rows += [sample_row(sample) for group in measured.samples for sample in group]
            session.log(stage, step, meter, {"pass_at_1": measured.result.pass_at_1.mean})
            session.observer.note(describe(task_id, measured.result))
        session.run.write_samples(stage, rows)
        session.run.write_json(results_name, results)
        session.receipt(stage, meter)
    return Outcome.FINISHED


def _evaluate_base(session: Session[ZeroConfig], force: bool) -> Outcome:
    return _evaluate(session, "evaluate_base", "pretrain", "results_before.json")


def _evaluate_final(session: Session[ZeroConfig], force: bool) -> Outcome:
    return _evaluate(session, "evaluate_final", "rl", "results_after.json")


def _rl(session: Session[ZeroConfig], force: bool) -> Outcome:
    config, resumed = session.config, session.resume("rl")
    learner = _policy(config, resumed, resumed or session.load("pretrain"))
    first_step = resumed.progress.step if resumed else 0
    carried = Carried()
    if resumed and resumed.loop:
        carried = Carried.from_json(resumed.loop, learner.tokenizer)
    with session.start("rl", steps=config.rl.steps, resumed=resumed) as meter:
        session.find_ceiling(learner.model)
        alarm = IdleExperts()

        def save(step: int) -> None:
            session.save("rl", step, learner, meter, loop=carried.to_json())

        def on_step(progress: RLProgress, groups: list[list[Rollout]]) -> None:
            _count_rl(session, groups)
            session.log("rl", progress.step, meter, rl_values(progress))
            if progress.step == 1 and (agreement := replayed(config.rl, progress)):
                session.observer.note(agreement)
            if progress.idle is not None and (warning := alarm.see(progress.idle)):
                session.observer.note(warning)
            if progress.step % config.rl.save_every_steps == 0 or progress.step == config.rl.steps:
                save(progress.step)

        done = _rl_steps(session, learner, carried, first_step, on_step)
        if done < config.rl.steps:
            if done > first_step:
                save(done)
            return Outcome.STOPPED
    return Outcome.FINISHED


def _rl_steps(
    session: Session[ZeroConfig],
    learner: Learner,
    carried: Carried,
    first_step: int,
    on_step: OnStep,
) -> int:
    """Both halves of the loop, or the one that is looked at alone; steps done in all."""
    config, rollout = session.config, session.config.rl.rollout
    known = tasks_of(config)
    tasks = [lookup(task_id, known, at="rl.tasks") for task_id in config.rl.tasks]
    if rollout.replay_dir is not None:
        return replay_rl(
            learner.model,
            learner.optimizer,
            learner.tokenizer,
            tasks,
            config.rl,
            Path(rollout.replay_dir),
            first_step=first_step,
            on_step=on_step,
            should_stop=session.should_stop,
        )
    return train_rl(
        learner.model,
        learner.optimizer,
        engine_for(learner.model, config),
        learner.tokenizer,
        tasks,
        config.rl,
        seed=config.seed,
        first_step=first_step,
        on_step=on_step,
        should_stop=session.should_stop,
        carried=carried,
        save_dir=session.run.path / "rollouts",
    )


def _count_rl(session: Session[ZeroConfig], groups: list[list[Rollout]]) -> None:
    """What a step has used: whichever of its halves took place."""
    config = session.config
    if config.rl.rollout.debug != "train_only":
        session.add_sampling(config.model, groups)
    if config.rl.rollout.debug != "rollout_only":
        session.work.flops += trained_flops(session, config.model, groups)


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


def _policy(config: ZeroConfig, resumed: Resumed | None, begun: Resumed) -> Learner:
    """The weights that RL begins or goes on with; its optimizer begins anew, but where RL itself goes on."""
    optimizer = MuonClip(begun.model.trained_parameters(ahead=False), config.rl.optim)
    if resumed:
        load_optimizer(resumed.folder, optimizer)
    return Learner(begun.model, optimizer, Tokenizer.load(begun.folder))


def _report(session: Session[ZeroConfig], force: bool) -> Outcome:
    with session.start("report", steps=None) as meter:
        write_baselines(session)
        session.receipt("report", meter)
    write_report(session.run)
    return Outcome.FINISHED


def write_baselines(session: Session[ZeroConfig]) -> None:
    """What is reached without a model, on the same test problems and under the same cap."""
    config = session.config
    tasks = tasks_of(config)
    chosen = [tasks[task_id] for task_id in config.evals.tasks]
    tokenizer = Tokenizer.load(session.run.model_dir())
    rows = session.run.samples("evaluate_final")
    baselines = measure_baselines(
        chosen,
        {task.id: test_problems(task, config) for task in chosen},
        max_tokens=config.evals.max_tokens,
        token_cost=lambda text: len(tokenizer.encode(text)),
        model_tries=mean_tries(row["thought"] for row in rows if tasks[row["task"]].searches),
        seed=EVAL_SEED,
    )
    session.run.write_json("baselines.json", baselines.model_dump())


def test_problems(task: Task, config: ZeroConfig) -> list[Problem]:
    """The held-out problems that every evaluation of a run is read on."""
    return task.problems("test", config.evals.problems, EVAL_SEED)


def trained_flops(
    session: Session[ZeroConfig], model: ModelConfig, groups: list[list[Rollout]]
) -> float:
    """Forward and backward over the sequences of an RL step that had something to teach."""
    rollouts, _ = useful(groups, session.config.rl)
    lengths = [r.num_prompt_tokens + len(r.response) - 1 for r in rollouts]
    return sum(sequence_flops(model, length, backward=True) for length in lengths)


def describe(task_id: str, result: TaskResult) -> str:
    """One line on an evaluation."""
    one, k, maj = result.pass_at_1, result.pass_at_k, result.maj_at_k
    return (
        f"{task_id}: pass@1 {one.mean:.1%} [{one.ci95[0]:.1%}, {one.ci95[1]:.1%}], "
        f"pass@{result.k} {k.mean:.1%}, majority@{result.k} {maj.mean:.1%}, "
        f"{result.mean_response_tokens:.0f} tokens a response ({result.n} problems)"
    )


def sample_row(sample: Sample) -> dict[str, Any]:
    """A measured response as it stands in samples/*.jsonl."""
    return {
        "task": sample.problem.task,
        "key": sample.problem.key,
        "prompt": sample.problem.prompt,
        "thought": sample.parsed.thought,
        "answer": sample.parsed.answer,
        "correct": sample.correct,
        "finish_reason": sample.completion.finish_reason,
        "tokens": len(sample.completion.token_ids),
    }


def rl_values(progress: RLProgress) -> dict[str, float]:
    """A step's report as flat metrics; what a step lacks is left out."""
    values: dict[str, float] = {}
    for name, value in asdict(progress).items():
        if isinstance(value, dict):
            values |= {f"{name}/{task}": float(v) for task, v in value.items()}
        elif isinstance(value, (int, float)) and name != "step":
            values[name] = float(value)
    return values


_STAGES: dict[Stage, Callable[..., Outcome]] = {
    "pretrain": _pretrain,
    "evaluate_base": _evaluate_base,
    "rl": _rl,
    "evaluate_final": _evaluate_final,
    "report": _report,
}
