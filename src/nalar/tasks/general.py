"""Everyday requests, in English or Indonesian: `Thank Ana for the cake.`, `Undang Budi ke pesta.`"""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from nalar.tasks.answers import NOT_READ
from nalar.tasks.config import GeneralConfig
from nalar.tasks.courtesy import ACTS, CALLS, COLOURS, FILLERS, NAMES, SIZES, THINGS, WORDS
from nalar.tasks.family import Family
from nalar.tasks.language import LANGUAGES, Language
from nalar.tasks.phrases import (
    cut,
    either_mark,
    expanded,
    holds,
    is_one_sentence,
    is_plain,
    said_as,
    says_once,
    sentence,
    stammered,
    vocabulary,
    words_of,
)
from nalar.tasks.problem import Problem, Score
from nalar.tasks.rated import Variant

_MOST_WORDS = 12


class General(Family):
    """One sentence that does what was asked: in the language of the request, politely, to whom and about what it names.

    The key holds act, name and thing; its translation is held out with it.
    """

    id = "general"

    def __init__(self, config: GeneralConfig | None = None) -> None:
        self.settings = config or GeneralConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem:
        act = rng.choice(self.settings.chosen_acts)
        chosen = {"name": rng.choice(NAMES), "thing": rng.choice(list(THINGS[act]))}
        if act == "describe":
            chosen["size"] = rng.choice(list(SIZES))
            chosen["colour"] = rng.choice(list(COLOURS))
        language = rng.choice(self.settings.chosen_languages)
        data = {"act": act, "language": language, **chosen}
        return Problem(
            task=self.id,
            key=f"general:{act} {' '.join(chosen.values())}|{language}",
            prompt=sentence(_filled(ACTS[act][language].prompt, data, language)),
            data=data,
        )

    def gold(self, problem: Problem) -> str:
        return self.accepted(problem)[0]

    def score(self, problem: Problem, answer: str) -> Score:
        """Correct: one of the sentences by which the act is done, to the letter. Well-formed: a line of ASCII."""
        said = answer.strip(" \t\r\n")
        if not is_plain(said):
            return NOT_READ
        return Score(correct=said in self.accepted(problem), well_formed=True, canonical=said)

    def quality(self, problem: Problem, answer: str) -> float:
        """Share of the points of the rubric that are met."""
        points = self.points(problem, answer)
        return sum(points.values()) / len(points)

    def points(self, problem: Problem, answer: str) -> dict[str, bool]:
        """The rubric, by name. All are met by what scores correct, and by nothing else."""
        said, data = answer.strip(" \t\r\n"), problem.data
        language: Language = data["language"]
        words = words_of(said)
        act = ACTS[data["act"]][language]
        others = {name.lower() for name in NAMES} - {data["name"].lower()}
        named = sum(word.removesuffix("'s") == data["name"].lower() for word in words)
        return {
            "language": bool(words) and not _foreign(language, words),
            "name": named == 1 and not others & {word.removesuffix("'s") for word in words},
            "thing": all(
                said_as(words, WORDS[data[part]][language], language)
                for part in ("thing", "size", "colour")
                if part in data
            ),
            "polite": not act.polite or any(holds(words, formula) for formula in act.polite),
            "sentence": is_one_sentence(said) and says_once(words, _MOST_WORDS),
            "act": said in self.accepted(problem),
        }

    def variants(self, rng: random.Random, problem: Problem) -> list[Variant]:
        """Three that are good, and one of every flaw."""
        good = self.accepted(problem)
        texts: list[tuple[str, str | None]] = [(text, None) for text in rng.sample(good, 3)]
        texts += [(self.flawed(rng, problem, flaw), flaw) for flaw in FLAWS]
        rng.shuffle(texts)
        return [Variant(text, self.quality(problem, text), flaw) for text, flaw in texts]

    def flawed(self, rng: random.Random, problem: Problem, flaw: str) -> str:
        """A wrong answer of one of `FLAWS`."""
        data = problem.data
        language: Language = data["language"]
        good = rng.choice(self.accepted(problem))
        if flaw == "rude":
            return sentence(_filled(ACTS[data["act"]][language].rude, data, language))
        if flaw == "no_name":
            return sentence(_nameless(good, data["name"]))
        if flaw == "wrong_name":
            other = rng.choice([name for name in NAMES if name != data["name"]])
            return rng.choice(_ways(*_frozen({**data, "name": other}, language)))
        if flaw == "wrong_language":
            other_language = next(one for one in LANGUAGES if one != language)
            return rng.choice(_ways(*_frozen(data, other_language)))
        if flaw == "unfinished":
            return cut(good, rng.uniform(0.3, 0.9))
        if flaw == "padded":
            fillers = rng.sample(FILLERS[language], 2)
            return " ".join([good, *fillers] if rng.random() < 0.7 else [fillers[0], good])
        return f"{good} {good}" if rng.random() < 0.5 else stammered(rng, good)

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self.another_answer(rng)

    def accepted(self, problem: Problem) -> tuple[str, ...]:
        """All sentences that score correct, the plainest first."""
        return _ways(*_frozen(problem.data, problem.data["language"]))


