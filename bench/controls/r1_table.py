"""The part of docs/r1.md that is made: what a pipeline came to over its seeds, from `results.json`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from controls.r1_aims import moved, reasoning_of
from controls.r1_figures import Model, spread
from controls.r1_place import NEEDS
from controls.r1_results import Joined, One
from controls.r1_table_arms import alarms, arms
from controls.r1_table_beside import equal_compute, switch
from controls.spread import (
    MISSING,
    Spread,
    markdown_table,
    mean_with_interval,
    seeds,
    with_seeds,
)
from controls.table import between
from nalar.config import UserError
from nalar.disk import write_atomic
from nalar.evals.results import Estimate
from nalar.evals.text import printable

TITLE = "# The R1 recipe"
BEGIN, END = "<!-- r1: begin -->", "<!-- r1: end -->"
_SHOWN_CHARS = 60
"""Of a thought or an answer that stands in a table."""


def write_r1_table(results: Path, doc: Path) -> None:
    """Replace what stands between the markers in `doc`."""
    if not results.is_file():
        raise UserError(at="--table", got=f"no file {results}", want="the results.json of a call")
    found = Joined.model_validate_json(results.read_text())
    text = doc.read_text() if doc.exists() else f"{TITLE}\n"
    write_atomic(doc, between(text, "\n\n".join(sections(found)), BEGIN, END).encode())
    print(f"wrote {doc}", file=sys.stderr)


def sections(found: Joined) -> list[str]:
    every = sorted(found.seeds.values(), key=lambda one: one.seed)
    begun = [one for one in every if one.models]
    if not begun:
        return ["No model has been measured.", *_not_done(every)]
    return [
        _about(begun),
        "### What each model can do",
        _pass_at_1(begun),
        "### Readable, preferred, rated",
        _other_figures(begun),
        "### What each stage is meant to move",
        _aims(begun),
        "### Thinking off, short and on",
        switch(begun),
        "### Reward models",
        _reward_models(begun),
        "### Distillation beside RL at equal compute",
        equal_compute(begun),
        "### A reward that is gamed on purpose",
        arms(begun),
        "### Alarms of the pipeline's own RL",
        alarms(begun),
        "### Receipt",
        _receipt(begun),
        "### Where the dialogues come from",
        "\n".join(f"- seed {one.seed}: {one.provenance}" for one in begun),
        f"### The first problem of each task, seed {begun[0].seed}",
        _samples(begun[0]),
        *_not_done(every),
    ]


def _about(some: Sequence[One]) -> str:
    where = [one.environment for one in some if one.environment is not None]
    machines = dict.fromkeys(
        f"{e.cpu}, {e.cores} cores, torch {e.packages['torch']}" for e in where
    )
    commits = dict.fromkeys(f"{str(e.commit)[:10]}{' with edits' * bool(e.dirty)}" for e in where)
    evals = some[0].evals["evals"]
    return (
        f"Made by `{some[0].command}` (and the same for the other seeds), one thread a run; commit "
        f"{', '.join(commits)}; {'; '.join(machines)}. Seeds {_list(one.seed for one in some)}. "
        f"Up to {evals['problems']} held-out problems of each task, the same for all models and seeds, "
        f"{evals['k']} samples each, temperature {evals['temperature']:g}, cap {evals['max_tokens']} tokens. "
        "Shares are in percent. Brackets hold 95% intervals over problems, each with all its seeds: they say "
        "nothing of other seeds. Figures in parentheses are those of the seeds, in their order."
    )


def _list(values: Any) -> str:
    return " · ".join(map(str, values))


def _names(some: Sequence[One]) -> list[str]:
    """Models that every seed has."""
    return [name for name in some[0].models if all(name in one.models for one in some)]


def _of(some: Sequence[One], name: str) -> list[Model]:
    return [one.models[name] for one in some]


def _pass_at_1(some: Sequence[One]) -> str:
    tasks = list(some[0].models[_names(some)[0]].result.tasks)
    rows = [
        [name, *(with_seeds(spread(_of(some, name), task, "correct")) for task in tasks)]
        for name in _names(some)
    ]
    without = [
        [title, *(_baseline(some[0], task, kind) for task in tasks)]
        for kind, title in (("constant", "best constant answer"), ("guess", "blind guess"))
    ]
    return markdown_table(["model", *tasks], [*rows, *without])


def _baseline(one: One, task: str, kind: str) -> str:
    """What needs no model, and so is the same for every seed."""
    known = one.baselines.get(task, {}).get(kind)
    if known is None:
        return MISSING
    return mean_with_interval(Spread.of_estimates([Estimate.model_validate(known["pass_at_1"])]))


def _other_figures(some: Sequence[One]) -> str:
    """Columns that no model has a figure in are left out."""
    first = some[0].models[_names(some)[0]]
    rated = list(first.result.quality)
    asked = [("readable", task) for task in first.result.tasks]
    asked += [(figure, task) for figure in ("wins", "quality") for task in rated]
    columns = {
        f"{task}: {_TITLES[figure]}": [
            with_seeds(spread(_of(some, name), task, figure)) for name in _names(some)
        ]
        for figure, task in asked
    }
    lengths = [_thought_tokens(_of(some, name)) for name in _names(some)]
    shown = {title: cells for title, cells in columns.items() if set(cells) != {MISSING}}
    rows = [
        [name, *(cells[i] for cells in shown.values()), lengths[i]]
        for i, name in enumerate(_names(some))
    ]
    return markdown_table(["model", *shown, "tokens of thought where one must reason"], rows)


_TITLES = {
    "readable": "readable thoughts",
    "wins": "wins against the base",
    "quality": "rated",
}


def _thought_tokens(models: Sequence[Model]) -> str:
    def mean(model: Model) -> float:
        return fmean(model.result.thought_tokens[task] for task in reasoning_of(model))

    return _list(f"{mean(model):.0f}" for model in models if reasoning_of(model)) or MISSING


def _aims(some: Sequence[One]) -> str:
    rows = [
        [
            f"{one.aim.stage}: {one.aim.words}",
            f"{one.task}, {_MOVED[one.aim.figure]}",
            f"{one.aim.before} {mean_with_interval(one.before)}",
            f"{one.aim.after} {mean_with_interval(one.after)}",
            f"{'overlap' if one.stands == 'level' else 'apart'}; apart in {one.seeds_apart} of {len(some)} seeds",
            one.said,
        ]
        for one in moved([one.models for one in some])
    ]
    rows += list(_judges_aims(some))
    head = ["stage and what it is meant to move", "figure", "before", "after", "intervals", "so"]
    return markdown_table(head, rows) if rows else "No stage has both its models measured."


_MOVED = {
    "correct": "pass@1",
    "readable": "readable thoughts",
    "wins": "wins against the base",
    "quality": "rated",
}


def _judges_aims(some: Sequence[One]) -> Iterator[list[str]]:
    """Of reward models, which begin at a coin's chance."""
    for stage in _judges(some):
        found = [Estimate.model_validate(one.reward_models[stage]["accuracy"]) for one in some]
        apart = sum(e.ci95[0] > 0.5 for e in found)
        yield [
            f"{stage}: tell better from worse",
            "held-out judgements, right",
            "chance 50.0",
            seeds(Spread.of_estimates(found), intervals=True),
            f"above chance in {apart} of {len(some)} seeds",
            "helps" if apart == len(some) else "**does not help** in every seed",
        ]


