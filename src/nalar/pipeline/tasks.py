"""The tasks of a run: opened by the words of its config, refused before it begins. Imports no torch."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from nalar.config import UserError
from nalar.pipeline.config import RunConfig, TaskRunConfig, ZeroConfig
from nalar.rl.rewards import gold_reward
from nalar.run import Run
from nalar.tasks.check import check_tasks
from nalar.tasks.levels import Leveled
from nalar.tasks.problem import Problem, Split, Task
from nalar.tasks.registry import FAMILIES, is_file, open_task
from nalar.tasks.text import TextProblems

EVAL_SEED = 7  # the same problems and samples' seeds before and after
TASKS_FILE = "tasks.json"
_LOOKED_AT = 64
"""Problems of each split whose prompts are measured."""


class TasksRecord(BaseModel):
    """`tasks.json`: the files that a run's tasks come from. Only gains keys."""

    schema_version: int = 1
    files: dict[str, str]
    """SHA-256 by path, as it was asked for."""


def open_as_set(word: str, config: RunConfig | None, *, at: str) -> Task:
    """The task that a word means in a run: of a plain id, the one that the run's corpus teaches, if it does."""
    if isinstance(config, ZeroConfig) and word in FAMILIES:
        taught = getattr(config.corpus, word, None)
        if taught is not None:
            return FAMILIES[word].make(taught)
    return open_task(word, at=at)


def tasks_of(config: TaskRunConfig) -> dict[str, Task]:
    """What a run trains on and what it is measured on, by word. UserError where a file is not what it should be."""
    words = dict.fromkeys(config.rl.tasks, "rl.tasks")
    words |= {word: "evals.tasks" for word in config.evals.tasks if word not in words}
    return {word: open_as_set(word, config, at=at) for word, at in words.items()}


def test_problems(task: Task, config: TaskRunConfig) -> list[Problem]:
    """The held-out problems that every evaluation of a run is read on."""
    return task.problems("test", config.evals.problems, EVAL_SEED)


def refuse_bad_tasks(config: TaskRunConfig) -> None:
    """UserError that shows the first problem at fault: a wrong gold answer, a repeat, an overlap, an empty split."""
    tasks = tasks_of(config)
    refuse_idle_curriculum(config, tasks)
    only_measured = [word for word in config.evals.tasks if word not in config.rl.tasks]
    check_tasks(
        [tasks[word] for word in config.rl.tasks],
        [tasks[word] for word in only_measured],
        reward=gold_reward(config.rl.reward),
    )
    for word in config.evals.tasks:
        if not tasks[word].problems("test", 1, EVAL_SEED):
            raise UserError(
                at=f"evals.tasks {word!r}",
                got="no test problem",
                want="problems to be measured on before and after",
                hint="--evals.tasks names other tasks than those that are trained on",
            )


def refuse_idle_curriculum(config: TaskRunConfig, tasks: Mapping[str, Task]) -> None:
    """UserError where levels are to be chosen and no task has any: the setting would do nothing."""
    if config.rl.curriculum.focus is None:
        return
    if any(isinstance(tasks[word], Leveled) for word in config.rl.tasks):
        return
    raise UserError(
        at="rl.curriculum.focus",
        got=f"{config.rl.curriculum.focus}, and no task with levels",
        want="a task with levels, for it chooses among them",
        hint="a range makes levels: chain_sum,min_terms=2..5,max_terms=2..5 (docs/tasks.md)",
    )


def sizes_of_files(config: TaskRunConfig) -> list[str]:
    """A line for each file of problems: how many of them are of each split, which is few where the file is small."""
    files = [task for task in tasks_of(config).values() if isinstance(task, TextProblems)]
    return [
        f"{task.config.path}: {len(task.all_of('train'))} problems to train on, "
        f"{len(task.all_of('valid'))} valid, {len(task.all_of('test'))} test"
        for task in files
    ]


def refuse_long_prompts(
    tasks: Mapping[str, Task], count_tokens: Callable[[str], int], config: TaskRunConfig
) -> None:
    """UserError that shows the first prompt that is longer than the engine is made for."""
    asked: list[tuple[Task, Split]] = [(tasks[word], "train") for word in config.rl.tasks]
    asked += [(tasks[word], "test") for word in config.evals.tasks]
    for task, split in asked:
        for problem in task.problems(split, _LOOKED_AT, EVAL_SEED):
            tokens = count_tokens(problem.prompt)
            if tokens > config.max_prompt_tokens:
                raise UserError(
                    at=f"task {task.id}",
                    got=f"a prompt of {tokens} tokens: {problem.prompt[:200]!r}",
                    want=f"at most max_prompt_tokens={config.max_prompt_tokens}",
                    hint=f"--max-prompt-tokens {tokens}, or more",
                )


def keep_tasks(run: Run, config: TaskRunConfig) -> None:
    """Write down what the files of a run's tasks hold. UserError where it is not what the run began with."""
    keep_files(run, (*config.rl.tasks, *config.evals.tasks))


def keep_files(run: Run, words: Iterable[str]) -> None:
    """The same of words that are tasks, or files with settings."""
    names = dict.fromkeys(word.partition(",")[0] for word in words)
    files = {name: _digest(name) for name in names if is_file(name)}
    if not files:
        return
    path = run.path / TASKS_FILE
    if not path.exists():
        run.write_json(TASKS_FILE, TasksRecord(files=files).model_dump())
        return
    try:
        known = TasksRecord.model_validate(run.read_json(TASKS_FILE)).files
    except ValidationError as error:
        raise UserError(
            at=str(path), got="a broken file", want="a file as nalar wrote it"
        ) from error
    for name, digest in files.items():
        if known.get(name) != digest:
            raise UserError(
                at=name,
                got="another file than the run began with",
                want="the same, so that it goes on as if it had never stopped",
                hint="put it back as it was, or start a new run",
            )


def _digest(name: str) -> str:
    try:
        return hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            at=name,
            got=error.strerror or str(error),
            want="the file that the task was opened from",
            hint="relative names hold in the folder that the run was started in",
        ) from error
