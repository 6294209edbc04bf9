"""Quality at equal tokens and at equal time: MuonClip and AdamW; experts and dense; multi-token prediction or not.

From the root of the repository, one thread, an hour and a half of one core in all, and resumable at any run:

    PYTHONPATH=src python bench/quality.py all --runs build/quality       # every sweep and every run that is missing
    PYTHONPATH=src python bench/quality_report.py --runs build/quality    # results, plots, and the tables of docs/

or one run alone, which is all that `all` does many times:

    PYTHONPATH=src python bench/quality.py train --arm adamw --lr 0.004 --seed 0 --tokens 960000 --runs build/quality

The model is the demo's, and so are its corpus and its schedule, whose decay ends with the budget. Each arm has a sweep
of its own (seed 0, half the budget), widened until the best rate has a worse one on each side. Then three seeds run at
that rate to half the budget and to all of it; arms of one seed take each step in turn in one process, so that what
slows a core for a while slows all of them. Time is that of the process on a CPU, in steps alone.

Losses within a run are at a rate that has not fallen yet, so only ends of runs are compared.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import torch

from nalar.data.corpora.procedural import documents
from nalar.data.packing import Packed, Packing
from nalar.data.tokenizer import Tokenizer
from nalar.disk import write_atomic
from nalar.kernels.logprobs import token_logprobs
from nalar.machine import environment
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.optim.muonclip import MuonClip
from nalar.optim.schedule import lr_factor
from nalar.plan.model import count_parameters, flops_per_token
from nalar.recipes.zero import zero_cpu
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step

RECIPE = zero_cpu()
STEP_TOKENS = RECIPE.packing.step_tokens
TOKENS = 1250 * STEP_TOKENS
HALF_TOKENS = TOKENS // 2
SEEDS = (0, 1, 2)
CURVE_POINTS = 10
HELD_OUT_BATCHES = 24
HELD_OUT_SEED = 1_000_003
CONTEXT_TOKENS = 32
DENSE_WIDTH = 162
"""Hidden numbers of each dense layer for as many active parameters, the router's among them, as with experts."""
WIDENED_AT_MOST = 3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Arm:
    """What is compared; `lr` of it is AdamW's own rate, or Muon's with the recipe's share of it for AdamW's part."""

    optimizer: Literal["muonclip", "muon", "adamw"]
    rates: tuple[float, ...]
    model: dict[str, float] = field(default_factory=dict)
    mtp_loss_weight: float = 0.0

    def model_config(self) -> ModelConfig:
        return ModelConfig(**(RECIPE.model.model_dump() | self.model))

    def optim_config(self, lr: float) -> OptimConfig:
        recipe = RECIPE.pretrain.optim
        tau = recipe.qk_clip_tau if self.optimizer == "muonclip" else None
        rates = {"lr": lr, "adamw_lr": lr * recipe.adamw_lr / recipe.lr}
        if self.optimizer == "adamw":
            rates = {"lr": lr, "adamw_lr": lr}
        return recipe.model_copy(update={"name": self.optimizer, "qk_clip_tau": tau} | rates)


MUON_RATES = (0.0035, 0.007, 0.014)
ADAMW_RATES = (0.002, 0.004, 0.008)
ARMS = {
    "muonclip": Arm("muonclip", MUON_RATES),
    "adamw": Arm("adamw", ADAMW_RATES),
    "adamw_init": Arm("adamw", ADAMW_RATES, {"initializer_range": 0.02}),
    "dense": Arm(
        "muonclip",
        MUON_RATES,
        {"n_routed_experts": 0, "num_experts_per_tok": 0, "intermediate_size": DENSE_WIDTH},
    ),
    "mtp": Arm("muonclip", MUON_RATES, {"num_nextn_predict_layers": 1}, mtp_loss_weight=0.3),
    "muon": Arm("muon", MUON_RATES),
}


BASELINE = "muonclip"


