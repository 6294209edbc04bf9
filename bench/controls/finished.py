"""A finished run as the controls see it: its models, its test problems, its way of measuring."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from controls.results import Outcome
from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import BannedTokens, SamplingParams
from nalar.evals.config import EvalConfig
from nalar.evals.protocol import Sample, evaluate, sample_problems, summarise
from nalar.evals.results import TaskResult
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.evaluation import engine_for
from nalar.pipeline.session import Session
from nalar.pipeline.tasks import EVAL_SEED, tasks_of, test_problems
from nalar.pipeline.tools import environments
from nalar.run import Run
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Problem, Task
from nalar.tasks.registry import SEARCHING
from nalar.train.checkpoint import load_optimizer

WHEN = {"before": "evaluate_base", "after": "evaluate_final"}
Row = Mapping[str, Any]
"""A measured response as samples/*.jsonl holds it."""


class PlainObserver:
    """Notes and stages as lines on stderr."""

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        say(f"{stage}: from step {done}" + (f" of {steps}" if steps else ""))

    def step(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if step % 20 == 0:
            shown = {k: v for k, v in values.items() if k in ("loss", "reward", "wall_s")}
            say(f"{stage} {step}: " + ", ".join(f"{k} {v:.3g}" for k, v in shown.items()))

    def note(self, text: str) -> None:
        say(text)

    def stage_finished(self, stage: str) -> None:
        say(f"{stage}: done")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Finished:
    """Read-only but for what `run.write_json` writes."""

    run: Run
    config: ZeroConfig

    @classmethod
    def open(cls, path: Path) -> "Finished":
        run = Run.open(path)
        config = ZeroConfig.model_validate(run.info.config)
        if not (path / "results_after.json").exists():
            raise UserError(
                at=str(path), got="no results_after.json", want="a run that came to its end"
            )
        return cls(run, config)

    @cached_property
    def session(self) -> Session[ZeroConfig]:
        return Session(self.config, self.run, PlainObserver(), lambda: False)

    @cached_property
    def by_word(self) -> dict[str, Task]:
        """The run's tasks, by the words of its config."""
        return tasks_of(self.config)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Those that the run was measured on, by id and in its order."""
        return {task.id: task for task in (self.by_word[w] for w in self.config.evals.tasks)}

    @property
    def rl_tasks(self) -> list[Task]:
        return [self.by_word[word] for word in self.config.rl.tasks]

    @property
    def searches(self) -> bool:
        """Whether Countdown is among the tasks, whose thoughts are marked tries."""
        return Countdown.id in self.tasks

    @property
    def countdown(self) -> Countdown:
        task = self.tasks[Countdown.id]
        assert isinstance(task, Countdown)
        return task

    @property
    def rl_flops(self) -> float:
        total = self.run.stage_total("rl")
        if total is None:
            raise UserError(at=str(self.run.path), got="no RL in its ledger", want="a finished run")
        return total.flops

    def problems(self, task_id: str) -> list[Problem]:
        return test_problems(self.tasks[task_id], self.config)

    def base(self) -> tuple[Transformer, Tokenizer, int]:
        """As pretraining left it, with the number of its steps."""
        ended = self.session.load("pretrain")
        return ended.model, Tokenizer.load(ended.folder), ended.progress.step

    def final(self) -> tuple[Transformer, Tokenizer]:
        ended = self.session.load("rl")
        return ended.model, Tokenizer.load(ended.folder)

    def pretraining_optimizer(self, base: Transformer) -> MuonClip:
        optimizer = MuonClip(base.named_parameters(), self.config.pretrain.optim)
        load_optimizer(self.session.load("pretrain").folder, optimizer)
        return optimizer

    def measure(
        self, model: Transformer, tokenizer: Tokenizer, evals: EvalConfig | None = None
    ) -> dict[str, Outcome]:
        """Every task as the run measured it: same problems, seeds, k and cap."""
        return {
            task_id: outcome(groups) for task_id, groups in self.sample(model, tokenizer, evals)
        }

    def sample(
        self, model: Transformer, tokenizer: Tokenizer, evals: EvalConfig | None = None
    ) -> list[tuple[str, list[list[Sample]]]]:
        evals = evals or self.config.evals
        engine, make = engine_for(model, self.config), environments(self.config.tools, tokenizer)
        return [
            (
                task_id,
                evaluate(
                    *(engine, tokenizer, task, self.problems(task_id), evals),
                    seed=EVAL_SEED,
                    make_environment=make,
                ).samples,
            )
            for task_id, task in self.tasks.items()
        ]

    def sample_banned(
        self, model: Transformer, tokenizer: Tokenizer, rule: BannedTokens
    ) -> list[list[Sample]]:
        """Countdown with the run's settings and a rule of what may not come next."""
        evals, problems = self.config.evals, self.problems("countdown")
        params = SamplingParams(
            n=evals.k,
            max_tokens=evals.max_tokens,
            temperature=evals.temperature,
            seed=EVAL_SEED,
        )
        return sample_problems(
            engine_for(model, self.config),
            tokenizer,
            self.countdown,
            problems,
            params,
            [rule] * len(problems),
        )

    def rows(self, when: str, task_id: str) -> list[list[Row]]:
        """The run's own samples by problem, in the order of the test problems."""
        groups: dict[str, list[Row]] = {problem.key: [] for problem in self.problems(task_id)}
        for row in self.run.samples(WHEN[when]):
            if row["task"] == task_id:
                groups[row["key"]].append(row)
        if not all(groups.values()):
            raise UserError(
                at=str(self.run.path),
                got=f"{task_id} samples of other problems",
                want="samples of this code's test problems",
            )
        return list(groups.values())

    def outcomes(self, when: str) -> dict[str, Outcome]:
        """What the run itself measured."""
        stored = self.run.read_json(f"results_{when}.json")
        return {
            task_id: Outcome(
                **TaskResult.model_validate(stored[task_id]).model_dump(),
                by_problem=[_share(rows) for rows in self.rows(when, task_id)],
            )
            for task_id in self.tasks
        }


def outcome(groups: Sequence[Sequence[Sample]]) -> Outcome:
    shares = [sum(s.correct for s in group) / len(group) for group in groups]
    return Outcome(
        **summarise(
            groups, searches=groups[0][0].problem.task in SEARCHING, seed=EVAL_SEED
        ).model_dump(),
        by_problem=shares,
    )


def _share(rows: Sequence[Row]) -> float:
    return sum(bool(row["correct"]) for row in rows) / len(rows)
