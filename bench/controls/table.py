"""The part of docs/lift.md that is made, and the same as JSON."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from controls.goals import goals_table
from controls.limits import limits_table, merged
from controls.results import Agreement, Ratio, Search, SearchPair
from controls.seeds import Contender, Seed, contenders
from controls.spread import (
    MISSING,
    Spread,
    markdown_table,
    mean_with_interval,
    percent,
    seeds,
)
from nalar.config import UserError
from nalar.disk import encode, write_atomic
from nalar.evals.results import TaskResult
from nalar.machine import environment
from nalar.plan.model import count_parameters
from nalar.run import now

BEGIN, END = "<!-- lift: begin -->", "<!-- lift: end -->"
TITLE = "# The lift"
TASK_NAMES = {"countdown": "Countdown", "chain_sum": "Chain sums"}


def write_table(runs: Sequence[Path], dense: Sequence[Path], out: Path, json_path: Path) -> None:
    """Read finished runs; replace what stands between the markers in `out`, and the JSON file."""
    read = [Seed.read(path) for path in runs]
    beside = [Seed.read(path, has_controls=False) for path in dense]
    lines = contenders(read, beside)
    text = "\n\n".join(_sections(read, beside, lines))
    write_atomic(out, between(out.read_text() if out.exists() else "", text).encode())
    document = {
        "hardware": hardware(read),
        "commit": environment().commit,
        "date": now()[:10],
        "command": _command(),
        "rows": _rows(read, lines),
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(json_path, encode(document, indent=2) + b"\n")
    print(f"wrote {out} and {json_path}", file=sys.stderr)


def between(document: str, made: str, begin: str = BEGIN, end: str = END) -> str:
    """The document with what stands between the markers replaced; markers are appended where there are none."""
    if document.count(begin) != document.count(end) or document.count(begin) > 1:
        raise UserError(at="docs", got="odd markers", want=f"one {begin} and one {end} after it")
    if begin not in document:
        document = f"{document.rstrip() or TITLE}\n\n{begin}\n{end}\n"
    head, _, rest = document.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n\n{made}\n\n{end}{tail}"


def hardware(runs: Sequence[Seed]) -> str:
    """Of all runs: where they differ, each once."""
    found = [
        f"{e.cpu}, {e.cores} cores, {r.finished.config.threads} threads"
        for r in runs
        for e in [r.finished.run.info.environment]
    ]
    return "; ".join(dict.fromkeys(found))


def _command() -> str:
    return " ".join(["python", "bench/lift.py", *sys.argv[1:]])


def _sections(runs: Sequence[Seed], dense: Sequence[Seed], lines: Sequence[Contender]) -> list[str]:
    return [
        _about(runs, dense),
        "### Goals",
        goals_table(runs, lines),
        "### Before and after RL",
        _before_and_after(runs),
        "### Beside RL",
        _beside(lines),
        "### How the thoughts changed",
        _thoughts([r.controls.search for r in runs]),
        "### Against blind search, by cap",
        limits_table("cap, tokens", merged([r.controls.caps for r in runs])),
        "### Against blind search, by tries",
        limits_table("tries", merged([r.controls.tries for r in runs])),
        "### Sampler and trainer",
        _agreement(runs),
        "### Cost by stage",
        _cost(runs),
    ]


def _about(runs: Sequence[Seed], dense: Sequence[Seed]) -> str:
    config, info = runs[0].finished.config, runs[0].finished.run.info
    commits = dict.fromkeys(str(r.finished.run.info.environment.commit)[:10] for r in runs)
    evals = config.evals
    counts = ", ".join(f"{o.n} {TASK_NAMES[t]} problems" for t, o in runs[0].before.items())
    text = [
        f"Made by `{_command()}`.",
        f"Recipe {config.recipe}, seeds {', '.join(str(r.finished.run.info.seed) for r in runs)}; "
        f"{hardware(runs)}; commit {', '.join(commits)}; {info.created[:10]}.",
        f"Held-out problems: {counts}, {evals.k} samples each, cap {evals.max_tokens} tokens, "
        f"temperature {evals.temperature:g}. Shares are in percent. Brackets hold 95% intervals over "
        "problems (a mean over seeds is resampled with all its seeds; it says nothing of other seeds); "
        "“by seed” stands in the order of the seeds above.",
    ]
    for name, some in (("mixture", runs), ("dense", dense)):
        if some:
            count = count_parameters(some[0].finished.config.model)
            passed = sum(s.probes[-1].passed for s in some)
            text.append(
                f"Parameters, {name}: {count.active_params:,} active of {count.total_params:,}; "
                f"pretraining took {_list(len(s.probes) for s in some)} slices by seed, and the probe "
                f"passed in {passed} of {len(some)}."
            )
    return "\n".join(text)


def _list(values: Any) -> str:
    return " · ".join(map(str, values))


def _before_and_after(runs: Sequence[Seed]) -> str:
    rows = []
    for task in runs[0].before:
        k = runs[0].before[task].k
        figures: list[tuple[str, Callable[[TaskResult], float | None]]] = [
            (f"pass@{k}", lambda o: o.pass_at_k.mean),
            (f"majority@{k}", lambda o: o.maj_at_k.mean),
            ("well-formed", lambda o: o.well_formed_frac),
            ("cut by the cap", lambda o: o.truncated_frac),
            ("a try marked wrong, then another", lambda o: o.self_check_frac),
        ]
        both = [
            Spread.of_problems([side[task].by_problem for side in sides])
            for sides in ([r.before for r in runs], [r.after for r in runs])
        ]
        rows.append([f"{TASK_NAMES[task]}, pass@1", *_pair(*both)])
        for name, get in figures:
            values = [[get(side[task]) for side in (r.before, r.after)] for r in runs]
            known = [[v for v in pair if v is not None] for pair in values]
            if all(len(pair) == 2 for pair in known):
                pair = [Spread.of_values([v[i] for v in known]) for i in (0, 1)]
                rows.append([f"{TASK_NAMES[task]}, {name}", *_pair(*pair)])
        lengths = [[s[task].mean_response_tokens for s in (r.before, r.after)] for r in runs]
        cells = [f"{sum(v[i] for v in lengths) / len(lengths):.0f}" for i in (0, 1)]
        ratios = _list(f"{a / b:.2f}×" for b, a in lengths)
        arrows = _list(f"{b:.0f} → {a:.0f}" for b, a in lengths)
        growth = min(a / b for b, a in lengths)
        rows.append(
            [f"{TASK_NAMES[task]}, tokens a response", *cells, f"{growth:.2f}×", arrows, ratios][:5]
        )
    return markdown_table(["", "base", "after RL", "after, worst seed", "by seed"], rows)


def _pair(before: Spread, after: Spread) -> list[str]:
    arrows = [
        f"{percent(b.mean)} → {percent(a.mean)}"
        for b, a in zip(before.by_seed, after.by_seed, strict=True)
    ]
    worst = percent(after.worst)
    return [mean_with_interval(before), mean_with_interval(after), worst, _list(arrows)]


def _beside(lines: Sequence[Contender]) -> str:
    header = ["", "Countdown pass@1", "worst seed", "by seed", "majority", "tokens"]
    rows = [
        [
            c.name,
            mean_with_interval(c.countdown),
            percent(c.countdown.worst),
            seeds(c.countdown),
            percent(c.countdown_majority.mean) if c.countdown_majority else MISSING,
            f"{c.countdown_tokens.mean:.0f}" if c.countdown_tokens else MISSING,
            mean_with_interval(c.chain_sum),
            MISSING if c.flops_of_rl is None else f"{c.flops_of_rl:.2f}",
        ]
        for c in lines
    ]
    return markdown_table([*header, "Chain sums pass@1", "FLOPs beyond the base, of RL's"], rows)


THOUGHTS: list[tuple[str, Callable[[Search], Ratio]]] = [
    ("first try wrong, of responses with a try", lambda s: s.first_try_wrong),
    ("**P(correct given first try wrong)**", lambda s: s.correct_after_first_wrong),
    ("P(correct given first try right)", lambda s: s.correct_after_first_right),
    ("tries that repeat an earlier one", lambda s: s.repeated_tries),
    ("steps whose arithmetic is right", lambda s: s.steps_right),
    ("tries that hit, marked ✓", lambda s: s.hits_marked),
    ("tries that miss, marked ✓", lambda s: s.misses_marked_as_hits),
]


def _thoughts(pairs: Sequence[SearchPair | None]) -> str:
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return "Not computed."
    rows = []
    for name, get in THOUGHTS:
        cells = [name]
        for side in ([p.base for p in known], [p.final for p in known]):
            ratios = [get(s) for s in side]
            spread = Spread.of_ratios(ratios)
            cells += [mean_with_interval(spread), seeds(spread), _list(r.n for r in ratios)]
        rows.append(cells)
    base, final = ([getattr(p, side).mean_tries for p in known] for side in ("base", "final"))
    tries = [
        cell
        for side in (base, final)
        for cell in (f"{sum(side) / len(side):.2f}", _list(f"{v:.2f}" for v in side), "")
    ]
    rows.append(["tries a response", *tries])
    head = ["", "base", "by seed", "n by seed", "after RL", "by seed", "n by seed"]
    return markdown_table(head, rows)


def _agreement(runs: Sequence[Seed]) -> str:
    rows = []
    for r in runs:
        a: Agreement | None = r.controls.agreement
        if a is not None:
            margin = max((x.margin for x in a.rerouted), default=None)
            rows.append(
                [
                    f"seed {r.finished.run.info.seed}",
                    str(a.rollouts),
                    str(a.tokens),
                    f"{a.max_difference:.1e}",
                    f"{100 * a.within_1e_5_frac:.3f}",
                    str(len(a.rerouted)),
                    MISSING if margin is None else f"{margin:.1e}",
                    str(a.apart_tokens),
                    MISSING if a.first_log_ratio_rms is None else f"{a.first_log_ratio_rms:.1e}",
                ]
            )
    head = ["", "rollouts", "tokens", "largest difference", "within 1e-5, %"]
    head += ["sequences rerouted", "largest router margin there", "tokens counted apart"]
    return markdown_table([*head, "first log ratio of a step, largest RMS"], rows)


def _cost(runs: Sequence[Seed]) -> str:
    rows = []
    for name in runs[0].stages:
        stages = [r.stages[name] for r in runs if name in r.stages]
        rows.append(
            [
                name,
                _list(f"{s.tokens / 1e6:.2f}" for s in stages),
                _list(f"{s.flops / 1e12:.2f}" for s in stages),
                _list(f"{s.wall_s:.0f}" for s in stages),
            ]
        )
    rows.append(["all", "", "", _list(f"{r.wall_s:.0f}" for r in runs)])
    return markdown_table(["stage", "million tokens", "TFLOPs", "seconds"], rows)


def _rows(runs: Sequence[Seed], lines: Sequence[Contender]) -> list[dict[str, Any]]:
    """RL beside each other contender, then the figures that have no peer."""

    def row(name: str, value: float, unit: str, peer: str | None = None, other: Any = None) -> Any:
        figures = {"name": name, "value": value, "unit": unit}
        return figures | {"peer": peer, "peer_value": other, "roofline_frac": None}

    rl = lines[1]
    rows = []
    for c in lines:
        if c is rl:
            continue
        rows.append(row("countdown pass@1", rl.countdown.mean, "share", c.name, c.countdown.mean))
        if c.chain_sum and rl.chain_sum:
            chain = (rl.chain_sum.mean, "share", c.name, c.chain_sum.mean)
            rows.append(row("chain_sum pass@1", *chain))
    rows.append(row("countdown pass@1, worst seed", rl.countdown.worst, "share"))
    if rl.countdown_majority:
        rows.append(row("countdown majority", rl.countdown_majority.mean, "share"))
    wall_s = [r.wall_s for r in runs]
    rows.append(row("all stages, mean", sum(wall_s) / len(wall_s), "s"))
    rows.append(row("all stages, longest", max(wall_s), "s"))
    return rows
