"""What a report says when numbers are set beside each other: rows of tables, and no word stronger than they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from nalar.evals import units
from nalar.evals.baselines import BlindBaseline
from nalar.evals.report import Report
from nalar.evals.results import Estimate, TaskResult
from nalar.evals.text import printable
from nalar.tasks.registry import SEARCHING

_TITLES = {"countdown": "Countdown", "chain_sum": "Chain sums"}
_STAGES = {
    "data": "Reading the corpus",
    "pretrain": "Pretraining",
    "held_out_before": "Held-out loss before",
    "sft": "Fine-tuning",
    "held_out_after": "Held-out loss after",
    "evaluate_base": "Evaluation before RL",
    "rl": "Reinforcement learning",
    "evaluate_final": "Evaluation after RL",
    "report": "Baselines",
}


@dataclass(frozen=True)
class Measure:
    """One row of a task's table. `None`: not measured, or nothing to measure."""

    label: str
    before: str | None
    after: str | None
    before_estimate: Estimate | None = None
    after_estimate: Estimate | None = None


@dataclass(frozen=True)
class BaselineRow:
    """A baseline, and how the model after RL stands to it."""

    task: str
    label: str
    pass_at_1: Estimate
    mean_tries: float | None
    """Of a search; None where there is nothing to try."""
    about: str
    """What the label means, in a few words."""
    standing: str | None
    """`above`, `level` (the intervals overlap) or `below`; None where there is no model after RL."""


def task_title(task: str) -> str:
    return _TITLES.get(task, task)


def stage_title(stage: str) -> str:
    return _STAGES.get(stage, stage)


def measures(report: Report, task: str) -> list[Measure]:
    """All rows of a task, before and after."""
    before, after = report.results.before.get(task), report.results.after.get(task)
    shown = after or before
    if shown is None:
        return []
    k = shown.k
    estimates: list[tuple[str, Callable[[TaskResult], Estimate]]] = [
        ("pass@1", lambda r: r.pass_at_1)
    ]
    if k > 1:
        estimates.append((f"pass@{k}", lambda r: r.pass_at_k))
        estimates.append((f"majority@{k}", lambda r: r.maj_at_k))
    plain: list[tuple[str, Callable[[TaskResult], str]]] = [
        ("tokens a response", lambda r: f"{r.mean_response_tokens:.1f}"),
        ("well-formed", lambda r: units.percent(r.well_formed_frac)),
        ("cut off by the cap", lambda r: units.percent(r.truncated_frac)),
    ]
    if shown.mean_thought_tokens is not None:
        plain.insert(1, ("tokens of thought", _thought))
    if shown.self_check_frac is not None:
        plain.append(("with a self-check", lambda r: units.percent(r.self_check_frac)))
    if any(r is not None and r.readable_frac is not None for r in (before, after)):
        plain.append(("readable thoughts", lambda r: units.percent(r.readable_frac)))
    rows = []
    for label, take in estimates:
        pair = [take(result) if result else None for result in (before, after)]
        words = [units.percent(e.mean) if e else None for e in pair]
        rows.append(Measure(label, words[0], words[1], pair[0], pair[1]))
    for label, say in plain:
        told = [say(result) if result else None for result in (before, after)]
        rows.append(Measure(label, told[0], told[1]))
    if task in SEARCHING and report.tries:
        said = [
            f"{report.tries[w]:.1f}" if w in report.tries else None for w in ("before", "after")
        ]
        rows.append(Measure("tries a response", said[0], said[1]))
    return rows


def _thought(result: TaskResult) -> str:
    mean = result.mean_thought_tokens
    return units.NONE if mean is None else f"{mean:.1f}"


def headline(report: Report) -> str:
    """The run in one sentence."""
    model = report.model
    what = "A model"
    if model is not None:
        sizes = units.scaled(model.total_params), units.scaled(model.active_params)
        what = f"A model of {sizes[0]} parameters, {sizes[1]} of them active"
    took = ""
    if report.total is not None:
        took = f" in {units.duration(report.total.wall_s)} for {units.money(report.total.usd)}"
    if len(report.held_out) == 2:
        before, after = (report.held_out[when] for when in ("before", "after"))
        losses = f"from {before.loss:.3f} to {after.loss:.3f} nats a token"
        return f"A model fine-tuned{took}: the loss on {after.dialogues:,} held-out dialogues went {losses}."
    if not report.is_complete:
        last = report.stages[-1].name if report.stages else None
        done = f"after the stage {stage_title(last)!r}" if last else "at its start"
        failed = report.probe and not report.probe[-1].passed
        why = f" The base did not pass its probe: {report.probe[-1].reason}." if failed else ""
        return f"{what}. This run stands {done}{took}; it has not been evaluated after RL.{why}"
    begun = "trained from random weights"
    if isinstance(base := report.config.get("model"), str):
        begun = f"trained from {printable(_last_names(base))}"
    return f"{what}, {begun}{took}, with {_taught_by(report.config)} in RL."


def _taught_by(config: Mapping[str, Any]) -> str:
    """Who says in RL what is good: verifiers, or a model too."""
    teacher = config.get("rl", {}).get("distil", {}).get("teacher")
    if teacher is None:
        return "a checkable reward as its only teacher"
    return f"the model {printable(_last_names(teacher))} as its teacher, beside the rewards,"


def _last_names(folder: str) -> str:
    """As a reader elsewhere may know it: the last two names of its path."""
    return "/".join(PurePath(folder).parts[-2:])


def blind_label(row: BlindBaseline) -> str:
    """Such as `blind search, no repeats, ≤ 264 tokens`."""
    limits = []
    if row.max_tokens is not None:
        limits.append(f"{row.max_tokens} tokens")
    if row.max_tries is not None:
        limits.append(f"{row.max_tries:.3g} tries")
    repeats = "repeats" if row.repeats else "no repeats"
    return f"blind search, {repeats}, ≤ {' and '.join(limits)}"


def baseline_rows(report: Report) -> list[BaselineRow]:
    """All baselines, task by task."""
    if report.baselines is None:
        return []
    found: list[tuple[str, str, Estimate, float | None, str]] = [
        (task, f"always {printable(c.answer)}", c.pass_at_1, None, "the best constant answer")
        for task, c in report.baselines.constant.items()
    ]
    found += [
        (task, "one blind guess", guess.pass_at_1, None, "of the right form, nothing solved")
        for task, guess in report.baselines.guess.items()
    ]
    found += [
        (
            blind.task,
            blind_label(blind),
            blind.pass_at_1,
            blind.mean_tries,
            f"{blind.mean_tries:.1f} tries on average",
        )
        for blind in report.baselines.blind_search
    ]
    order = list(dict.fromkeys(task for task, *_ in found))
    rows = []
    for task, label, value, tries, about in sorted(found, key=lambda row: order.index(row[0])):
        after = report.results.after.get(task)
        stands = standing(after.pass_at_1, value) if after else None
        rows.append(BaselineRow(task, label, value, tries, about, stands))
    return rows


def standing(model: Estimate, baseline: Estimate) -> str:
    """Of the model to the baseline; level where the intervals overlap."""
    if model.overlaps(baseline):
        return "level"
    return "above" if model.mean > baseline.mean else "below"
