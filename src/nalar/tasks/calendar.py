"""Calendar: weekdays, dates so many days later, days between two dates."""

import random
from datetime import date, timedelta

from nalar.tasks.answers import NOT_READ, number_score
from nalar.tasks.config import CalendarConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MAX_CHARS = 40


class Calendar(Family):
    """Two dates of the Gregorian calendar, and a question about them. Two dates are held out in every question."""

    id = "calendar"

    def __init__(self, config: CalendarConfig | None = None) -> None:
        self.settings = config or CalendarConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        config = self.settings
        first = date(config.first_year, 1, 1)
        days = (date(config.last_year, 12, 31) - first).days
        start = first + timedelta(rng.randint(0, days))
        apart = rng.randint(1, config.max_days)
        question = rng.choice(config.chosen)
        end = start + timedelta(apart)
        said, gold = self._question(question, start, end, apart)
        return Problem(
            task=self.id,
            key=f"calendar:{start} {end}|{question}",
            prompt=said,
            data={"question": question, "answer": gold},
        )

    def _question(self, question: str, start: date, end: date, apart: int) -> tuple[str, str]:
        if question == "weekday":
            known, asked = WEEKDAYS[start.weekday()], WEEKDAYS[end.weekday()]
            return f"{start} is a {known}. Which weekday is {end}?", asked
        if question == "add":
            plural = "s" if apart > 1 else ""
            return f"Which date is {apart} day{plural} after {start}?", str(end)
        return f"How many days after {start} is {end}?", str(apart)

    def gold(self, problem: Problem) -> str:
        answer: str = problem.data["answer"]
        return answer

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: a weekday's English name, a date as 2024-02-29, or a number."""
        gold, text = self.gold(problem), answer.strip()
        if problem.data["question"] == "between":
            return number_score(text, int(gold))
        if len(text) > _MAX_CHARS or not text.isascii():
            return NOT_READ
        if problem.data["question"] == "weekday":
            name = text.capitalize()
            if name not in WEEKDAYS:
                return NOT_READ
            return Score(correct=name == gold, well_formed=True, canonical=name)
        try:
            told = date.fromisoformat(text)
        except ValueError:
            return NOT_READ
        if text != str(told):  # other forms of ISO 8601 are no plain date
            return NOT_READ
        return Score(correct=text == gold, well_formed=True, canonical=text)

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """A weekday, a date within reach of the one shown, or a number of days within reach."""
        if problem.data["question"] == "weekday":
            return rng.choice(WEEKDAYS)
        apart = rng.randint(1, self.settings.max_days)
        if problem.data["question"] == "between":
            return str(apart)
        shown = date.fromisoformat(problem.prompt.removesuffix("?").rsplit(" ", 1)[1])
        return str(shown + timedelta(apart))
