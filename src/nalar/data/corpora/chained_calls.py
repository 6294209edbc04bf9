"""Dialogues in which a calculator is called once a step: each thought says how many are left and whether the number
that came last is even or odd, each call goes by it. Nothing is filtered: many guess, give up or slip on the way."""

import random

from nalar.data.config import ChainedCallsConfig
from nalar.data.template import answered_call, turn
from nalar.sandbox.answering import ERROR
from nalar.sandbox.tools import Calculator
from nalar.tasks.hailstone import Hailstone, expression_of_step


class ChainedCalls:
    """Problems of the train split; outputs are the calculator's."""

    def __init__(self, config: ChainedCallsConfig) -> None:
        self.config = config
        self._task = Hailstone(config.hailstone)
        self._calculator = Calculator()

    def dialogue(self, rng: random.Random) -> str:
        problem = self._task.draw(rng, "train")
        kind, until = rng.random(), 0
        if kind < self.config.blurt_frac:
            return turn(problem.prompt, "", self._task.guess(rng, problem))
        if kind < self.config.blurt_frac + self.config.give_up_frac:
            until = rng.randrange(problem.data["steps"])
        number, add, left = problem.data["start"], problem.data["add"], problem.data["steps"]
        said, thought = str(number), ""
        while left > until:
            thought += f"{left} left, {'odd' if number % 2 else 'even'}: "
            asked, counted = self._step(rng, number, add)
            result = self._calculator.run({"expression": asked})
            said = (ERROR if result.error else "") + result.text
            thought += answered_call(self._calculator.name, asked, said)
            if result.error or "/" in said:  # half of an odd number: it knows no way on
                return turn(problem.prompt, thought, self._task.guess(rng, problem))
            number, left = int(said), left - counted
        return turn(problem.prompt, thought, said)

    def _step(self, rng: random.Random, number: int, add: int) -> tuple[str, int]:
        """What is asked of the calculator, and how many steps it is counted for."""
        if rng.random() >= self.config.slip_frac:
            return expression_of_step(number, add), 1
        match rng.randrange(3):
            case 0:
                return f"{number}/2" if number % 2 else f"{number}*3+{add}", 1
            case 1:
                return expression_of_step(_misread(rng, number), add), 1
        return expression_of_step(number, add), 0


def _misread(rng: random.Random, number: int) -> int:
    """With another digit in one place."""
    digits = list(str(number))
    at = rng.randrange(len(digits))
    digits[at] = rng.choice([d for d in "123456789" if d != digits[at]])
    return int("".join(digits))
