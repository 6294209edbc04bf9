"""Results, plots and the tables of docs/pretraining.md from the runs that `quality.py` has made.

    PYTHONPATH=src python bench/quality_report.py --runs build/quality

Of each pair the quicker arm has the whole budget, and the slower one as many tokens as fit into the same time. Where
the slower was trained to just that (`quality.py train --tokens`), that is its loss. Else it is taken from its two ends,
at half the budget and at all of it, by a straight line over the logarithm of tokens, seed by seed, which is a little
too high since losses fall ever more slowly. Its curve would not do: that is at a rate which has not fallen yet.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from quality import (
    ARMS,
    BASELINE,
    HALF_TOKENS,
    SEEDS,
    STEP_TOKENS,
    TOKENS,
    best_rate,
)
from record import Row, record

NAMES = {
    "muonclip": "experts, MuonClip",
    "adamw": "experts, AdamW",
    "adamw_init": "experts, AdamW, initial weights of .02",
    "dense": "dense, MuonClip",
    "mtp": "experts, MuonClip, multi-token prediction",
    "muon": "experts, Muon",
}


COST_OF = {"adamw_init": "adamw"}
"""Arms that compute the same as another, which took its steps in turn with the rest."""


@dataclass(frozen=True)
class Spread:
    """Of the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.mean:.4f} ({low:.4f} to {high:.4f})"

    def __sub__(self, other: "Spread") -> "Spread":
        """Seed by seed."""
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))


class Runs:
    """All runs of a folder, by arm, rate, tokens and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[dict[str, Any]] = [
            json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))
        ]
        self.rates = {name: best_rate(self.sweep(name)) for name in ARMS if self.sweep(name)}

    def sweep(self, name: str) -> dict[float, float]:
        """Loss by rate."""
        found = {
            run["lr"]: run["loss"]
            for run in self.all
            if (run["arm"], run["seed"], run["tokens"]) == (name, 0, HALF_TOKENS)
        }
        return dict(sorted(found.items()))

    def at_best(self, name: str, tokens: int) -> list[dict[str, Any]]:
        """In the order of seeds; none where not all seeds have run."""
        key = (name, self.rates[name], tokens)
        own = [run for run in self.all if (run["arm"], run["lr"], run["tokens"]) == key]
        own.sort(key=lambda run: run["seed"])
        return own if [run["seed"] for run in own] == list(SEEDS) else []

    def losses(self, name: str, tokens: int) -> Spread:
        return Spread(tuple(run["loss"] for run in self.at_best(name, tokens)))

    def loss_after(self, name: str, tokens: int) -> Spread:
        """Of runs that end there, or between half the budget and all of it; ValueError outside."""
        if self.at_best(name, tokens):
            return self.losses(name, tokens)
        if not HALF_TOKENS <= tokens <= TOKENS:
            raise ValueError(f"{name}: {tokens} tokens do not lie between the ends of its runs")
        share = math.log(tokens / HALF_TOKENS) / math.log(TOKENS / HALF_TOKENS)
        half, whole = self.losses(name, HALF_TOKENS).values, self.losses(name, TOKENS).values
        return Spread(tuple(a + share * (b - a) for a, b in zip(half, whole, strict=True)))

    def finished(self) -> list[str]:
        """Arms of which every seed has run to half the budget and to all of it."""
        both = (HALF_TOKENS, TOKENS)
        return [name for name in self.rates if all(self.at_best(name, t) for t in both)]


@dataclass(frozen=True)
class Comparison:
    name: str
    at_equal_tokens: Spread
    """Loss less that of the baseline, seed by seed."""
    at_equal_time: Spread
    time_ratio: float
    """Seconds of a step, of the baseline's."""
    tokens: int
    """Of the arm, at equal time."""
    base_tokens: int


def compare(runs: Runs, name: str) -> Comparison:
    ratio = cpu_s(runs, name) / cpu_s(runs, BASELINE)
    tokens, base_tokens = in_steps(1 / max(ratio, 1.0)), in_steps(min(ratio, 1.0))
    return Comparison(
        name,
        runs.losses(name, TOKENS) - runs.losses(BASELINE, TOKENS),
        runs.loss_after(name, tokens) - runs.loss_after(BASELINE, base_tokens),
        ratio,
        tokens,
        base_tokens,
    )


def in_steps(frac: float) -> int:
    """That part of the budget, to the nearest five steps."""
    piece = 5 * STEP_TOKENS
    return round(frac * TOKENS / piece) * piece


def cpu_s(runs: Runs, name: str) -> float:
    """Of a whole run, mean of the seeds."""
    return fmean(run["cpu_s"] for run in runs.at_best(COST_OF.get(name, name), TOKENS))


