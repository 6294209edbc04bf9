"""Chains of calls: how far models of `zero-chain-cpu` get on held-out questions of 5 to 24 steps, before and after RL.

    nalar demo zero-chain-cpu --threads 1 --seed 1 --run build/chain-1      # once for each seed
    PYTHONPATH=src python bench/chain.py --runs build/chain-1 build/chain-2 --out bench/results/chain-two-cores.json

lengths   test questions of 5, 10, 20 and 24 steps, as evaluations ask them: share right and calls a question, greedy
          and sampled at temperature 1, of the base (the peer) and of the model after RL.
loop      questions of 24 steps through the agent's loop, greedy, the model on this machine and behind `nalar serve`;
          each call is a turn that ends, its output a message, and the conversation asked anew with it.

Rows are means over the runs; `worst` and `best` are single runs. What is asked is the same for all. What was measured
of a run stands in its `chain.json`, and is not measured again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from nalar.agent.api import ChatApi
from nalar.agent.loop import Answered, Loop
from nalar.agent.speech import Asked, Speaker
from nalar.cli.chat_local import LocalSpeaker
from nalar.endpoint import EndpointConfig
from nalar.evals.config import EvalConfig
from nalar.pipeline.sampler import load_sampler, measure
from nalar.recipes.chain import zero_chain_cpu
from nalar.sandbox.answering import Answering
from nalar.sandbox.tools import open_tools
from nalar.tasks.registry import open_task
from record import Row, record
from serving import serving

LENGTHS = (5, 10, 20, 24)
RECIPE = zero_chain_cpu()
SEED = 11
"""Of questions: others than those that a run asks itself."""


class Figures(NamedTuple):
    """Of one model at one length."""

    right: float
    calls: float


def hailstones(steps: int) -> str:
    return f"hailstone,min_steps={steps},max_steps={steps}"


def lengths(folder: Path, problems: int, k: int) -> dict[str, Figures]:
    """By length and way of sampling: greedy once, or k times."""
    sampler, found = load_sampler(folder), {}
    for steps in LENGTHS:
        task = open_task(hailstones(steps), at="bench")
        for how, temperature, count in (("greedy", 0.0, 1), ("sampled", 1.0, k)):
            config = EvalConfig(
                problems=problems,
                k=count,
                temperature=temperature,
                max_tokens=RECIPE.evals.max_tokens,
            )
            came = measure(sampler, task, config, split="test", seed=SEED, tools=RECIPE.tools)
            found[f"{steps} steps, {how}"] = Figures(came.pass_at_1.mean, came.tool_calls)
            print(folder, steps, how, came.pass_at_1.mean, came.tool_calls, flush=True)
    return found


def looped(speaker: Speaker, questions: int) -> Figures:
    """Through the agent's loop, one question after the other, greedy."""
    task, tools = open_task(hailstones(LENGTHS[-1]), at="bench"), open_tools(RECIPE.tools)
    right, calls = [], []
    for problem in task.problems("test", questions, SEED):
        loop = Loop(
            speaker,
            [{"role": "user", "content": problem.prompt}],
            Asked(temperature=0.0, max_tokens=64, tools=tools),
            Answering(tools, RECIPE.tools),
        )
        *_, said = loop.run()
        assert isinstance(said, Answered)
        right.append(task.score(problem, said.answer).correct)
        calls.append(len(said.calls))
    return Figures(fmean(right), fmean(calls))


def served(folder: Path, questions: int) -> Figures:
    with serving(folder) as (port, _, _):
        url = f"http://127.0.0.1:{port}/v1"
        name = ChatApi(EndpointConfig(base_url=url, model="?")).models()[0]
        return looped(ChatApi(EndpointConfig(base_url=url, model=name)), questions)


def measured(run: Path, asked: argparse.Namespace) -> dict[str, Figures]:
    """All of one run, by name; that of the base begins with `base: `."""
    kept = run / "chain.json"
    if kept.is_file():
        return {name: Figures(*one) for name, one in json.loads(kept.read_text()).items()}
    base, end = max((run / "checkpoints").glob("pretrain-*")), run / "model"
    found = {f"base: {name}": one for name, one in lengths(base, asked.problems, asked.k).items()}
    found |= lengths(end, asked.problems, asked.k)
    speaker = LocalSpeaker.load(end, None, with_tools=True)
    found["the loop, 24 steps, greedy"] = looped(speaker, asked.questions)
    found["the loop over HTTP, 24 steps, greedy"] = served(end, asked.questions)
    kept.write_text(json.dumps(found))
    return found


def rows(name: str, runs: Sequence[dict[str, Figures]]) -> list[Row]:
    """One figure over all runs; the base's beside it, where there is one."""
    after = [run[name] for run in runs]
    before = [run[f"base: {name}"] for run in runs if f"base: {name}" in run]

    def row(what: str, unit: str, of: int) -> Row:
        peer = ("the base", fmean(one[of] for one in before)) if before else (None, None)
        return Row(f"{name}, {what}", fmean(one[of] for one in after), unit, *peer)

    made = [row("right", "of questions", 0), row("calls", "a question", 1)]
    for which, pick in (("worst", min), ("best", max)) if len(after) > 1 else ():
        made.append(Row(f"{name}, right, {which} run", pick(after)[0], "of questions"))
    return made


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=48, help="of each length")
    parser.add_argument("--k", type=int, default=2, help="samples of each at temperature 1")
    parser.add_argument("--questions", type=int, default=10, help="of 24 steps, through the loop")
    asked = parser.parse_args(args)
    torch.set_num_threads(1)
    runs = [measured(run, asked) for run in asked.runs]
    names = [name for name in runs[0] if not name.startswith("base: ")]
    command = f"python bench/chain.py --runs ({len(runs)} seeds) --problems {asked.problems} "
    command += f"--k {asked.k} --questions {asked.questions} --out ..."
    record(asked.out, command, [row for name in names for row in rows(name, runs)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
