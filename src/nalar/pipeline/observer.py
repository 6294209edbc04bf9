"""Who watches a run: the command line draws it, tests record it."""

from collections.abc import Mapping
from typing import Protocol


class Observer(Protocol):
    """Told of everything a user may want to see. Values are plain numbers, keyed as in metrics.jsonl."""

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        """A stage begins, or goes on after `done` steps; `steps` is None where the number is not known."""
        ...

    def step(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One step is done. `usd`, `tokens_per_s` and `wall_s` (of the stage so far) are always among the values."""
        ...

    def note(self, text: str) -> None:
        """A line worth keeping on screen: a probe's verdict, a result, where a file was written."""
        ...

    def stage_finished(self, stage: str) -> None: ...
