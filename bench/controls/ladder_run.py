"""One run of the ladder and its controls, within a limit of seconds: `python -m controls.ladder_run ...`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import lift
from controls.finished import Finished, PlainObserver, say
from controls.results import FILE, Controls
from nalar.config import UserError
from nalar.machine import environment
from nalar.pipeline.state import Outcome
from nalar.pipeline.zero import run_zero
from nalar.recipes.registry import RECIPES
from nalar.run import Run

REFUSED = "refused.txt"
"""In a run's folder: why its recipe cannot run on this machine."""
DONE = "controls_done.txt"
"""In a run's folder: nothing is left to do."""
AS_LONG_AS_RL = frozenset({"more_pretraining", "rejection_sampling_sft"})
LEFT_OUT = frozenset({"agreement"})
"""Of sampler and trainer: it says nothing of what was learned."""
SHORT_S = 30.0
"""What any other part may take."""


def go_on(recipe: str, seed: int, path: Path, seconds: float, threads: int) -> None:
    """From wherever the run is. The parts of the controls are not begun where the time is too short for them."""
    until = time.monotonic() + seconds
    torch.set_num_threads(threads)
    config = RECIPES[recipe]().model_copy(update={"seed": seed, "threads": threads})
    command = f"python bench/ladder.py --recipes {recipe} --seeds {seed}"
    run = Run.create(
        path.parent,
        path.name,
        config.model_dump(),
        command,
        seed,
        resume=(path / "run.json").exists(),
    )
    outcome = run_zero(config, run, PlainObserver(), lambda: time.monotonic() > until)
    if outcome is Outcome.FINISHED:
        _controls(Finished.open(path), until)
    elif outcome is not Outcome.STOPPED:
        (path / REFUSED).write_text(f"ended before RL: {outcome.value}")


def _controls(finished: Finished, until: float) -> None:
    """What the run's controls.json lacks, part by part."""
    target = finished.run.path / FILE
    done = Controls.model_validate_json(target.read_text()) if target.exists() else Controls()
    for name, compute in lift.parts_of(finished).items():
        if name in LEFT_OUT or getattr(done, name) is not None:
            continue
        needed = SHORT_S + (_rl_s(finished) if name in AS_LONG_AS_RL else 0.0)
        if time.monotonic() + needed > until:
            say(f"{name}: {needed:.0f} s are not left")
            return
        say(name)
        done = done.model_copy(
            update={
                "commit": environment().commit,
                "threads": torch.get_num_threads(),
                "rl_flops": finished.rl_flops,
                **compute(finished),
            }
        )
        finished.run.write_json(FILE, done.model_dump())
    (finished.run.path / DONE).write_text("")


def _rl_s(finished: Finished) -> float:
    """A part at the FLOPs of RL takes about as long as RL did, and a measurement."""
    totals = {receipt.name: receipt.wall_s for receipt in finished.run.stage_totals()}
    return 1.2 * totals["rl"] + totals["evaluate_final"]


def main(args: Sequence[str]) -> int:
    recipe, seed, path, seconds, threads = args
    try:
        go_on(recipe, int(seed), Path(path), float(seconds), int(threads))
    except UserError as error:
        say(str(error))
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / REFUSED).write_text(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
