"""Verifiers at work while the engine goes on."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from nalar.data.tokenizer import Tokenizer
from nalar.rl.config import RewardConfig
from nalar.rl.group import Group
from nalar.rl.rollout import Judged, judge_response
from nalar.tasks.problem import Task

THREADS = 4
"""A verifier that takes its time waits in one for its own process, and holds up none but those that share it."""


class Verdicts:
    """Asked for as samples end, and waited for where they are needed: what is decided by them does not depend on when
    they come."""

    def __init__(self, tokenizer: Tokenizer, tasks: Sequence[Task], config: RewardConfig) -> None:
        self._tokenizer, self._config = tokenizer, config
        self._tasks = {task.id: task for task in tasks}
        judge = config.judged_by
        threads = THREADS if judge is None else max(THREADS, judge.endpoint.max_concurrency)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verifier")
        self._coming: dict[tuple[Group, int], Future[Judged]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ask(self, group: Group, i: int) -> None:
        task = self._tasks[group.problem.task]
        self._coming[group, i] = self._pool.submit(
            judge_response,
            self._tokenizer,
            task,
            group.problem,
            group.responses[i],
            self._config,
            thinking=group.thinking,
        )

    def settle(self, group: Group) -> None:
        """Wait for the verdicts on what is whole of a group, and give them to it."""
        for i in range(len(group.responses)):
            coming = self._coming.pop((group, i), None)
            if coming is not None:
                group.judged[i] = coming.result()
