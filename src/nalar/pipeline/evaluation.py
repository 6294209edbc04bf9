"""The evaluations of a run, before and after RL, and the report they end in: what every run on tasks shares."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from nalar.data.dialogue import encode_prompt
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.evals.baselines import mean_tries, measure_baselines
from nalar.evals.protocol import Sample, evaluate
from nalar.evals.report_html import write_report
from nalar.evals.results import TaskResult
from nalar.model.transformer import Transformer
from nalar.pipeline.config import TaskRunConfig
from nalar.pipeline.session import Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import EVAL_SEED, refuse_long_prompts, test_problems
from nalar.pipeline.tools import environments
from nalar.tasks.problem import Task
from nalar.train.checkpoint import Resumed

C = TypeVar("C", bound=TaskRunConfig)
Tasks = Mapping[str, Task]
"""By the word that opened each."""


@dataclass(frozen=True)
class Policy:
    """A model and the tokenizer that its ids belong to."""

    model: Transformer
    tokenizer: Tokenizer

    @classmethod
    def of(cls, resumed: Resumed) -> "Policy":
        return cls(resumed.model, Tokenizer.load(resumed.folder))


def engine_for(model: Transformer, config: TaskRunConfig) -> Engine:
    limit = config.max_prompt_tokens + config.longest_response
    return Engine(model, EngineConfig(max_model_len=limit))


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> int:
    """Of a conversation that a prompt begins, up to where the assistant's turn does."""
    return len(encode_prompt(tokenizer, [{"role": "user", "content": prompt}]))


def evaluate_base(
    session: Session[C], tasks: Tasks, base: Callable[[Session[C]], Policy]
) -> Outcome:
    policy = base(session)
    refuse_long_prompts(
        tasks, lambda prompt: prompt_tokens(policy.tokenizer, prompt), session.config
    )
    return _evaluate(session, "evaluate_base", tasks, policy, "results_before.json")


def evaluate_final(session: Session[C], tasks: Tasks) -> Outcome:
    policy = Policy.of(session.load("rl"))
    return _evaluate(session, "evaluate_final", tasks, policy, "results_after.json")


def _evaluate(
    session: Session[C], stage: str, tasks: Tasks, policy: Policy, results_name: str
) -> Outcome:
    config, tokenizer = session.config, policy.tokenizer
    engine, make_environment = (
        engine_for(policy.model, config),
        environments(config.tools, tokenizer),
    )
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with session.start(stage, steps=len(config.evals.tasks)) as meter:
        for step, word in enumerate(config.evals.tasks, start=1):
            if session.should_stop():
                # What was sampled is sampled again on resuming, and its time was paid for all the same.
                session.receipt(stage, meter)
                return Outcome.STOPPED
            task = tasks[word]
            problems = test_problems(task, config)
            measured = evaluate(
                engine,
                tokenizer,
                task,
                problems,
                config.evals,
                seed=EVAL_SEED,
                make_environment=make_environment,
            )
            session.add_sampling(policy.model.config, measured.samples)
            results[task.id] = measured.result.model_dump()
            rows += [sample_row(sample) for group in measured.samples for sample in group]
            session.log(stage, step, meter, {"pass_at_1": measured.result.pass_at_1.mean})
            session.observer.note(describe(task.id, measured.result))
        session.run.write_samples(stage, rows)
        session.run.write_json(results_name, results)
        session.receipt(stage, meter)
    return Outcome.FINISHED


def report(session: Session[C], tasks: Tasks) -> Outcome:
    with session.start("report", steps=None) as meter:
        write_baselines(session, tasks)
        session.receipt("report", meter)
    write_report(session.run)
    return Outcome.FINISHED


def write_baselines(session: Session[C], tasks: Tasks) -> None:
    """What is reached without a model, on the same test problems and under the same cap."""
    config = session.config
    chosen = {tasks[word].id: tasks[word] for word in config.evals.tasks}
    tokenizer = Tokenizer.load(session.run.model_dir())
    rows = session.run.samples("evaluate_final")
    baselines = measure_baselines(
        list(chosen.values()),
        {name: test_problems(task, config) for name, task in chosen.items()},
        max_tokens=config.evals.max_tokens,
        token_cost=lambda text: len(tokenizer.encode(text)),
        model_tries=mean_tries(row["thought"] for row in rows if chosen[row["task"]].searches),
        seed=EVAL_SEED,
    )
    session.run.write_json("baselines.json", baselines.model_dump())


def describe(task_id: str, result: TaskResult) -> str:
    """One line on an evaluation."""
    one, k, maj = result.pass_at_1, result.pass_at_k, result.maj_at_k
    return (
        f"{task_id}: pass@1 {one.mean:.1%} [{one.ci95[0]:.1%}, {one.ci95[1]:.1%}], "
        f"pass@{result.k} {k.mean:.1%}, majority@{result.k} {maj.mean:.1%}, "
        f"{result.mean_response_tokens:.0f} tokens a response ({result.n} problem{'s' if result.n > 1 else ''})"
    )


def sample_row(sample: Sample) -> dict[str, Any]:
    """A measured response as it stands in samples/*.jsonl."""
    return {
        "task": sample.problem.task,
        "key": sample.problem.key,
        "prompt": sample.problem.prompt,
        "thought": sample.parsed.thought,
        "answer": sample.parsed.answer,
        "calls": [asdict(call) for call in sample.parsed.calls],
        "correct": sample.correct,
        "finish_reason": sample.completion.finish_reason,
        "tokens": len(sample.completion.token_ids),
    }