class Data:
    """Batches of a seed, the same for every arm, and the documents that no step trains on."""

    def __init__(self) -> None:
        sample = islice(documents(RECIPE.corpus, random.Random(0)), 4000)
        self.tokenizer = Tokenizer.train(sample, RECIPE.tokenizer)
        held_out = self.packing(HELD_OUT_SEED)
        self.held_out = [on_device(held_out.batch(i), CPU) for i in range(HELD_OUT_BATCHES)]

    def packing(self, seed: int) -> Packing:
        return Packing(self.tokenizer, RECIPE.corpus, RECIPE.packing, seed)


class Trainee:
    """One arm at one rate from one seed, step by step."""

    def __init__(self, name: str, lr: float, seed: int) -> None:
        self.name, self.lr, self.seed, self.arm = name, lr, seed, ARMS[name]
        self.model = Transformer(self.arm.model_config())
        self.model.initialize(seed)
        self.optimizer = MuonClip(self.model.named_parameters(), self.arm.optim_config(lr))
        self.step_cpu_s = list[float]()
        self.losses, self.norms = list[float](), list[float]()
        self.skipped, self.clipped_heads = list[int](), 0
        self.curve = list[tuple[int, float]]()

    def step(self, packed: Packed, factor: float) -> None:
        batch = on_device(packed, CPU)
        started = time.process_time()
        outcome = pretrain_step(
            self.model,
            self.optimizer,
            [batch],
            lr_factor=factor,
            balance_speed=RECIPE.pretrain.balance_speed * factor,
            mtp_loss_weight=self.arm.mtp_loss_weight,
        )
        self.step_cpu_s.append(time.process_time() - started)
        metrics = outcome.metrics()
        self.losses.append(metrics.loss)
        self.norms.append(metrics.grad_norm)
        self.clipped_heads += metrics.clipped_heads
        if metrics.skipped:
            self.skipped.append(len(self.losses) - 1)

    @torch.no_grad()
    def measure(self, data: Data) -> None:
        """The loss of the next token alone, so that multi-token prediction is judged by the same."""
        losses = list[float]()
        for batch in data.held_out:
            hidden = self.model(batch.ids_N, batch.documents)
            logprobs_N, _ = token_logprobs(
                hidden.states, self.model.head_weight, batch.targets_N, entropy=False
            )
            losses.append(-float(logprobs_N.mean()))
        self.curve.append((len(self.losses) * STEP_TOKENS, fmean(losses)))

    def result(self, schedule: ScheduleConfig, companions: Sequence[str]) -> dict[str, Any]:
        where = environment()
        config = self.arm.model_config()
        count = count_parameters(config)
        return {
            "arm": self.name,
            "lr": self.lr,
            "seed": self.seed,
            "tokens": self.curve[-1][0],
            "loss": self.curve[-1][1],
            "curve": self.curve,
            "cpu_s": sum(self.step_cpu_s),
            "step_cpu_s": median(self.step_cpu_s),
            "in_turn_with": list(companions),
            "skipped": self.skipped,
            "clipped_heads": self.clipped_heads,
            "total_params": count.total_params,
            "mtp_params": count.mtp_params,
            "active_params": count.active_params,
            "train_flops_per_token": flops_per_token(
                config, CONTEXT_TOKENS, backward=True, with_mtp=self.arm.mtp_loss_weight > 0
            ),
            "config": {
                "model": config.model_dump(),
                "optim": self.arm.optim_config(self.lr).model_dump(),
                "schedule": schedule.model_dump(),
                "mtp_loss_weight": self.arm.mtp_loss_weight,
            },
            "commit": f"{where.commit}{' with edits' if where.dirty else ''}",
            "train_losses": [round(x, 6) for x in self.losses],
            "grad_norms": [round(x, 6) for x in self.norms],
        }


