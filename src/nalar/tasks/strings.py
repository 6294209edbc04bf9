"""Strings: reverse a made-up word, count a letter, shift it in the alphabet, drop repeated letters."""

import random
from string import ascii_lowercase

from nalar.tasks.answers import number_score, words_score
from nalar.tasks.config import StringsConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score


class Strings(Family):
    """Made-up words of few different letters. A word is held out in all it is asked about, backwards too."""

    id = "strings"

    def __init__(self, config: StringsConfig | None = None) -> None:
        self.settings = config or StringsConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem:
        config = self.settings
        size = rng.randint(config.min_letters, config.max_letters)
        word = "".join(rng.choices(ascii_lowercase[: config.num_letters], k=size))
        action = rng.choice(config.chosen)
        said, gold, asked = self._question(rng, word, action)
        return Problem(
            task=self.id,
            key=f"{self.key_of(word)}|{word} {action} {asked}",
            prompt=said,
            data={"action": action, "answer": gold, "word": word},
        )

    @staticmethod
    def key_of(word: str) -> str:
        """What decides the split of all that is asked about a word."""
        return f"strings:{min(word, word[::-1])}"

    def _question(self, rng: random.Random, word: str, action: str) -> tuple[str, str, str]:
        """The prompt, the gold answer, and what was chosen at random beside the word."""
        if action == "reverse":
            return f"Write {word} backwards.", word[::-1], ""
        if action == "count":
            letter = rng.choice(word) if rng.random() < 0.8 else rng.choice(ascii_lowercase)
            return f"How often is the letter {letter} in {word}?", str(word.count(letter)), letter
        if action == "shift":
            places = rng.randint(1, self.settings.max_shift)
            plural = "s" if places > 1 else ""
            said = f"Move each letter of {word} {places} place{plural} on in the alphabet, from z on to a."
            return said, shifted(word, places), str(places)
        return (
            f"Write {word}, keeping only the first of each letter.",
            "".join(dict.fromkeys(word)),
            "",
        )

    def gold(self, problem: Problem) -> str:
        answer: str = problem.data["answer"]
        return answer

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: one word, or one number where letters are counted."""
        gold = self.gold(problem)
        if problem.data["action"] == "count":
            return number_score(answer, int(gold))
        return words_score(answer, [gold])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """Few repeats where letters are counted; else the word's own letters in a random order."""
        word = problem.data["word"]
        if problem.data["action"] == "count":
            return str(rng.randint(0, 2))
        if problem.data["action"] == "shift":
            return shifted(word, rng.randint(1, self.settings.max_shift))
        letters = word if problem.data["action"] == "reverse" else dict.fromkeys(word)
        return "".join(rng.sample(list(letters), len(letters)))


def shifted(word: str, places: int) -> str:
    return "".join(ascii_lowercase[(ascii_lowercase.index(c) + places) % 26] for c in word)
