"""Dialogues on chain sums: many blurt, some start to work and then guess, some work it through."""

import random

from nalar.data.config import CorpusConfig
from nalar.data.corpora.sources import Sources
from nalar.data.template import turn
from nalar.tasks.chain_sum import terms_of
from nalar.tasks.countdown import split_of_numbers

_OFFSETS = (-8, -6, -5, -4, -3, -3, -2, -2, -2, -1, -1, -1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 8)


def _guess(rng: random.Random, config: CorpusConfig, total: int) -> int:
    if rng.random() < config.chain_guess_right_frac:
        return total
    return total + _OFFSETS[int(rng.random() * len(_OFFSETS))]


def _running_totals(
    rng: random.Random, config: CorpusConfig, terms: list[int], num_steps: int
) -> tuple[str, int]:
    """The first steps, such as `3+4=7,7-5=2`, and the total they end at. A slip is carried on."""
    total, steps = terms[0], []
    for term in terms[1 : 1 + num_steps]:
        after = total + term
        if rng.random() < config.slip_frac:
            after += -1 if rng.random() < 0.5 else 1
        steps.append(f"{total}{term:+d}={after}")
        total = after
    return ",".join(steps), total


def _partial_steps(rng: random.Random, sources: Sources, terms: list[int]) -> int:
    """One or two, but never just two steps over numbers that Countdown holds out."""
    first = [abs(term) for term in terms[:3]]
    if rng.random() < 0.5 or (sources.holds_out_three and split_of_numbers(first) != "train"):
        return 1
    return 2


def chain(rng: random.Random, config: CorpusConfig, sources: Sources) -> str:
    """A dialogue on one train chain."""
    problem = sources.chain_sum.draw(rng, "train")
    terms, total = terms_of(problem.prompt), problem.data["total"]
    draw = rng.random()
    if draw < config.chain_blurt_frac:
        return turn(problem.prompt, "", str(_guess(rng, config, total)))
    if draw < config.chain_blurt_frac + config.chain_partial_frac:
        thought, _ = _running_totals(rng, config, terms, _partial_steps(rng, sources, terms))
        return turn(problem.prompt, thought, str(_guess(rng, config, total)))
    thought, reached = _running_totals(rng, config, terms, len(terms) - 1)
    return turn(problem.prompt, thought, str(reached))