def path_of(runs: Path, name: str, lr: float, seed: int, tokens: int) -> Path:
    return runs / f"{name}-{lr:g}-seed{seed}-{tokens}.json"


def train(runs: Path, data: Data, rates: dict[str, float], seed: int, tokens: int) -> None:
    """Arms at their rates, each step in turn; those whose file is there are left out."""
    wanted = [(n, r) for n, r in rates.items() if not path_of(runs, n, r, seed, tokens).exists()]
    trainees = [Trainee(name, lr, seed) for name, lr in wanted]
    if not trainees:
        return
    schedule, packing = RECIPE.pretrain.schedule, data.packing(seed)
    steps = tokens // STEP_TOKENS
    points = {round(steps * i / CURVE_POINTS) for i in range(1, CURVE_POINTS + 1)}
    for step in range(steps):
        packed = packing.batch(step)
        for trainee in trainees:
            trainee.step(packed, lr_factor(schedule, step, steps))
            if step + 1 in points:
                trainee.measure(data)
    runs.mkdir(parents=True, exist_ok=True)
    for trainee in trainees:
        result = trainee.result(schedule, [name for name, _ in wanted])
        path = path_of(runs, trainee.name, trainee.lr, seed, tokens)
        write_atomic(path, (json.dumps(result) + "\n").encode())
        print(
            f"{path.stem}: loss {result['loss']:.4f}, {result['step_cpu_s'] * 1e3:.1f} ms a step, "
            f"skipped {result['skipped']}, clipped heads {result['clipped_heads']}",
            file=sys.stderr,
            flush=True,
        )


def loss_of(runs: Path, name: str, lr: float, seed: int, tokens: int) -> float:
    return float(json.loads(path_of(runs, name, lr, seed, tokens).read_bytes())["loss"])


def sweep(runs: Path, data: Data, name: str) -> float:
    """The best rate: seed 0, half the budget; wider while the best lies at an end."""
    losses = dict[float, float]()
    ahead = list(ARMS[name].rates)
    for _ in range(WIDENED_AT_MOST + 1):
        for lr in ahead:
            train(runs, data, {name: lr}, 0, HALF_TOKENS)
            losses[lr] = loss_of(runs, name, lr, 0, HALF_TOKENS)
        ahead = wider(losses)
        if not ahead:
            break
    return best_rate(losses)


def best_rate(losses: dict[float, float]) -> float:
    return min(losses, key=lambda lr: losses[lr] if math.isfinite(losses[lr]) else math.inf)


def wider(losses: dict[float, float]) -> list[float]:
    """The rate beyond the end at which the best lies; none where it lies within."""
    best = best_rate(losses)
    if best == max(losses):
        return [float(f"{2 * best:.3g}")]
    if best == min(losses):
        return [float(f"{best / 2:.3g}")]
    return []


def train_all(runs: Path, arms: Sequence[str]) -> None:
    data = Data()
    rates = {name: sweep(runs, data, name) for name in dict.fromkeys((BASELINE, *arms))}
    print(f"rates: {rates}", file=sys.stderr, flush=True)
    for tokens in (TOKENS, HALF_TOKENS):
        for seed in SEEDS:
            train(runs, data, rates, seed, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality at equal tokens and at equal time.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("train", help="one arm, one rate, one seed")
    one.add_argument("--arm", choices=list(ARMS), required=True)
    one.add_argument("--lr", type=float, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--tokens", type=int, default=TOKENS)
    everything = verbs.add_parser("all", help="every sweep and every run that is missing")
    everything.add_argument(
        "--arms", choices=list(ARMS), nargs="+", default=[name for name in ARMS if name != "muon"]
    )
    for verb in (one, everything):
        verb.add_argument("--runs", type=Path, default=Path("build/quality"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.verb == "train":
        train(args.runs, Data(), {args.arm: args.lr}, args.seed, args.tokens)
    else:
        train_all(args.runs, args.arms)


if __name__ == "__main__":
    main()
