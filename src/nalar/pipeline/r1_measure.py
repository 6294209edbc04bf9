"""One model of a pipeline on held-out problems: every task, and with less thought where that was taught."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.evals.config import EvalConfig
from nalar.evals.protocol import Measured, evaluate
from nalar.evals.r1_results import Mode, ModelResult, win_rate
from nalar.evals.results import Estimate, TaskResult, estimate
from nalar.model.weights import load_model
from nalar.pipeline.base import read_folder
from nalar.pipeline.evaluation import Policy, describe, prompt_tokens, sample_row
from nalar.pipeline.r1_config import MeasureConfig, R1Config, taught_switch
from nalar.pipeline.session import Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import EVAL_SEED
from nalar.plan.r1_stages import MEASURE
from nalar.run import Run
from nalar.tasks.problem import Problem, Task
from nalar.tasks.rated import Rated
from nalar.tasks.registry import open_task

BASE = "pretrain"
"""The stage whose model others are held against."""
Rate = Callable[[Problem, str], float]


def measure(session: Session[R1Config], *, stage: str, folder: Path) -> Outcome:
    """Ask the model in a folder, and write `measure_STAGE.json` and its samples."""
    config, settings, name = session.config, session.config.measure, MEASURE + stage
    tasks = {word: open_task(word, at="measure.evals.tasks") for word in settings.evals.tasks}
    policy = _policy(session, folder)
    limit = settings.max_prompt_tokens + settings.evals.max_tokens
    engine = Engine(policy.model, EngineConfig(max_model_len=limit))
    asked = [
        (mode, how, task)
        for mode, how in modes(config, stage).items()
        for task in tasks.values()
        if mode == "on" or rate_of(task) is None
    ]
    taken = _Taken(stage)
    with session.start(name, steps=len(asked)) as meter:
        for step, (mode, how, task) in enumerate(asked, start=1):
            if session.should_stop():
                # What was sampled is sampled again on resuming, and its time was paid for all the same.
                session.receipt(name, meter)
                return Outcome.STOPPED
            problems = _problems(policy.tokenizer, task, settings)
            measured = evaluate(engine, policy.tokenizer, task, problems, how, seed=EVAL_SEED)
            session.add_sampling(policy.model.config, measured.samples)
            taken.add(mode, task, measured, policy.tokenizer)
            session.log(name, step, meter, {"pass_at_1": measured.result.pass_at_1.mean})
            session.observer.note(_said(stage, mode, task.id, measured.result))
        session.run.write_samples(name, taken.rows)
        session.run.write_json(f"{name}.json", taken.result(session.run).model_dump())
        session.receipt(name, meter)
    return Outcome.FINISHED


def modes(config: R1Config, stage: str) -> dict[Mode, EvalConfig]:
    """How the model of a stage is asked."""
    evals, budget = config.measure.evals, config.measure.thinking_budget
    found: dict[Mode, EvalConfig] = {"on": evals}
    if stage not in config.stages or not taught_switch(config, stage):
        return found
    if budget is not None:
        found["budget"] = evals.model_copy(update={"thinking_budget": budget})
    found["off"] = evals.model_copy(update={"thinking": "off"})
    return found


def rate_of(task: Task) -> Rate | None:
    """How a task rates any answer, in [0, 1] (`tasks/rated.py`); None where it only tells right from wrong."""
    return task.quality if isinstance(task, Rated) else None


class _Taken:
    """What has been measured so far."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.rows: list[dict[str, Any]] = []
        self._results: dict[Mode, dict[str, TaskResult]] = {}
        self._thoughts: dict[str, float] = {}
        self._quality: dict[str, Estimate] = {}

    def add(self, mode: Mode, task: Task, measured: Measured, tokenizer: Tokenizer) -> None:
        rate = rate_of(task)
        for group in measured.samples:
            for sample in group:
                row = sample_row(sample) | {"mode": mode}
                if rate is not None:
                    row["quality"] = rate(sample.problem, sample.parsed.answer)
                self.rows.append(row)
        self._results.setdefault(mode, {})[task.id] = measured.result
        if mode != "on":
            return
        flat = [sample for group in measured.samples for sample in group]
        self._thoughts[task.id] = fmean(len(tokenizer.encode(s.parsed.thought)) for s in flat)
        if rate is not None:
            means = [fmean(rated) for rated in ratings(self.rows, task.id).values()]
            self._quality[task.id] = estimate(means, seed=EVAL_SEED)

    def result(self, run: Run) -> ModelResult:
        base = run.samples(MEASURE + BASE) if self.stage != BASE else []
        rates = {
            task: win_rate(ratings(self.rows, task), ratings(base, task), seed=EVAL_SEED)
            for task in self._quality
        }
        return ModelResult(
            stage=self.stage,
            tasks=self._results["on"],
            thought_tokens=self._thoughts,
            quality=self._quality,
            win_rate={task: rate for task, rate in rates.items() if rate is not None},
            modes={mode: found for mode, found in self._results.items() if mode != "on"},
        )


def ratings(rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, list[float]]:
    """By the key of a problem of a task: how each answer to it was rated."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["task"] == task and row["mode"] == "on" and "quality" in row:
            found.setdefault(row["key"], []).append(row["quality"])
    return found


def _policy(session: Session[R1Config], folder: Path) -> Policy:
    model_config, tokenizer = read_folder(folder)
    settings, place = session.config.measure, session.place
    room = model_config.max_position_embeddings
    wanted = settings.max_prompt_tokens + settings.evals.max_tokens
    if wanted > room:
        raise UserError(
            at="measure.evals.max_tokens",
            got=f"{settings.evals.max_tokens} behind prompts of {settings.max_prompt_tokens}",
            want=f"at most the model's max_position_embeddings={room} together",
        )
    model = load_model(folder, device=place.device, dtype=place.dtype)
    return Policy(model, tokenizer)


def _problems(tokenizer: Tokenizer, task: Task, settings: MeasureConfig) -> list[Problem]:
    """The held-out problems that every model is asked. UserError where there are none, or one is too long."""
    problems = task.problems("test", settings.evals.problems, EVAL_SEED)
    if not problems:
        raise UserError(
            at=f"measure.evals.tasks {task.id}", got="no test problem", want="one at least"
        )
    longest = max(problems, key=lambda problem: len(problem.prompt))
    tokens = prompt_tokens(tokenizer, longest.prompt)
    if tokens > settings.max_prompt_tokens:
        raise UserError(
            at=f"measure: task {task.id}",
            got=f"a prompt of {tokens} tokens: {longest.prompt[:200]!r}",
            want=f"at most measure.max_prompt_tokens={settings.max_prompt_tokens}",
            hint=f"--set measure.max_prompt_tokens={tokens}, or more",
        )
    return problems


def _said(stage: str, mode: Mode, task_id: str, result: TaskResult) -> str:
    how = {"on": "", "budget": " with a short thought", "off": " without a thought"}[mode]
    return f"{stage}{how}: {describe(task_id, result)}"
