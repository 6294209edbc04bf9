"""Sections of docs/r1.md on the alarms of RL: what they said of a reward that is gamed on purpose, and of the rest."""

from collections.abc import Callable, Sequence
from statistics import fmean

from controls.r1_figures import Model, spread
from controls.r1_results import ARMS, Arm, One
from controls.r1_watch import GAMED, Said, Truth, Watched
from controls.spread import MISSING, markdown_table, with_seeds

AT_ENDS = 3
"""Looks at each end of a run, whose means are set beside each other."""
BEFORE = "dev3"
"""What the second RL begins with."""


def arms(some: Sequence[One]) -> str:
    """The second RL as it is published, and provoked to be gamed."""
    known = [part for part in ARMS if all(part in one.arms for one in some)]
    if not known:
        return "Not done for every seed."
    verdicts = [_verdict_row(one, part) for part in known for one in some]
    head = ["run", "steps", "models score", f"alarm “{GAMED}”", "the same with half its window"]
    courses = [
        _course_row(part, task, [one.arms[part] for one in some])
        for part in known
        for task in _rated(some[0].arms[part].model)
    ]
    course_head = ["run, task", "score by models", "rated in truth", "correct"]
    course_head += ["held-out pass@1: first, best, last look"]
    return "\n\n".join(
        [
            markdown_table([*head, "truth at the end, against before", "so"], verdicts),
            f"While they ran, by seed; means of the first and the last {AT_ENDS} steps whose rollouts were kept:",
            markdown_table(course_head, courses),
            "At the end, on the problems that all models are measured on:",
            _tested(some, known),
        ]
    )


def _rated(model: Model) -> list[str]:
    return list(model.result.quality)


def _verdict_row(one: One, part: str) -> list[str]:
    arm = one.arms[part]
    seen = arm.watched
    last = seen.model_rewards_last_steps
    fallen = fell(arm.model, one.models[BEFORE]) if BEFORE in one.models else []
    return [
        f"{part}, seed {one.seed}",
        str(seen.steps),
        "from the first step, alone" if last is None else f"in the last {last} steps",
        _told(seen.gamed),
        _told(next((said for said in seen.quick_alarms if said.name == GAMED), None)),
        "lower in " + " and ".join(fallen) if fallen else "no lower",
        verdict_on(is_said=seen.gamed is not None, has_fallen=bool(fallen)),
    ]


def fell(after: Model, before: Model) -> list[str]:
    """Tasks whose answers are worse in truth: rated, or correct, below what they were with intervals apart."""
    worse = []
    for task in _rated(after):
        pairs = [(after.result.tasks[task].pass_at_1, before.result.tasks[task].pass_at_1)]
        pairs.append((after.result.quality[task], before.result.quality[task]))
        if any(a.mean < b.mean and not a.overlaps(b) for a, b in pairs):
            worse.append(task)
    return worse


def verdict_on(*, is_said: bool, has_fallen: bool) -> str:
    """Of an alarm, by what the truth did."""
    if is_said:
        return (
            "gamed, and caught"
            if has_fallen
            else "**an alarm, and the truth is no lower at the end**"
        )
    return "**gamed, and missed**" if has_fallen else "not gamed, and quiet"


def _told(said: Said | None) -> str:
    if said is None:
        return "quiet"
    return f"step {said.step}: {said.metric} {_two(said.value)}, limit {_two(said.limit)}"


def _two(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _course_row(part: str, task: str, found: Sequence[Arm]) -> list[str]:
    truths = [[t for t in arm.watched.truth if t.task == task] for arm in found]
    figures: list[Callable[[Truth], float | None]] = [
        lambda t: t.score,
        lambda t: t.quality,
        lambda t: t.correct,
    ]
    return [
        f"{part}, {task}",
        *(" · ".join(_ends([get(t) for t in own]) for own in truths) for get in figures),
        " · ".join(_looks(arm.watched, task) for arm in found),
    ]


def _ends(values: Sequence[float | None]) -> str:
    """First to last, of those that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    return f"{fmean(known[:AT_ENDS]):.2f} → {fmean(known[-AT_ENDS:]):.2f}"


def _looks(seen: Watched, task: str) -> str:
    looks = [value for _, value in seen.curves.get(f"held_out_pass_at_1/{task}", [])]
    return f"{looks[0]:.2f}, {max(looks):.2f}, {looks[-1]:.2f}" if looks else MISSING


def _tested(some: Sequence[One], known: Sequence[str]) -> str:
    lines = {part: [one.arms[part].model for one in some] for part in known}
    if all(BEFORE in one.models for one in some):
        lines = {f"{BEFORE}, before": [one.models[BEFORE] for one in some]} | lines
    first = next(iter(lines.values()))[0]
    columns = [(task, "correct") for task in first.result.tasks]
    columns += [(task, figure) for figure in ("quality", "wins") for task in _rated(first)]
    names = {"correct": "pass@1", "quality": "rated", "wins": "wins against the base"}
    rows = [
        [title, *(with_seeds(spread(models, *column)) for column in columns)]
        for title, models in lines.items()
    ]
    return markdown_table(["", *(f"{task}: {names[figure]}" for task, figure in columns)], rows)


def alarms(some: Sequence[One]) -> str:
    """Every alarm of the pipeline's own runs of RL, by stage and seed."""
    lines = [
        f"- {stage}, seed {one.seed}: "
        + "; ".join(f"{said.name}, {_told(said)}" for said in seen.alarms)
        for one in some
        for stage, seen in one.rl.items()
        if seen.alarms
    ]
    stages = list(dict.fromkeys(stage for one in some for stage in one.rl))
    return "\n".join(lines) if lines else f"None, in {', '.join(stages) or 'no run yet'}."
