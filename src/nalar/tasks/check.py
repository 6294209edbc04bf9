"""What is refused before a run begins: tasks whose golds fail, that are empty, or whose held-out problems overlap."""

from collections.abc import Callable, Iterator, Sequence

from nalar.config import UserError
from nalar.tasks.problem import Problem, Score, Split, Task
from nalar.tasks.text import TextProblems, normalised

CHECKED, CHECKED_COSTLY = 64, 16
"""Problems of each split whose gold answer is scored; fewer where a score takes milliseconds."""
COMPARED = 200
"""Problems of each split of a task that makes its own which are compared with the other splits."""
MAX_REWARD = 1e9
"""Either way. Advantages are float32, and have squares in them."""
NO_ANSWER = "this is no answer"
_SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_HELD_OUT: tuple[Split, ...] = ("valid", "test")


def check_tasks(
    tasks: Sequence[Task],
    held_out: Sequence[Task] = (),
    *,
    reward: Callable[[Problem, Score], float] | None = None,
) -> None:
    """Everything that can be told of tasks before a model has answered one; UserError shows the first problem at fault.

    tasks: those that are trained on, the same object twice where it counts double. held_out: further ones, of which
    only valid or test problems are asked. reward: what a gold answer's score would earn, which must be finite
    and of a size that can be computed with.
    """
    if not tasks:
        raise UserError(at="tasks", got="no task", want="at least one to train on")
    trained, others = _by_identity(tasks), _by_identity(held_out)
    _refuse_namesakes(_by_identity([*tasks, *held_out]))
    for task in trained:
        refuse_bad_task(task, ("train", *_splits_of(task, _HELD_OUT)), reward=reward)
    for task in others:
        refuse_bad_task(task, _splits_of(task, _HELD_OUT) or _HELD_OUT)
    refuse_overlap(trained, _by_identity([*tasks, *held_out]))


def refuse_bad_task(
    task: Task,
    splits: Sequence[Split] = _SPLITS,
    *,
    reward: Callable[[Problem, Score], float] | None = None,
) -> None:
    """UserError that shows the first problem whose gold answer is not right, for which anything goes, or at which the
    verifier fails: a model that finds out how to make it fail need not be right."""
    for split in splits:
        problems = task.problems(split, CHECKED_COSTLY if task.is_costly else CHECKED, seed=0)
        if not problems:
            raise UserError(
                at=f"task {task.id}",
                got=f"no problem in the split {split}",
                want="problems in every split that is asked for",
            )
        _refuse_repeats(task, problems)
        for problem in problems:
            _refuse_bad_problem(task, problem, reward)


def _refuse_bad_problem(
    task: Task, problem: Problem, reward: Callable[[Problem, Score], float] | None
) -> None:
    gold = task.gold(problem)
    score = task.score(problem, gold)
    if not score.correct:
        why = f": {score.error}" if score.error else ""
        raise _shown(task, problem, f"its own answer {gold!r} scored as wrong{why}")
    if reward is not None and not abs(earned := reward(problem, score)) <= MAX_REWARD:
        raise _shown(task, problem, f"a reward of {earned} for its own answer {gold!r}")
    for empty in ("", NO_ANSWER):
        score = task.score(problem, empty)
        if score.correct or score.error:
            became = f"failed: {score.error}" if score.error else "scored as correct"
            raise _shown(task, problem, f"the answer {empty!r} {became}")


def _refuse_repeats(task: Task, problems: Sequence[Problem]) -> None:
    seen: set[str] = set()
    for problem in problems:
        names = set(_names(problem))
        if seen & names:
            raise _shown(task, problem, "the same problem twice")
        seen |= names


def _refuse_namesakes(tasks: Sequence[Task]) -> None:
    """An answer is scored by the task of the problem's id: two of one id would be judged by one of them."""
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise UserError(
                at=f"task {task.id}",
                got="two tasks of this id",
                want="one task for each id",
                hint="levels of one task, such as num_numbers=3..5, or another name= for a file",
            )
        seen.add(task.id)


def refuse_overlap(
    train: Sequence[Task], held_out: Sequence[Task], at_most: int = COMPARED
) -> None:
    """UserError that shows a problem that one task trains on and a task, be it the same, holds out.

    Problems are the same where their keys are, or their prompts up to case and spaces. Files are compared whole; of
    tasks that make their problems `at_most` of each split.
    """
    known = {
        name: task
        for task in train
        for problem in _some(task, "train", at_most)
        for name in _names(problem)
    }
    for task in held_out:
        for split in _splits_of(task, _HELD_OUT):
            for problem in _some(task, split, at_most):
                for name in _names(problem):
                    if name in known:
                        of = "" if known[name].id == task.id else f" by {known[name].id}"
                        raise _shown(task, problem, f"a {split} problem that is trained on too{of}")


def _names(problem: Problem) -> Iterator[str]:
    """What tells one problem from another: its key, and its prompt however it is laid out."""
    yield problem.key
    yield "prompt:" + normalised(problem.prompt)


def _some(task: Task, split: Split, at_most: int) -> list[Problem]:
    if isinstance(task, TextProblems):
        return task.all_of(split)
    return task.problems(split, at_most // 10 if task.is_costly else at_most, seed=0)


def _splits_of(task: Task, splits: Sequence[Split]) -> list[Split]:
    """Those of `splits` that the task has: all of them, but where a file was said to be of one kind."""
    own = task.splits if isinstance(task, TextProblems) else _SPLITS
    return [split for split in splits if split in own]


def _by_identity(tasks: Sequence[Task]) -> list[Task]:
    return list({id(task): task for task in tasks}.values())


def _shown(task: Task, problem: Problem, got: str) -> UserError:
    return UserError(
        at=f"task {task.id}",
        got=f"{got}; the problem: {problem.prompt[:200]!r}",
        want="problems whose answers can be trusted",
    )
