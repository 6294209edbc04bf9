"""Lessons on words read backwards: number the letters, then go through them from the last number."""

import random

from nalar.config import ConfigError
from nalar.data.corpora.lesson import Worked
from nalar.tasks.config import StringsConfig
from nalar.tasks.family import split_of_key
from nalar.tasks.problem import Problem
from nalar.tasks.strings import Strings


class StringsLesson(Worked):
    """`Write dbha backwards.` is worked as `1d 2b 3h 4a,4a,3h,2b,1d`. Pieces number the letters of train words."""

    def __init__(self, config: StringsConfig) -> None:
        if config.chosen != ("reverse",) or config.max_letters > 9:
            raise ConfigError(
                at="corpus.lessons",
                got=f"strings with actions={config.actions}, up to {config.max_letters} letters",
                want="actions=reverse, up to 9 letters",
            )
        super().__init__(Strings(config))

    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        while True:
            letters = self._numbered(rng, problem.data["word"], slip_frac)
            back = [self._slip(rng, one, letters, slip_frac) for one in letters[::-1]]
            answer = "".join(one[1] for one in back)
            if is_train(answer):
                return [" ".join(letters), *back], answer

    def _numbered(self, rng: random.Random, word: str, slip_frac: float) -> list[str]:
        letters = [f"{i}{letter}" for i, letter in enumerate(word, 1)]
        return [self._slip(rng, one, letters, slip_frac) for one in letters]

    def _slip(self, rng: random.Random, one: str, letters: list[str], slip_frac: float) -> str:
        """The same number, maybe with another letter of the word."""
        return one[0] + rng.choice(letters)[1] if rng.random() < slip_frac else one

    def piece(self, rng: random.Random, slip_frac: float) -> str:
        word = self.draw(rng).data["word"]
        return f"{word}: {' '.join(self._numbered(rng, word, slip_frac))}"

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """The word's letters in a random order."""
        while not is_train(word := self.task.guess(rng, problem)):
            pass
        return word


def is_train(word: str) -> bool:
    """Slips and guesses too are words: none is one that is held out, forwards or backwards."""
    return split_of_key(Strings.key_of(word)) == "train"
