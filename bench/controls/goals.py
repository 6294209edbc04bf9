"""What the demo is meant to show, and whether it does."""

from collections.abc import Sequence

from controls.limits import merged, won
from controls.seeds import Contender, Seed
from controls.spread import markdown_table, percent, verdict

TOLERANCE, TIGHT, TIGHT_FRAC = 1e-4, 1e-5, 0.999


def goals_table(runs: Sequence[Seed], lines: Sequence[Contender]) -> str:
    """Goal, what was reached, yes or no."""
    rows = [*_lift(runs, lines), *_earned(runs, lines), *_agreement(runs)]
    cells = [[goal, got, "yes" if met else "no"] for goal, got, met in rows]
    return markdown_table(["goal", "reached", "met"], cells)


Goal = tuple[str, str, bool]


def _lift(runs: Sequence[Seed], lines: Sequence[Contender]) -> list[Goal]:
    base, rl = lines[0], lines[1]
    mean, worst = rl.countdown.mean, rl.countdown.worst
    majority = rl.countdown_majority.mean if rl.countdown_majority else 0.0
    chains = rl.chain_sum.mean if rl.chain_sum else 0.0
    before, after = (
        sum(side["countdown"].mean_response_tokens for side in sides)
        for sides in ([r.before for r in runs], [r.after for r in runs])
    )
    longest = max(r.wall_s for r in runs)
    start = percent(base.countdown.mean)
    found = [
        ("Countdown pass@1 of the base under 20", start, base.countdown.mean < 0.2),
        ("Countdown pass@1 at least 45 in the mean", percent(mean), mean >= 0.45),
        ("Countdown pass@1 at least 35 in the worst seed", percent(worst), worst >= 0.35),
        ("Countdown majority at least 65", percent(majority), majority >= 0.65),
        ("Countdown responses twice as long", f"{after / before:.2f}×", after >= 2 * before),
        ("Chain sums pass@1 at least 90", percent(chains), chains >= 0.9),
        ("All stages in 480 s, longest run", f"{longest:.0f} s", longest <= 480),
        ("Stretch: Countdown pass@1 60", percent(mean), mean >= 0.6),
        ("Stretch: all stages in 360 s", f"{longest:.0f} s", longest <= 360),
    ]
    greedy = _named(lines, "RL, greedy")
    if greedy:
        got = percent(greedy.countdown.mean)
        no_worse = greedy.countdown.mean >= mean
        found.append(("Stretch: greedy no worse than sampling", got, no_worse))
    return found


def _earned(runs: Sequence[Seed], lines: Sequence[Contender]) -> list[Goal]:
    rl, found = lines[1], list[Goal]()
    for start in ("(a)", "(b)"):
        other = _named(lines, start)
        if other:
            got = verdict(rl.countdown, other.countdown)
            found.append((f"Countdown: RL against {other.name}", got, got == "above"))
    settings = [
        *won("cap", merged([r.controls.caps for r in runs])),
        *won("tries", merged([r.controls.tries for r in runs])),
        *(
            c.name.removeprefix("(c) ")
            for c in lines
            if c.name.startswith("(c)") and verdict(rl.countdown, c.countdown) == "above"
        ),
    ]
    goal = "Countdown: above blind search in one setting or more, intervals disjoint"
    return [*found, (goal, "; ".join(settings) or "none", bool(settings))]


def _agreement(runs: Sequence[Seed]) -> list[Goal]:
    known = [r.controls.agreement for r in runs if r.controls.agreement]
    if not known:
        return []
    largest = max(a.max_difference for a in known)
    within = min(a.within_1e_5_frac for a in known)
    margins = [x.margin for a in known for x in a.rerouted]
    return [
        (f"Sampler = trainer: none off by {TOLERANCE:g}", f"{largest:.1e}", largest <= TOLERANCE),
        (
            f"Sampler = trainer: within {TIGHT:g} at least {100 * TIGHT_FRAC:g}",
            f"{100 * within:.3f}",
            within >= TIGHT_FRAC,
        ),
        (
            "Sampler = trainer: tokens with other experts are near-ties of the router",
            f"largest margin {max(margins):.1e}" if margins else "no such token",
            max(margins, default=0.0) <= TIGHT,
        ),
    ]


def _named(lines: Sequence[Contender], start: str) -> Contender | None:
    return next((c for c in lines if c.name.startswith(start)), None)
