"""Documents on Countdown: verdict lists, conversions, and dialogues that search blindly.

Nothing is filtered for correctness: searches stop, give up, slip and misjudge with the frequencies of the config.
"""

import math
import random
from collections.abc import Iterable, Sequence

from nalar.data.config import CorpusConfig
from nalar.data.corpora.facts import slip
from nalar.data.corpora.sources import Sources
from nalar.data.template import END, turn
from nalar.tasks.countdown import Try

HIT, MISS = "✓", "✗"
_SPACED = {ord(c): f" {c} " for c in "+-*="} | {ord(","): ", "}
_WORDS = str.maketrans({HIT: " yes", MISS: " no"})
_ARROWS = (" -> ", " is ", "\n")


def _pick(rng: random.Random, pool: Sequence[Try]) -> Try:
    return pool[int(rng.random() * len(pool))]


def _line(rng: random.Random, config: CorpusConfig, found: Try, target: int) -> tuple[str, bool]:
    """A try with its mark, and what the mark says."""
    steps = found.steps
    if rng.random() < config.slip_frac:
        steps = slip(rng, steps)
    is_hit = steps.rpartition("=")[2] == str(target)
    if rng.random() < config.wrong_verdict_frac:
        is_hit = not is_hit
    return steps + (HIT if is_hit else MISS), is_hit


def _messy(rng: random.Random, text: str, *, spaced: bool) -> str:
    """The text with words for marks, on one line, or with spaces."""
    style = rng.random()
    if spaced:
        text = text.translate(_SPACED)
    if style < 0.67:
        text = text.translate(_WORDS)
    if style > 0.33:
        text = text.replace("\n", " ")
    return text


def _lookalikes(target: int) -> list[int]:
    """Values a hurried reader may take for the target."""
    swapped = int(str(target)[::-1])
    return [target + d for d in (-10, -2, -1, 1, 2, 10)] + [swapped] * (swapped != target)


def _pools(
    rng: random.Random, config: CorpusConfig, sources: Sources
) -> tuple[str, int, list[Sequence[Try]]]:
    """Header, target, and pools of tries: hits, misses, then those whose results look like the target."""
    if rng.random() < config.verdict_from_frac:
        problem = sources.countdown.draw(rng, "train")
        target = problem.data["target"]
        tries = sources.tries_over(tuple(problem.data["numbers"]))
        misses = [t for t in tries if t.value != target]
        return problem.prompt, target, [[t for t in tries if t.value == target], misses or tries]
    if rng.random() < config.one_step_frac:
        tries, by_value = sources.pairs, sources.pairs_by_value
    else:
        tries, by_value = sources.tries, sources.tries_by_value
    target = _pick(rng, tries).value
    near = [by_value[value] for value in _lookalikes(target) if value in by_value]
    return f"make {target}", target, [by_value[target], tries, *near]


def verdicts(rng: random.Random, config: CorpusConfig, sources: Sources) -> str:
    """A target and 2 to 9 tries at it, of which about hit_frac reach it."""
    header, target, pools = _pools(rng, config, sources)
    lines = []
    for _ in range(2 + int(rng.random() * 8)):
        if rng.random() < config.hit_frac and pools[0]:
            pool = pools[0]
        elif len(pools) > 2 and rng.random() < config.near_miss_frac:
            pool = pools[2 + int(rng.random() * (len(pools) - 2))]
        else:
            pool = pools[1]
        lines.append(_line(rng, config, _pick(rng, pool), target)[0])
    body = "\n".join(lines)
    if rng.random() < config.messy_frac:
        body = _messy(rng, body, spaced=rng.random() < 0.5)
    return f"{header}\n{body}{END}"


def conversions(rng: random.Random, config: CorpusConfig, sources: Sources) -> str:
    """2 to 6 tries, each as steps and as an expression, in one direction and one layout."""
    arrow = _ARROWS[int(rng.random() * len(_ARROWS))]
    to_expression = rng.random() < 0.6
    lines = []
    for _ in range(2 + int(rng.random() * 5)):
        found = _pick(rng, sources.tries)
        steps = slip(rng, found.steps) if rng.random() < config.slip_frac else found.steps
        lines.append(
            steps + arrow + found.expression if to_expression else found.expression + arrow + steps
        )
    return "\n".join(lines) + END


def _patience(rng: random.Random, config: CorpusConfig) -> int:
    """How many tries a search is good for: 0, or geometric."""
    if rng.random() < config.no_try_frac:
        return 0
    mean = config.long_mean_tries if rng.random() < config.long_search_frac else config.mean_tries
    if mean <= 1:
        return 1
    return min(config.max_tries, 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean)))


def _blind_tries(
    rng: random.Random, config: CorpusConfig, sources: Sources, numbers: tuple[int, ...]
) -> Iterable[Try]:
    """As many random tries as the search has patience for."""
    count = _patience(rng, config)
    if sources.is_enumerated and rng.random() < config.no_repeat_frac:
        tries = sources.countdown.tries(numbers)
        return rng.sample(tries, min(count, len(tries)))
    return [sources.countdown.random_try(rng, numbers) for _ in range(count)]


def search(rng: random.Random, config: CorpusConfig, sources: Sources) -> str:
    """A dialogue: blind tries until a marked hit or the end of patience, then an answer."""
    problem = sources.countdown.draw(rng, "train")
    numbers, target = tuple(problem.data["numbers"]), problem.data["target"]
    lines: list[str] = []
    last = hit = None
    for last in _blind_tries(rng, config, sources, numbers):
        line, is_hit = _line(rng, config, last, target)
        lines.append(line)
        if is_hit:
            hit = hit or last
            if rng.random() >= config.past_hit_frac:
                break
    chosen = hit
    if chosen is None and last is not None and rng.random() < config.answer_last_frac:
        chosen = last
    answer = (chosen or sources.countdown.random_try(rng, numbers)).expression
    thought = "\n".join(lines)
    if rng.random() < config.messy_frac:
        spaced = rng.random() < 0.5
        thought = _messy(rng, thought, spaced=spaced)
        answer = answer.translate(_SPACED) if spaced else answer
    return turn(problem.prompt, thought, answer)
