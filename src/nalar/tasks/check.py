"""What is refused before a run begins: tasks whose golds fail, that are empty, or whose held-out problems overlap."""

from collections.abc import Sequence

from nalar.config import UserError
from nalar.tasks.problem import Problem, Split, Task

CHECKED = 64
"""Problems of each split whose gold answer is scored."""
NO_ANSWER = "this is no answer"
_SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def refuse_bad_task(task: Task, splits: Sequence[Split] = _SPLITS) -> None:
    """UserError that shows the first problem whose gold answer is not right, for which anything goes, or at which the
    verifier fails: a model that finds out how to make it fail need not be right."""
    for split in splits:
        problems = task.problems(split, CHECKED, seed=0)
        if not problems:
            raise UserError(
                at=f"task {task.id}",
                got=f"no problem in the split {split}",
                want="problems in every split that is asked for",
            )
        _refuse_repeats(task, problems)
        for problem in problems:
            gold = task.gold(problem)
            score = task.score(problem, gold)
            if not score.correct:
                why = f": {score.error}" if score.error else ""
                raise _shown(task, problem, f"its own answer {gold!r} scored as wrong{why}")
            for empty in ("", NO_ANSWER):
                score = task.score(problem, empty)
                if score.correct or score.error:
                    became = f"failed: {score.error}" if score.error else "scored as correct"
                    raise _shown(task, problem, f"the answer {empty!r} {became}")


def _refuse_repeats(task: Task, problems: Sequence[Problem]) -> None:
    seen: dict[str, Problem] = {}
    for problem in problems:
        if problem.key in seen:
            raise _shown(task, problem, "the same problem twice")
        seen[problem.key] = problem


def refuse_overlap(train: Sequence[Task], held_out: Sequence[Task], at_most: int = 100_000) -> None:
    """UserError that shows a problem of one task's train split that another task holds out.

    One task's own splits are disjoint by construction; two files may not be. `at_most` problems of each are looked at.
    """
    known = {p.key for task in train for p in task.problems("train", at_most, seed=0)}
    for task in held_out:
        for split in ("valid", "test"):
            for problem in task.problems(split, at_most, seed=0):
                if problem.key in known:
                    raise _shown(task, problem, f"a {split} problem that is trained on too")


def _shown(task: Task, problem: Problem, got: str) -> UserError:
    return UserError(
        at=f"task {task.id}",
        got=f"{got}; the problem: {problem.prompt[:200]!r}",
        want="problems whose answers can be trusted",
    )
