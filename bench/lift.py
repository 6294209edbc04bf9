"""What RL did to the demo's model, and what else could have done it: the table of docs/lift.md.

From the root of the repository, after `make demo` (recipe zero-cpu) with three seeds:

    for seed in 0 1 2; do nalar demo --seed $seed --run runs/seed$seed; done
    for seed in 0 1 2; do python bench/lift.py controls runs/seed$seed; done
    for seed in 0 1 2; do python bench/lift.py dense --seed $seed --run runs/dense$seed; done
    python bench/lift.py table runs/seed0 runs/seed1 runs/seed2 \\
        --dense runs/dense0 runs/dense1 runs/dense2 \\
        --out docs/lift.md --json bench/results/lift-two-cores.json

`controls` writes RUN/controls.json part by part and goes on where it was stopped; `--only PART` does one part, anew.
`dense` runs the recipe with a dense model of equal active size. `table` only reads, and replaces what stands between
its two markers in docs/lift.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from controls import search
from controls.agreement import agreement
from controls.dense import dense_of
from controls.equal_flops import more_pretraining, rejection_sampling_sft
from controls.finished import Finished, PlainObserver, say
from controls.results import FILE, Controls
from controls.sampled import base_forced, greedy
from controls.table import write_table
from nalar.config import UserError, lookup
from nalar.machine import environment
from nalar.pipeline.zero import run_zero
from nalar.plan.model import count_parameters
from nalar.recipes.registry import RECIPES
from nalar.run import Run


def _greedy_and_caps(finished: Finished) -> dict[str, Any]:
    measured, samples = greedy(finished)
    if not finished.searches:
        return {"greedy": measured}
    return {"greedy": measured, "caps": search.caps_table(finished, samples["countdown"])}


OF_SEARCH = frozenset({"blind", "search", "tries", "base_forced"})
"""Parts that read marked tries: of runs that were measured on Countdown."""
# From fast to slow. A part gives one or more fields of Controls, the first of the same name.
PARTS: dict[str, Callable[[Finished], dict[str, Any]]] = {
    "blind": lambda f: {"blind": search.blind_searches(f)},
    "constant": lambda f: {"constant": f.run.read_json("baselines.json")["constant"]},
    "guess": lambda f: {"guess": f.run.read_json("baselines.json")["guess"]},
    "search": lambda f: {"search": search.search_pair(f)},
    "tries": lambda f: {"tries": search.tries_table(f)},
    "agreement": lambda f: {"agreement": agreement(f)},
    "greedy": _greedy_and_caps,
    "base_forced": lambda f: {"base_forced": base_forced(f)},
    "more_pretraining": lambda f: {"more_pretraining": more_pretraining(f)},
    "rejection_sampling_sft": lambda f: {"rejection_sampling_sft": rejection_sampling_sft(f)},
}


def parts_of(finished: Finished) -> dict[str, Callable[[Finished], dict[str, Any]]]:
    """Those that mean something for the run's tasks."""
    return {n: part for n, part in PARTS.items() if finished.searches or n not in OF_SEARCH}


def controls(path: Path, *, threads: int | None, only: str | None) -> None:
    """Compute what RUN/controls.json lacks, or one part anew."""
    finished = Finished.open(path)
    threads = threads or finished.config.threads
    torch.set_num_threads(threads)
    target = path / FILE
    done = Controls.model_validate_json(target.read_text()) if target.exists() else Controls()
    for name, compute in parts_of(finished).items():
        if only != name if only else getattr(done, name) is not None:
            continue
        say(f"{path}: {name}")
        here = {"commit": environment().commit, "threads": threads, "rl_flops": finished.rl_flops}
        done = done.model_copy(update=here | compute(finished))
        finished.run.write_json(FILE, done.model_dump())
    say(f"wrote {target}")


def dense(recipe: str, seed: int, path: Path, *, threads: int | None, resume: bool) -> None:
    """The recipe with a dense model; goes on to RL whatever the probe says, so that there is a number."""
    config = lookup(recipe, RECIPES, at="--recipe")()
    model = dense_of(config.model)
    for name, one in (("mixture", config.model), ("dense", model)):
        count = count_parameters(one)
        say(f"{name}: {count.active_params} active of {count.total_params} parameters")
    config = config.model_copy(
        update={"model": model, "seed": seed, "threads": threads or config.threads}
    )
    command = " ".join(["python", *sys.argv])
    run = Run.create(path.parent, path.name, config.model_dump(), command, seed, resume=resume)
    run_zero(config, run, PlainObserver(), lambda: False, force=True)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("controls", help="compute RUN/controls.json")
    one.add_argument("run", type=Path)
    one.add_argument("--threads", type=int, help="the run's own where not given")
    one.add_argument("--only", choices=PARTS)
    two = verbs.add_parser("dense", help="run the recipe with a dense model")
    two.add_argument("--recipe", default="zero-cpu")
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--run", type=Path, required=True)
    two.add_argument("--threads", type=int, help="the recipe's own where not given")
    two.add_argument("--resume", action="store_true")
    three = verbs.add_parser("table", help="write docs/lift.md and its JSON form")
    three.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    three.add_argument("--dense", type=Path, nargs="*", default=[], metavar="RUN")
    three.add_argument("--out", type=Path, default=Path("docs/lift.md"))
    three.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args(args)
    try:
        if asked.verb == "controls":
            controls(asked.run, threads=asked.threads, only=asked.only)
        elif asked.verb == "dense":
            dense(asked.recipe, asked.seed, asked.run, threads=asked.threads, resume=asked.resume)
        else:
            write_table(asked.runs, asked.dense, asked.out, asked.json)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
