"""Model and blind search under one limit after another, over all seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from controls.results import LimitRow
from controls.spread import Spread, markdown_table, mean_with_interval, verdict


@dataclass(frozen=True)
class Limit:
    """One limit."""

    limit: int
    base: Spread
    final: Spread
    final_greedy: Spread | None
    blind_repeats: Spread
    blind_no_repeats: Spread


def merged(tables: Sequence[list[LimitRow] | None]) -> list[Limit]:
    """One table from those of the seeds; empty where one of them was not computed."""
    known = [table for table in tables if table is not None]
    if len(known) < len(tables):
        return []
    found = []
    for rows in zip(*known, strict=True):
        greedy = [r.final_greedy.by_problem for r in rows if r.final_greedy]
        found.append(
            Limit(
                limit=rows[0].limit,
                base=Spread.of_problems([r.base.by_problem for r in rows]),
                final=Spread.of_problems([r.final.by_problem for r in rows]),
                final_greedy=Spread.of_problems(greedy) if greedy else None,
                blind_repeats=Spread.of_problems([r.blind_repeats.by_problem for r in rows]),
                blind_no_repeats=Spread.of_problems([r.blind_no_repeats.by_problem for r in rows]),
            )
        )
    return found


def limits_table(name: str, limits: Sequence[Limit]) -> str:
    if not limits:
        return "Not computed for every seed."
    has_greedy = limits[0].final_greedy is not None
    rows = [
        [
            str(one.limit),
            mean_with_interval(one.base),
            mean_with_interval(one.final),
            *([mean_with_interval(one.final_greedy)] if has_greedy else []),
            mean_with_interval(one.blind_repeats),
            mean_with_interval(one.blind_no_repeats),
            f"{verdict(one.final, one.blind_repeats)}, {verdict(one.final, one.blind_no_repeats)}",
        ]
        for one in limits
    ]
    greedy_head = ["RL, greedy"] if has_greedy else []
    blind_head = ["blind, with repeats", "blind, no repeats"]
    head = [name, "base", "RL", *greedy_head, *blind_head, "RL against the two"]
    return markdown_table(head, rows)


def won(unit: str, limits: Sequence[Limit]) -> Iterator[str]:
    """Settings in which RL's model, sampled or greedy, is above blind search with disjoint intervals."""
    for one in limits:
        for kind, blind in (
            ("with repeats", one.blind_repeats),
            ("no repeats", one.blind_no_repeats),
        ):
            if verdict(one.final, blind) == "above":
                yield f"{unit} {one.limit}, {kind}"
            if one.final_greedy and verdict(one.final_greedy, blind) == "above":
                yield f"{unit} {one.limit}, greedy, {kind}"
