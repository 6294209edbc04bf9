"""What a set of finished runs, one a seed, says together."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from controls.finished import Finished
from controls.results import FILE, Control, Controls, Outcome
from controls.spread import Spread
from nalar.config import UserError
from nalar.evals.results import Estimate, ProbeResult
from nalar.run import Receipt


@dataclass(frozen=True)
class Seed:
    """One run, its own figures and those of its controls."""

    finished: Finished
    before: dict[str, Outcome]
    after: dict[str, Outcome]
    controls: Controls
    stages: dict[str, Receipt]
    probes: list[ProbeResult]

    @classmethod
    def read(cls, path: Path, *, has_controls: bool = True) -> "Seed":
        finished, file = Finished.open(path), path / FILE
        if has_controls and not file.exists():
            raise UserError(
                at=str(path),
                got=f"no {FILE}",
                want="a run whose controls were computed",
                hint=f"python bench/lift.py controls {path}",
            )
        probes = json.loads((path / "probe.json").read_text())
        return cls(
            finished,
            finished.outcomes("before"),
            finished.outcomes("after"),
            Controls.model_validate_json(file.read_text()) if has_controls else Controls(),
            {receipt.name: receipt for receipt in finished.run.stage_totals()},
            [ProbeResult.model_validate(probe) for probe in probes],
        )

    @property
    def wall_s(self) -> float:
        return sum(stage.wall_s for stage in self.stages.values())


@dataclass(frozen=True)
class Contender:
    """A line of the main table."""

    name: str
    countdown: Spread
    countdown_majority: Spread | None = None
    countdown_tokens: Spread | None = None
    chain_sum: Spread | None = None
    flops_of_rl: float | None = None
    """Mean over seeds."""


def pass_at_1(outcomes: Sequence[Outcome]) -> Spread:
    return Spread.of_problems([o.by_problem for o in outcomes])


def contender(
    name: str, tasks: Sequence[dict[str, Outcome]], flops_of_rl: float | None = None
) -> Contender:
    countdown = [t["countdown"] for t in tasks]
    chains = [t["chain_sum"] for t in tasks if "chain_sum" in t]
    sampled = countdown[0].k > 1
    return Contender(
        name,
        pass_at_1(countdown),
        Spread.of_estimates([o.maj_at_k for o in countdown]) if sampled else None,
        Spread.of_values([o.mean_response_tokens for o in countdown]),
        pass_at_1(chains) if chains else None,
        flops_of_rl,
    )


def contenders(runs: Sequence[Seed], dense: Sequence[Seed]) -> list[Contender]:
    """The base, RL, and everything beside it; what was not computed for all seeds is left out."""
    found = [
        contender("base", [r.before for r in runs], 0.0),
        contender("**RL**", [r.after for r in runs], 1.0),
    ]

    def control(name: str, get: Callable[[Controls], Control | None]) -> None:
        parts = [part for r in runs if (part := get(r.controls)) is not None]
        if len(parts) == len(runs):
            share = sum(p.flops_of_rl for p in parts) / len(parts)
            found.append(contender(name, [p.tasks for p in parts], share))

    control("(a) more pretraining", lambda c: c.more_pretraining)
    control("(b) rejection-sampling SFT, iterated", lambda c: c.rejection_sampling_sft)
    found += _blind(runs)
    found += _constant(runs)
    control("(e) base forced on until a hit or the cap", lambda c: c.base_forced)
    if dense:
        found.append(contender("(f) dense of equal active size, base", [d.before for d in dense]))
        found.append(contender("(f) dense of equal active size, RL", [d.after for d in dense]))
    if all(r.controls.greedy for r in runs):
        greedy = [r.controls.greedy for r in runs if r.controls.greedy]
        found.append(contender("base, greedy", [g.base for g in greedy], 0.0))
        found.append(contender("RL, greedy", [g.final for g in greedy], 1.0))
    return found


def _blind(runs: Sequence[Seed]) -> list[Contender]:
    found = []
    by_run = [r.controls.blind or [] for r in runs]
    for searches in zip(*by_run, strict=True):
        first = searches[0]
        limit = "same cap" if first.max_tokens else "as many tries as RL's model makes"
        kind = "with repeats" if first.repeats else "no repeats"
        spread = Spread.of_problems([s.by_problem for s in searches])
        found.append(Contender(f"(c) blind search, {kind}, {limit}", spread))
    return found


def _constant(runs: Sequence[Seed]) -> list[Contender]:
    constants = [r.controls.constant for r in runs if r.controls.constant]
    if len(constants) < len(runs):
        return []

    def of(task: str) -> Spread:
        return Spread.of_estimates(
            [Estimate.model_validate(c[task]["pass_at_1"]) for c in constants]
        )

    return [Contender("(d) best constant answer", of("countdown"), chain_sum=of("chain_sum"))]
