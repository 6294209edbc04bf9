"""A task of the user's own: one Python file with two functions, run in a process that can be killed."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nalar.config import Config, UserError
from nalar.sandbox.worker import Worker, WorkerError
from nalar.tasks.answers import NOT_READ
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score, is_text

MAKE_S = 60.0
SCORE_S = 5.0
"""Seconds that one call of the user's functions may take."""
MAX_ANSWER = 100_000
"""Characters of an answer that are handed on."""
_VOTE_CHARS = 200


class OwnTaskConfig(Config):
    """Where the file lies; there is nothing else to set."""

    path: str


class OwnTask(Family):
    """`make(rng)` gives a dict with `prompt` and `answer`, `score(problem, answer)` gives True or False.

    The file is the user's own code, named by the user. Problems are split by the hash of their prompt, or of `key`
    where the dict has one.
    """

    is_costly = True
    """Nobody knows how long the user's score() takes, and a call crosses to another process."""

    def __init__(self, config: OwnTaskConfig) -> None:
        """UserError where the file is missing, does not load, or makes another problem from the same seed, be it in
        another process: a run that is resumed would meet other problems than one that was not."""
        super().__init__(config)
        self.path = Path(config.path).expanduser().absolute()
        self.id = self.path.stem
        if not self.path.is_file():
            raise UserError(at=config.path, got="no such file", want="a Python file with a task")
        self._worker = Worker("nalar.tasks.own_worker", str(self.path), memory_bytes=None)
        first = [self._made(1), self._made(1)]
        self._worker.close()
        if any(self._made(1) != made for made in first):
            raise self._objection(
                "two different problems from one seed",
                "all randomness from the rng that make(rng) is given",
            )

    def make(self, rng: random.Random) -> Problem:
        made = self._made(rng.getrandbits(48))
        whole = str(made.get("key", made["prompt"])).replace("|", "\N{BROKEN BAR}")
        key = f"own {self.id}:{whole}"  # a split is told by what stands before a bar: here, by all
        if not is_text(made["prompt"] + made["answer"] + key):
            raise self._objection(f"make(rng) gave {made!r:.120}", "text without lone surrogates")
        return Problem(
            task=self.id,
            key=key,
            prompt=made["prompt"],
            data=made,
        )

    def _made(self, seed: int) -> dict[str, Any]:
        try:
            reply = self._worker.ask({"seed": seed}, timeout_s=MAKE_S)
        except WorkerError as error:
            raise self._objection(f"make(rng): {error}", "a problem") from None
        if "error" in reply:
            raise self._objection(f"make(rng): {reply['error']}", "a problem of plain JSON")
        made = reply.get("made")
        fields = ("prompt", "answer")
        if not isinstance(made, Mapping) or not all(
            isinstance(made.get(field), str) and made[field].strip() for field in fields
        ):
            raise self._objection(
                f"make(rng) gave {made!r:.120}",
                "a dict with the texts `prompt` and `answer`",
            )
        return dict(made)

    def gold(self, problem: Problem) -> str:
        answer: str = problem.data["answer"]
        return answer

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: not blank. What the user's function raises, and a call that takes too long, is an error."""
        if not answer.strip() or len(answer) > MAX_ANSWER:
            return NOT_READ
        vote = " ".join(answer.split())[:_VOTE_CHARS]
        try:
            reply = self._worker.ask(
                {"problem": dict(problem.data), "answer": answer}, timeout_s=SCORE_S
            )
        except WorkerError as error:
            return Score(False, True, vote, f"score(): {error}", error.timed_out)
        if "error" in reply:
            return Score(False, True, vote, f"score(): {reply['error']}")
        if "correct" not in reply:
            return Score(False, True, vote, "score(): an answer to another question")
        return Score(correct=reply["correct"] is True, well_formed=True, canonical=vote)

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self.another_answer(rng)

    def close(self) -> None:
        self._worker.close()

    def _objection(self, got: str, want: str) -> UserError:
        return UserError(at=str(self.path), got=got, want=want, hint="docs/tasks.md has an example")
