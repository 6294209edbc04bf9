"""Dialogues on arithmetic in which a calculator is at hand. Nothing is filtered for correctness: many guess at once,
many calls ask something else, and not every output is taken for the answer."""

import random

from nalar.data.config import CallsConfig
from nalar.data.template import END, answered_call, turn
from nalar.sandbox.answering import ERROR
from nalar.sandbox.tools import Calculator
from nalar.tasks.arithmetic import Arithmetic, expression_of

_NO_EXPRESSION_FRAC = 0.1
"""Calls that ask something else: those that break off."""


class Calls:
    """Problems of the train split, in prompts and in calls."""

    def __init__(self, config: CallsConfig) -> None:
        self.config = config
        self._task = Arithmetic(config.arithmetic)
        self._calculator = Calculator()

    def dialogue(self, rng: random.Random) -> str:
        problem = self._task.draw(rng, "train")
        guessed = _guess(rng, problem.data["value"])
        if rng.random() >= self.config.call_frac:
            return turn(problem.prompt, "", guessed)
        asked = expression_of(problem)
        if rng.random() >= self.config.right_frac:
            asked = self._another(rng)
        result = self._calculator.run({"expression": asked})
        output = (ERROR if result.error else "") + result.text
        is_read = rng.random() < self.config.read_frac and not result.error
        thought = answered_call(self._calculator.name, asked, output)
        return turn(problem.prompt, thought, output if is_read else guessed)

    def _another(self, rng: random.Random) -> str:
        """What some other train problem asks, whole or broken off."""
        asked = expression_of(self._task.draw(rng, "train"))
        if rng.random() < _NO_EXPRESSION_FRAC:
            return asked[: rng.randrange(1, len(asked))] + "*"
        return asked


def echo(rng: random.Random) -> str:
    """An expression, of numbers of any length, said three to six times. Nothing is worked out."""
    said = "".join(str(rng.randrange(10 ** rng.randrange(1, 6))) + rng.choice("+-*") for _ in "ab")
    said = said[:-1] if rng.random() < 0.7 else said.partition(said[-1])[0]
    between = rng.choice((" ", "\n", "=", ","))
    return between.join([said] * rng.randrange(3, 7)) + END


def _guess(rng: random.Random, value: int) -> str:
    """A number as long as the value, by someone who cannot work it out."""
    digits = len(str(abs(value)))
    return str(rng.randrange(10 ** (digits - 1), 10**digits))