FLAWS = ("rude", "no_name", "wrong_name", "wrong_language", "unfinished", "padded", "repeated")


def _frozen(
    data: Mapping[str, str], language: Language
) -> tuple[Language, tuple[tuple[str, str], ...]]:
    parts = ("act", "name", "thing", "size", "colour")
    return language, tuple((part, data[part]) for part in parts if part in data)


@lru_cache(maxsize=4096)
def _ways(language: Language, parts: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """All sentences that do what a request asks for, the plainest first."""
    data = dict(parts)
    cores = [one for core in ACTS[data["act"]][language].cores for one in expanded(core)]
    made = (text for core in cores for text in _to(core, data["name"], language))
    texts = (sentence(_filled(text, data, language)) for text in made)
    return tuple(dict.fromkeys(either_mark(texts)))


def _to(core: str, name: str, language: Language) -> Iterator[str]:
    """A core with the name of whoever is meant behind it, or before."""
    if "{name}" in core:
        yield core
        return
    yield f"{core[:-1]}, {name}{core[-1]}"
    for call in CALLS[language]:
        yield f"{call}{name}, {core}"


def _filled(pattern: str, data: Mapping[str, str], language: Language) -> str:
    words = {
        part: WORDS[data[part]][language] for part in ("thing", "size", "colour") if part in data
    }
    return pattern.format(name=data["name"], **words)


def _nameless(text: str, name: str) -> str:
    """As if nobody had been named: `Good luck with the test, Ana.` without what is for Ana."""
    for call in ("", "Dear ", "Hi ", "Halo ", "Hai "):
        if text.startswith(f"{call}{name}, "):
            return text.removeprefix(f"{call}{name}, ")
    for of, instead in (
        (f", {name}", ""),
        (f"{name}'s ", "The "),
        (f"{name} has", "It is"),
        (f"{name} punya", "Itu"),
    ):
        if of in text:
            return text.replace(of, instead)
    return text.replace(f"{name} ", "")


def _foreign(language: Language, words: Sequence[str]) -> set[str]:
    """Those of them that belong to another language alone."""
    others = (_vocabulary(other) for other in LANGUAGES if other != language)
    return {word for other in others for word in words if word in other} - _vocabulary(language)


@lru_cache
def _vocabulary(language: Language) -> frozenset[str]:
    """All words of a language that occur in what is accepted, or in a flaw."""
    patterns = [pair[language] for pair in WORDS.values()]
    for act in ACTS.values():
        patterns += [*act[language].cores, act[language].rude]
    return vocabulary([*patterns, *CALLS[language], *FILLERS[language]], language)
