"""The part of docs/ladder.md that is made: one block of rows a recipe and task, from `results.json`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from controls.ladder_results import Joined, One
from controls.spread import MISSING, Spread, markdown_table, percent, seeds
from controls.table import between
from nalar.disk import write_atomic
from nalar.evals.results import Estimate

TITLE = "# The ladder"


def write_ladder(results: Sequence[Path], doc: Path) -> None:
    """Replace what stands between the markers in `doc`. Later files win where a run is in several."""
    runs: dict[str, One] = {}
    for path in results:
        runs |= Joined.model_validate_json(path.read_text()).runs
    text = doc.read_text() if doc.exists() else f"{TITLE}\n"
    write_atomic(doc, between(text, "\n\n".join(_sections(runs))).encode())
    print(f"wrote {doc}", file=sys.stderr)


def _sections(runs: dict[str, One]) -> list[str]:
    by_recipe: dict[str, list[One]] = {}
    for one in runs.values():
        by_recipe.setdefault(one.recipe, []).append(one)
    finished = {
        recipe: sorted((one for one in some if one.after), key=lambda one: one.seed)
        for recipe, some in by_recipe.items()
    }
    finished = {recipe: some for recipe, some in finished.items() if some}
    return [
        _about(runs),
        "### Before and after RL",
        _table(
            ["task", "seeds", "pass@1, base", "pass@1, RL", "pass@k", "majority", "tokens"],
            finished,
            _before_and_after,
        ),
        "### Beside RL",
        _table(
            [
                *("task", "constant", "one guess", "blind search, same cap"),
                *("greedy, base", "greedy, RL", "more pretraining", "rejection-sampling SFT", "RL"),
            ],
            finished,
            _beside,
        ),
        "### Cost",
        _cost(finished),
        *_unfinished(runs),
    ]


def _about(runs: dict[str, One]) -> str:
    where = [one.environment for one in runs.values() if one.environment]
    machines = dict.fromkeys(f"{e.cpu}, {e.cores} cores" for e in where)
    commits = dict.fromkeys(str(e.commit)[:10] for e in where)
    command = " ".join(["python", "bench/ladder.py", *sys.argv[1:]])
    return (
        f"Made by `{command}`, from runs of commit {', '.join(commits)} on {'; '.join(machines)}. "
        "Shares in percent, by seed; brackets hold 95% intervals over the held-out problems of a run."
    )


def _table(
    head: list[str],
    finished: dict[str, list[One]],
    row: Callable[[str, list[One]], list[str]],
) -> str:
    rows = []
    for recipe, some in finished.items():
        for task in some[0].after:
            rows.append([f"{task} ({recipe})", *row(task, some)])
    return markdown_table(head, rows) if rows else "No run has come to its end."


def _spread(some: Sequence[One], get: Callable[[One], Any]) -> Spread | None:
    """None where a run lacks it."""
    found = []
    for one in some:
        try:
            found.append(Estimate.model_validate(get(one)))
        except (KeyError, TypeError):
            return None
    return Spread.of_estimates(found)


def _before_and_after(task: str, some: list[One]) -> list[str]:
    def moved(key: str) -> str:
        before, after = (
            _spread(some, lambda one, at=at: getattr(one, at)[task][key])  # type: ignore[misc]
            for at in ("before", "after")
        )
        return f"{seeds(before)} → {seeds(after)}"

    def tokens(at: str) -> str:
        return " · ".join(f"{getattr(one, at)[task]['mean_response_tokens']:.0f}" for one in some)

    return [
        " · ".join(str(one.seed) for one in some),
        seeds(_spread(some, lambda one: one.before[task]["pass_at_1"]), intervals=True),
        seeds(_spread(some, lambda one: one.after[task]["pass_at_1"]), intervals=True),
        moved("pass_at_k"),
        moved("maj_at_k"),
        f"{tokens('before')} → {tokens('after')}",
    ]


def _beside(task: str, some: list[One]) -> list[str]:
    def control(*keys: str) -> Callable[[One], Any]:
        def get(one: One) -> Any:
            value: Any = one.controls
            for key in (*keys, task, "pass_at_1"):
                value = value[key]
            return value

        return get

    return [
        _first(some, lambda one: one.baselines["constant"][task]["pass_at_1"]),
        _first(some, lambda one: one.baselines["guess"][task]["pass_at_1"]),
        _blind(task, some),
        seeds(_spread(some, control("greedy", "base"))),
        seeds(_spread(some, control("greedy", "final"))),
        seeds(_spread(some, control("more_pretraining", "tasks"))),
        seeds(_spread(some, control("rejection_sampling_sft", "tasks"))),
        seeds(_spread(some, lambda one: one.after[task]["pass_at_1"])),
    ]


def _first(some: Sequence[One], get: Callable[[One], Any]) -> str:
    """What needs no model, and so is the same for every seed."""
    spread = _spread(some[:1], get)
    return MISSING if spread is None else percent(spread.mean)


def _blind(task: str, some: Sequence[One]) -> str:
    """With repeats, under the cap; a dash where an answer is no easier to check than to find."""
    for search in some[0].baselines.get("blind_search", ()):
        if search["task"] == task and search["repeats"] and search["max_tokens"] is not None:
            return percent(search["pass_at_1"]["mean"])
    return MISSING


def _cost(finished: dict[str, list[One]]) -> str:
    rows = []
    for recipe, some in finished.items():
        for stage in ("pretrain", "rl"):
            used = [one.stages[stage] for one in some if stage in one.stages]
            rows.append(
                [
                    f"{recipe}, {stage}",
                    " · ".join(f"{u['tokens'] / 1e6:.2f}" for u in used),
                    " · ".join(f"{u['flops'] / 1e12:.2f}" for u in used),
                    " · ".join(f"{u['wall_s']:.0f}" for u in used),
                ]
            )
    return markdown_table(["stage", "million tokens", "TFLOPs", "seconds"], rows)


def _unfinished(runs: dict[str, One]) -> list[str]:
    """Runs without a result, and why: they belong to the evidence."""
    lines = [
        f"- {name}: {one.refusal or f'not at its end yet ({one.stage})'}"
        for name, one in sorted(runs.items())
        if not one.after
    ]
    return ["### Runs without a result", "\n".join(lines)] if lines else []