def rows_of(runs: Runs, comparisons: Iterable[Comparison]) -> list[Row]:
    rows = []
    for name in ARMS:
        for lr, loss in runs.sweep(name).items():
            rows.append(Row(f"sweep_{name}_lr{lr:g}", loss, "nat/token"))
    for name in runs.finished():
        rows.append(Row(f"{name}_step_cpu", cpu_s(runs, name) / TOKENS * 1e6, "us/token"))
        for tokens in sorted({run["tokens"] for run in runs.all}):
            for run in runs.at_best(name, tokens):
                label = f"{name}_{tokens}_tokens_seed{run['seed']}"
                rows.append(Row(f"{label}_loss", run["loss"], "nat/token"))
                rows.append(Row(f"{label}_skipped", len(run["skipped"]), "steps"))
    for one in comparisons:
        rows.append(Row(f"{one.name}_time", one.time_ratio, "x baseline"))
        rows.append(Row(f"{one.name}_equal_tokens", one.at_equal_tokens.mean, "nat/token"))
        rows.append(Row(f"{one.name}_equal_time", one.at_equal_time.mean, "nat/token"))
    return rows


def tables(runs: Runs, comparisons: Iterable[Comparison]) -> str:
    lines = ["| arm | loss by rate |", "|---|---|"]
    for name in runs.rates:
        by_rate = ", ".join(f"{lr:g}: {loss:.4f}" for lr, loss in runs.sweep(name).items())
        lines.append(f"| {NAMES[name]} | {by_rate} |")
    budgets = (HALF_TOKENS, TOKENS)
    heads = " | ".join(f"{tokens / 1e6:.2f}M" for tokens in budgets)
    lines += ["", f"| arm | rate | parameters | active | ms a step | {heads} | skipped |"]
    lines += ["|---" * (6 + len(budgets)) + "|"]
    for name in runs.finished():
        own = runs.at_best(name, TOKENS)
        cells = [str(runs.losses(name, tokens)) for tokens in budgets]
        mean_ms = cpu_s(runs, name) / TOKENS * STEP_TOKENS * 1e3
        steps = sum(len(run["train_losses"]) for run in runs.all if run["arm"] == name)
        skipped = sum(len(run["skipped"]) for run in runs.all if run["arm"] == name)
        lines.append(
            f"| {NAMES[name]} | {own[0]['lr']:g} | {own[0]['total_params']:,} "
            f"| {own[0]['active_params']:,} | {mean_ms:.1f} | {' | '.join(cells)} "
            f"| {skipped} of {steps:,} |"
        )
    lines += ["", "| beside experts, MuonClip | at equal tokens | time of a step | at equal time |"]
    lines += ["|---|---|---|---|"]
    for one in comparisons:
        lines.append(
            f"| {NAMES[one.name]} | {one.at_equal_tokens} | {one.time_ratio:.2f} "
            f"| {one.at_equal_time} ({one.tokens / 1e6:.2f}M tokens "
            f"beside {one.base_tokens / 1e6:.2f}M) |"
        )
    return "\n".join(lines)


def plot(runs: Runs, names: Sequence[str], path: Path, *, by_time: bool) -> None:
    """Curves of whole runs, means and ranges of the seeds; dots are ends of runs, which alone compare."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for at, name in enumerate(names):
        per_token = cpu_s(runs, name) / TOKENS if by_time else 1e-6
        own = runs.at_best(name, TOKENS)
        xs = [tokens * per_token for tokens, _ in own[0]["curve"]]
        losses = list(zip(*([y for _, y in run["curve"]] for run in own), strict=True))
        means = [fmean(each) for each in losses]
        axes.plot(xs, means, color=f"C{at}", label=NAMES[name], linewidth=1.0)
        low, high = [min(each) for each in losses], [max(each) for each in losses]
        axes.fill_between(xs, low, high, color=f"C{at}", alpha=0.15, linewidth=0)
        ends = (HALF_TOKENS, TOKENS)
        dots = [runs.losses(name, t).mean for t in ends]
        axes.plot([t * per_token for t in ends], dots, "o", color=f"C{at}", markersize=4)
    lows = [runs.losses(name, TOKENS).mean for name in names]
    axes.set_ylim(min(lows) - 0.05, 1.5)
    axes.set_xlabel("seconds of one core" if by_time else "tokens trained on, millions")
    axes.set_ylabel("loss on held-out documents")
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(str(path), metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Results, plots and tables of finished runs.")
    parser.add_argument("--runs", type=Path, default=Path("build/quality"))
    parser.add_argument("--plots", type=Path, default=Path("docs/plots"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/quality-two-cores.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in the runs: the results name it
    runs = Runs(args.runs)
    names = runs.finished()
    comparisons = [compare(runs, name) for name in names if name != BASELINE]
    record(args.out, "python bench/quality_report.py", rows_of(runs, comparisons))
    plot(runs, names, args.plots / "quality-tokens.svg", by_time=False)
    plot(runs, names, args.plots / "quality-time.svg", by_time=True)
    print(f"\n{tables(runs, comparisons)}")


if __name__ == "__main__":
    main()
