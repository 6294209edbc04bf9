"""What a response earns, in small parts that are weighted and added up. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nalar.rl.config import RewardConfig, ScoredBy
from nalar.rl.judge import Case, judge
from nalar.tasks.language import share_of
from nalar.tasks.problem import Problem, Score


@dataclass(frozen=True)
class Facts:
    """What the parts look at."""

    task: str
    score: Score
    is_whole: bool
    """Whether thought and turn are closed, and nothing stands where it should not."""
    thought: str = ""
    """Of a response without thinking, its answer: what its language is told by."""
    num_tokens: int = 0
    max_tokens: int | None = None
    """Cap on the response. None: there was none."""
    case: Case | None = None
    """What a model that judges is shown. None: none is asked."""
    judged: float | None = None
    """Its verdict, from 0 to 1. None: it was not asked, which earns nothing."""
    scores: Mapping[ScoredBy, float] | None = None
    """Of models that score, from 0 to 1; what one did not score earns nothing. None: in this step they have no say."""


def accuracy(facts: Facts, config: RewardConfig) -> float:
    """1 for a correct answer in a whole response."""
    return 1.0 if facts.score.correct and facts.is_whole else 0.0


def form(facts: Facts, config: RewardConfig) -> float:
    """1 for a whole response with an answer that parses."""
    return 1.0 if facts.is_whole and facts.score.well_formed else 0.0


def language(facts: Facts, config: RewardConfig) -> float:
    """Share of the thought that is in the language asked for, as DeepSeek-R1 rewarded it; 0 where the turn is open."""
    if config.target_language is None or not facts.is_whole:
        return 0.0
    return share_of(config.target_language, facts.thought)


def overlong(facts: Facts, config: RewardConfig) -> float:
    """0 up to a share of the cap, from there down to -1 at the cap (DAPO, arXiv:2503.14476, equation 13)."""
    if facts.max_tokens is None:
        return 0.0
    start = config.overlong_from_frac * facts.max_tokens
    beyond = facts.num_tokens - start
    return 0.0 if beyond <= 0 else -min(1.0, beyond / (facts.max_tokens - start))


def by_judge(facts: Facts, config: RewardConfig) -> float:
    """The verdict of the model that judges; 0 where it had nothing to judge: no whole response, or a blank answer."""
    return facts.judged or 0.0


def by_preference(facts: Facts, config: RewardConfig) -> float:
    """The squashed score of the final answer; 0 where there is none: no whole response."""
    return (facts.scores or {}).get("preference", 0.0)


def by_safety(facts: Facts, config: RewardConfig) -> float:
    """The squashed score of thought and answer, likewise."""
    return (facts.scores or {}).get("safety", 0.0)


PARTS: Mapping[str, Callable[[Facts, RewardConfig], float]] = {
    "well_formed": form,
    "correct": accuracy,
    "language": language,
    "overlong": overlong,
    "judge": by_judge,
    "preference": by_preference,
    "safety": by_safety,
}
"""By the name of their weight, in the order in which they are added."""
SCORED: Sequence[ScoredBy] = ("preference", "safety")
"""Those that models give."""


def with_verdicts(facts: Sequence[Facts], config: RewardConfig) -> list[Facts]:
    """The same with verdicts of the model that judges, all of them asked for side by side; to be called once for a
    rollout, before rewards are worked out. Where it gives none, the score gets its reason as an error of the verifier:
    it is counted, and no reward is made up, or that of a wrong answer where the answer may be to blame. Facts whose
    tasks no model judges come back as they are."""
    asked = [
        i
        for i, one in enumerate(facts)
        if config.weights_of(one.task).judge
        and one.is_whole
        and one.score.error is None
        and one.case is not None
        and one.case.answer.strip()
    ]
    if not asked or config.judged_by is None:
        return list(facts)
    told = list(facts)
    cases = [case for i in asked if (case := facts[i].case) is not None]
    for i, verdict in zip(asked, judge(cases, config.judged_by), strict=True):
        score = facts[i].score
        if verdict.error is not None:
            late = score.timed_out or verdict.timed_out
            score = replace(score, error=verdict.error, timed_out=late)
        told[i] = replace(facts[i], score=score, judged=verdict.value)
    return told


def gold_reward(config: RewardConfig) -> Callable[[Problem, Score], float]:
    """What a whole response with an answer of this score earns at the most, before anything is drawn: weights may be
    such that their sum is no number any more."""

    def earned(problem: Problem, score: Score) -> float:
        most: dict[ScoredBy, float] = {"preference": 1.0, "safety": 1.0}
        whole = Facts(problem.task, score, is_whole=True, judged=1.0, scores=most)
        parts = weighted_parts(whole, config) or {}
        return sum(parts.values()) + 0.5 * config.weights_of(problem.task).length

    return earned


def weighted_parts(facts: Facts, config: RewardConfig) -> dict[str, float] | None:
    """What each part earns, those of weight 0 and those without a say left out; None where the verifier failed: that is
    no verdict."""
    if facts.score.error is not None and facts.judged is None:
        return None
    weights = config.weights_of(facts.task)
    silent = SCORED if facts.scores is None else ()
    return {
        name: weight * part(facts, config)
        for name, part in PARTS.items()
        if (weight := getattr(weights, name)) and name not in silent
    }


def length_parts(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """From 0.5 for the shortest of a group to -0.5 for the longest, in tokens; a wrong response earns nothing by being
    short (Kimi k1.5, arXiv:2501.12599). All 0 where none is longer than another."""
    low, high = min(lengths), max(lengths)
    if low == high:
        return [0.0] * len(lengths)
    rank = [0.5 - (length - low) / (high - low) for length in lengths]
    return [r if right else min(0.0, r) for r, right in zip(rank, correct, strict=True)]


def group_rewards(group: Sequence[Facts], config: RewardConfig) -> list[Mapping[str, float] | None]:
    """The parts of each response to one problem, beside each other; None where the verifier failed."""
    found = [weighted_parts(facts, config) for facts in group]
    weight = config.weights_of(group[0].task).length
    judged = [i for i, parts in enumerate(found) if parts is not None]
    if not weight or not judged:
        return list(found)
    lengths = length_parts(
        [group[i].num_tokens for i in judged], [accuracy(group[i], config) > 0 for i in judged]
    )
    for i, length in zip(judged, lengths, strict=True):
        found[i] = {**(found[i] or {}), "length": weight * length}
    return list(found)


def totals(parts: Sequence[Mapping[str, float] | None]) -> list[float]:
    """The reward of each response of a group. One whose verifier failed gets the mean of the others, and so has no
    advantage and no disadvantage; where all failed, all get 0 and the group teaches nothing."""
    earned = [None if part is None else float(sum(part.values())) for part in parts]
    judged = [reward for reward in earned if reward is not None]
    mean = sum(judged) / len(judged) if judged else 0.0
    # Rounded, the mean of equals may be none of them: the group would no longer be a silent one.
    neutral = min(max(mean, min(judged, default=0.0)), max(judged, default=0.0))
    return [neutral if reward is None else reward for reward in earned]
