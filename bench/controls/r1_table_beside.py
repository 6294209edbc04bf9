"""Two sections of docs/r1.md: models asked with less thought, and RL beside distillation at equal compute."""

from collections.abc import Sequence
from statistics import fmean

from controls.r1_aims import reasoning_of
from controls.r1_figures import Model, spread
from controls.r1_results import EQUAL, EqualFlops, One
from controls.spread import (
    MISSING,
    Spread,
    markdown_table,
    mean_with_interval,
    percent,
    verdict,
    with_seeds,
)
from nalar.evals.results import Estimate, TaskResult

MOST_THOUGHT_FRAC = 0.01
"""Of the replies with thinking off, those with a thought."""


def switch(some: Sequence[One]) -> str:
    """Of every model that was taught to be asked with less thought."""
    names = [
        name
        for name, model in some[0].models.items()
        if all(name in one.models and one.models[name].result.modes for one in some)
    ]
    if not names:
        return "No model has been asked with less thought."
    rows = [
        _switch_row(some, name, task)
        for name in names
        for task in reasoning_of(some[0].models[name])
    ]
    head = ["model, task", "off", "short", "all it wants", "on against off"]
    head += ["best constant answer", "off against it", "blind guess", "off against it"]
    return "\n\n".join([markdown_table(head, rows), *_limits(some, names)])


def _switch_row(some: Sequence[One], name: str, task: str) -> list[str]:
    models = [one.models[name] for one in some]
    off, short, on = (spread(models, task, "correct", m) for m in ("off", "budget", "on"))
    cells = [f"{name}, {task}", *map(mean_with_interval, (off, short, on)), stands(on, off)]
    for kind in ("constant", "guess"):
        known = some[0].baselines.get(task, {}).get(kind)
        beside = None if known is None else Estimate.model_validate(known["pass_at_1"])
        flat = None if beside is None else Spread([beside], beside)
        cells += [mean_with_interval(flat), stands(off, flat)]
    return cells


def stands(one: Spread | None, other: Spread | None) -> str:
    """Above, level or below, by disjoint intervals."""
    return MISSING if one is None or other is None else verdict(one, other)


def _limits(some: Sequence[One], names: Sequence[str]) -> list[str]:
    """Whether the two limits hold, over all models, tasks and seeds; the worst case is named."""
    found = []
    shares = {
        f"{name}, {task}, seed {one.seed}": result.thought_frac or 0.0
        for one, name, task, result in _asked(some, names, "off")
    }
    if shares:
        worst = max(shares, key=lambda at: shares[at])
        holds = "holds" if shares[worst] <= MOST_THOUGHT_FRAC else "**does not hold**"
        found.append(
            f"With thinking off, {percent(fmean(shares.values()))}% of the replies have a thought, at most "
            f"{percent(shares[worst])}% ({worst}). That it is at most {percent(MOST_THOUGHT_FRAC)}% {holds}."
        )
    budget = some[0].evals["thinking_budget"]
    longest = {
        f"{name}, {task}, seed {one.seed}": result.longest_thought_tokens or 0
        for one, name, task, result in _asked(some, names, "budget")
    }
    if longest and budget is not None:
        worst = max(longest, key=lambda at: longest[at])
        holds = "holds" if longest[worst] <= budget else "**does not hold**"
        found.append(
            f"With a budget of {budget} tokens the longest thought has {longest[worst]} ({worst}). "
            f"The limit {holds}."
        )
    return found


def _asked(
    some: Sequence[One], names: Sequence[str], mode: str
) -> list[tuple[One, str, str, TaskResult]]:
    return [
        (one, name, task, result)
        for one in some
        for name in names
        for task, result in one.models[name].result.modes.get(mode, {}).items()  # type: ignore[call-overload]
    ]


_BETTER_BY = {
    "rl_as_distil": ("distilled", "fine-tuning on traces"),
    "rl_as_on_policy": ("on-policy", "traces, then on-policy distillation"),
}
"""By part: the model that RL is set against, and what made it."""


def equal_compute(some: Sequence[One]) -> str:
    """RL from the pretrained student beside distillation into it."""
    parts = [
        part
        for part in EQUAL
        if all(part in one.equal and _BETTER_BY[part][0] in one.models for one in some)
    ]
    if not parts:
        return "Not done for every seed."
    tasks = list(some[0].equal[parts[0]].model.result.tasks)
    rows = [_line("student, as pretrained", [one.models["student"] for one in some], tasks)]
    for part in parts:
        name, how = _BETTER_BY[part]
        taught = [one.models[name] for one in some]
        learned = [one.equal[part].model for one in some]
        pairs = [(spread(taught, t, "correct"), spread(learned, t, "correct")) for t in tasks]
        rows += [
            _line(f"{how} ({name})", taught, tasks),
            _line("RL for the same FLOPs", learned, tasks),
            ["so distillation is", *(f"**{stands(*pair)}**" for pair in pairs)],
        ]
    said = [_counted(part, [one.equal[part] for one in some]) for part in parts]
    return "\n\n".join([*said, markdown_table(["", *tasks], rows)])


def _line(title: str, models: Sequence[Model], tasks: Sequence[str]) -> list[str]:
    return [title, *(with_seeds(spread(models, task, "correct")) for task in tasks)]


def _counted(part: str, found: Sequence[EqualFlops]) -> str:
    """What the budget is made of, and how near RL came to it."""
    shares = ", ".join(
        f"{what} {' · '.join(f'{one.counted[what] / 1e12:.3g}' for one in found)}"
        for what in found[0].counted
    )
    steps = " · ".join(f"{one.steps}" for one in found)
    ratios = " · ".join(f"{one.flops / one.budget:.2f}" for one in found)
    return (
        f"Against *{_BETTER_BY[part][0]}*: TFLOPs by seed: {shares}. RL had {steps} steps, which took {ratios} "
        "of them. The traces are counted in full, though the mixture was fine-tuned on them too; the making of the "
        "teacher and the student's pretraining are counted on neither side."
    )
