"""From samples to lines of a data set: filtered, written anew, told apart, and no more than enough of each problem."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nalar.data.tokenizer import Tokenizer
from nalar.evals.protocol import Sample
from nalar.pipeline.chunks import Tally
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.dataset import Line, dialogue
from nalar.pipeline.filters import (
    DUPLICATE,
    FINAL,
    SAMPLED,
    SURPLUS,
    UNUSABLE,
    Draft,
    objection,
    repeats,
    switched_on,
)
from nalar.pipeline.rewriting import rewritten


@dataclass(frozen=True)
class Sampling:
    """Where samples come from, as every line says it."""

    stage: str
    model: str
    policy: str
    seed: int
    """Of `sample_problems`."""


def select(
    samples: Sequence[Sequence[Sample]],
    config: CollectConfig,
    tokenizer: Tokenizer,
    origin: Sampling,
) -> tuple[Tally, list[Line]]:
    """What is kept of some problems' samples, by problem. UserError where a judge of theirs is of no use at all."""
    dropped: Counter[str] = Counter()
    drafts = [_passing(group, config, tokenizer, dropped) for group in samples]
    # Of all problems at once: a judge is asked for them side by side.
    flat = [draft for some in drafts for draft in some]
    new = rewritten(flat, config, tokenizer, stage=origin.stage)
    written = iter(new.drafts)
    kept = [_final(written, len(some), config, dropped) for some in drafts]
    lines = [
        _line(group[0], draft, config, origin, place)
        for place, (group, chosen) in enumerate(zip(samples, kept, strict=True))
        for draft in chosen
    ]
    tally = Tally(
        problems=len(samples),
        kept_problems=sum(bool(chosen) for chosen in kept),
        samples=sum(map(len, samples)),
        kept=len(lines),
        rewritten=sum(line.rewritten for line in lines),
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        prompt_tokens=sum(group[0].num_prompt_tokens for group in samples),
        tokens=sum(one.num_response_tokens for group in samples for one in group),
        kept_tokens=sum(line.tokens for line in lines),
        judge_tokens=new.judge_tokens,
    )
    return tally, lines


def _passing(
    group: Sequence[Sample], config: CollectConfig, tokenizer: Tokenizer, dropped: Counter[str]
) -> list[Draft]:
    """Those of a problem's samples that may be learned from or written anew; the others are counted by reason."""
    drafts = []
    for sample, one in enumerate(group):
        draft = Draft(
            thought=one.parsed.thought,
            answer=one.parsed.answer,
            thought_ids=tuple(tokenizer.encode(one.parsed.thought)),
            answer_ids=tuple(tokenizer.encode(one.parsed.answer)),
            score=one.score,
            is_whole=one.parsed.well_formed,
            sample=sample,
        )
        if reason := objection(draft, config.filters, SAMPLED):
            dropped[reason] += 1
        else:
            drafts.append(draft)
    return _distinct(drafts, config, dropped)


def _final(
    written: Iterator[Draft | None], count: int, config: CollectConfig, dropped: Counter[str]
) -> list[Draft]:
    """What is kept of a problem, out of the next `count` drafts as they would be learned from."""
    passing = []
    for _ in range(count):
        draft = next(written)
        reason = UNUSABLE if draft is None else objection(draft, config.filters, FINAL)
        if draft is None or reason is not None:
            dropped[str(reason)] += 1
        else:
            passing.append(draft)
    passing = _distinct(passing, config, dropped)
    dropped[SURPLUS] += len(passing[config.keep_per_problem :])
    return passing[: config.keep_per_problem]


def _distinct(drafts: list[Draft], config: CollectConfig, dropped: Counter[str]) -> list[Draft]:
    if not config.filters.duplicates:
        return drafts
    again = repeats(drafts)
    dropped[DUPLICATE] += sum(again)
    return [draft for draft, is_again in zip(drafts, again, strict=True) if not is_again]


def _line(first: Sample, draft: Draft, config: CollectConfig, origin: Sampling, place: int) -> Line:
    problem, thinks = first.problem, bool(draft.thought.strip())
    return Line(
        messages=dialogue(problem.prompt, draft.answer, draft.thought if thinks else None),
        origin=draft.origin,
        stage=origin.stage,
        form="whole" if thinks else "no_thinking",
        task=problem.task,
        key=problem.key,
        level=problem.level,
        model=origin.model,
        policy=origin.policy,
        seed=origin.seed * 1_000_003 + place,  # as `sample_problems` gives it to the engine
        sample=draft.sample,
        prompt_tokens=first.num_prompt_tokens,
        tokens=draft.num_tokens,
        filters=switched_on(config.filters),
        rewritten=draft.rewritten,
    )
