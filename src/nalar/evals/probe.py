"""Is a base ready for RL? Sample its own searches and see whether it marks what hits, and only that."""

from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.sequence import SamplingParams
from nalar.evals.config import ProbeConfig
from nalar.evals.protocol import Sample, sample_problems
from nalar.evals.results import ProbeResult
from nalar.tasks.problem import Task
from nalar.tasks.traces import is_hit, marked_tries

PROBE_SEED = 20_240_601  # fixed: every slice of every run is asked the same


def probe(
    engine: Engine, tokenizer: Tokenizer, task: Task, config: ProbeConfig
) -> tuple[ProbeResult, list[list[Sample]]]:
    """The verdict and the samples. Deterministic for given weights: fixed valid problems and seeds."""
    problems = task.problems("valid", config.problems, PROBE_SEED)
    params = SamplingParams(n=config.samples, max_tokens=config.max_tokens, seed=PROBE_SEED)
    groups = sample_problems(engine, tokenizer, task, problems, params)
    return judge([s for group in groups for s in group], config), groups


def judge(samples: list[Sample], config: ProbeConfig) -> ProbeResult:
    """The verdict on sampled searches."""
    hits = misses = marked_hits = marked_misses = after = after_correct = 0
    for sample in samples:
        found = False
        for attempt in marked_tries(sample.parsed.thought):
            if is_hit(attempt.text, sample.problem.data):
                hits += 1
                marked_hits += attempt.marked_hit
                found = found or attempt.marked_hit
            else:
                misses += 1
                marked_misses += attempt.marked_hit
        after += found
        after_correct += found and sample.correct
    recall = marked_hits / hits if hits else 0.0
    false_frac = marked_misses / misses if misses else 0.0
    reason = _reason(hits, recall, false_frac, config)
    return ProbeResult(
        hits=hits,
        misses=misses,
        recall=recall,
        false_frac=false_frac,
        after_hit_correct_frac=after_correct / after if after else 0.0,
        pass_at_1=sum(s.correct for s in samples) / len(samples),
        passed=reason is None,
        reason=reason
        or ("recognises its own hits" if hits else "no try hit, and none is asked for"),
    )


def _reason(hits: int, recall: float, false_frac: float, config: ProbeConfig) -> str | None:
    if hits < config.min_hits:
        return f"only {hits} tries hit the target, {config.min_hits} wanted"
    if recall < config.min_recall:
        return f"marks {recall:.0%} of its hits, {config.min_recall:.0%} wanted"
    if false_frac > config.max_false_frac:
        return f"marks {false_frac:.1%} of its misses as hits, {config.max_false_frac:.0%} allowed"
    return None