def _judges(some: Sequence[One]) -> list[str]:
    return [
        name for name in some[0].reward_models if all(name in one.reward_models for one in some)
    ]


def _reward_models(some: Sequence[One]) -> str:
    rows = []
    for stage in _judges(some):
        found = [one.reward_models[stage] for one in some]
        position, length = ([one[name] for one in found] for name in ("position", "length"))
        rows.append(
            [
                stage,
                _list(one["n"] for one in found),
                seeds(Spread.of_estimates([Estimate.model_validate(r["accuracy"]) for r in found])),
                _list(f"{100 * p['verdicts_changed_frac']:.1f}" for p in position),
                _list(_number(one["correlation"]) for one in length),
                _list(f"{one['calibration_error']:.3f}" for one in found),
                _list(_share(one["safe_passed"]) for one in found),
                _list(_share(one["unsafe_caught"]) for one in found),
            ]
        )
    head = ["", "judgements", "right", "verdicts that change with the order"]
    head += ["score and length, correlation", "calibration error", "safe passed", "unsafe caught"]
    return markdown_table(head, rows) if rows else "None has been tested."


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}"


def _share(value: dict[str, Any] | None) -> str:
    return MISSING if value is None else f"{100 * value['mean']:.1f}"


def _receipt(some: Sequence[One]) -> str:
    rows = []
    names = dict.fromkeys(stage.name for one in some for stage in one.stages)
    for name in names:
        used = [stage for one in some for stage in one.stages if stage.name == name]
        rows.append([used[0].title, *_costs(used)])
    totals = [
        type(one.stages[0]).model_validate(
            one.stages[0].model_dump()
            | {
                key: sum(getattr(stage, key) for stage in one.stages)
                for key in ("tokens", "flops", "wall_s")
            }
        )
        for one in some
        if one.stages
    ]
    rows.append(["all", *_costs(totals)])
    return markdown_table(["stage", "million tokens", "TFLOPs", "seconds"], rows)


def _costs(used: Sequence[Any]) -> list[str]:
    return [
        _list(f"{stage.tokens / 1e6:.3g}" for stage in used),
        _list(f"{stage.flops / 1e12:.3g}" for stage in used),
        _list(f"{stage.wall_s:.0f}" for stage in used),
    ]


def _samples(one: One) -> str:
    """Not chosen by outcome."""
    if not one.samples:
        return "None."
    names = list(dict.fromkeys(name for sample in one.samples for name in sample.responses))
    rows = [
        ["asked", *(_code(sample.prompt) for sample in one.samples)],
        *(
            [name, *(_response(sample.responses.get(name)) for sample in one.samples)]
            for name in names
        ),
    ]
    return markdown_table(["", *(sample.task for sample in one.samples)], rows)


def _response(response: Any) -> str:
    if response is None:
        return MISSING
    mark = "✓" if response.correct else "✗"
    return f"{_code(response.thought)} → {_code(response.answer)} {mark}"


def _code(text: str) -> str:
    """Text of a model in a cell: one line, cut, unable to end its code span or its cell."""
    line = " ⏎ ".join(printable(text).splitlines()).replace("`", "'").replace("|", "¦")
    return f"`{line[:_SHOWN_CHARS]}{'…' * (len(line) > _SHOWN_CHARS)}`" if line else "(nothing)"


def _not_done(every: Sequence[One]) -> list[str]:
    """Parts without a result, and why: they belong to the evidence."""
    lines = [
        f"- seed {one.seed}, {part}: {one.refused.get(part, 'not at its end yet')}"
        for one in every
        for part in NEEDS
        if part not in one.done
    ]
    return ["### Without a result", "\n".join(lines)] if lines else []
